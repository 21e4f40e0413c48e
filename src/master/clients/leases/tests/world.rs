//! Leases of a master, and a worker that acts as the test orders.

mod turns;

use super::*;

/// A lease as the worker has it.
#[derive(Debug)]
struct Held {
    id: ClientId,
    lease_number: u32,
    socket: File,
    is_unix: bool,
}

/// A master's leases, a worker that acts as the test orders, and their clients.
pub(super) struct World {
    pub(super) shm: MasterShm,
    worker: WorkerShm,
    pub(super) leases: Leases,
    pub(super) unleased: Vec<Unleased>,
    pub(super) over: BTreeSet<ClientId>,
    pub(super) lives: BTreeMap<ClientId, Life>,
    held: BTreeMap<u32, Held>,
    /// Leases that are over: the worker uses their slots no longer, but keeps the clients until the master has closed
    /// the slots.
    kept: BTreeMap<u32, Held>,
    /// The lease number of each client that the worker received last.
    latest: BTreeMap<ClientId, u32>,
    /// Slots that the worker has released or closed, unread by the master.
    said: Vec<(u32, bool)>,
    /// Slots whose clients the master has revoked, unconfirmed by the worker.
    behind: BTreeSet<u32>,
    /// The slot of a turn that will not end, and whether its method is running.
    dying: Option<(u32, bool)>,
    /// All bytes that the worker ever wrote, and the leases that it has received.
    sum: Writes,
    received: u64,
}

impl World {
    pub(super) fn new() -> World {
        let (shm, worker) = shms();
        World {
            shm,
            worker,
            leases: Leases::new(SLOTS),
            unleased: Vec::new(),
            over: BTreeSet::new(),
            lives: BTreeMap::new(),
            held: BTreeMap::new(),
            kept: BTreeMap::new(),
            latest: BTreeMap::new(),
            said: Vec::new(),
            behind: BTreeSet::new(),
            dying: None,
            sum: Writes::default(),
            received: 0,
        }
    }

    pub(super) fn act(&mut self, act: &Act) {
        match act {
            Act::Accept { is_unix } => {
                let id = ClientId(self.lives.len() as u64);
                let (client, life) = Life::begin(id, *is_unix);
                self.lives.insert(id, life);
                let mut unleased = Unleased::new(client, 1);
                let offsets = unleased.client.rare.offsets();
                (unleased.bytes.in_base, unleased.bytes.out_base) =
                    (offsets.received, offsets.sent);
                self.unleased.push(unleased);
            }
            Act::Send(client, count) => self.life(client, |life| life.send((*count).into())),
            Act::Receive(client) => self.life(client, Life::receive),
            Act::Give => {
                if self.leases.has_free_slot() && !self.unleased.is_empty() {
                    let unleased = self.unleased.remove(0);
                    self.leases
                        .grant(unleased, &self.shm)
                        .expect("all bytes have a region");
                }
            }
            Act::Flush => self.flush(),
            Act::FlushFails => {
                if let Some(batch) = self.leases.next_batch() {
                    let back = self.leases.withdraw(batch, &self.shm);
                    back.into_iter()
                        .for_each(|recovered| self.take_in(recovered));
                }
            }
            // The master revokes no lease before all leases are sent.
            Act::Take(slot) => {
                self.flush();
                self.take(slot.index(SLOTS as usize) as u32);
            }
            Act::TakeAll => {
                self.flush();
                let slots = |leases: &Leases| {
                    leases
                        .iter()
                        .map(|(slot, _)| slot)
                        .collect::<BTreeSet<u32>>()
                };
                let before = slots(&self.leases);
                let taken = self.leases.revoke_all(&self.shm);
                self.behind.extend(before.difference(&slots(&self.leases)));
                taken
                    .into_iter()
                    .for_each(|recovered| self.take_in(recovered));
            }
            Act::Listen => self.listen(),
            Act::Die => self.die(),
            // All other actions need the worker, which is as good as dead.
            _ if self.dying.is_some() => {}
            Act::Turn(slot, plan) => {
                if let Some(slot) = self.pick(slot) {
                    self.turn(slot, plan);
                }
            }
            Act::Depart(slot, dies) => {
                if let Some(slot) = self.pick(slot) {
                    self.depart(slot, *dies);
                }
            }
            Act::Answer(slot, sizes, again, dies_at) => {
                if let Some(slot) = self.pick_away(slot) {
                    self.answer(slot, *sizes, *again, *dies_at);
                }
            }
            Act::Look => {
                let held = self.held.iter();
                let taken = held.filter(|(slot, held)| self.must_be_kept(**slot, held));
                let taken: Vec<u32> = taken.map(|(slot, _)| *slot).collect();
                taken.into_iter().for_each(|slot| self.keep(slot));
                let kept = self.kept.iter();
                let closed = kept.filter(|(slot, kept)| !self.must_be_kept(**slot, kept));
                let closed: Vec<u32> = closed.map(|(slot, _)| *slot).collect();
                for slot in closed {
                    self.kept.remove(&slot);
                    self.said.push((slot, false));
                }
            }
            Act::GiveUp(slot) => {
                if let Some(slot) = self.pick(slot).filter(|slot| !self.is_away(*slot)) {
                    // Otherwise the master has revoked the lease before.
                    let lease_number = self.held[&slot].lease_number;
                    let shared_slot = self.worker.slot(slot).expect("held");
                    if shared_slot.revoke(lease_number).is_some() {
                        self.said.push((slot, false));
                    }
                    self.keep(slot);
                }
            }
            Act::Close(slot) => {
                if let Some(slot) = self.pick(slot) {
                    let (shared_slot, lease_number) = (
                        self.worker.slot(slot).expect("held"),
                        self.held[&slot].lease_number,
                    );
                    let is_ours = shared_slot.claim_away(lease_number)
                        || shared_slot.claim(lease_number).is_some();
                    if is_ours {
                        shared_slot.release(lease_number, LeaseState::Closed);
                        self.held.remove(&slot);
                        self.said.push((slot, true));
                    } else {
                        self.keep(slot);
                    }
                }
            }
        }
    }

    fn life(&mut self, index: &Index, then: impl FnOnce(&mut Life)) {
        let there: Vec<ClientId> = self
            .lives
            .keys()
            .filter(|id| !self.over.contains(id))
            .copied()
            .collect();
        if !there.is_empty() {
            then(self.lives.get_mut(index.get(&there)).expect("there"));
        }
    }

    fn pick(&self, index: &Index) -> Option<u32> {
        let held: Vec<u32> = self.held.keys().copied().collect();
        (!held.is_empty()).then(|| *index.get(&held))
    }

    fn pick_away(&self, index: &Index) -> Option<u32> {
        let held = self.held.keys().copied();
        let away: Vec<u32> = held.filter(|slot| self.is_away(*slot)).collect();
        (!away.is_empty()).then(|| *index.get(&away))
    }

    fn is_away(&self, slot: u32) -> bool {
        let lease = self.worker.slot(slot).and_then(|slot| slot.lease());
        lease.is_some_and(|lease| lease.state == LeaseState::Away)
    }

    /// Returns whether the worker must keep a client whose lease may be over.
    fn must_be_kept(&self, slot: u32, held: &Held) -> bool {
        let shared_slot = self.worker.slot(slot).expect("it is held");
        shared_slot.must_be_kept(held.lease_number)
    }

    /// The worker finds that a lease is over.
    fn keep(&mut self, slot: u32) {
        let held = self.held.remove(&slot).expect("it is held");
        self.kept.insert(slot, held);
    }

    pub(super) fn flush(&mut self) {
        while let Some(batch) = self.leases.next_batch() {
            for (lease, socket) in self.leases.records(&batch) {
                let is_still_used = self.said.iter().any(|(slot, _)| *slot == lease.record.slot);
                assert!(
                    !is_still_used && !self.behind.contains(&lease.record.slot),
                    "slot {}",
                    lease.record.slot
                );
                let socket = File::from(socket.try_clone_to_owned().expect("dup"));
                let is_unix = matches!(lease.peer, Peer::Unix { .. });
                let held = Held {
                    id: lease.record.client,
                    lease_number: lease.record.lease_number,
                    socket,
                    is_unix,
                };
                assert!(
                    self.held.insert(lease.record.slot, held).is_none(),
                    "slot {} is leased twice",
                    lease.record.slot
                );
                let number = lease.record.lease_number;
                self.latest.insert(lease.record.client, number);
                self.received += 1;
            }
            self.leases.close_left_places(&batch);
        }
    }

    fn take(&mut self, slot: u32) {
        if let Some(recovered) = self.leases.revoke(slot, &self.shm) {
            assert!(self.behind.insert(slot), "slot {slot} was taken before");
            assert_ne!(
                self.dying.map(|(dying, _)| dying),
                Some(slot),
                "it is in a turn"
            );
            self.take_in(recovered);
        }
    }

    fn take_in(&mut self, recovered: Recovered) {
        let unleased =
            recovered.unwrap_or_else(|(reason, client)| panic!("{} is lost: {reason}", client.id));
        self.lives[&unleased.client.id].check(&unleased);
        self.unleased.push(unleased);
    }

    fn listen(&mut self) {
        for (slot, is_closed) in mem::take(&mut self.said) {
            let was_behind = self.behind.remove(&slot);
            let report = if is_closed {
                self.leases.closed(slot, &self.shm)
            } else {
                self.leases.released(slot, &self.shm)
            };
            match report {
                SlotReport::AlreadyRevoked => assert!(was_behind && !is_closed),
                SlotReport::Ended(client, _) => assert!(is_closed && self.over.insert(client.id)),
                SlotReport::GivenUp(recovered) => {
                    assert!(!was_behind && !is_closed);
                    self.take_in(recovered);
                    // The worker reports again when the slot is closed.
                    self.behind.insert(slot);
                }
                SlotReport::Contradiction => panic!("the worker reports slot {slot} correctly"),
            }
        }
    }

    pub(super) fn die(&mut self) {
        let (shm, worker) = shms();
        let old = mem::replace(&mut self.shm, shm);
        let leases = mem::replace(&mut self.leases, Leases::new(SLOTS));
        let before = leases.clients();
        let running = self.dying.take().filter(|(_, is_running)| *is_running);
        let running = running.map(|(slot, _)| slot);
        let mut interrupted = Vec::new();
        for (slot, held) in &self.held {
            let lease = self.worker.slot(*slot).and_then(|slot| slot.lease());
            let is_away = lease.is_some_and(|lease| lease.state == LeaseState::Away);
            if is_away || running == Some(*slot) {
                let life = self.lives.get_mut(&held.id).expect("there");
                life.faults = life.faults.saturating_add(1);
                interrupted.push(held.id);
            }
        }
        self.worker = worker;
        let recovery = leases.recover_clients(&old, Some(self.sum), false);
        assert!(recovery.lost.is_empty(), "{:?}", recovery.lost);
        assert_eq!(before, recovery.recovered.len() + recovery.ended.len());
        let mut faults = Vec::new();
        for (unleased, request) in recovery.recovered {
            if let Some(request) = request {
                assert_eq!(
                    (request.method, request.crash_count),
                    (METHOD, unleased.flags.crash_count)
                );
                faults.push(unleased.client.id);
            }
            self.take_in(Ok(unleased));
        }
        assert_eq!(faults, interrupted);
        self.over
            .extend(recovery.ended.iter().map(|(client, _)| client.id));
        (self.sum, self.received) = (Writes::default(), 0);
        self.held.clear();
        self.kept.clear();
        self.said.clear();
        self.behind.clear();
    }

    /// Checks that every client is in exactly one place, and that all counts are right.
    pub(super) fn check(&self) {
        let leased: Vec<ClientId> = self.leases.iter().map(|(_, client)| client.id).collect();
        assert_eq!(self.leases.clients(), leased.len());
        let unleased = self.unleased.iter().map(|unleased| unleased.client.id);
        let mut all: Vec<ClientId> = leased
            .iter()
            .copied()
            .chain(unleased)
            .chain(self.over.iter().copied())
            .collect();
        all.sort_unstable_by_key(|id| id.0);
        assert_eq!(all, self.lives.keys().copied().collect::<Vec<_>>());
        assert_eq!(
            self.leases.has_free_slot(),
            leased.len() + self.behind.len() < SLOTS as usize
        );
        assert_eq!(
            self.leases.granted(),
            self.received + self.leases.outbox.len() as u64
        );
        self.check_kept();
    }

    /// Checks that the worker keeps each client that only the master has, and no other: if the master were killed now,
    /// the worker would pack it, once.
    fn check_kept(&self) {
        for (slot, held) in self.held.iter().chain(&self.kept) {
            let lease = self.worker.slot(*slot).and_then(|slot| slot.lease());
            let lease = lease.expect("the word is a valid one");
            assert_eq!(lease.number, held.lease_number, "slot {slot} is used again");
            let is_over = matches!(
                lease.state,
                LeaseState::Revoked | LeaseState::RevokedParked | LeaseState::Closed
            );
            let is_latest = self.latest[&held.id] == held.lease_number;
            if is_over {
                assert_eq!(self.must_be_kept(*slot, held), is_latest, "slot {slot}");
            }
        }
    }
}
