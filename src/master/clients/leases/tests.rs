//! Random lifecycles of clients in shared memory: with a worker that does by hand what a worker does, and with a broken
//! one that writes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::Config;

use super::recovery::*;
use super::*;
use crate::proto::frame::OrderRule;
use crate::proto::names::{ClientId, Offsets, Peer};
use crate::shm::{ClientBytes, Cursors, Layout, Note, Region, SMALL_LEN, Stretch, WorkerShm};
use crate::sys::byte_counts::{self, Writes};
use crate::sys::passed::ClientSocket;

const SLOTS: u32 = 5;
const METHOD: u32 = 7;

/// Bytes of the header of shared memory and of its slots.
const WORDS: u64 = 16 * 1024 + SLOTS as u64 * 128;

fn shms() -> (MasterShm, WorkerShm) {
    let layout = Layout::new(SLOTS, 4096);
    let master = MasterShm::new(layout).expect("memfd");
    let worker = WorkerShm::map(master.file().try_clone().expect("dup"), layout).expect("mmap");
    worker.header().set_writer(1);
    (master, worker)
}

/// A quarter of the usual number of cases, which PROPTEST_CASES sets, because these are long.
fn few() -> Config {
    let usual = Config::default();
    Config {
        failure_persistence: None,
        cases: usual.cases.div_ceil(4),
        ..usual
    }
}

/// Returns the bytes of a part of a stream: each stream has its own.
fn bytes_of(stream: u64, part: Range<u64>) -> Vec<u8> {
    part.map(|position| (position.wrapping_mul(31) ^ (position >> 8) ^ (stream * 101)) as u8)
        .collect()
}

/// Returns what a thread has written in all after one more call.
fn and_a_call_of(bytes: u64, before: Writes) -> Writes {
    Writes {
        bytes: before.bytes + bytes,
        calls: before.calls + 1,
    }
}

/// Returns the number of bytes moved by a socket that may have none or accept none now.
fn moved(result: io::Result<usize>) -> u64 {
    match result {
        Ok(count) => count as u64,
        Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
        Err(e) => panic!("{e}"),
    }
}

/// The history of a client, as the test records it.
#[derive(Debug)]
struct Life {
    peer: File,
    /// The streams of its requests and of its replies.
    input: u64,
    output: u64,
    /// Bytes that it has sent, bytes of them that were read, and bytes that were answered.
    sent: u64,
    read: u64,
    answered: u64,
    /// Bytes of replies that were made, that were written, and that the client has read.
    replied: u64,
    written: u64,
    heard: u64,
    faults: u8,
    requests: u64,
}

impl Life {
    fn begin(id: ClientId, is_unix: bool) -> (Client, Life) {
        let (peer, socket, name): (OwnedFd, OwnedFd, _) = if is_unix {
            let (peer, socket) = UnixStream::pair().expect("socketpair");
            byte_counts::arm(&socket).expect("armed");
            peer.set_nonblocking(true)
                .and_then(|()| socket.set_nonblocking(true))
                .expect("set");
            (
                peer.into(),
                socket.into(),
                Peer::Unix {
                    pid: 1,
                    uid: 2,
                    gid: 3,
                },
            )
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
            let address = listener.local_addr().expect("address");
            let peer = TcpStream::connect(address).expect("connect");
            let socket = listener.accept().expect("accept").0;
            peer.set_nonblocking(true)
                .and_then(|()| socket.set_nonblocking(true))
                .expect("set");
            // Otherwise small replies would be held back until the previous one is acknowledged.
            socket.set_nodelay(true).expect("set");
            (peer.into(), socket.into(), Peer::from(address))
        };
        let (peer, input, output) = (peer.into(), id.0 * 2, id.0 * 2 + 1);
        // For every third client the kernel has not counted all bytes.
        let offsets = if id.0 % 3 == 1 {
            Offsets {
                received: (1 << 33) + 5,
                sent: 1 << 40,
            }
        } else {
            Offsets::default()
        };
        let [sent, read, answered] = [offsets.received; 3];
        let ([replied, written, heard], requests) = ([offsets.sent; 3], 0);
        let life = Life {
            peer,
            input,
            output,
            sent,
            read,
            answered,
            replied,
            written,
            heard,
            faults: 0,
            requests,
        };
        let socket = ClientSocket::shared(socket, matches!(name, Peer::Unix { .. }));
        (
            Client {
                id,
                socket,
                peer: name,
                order: OrderRule::Little,
                listener: 1,
                since: 0,
                moves: 0,
                offsets,
            },
            life,
        )
    }

    fn send(&mut self, count: u64) {
        self.sent += moved(
            self.peer
                .write(&bytes_of(self.input, self.sent..self.sent + count)),
        );
    }

    fn hear(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = moved(self.peer.read(&mut buffer));
            if count == 0 {
                return;
            }
            assert!(
                buffer[..count as usize] == bytes_of(self.output, self.heard..self.heard + count)
            );
            self.heard += count;
        }
    }

    /// Checks that a client without a worker is known to the byte.
    fn check(
        &self,
        Unleased {
            client,
            bytes,
            flags,
            requests,
            ..
        }: &Unleased,
    ) {
        assert_eq!(
            (bytes.in_base, bytes.out_base),
            (self.answered, self.written),
            "{}",
            client.id
        );
        assert!(
            all(&bytes.unread) == bytes_of(self.input, self.answered..self.read),
            "unread bytes of {}",
            client.id
        );
        assert!(
            all(&bytes.unsent) == bytes_of(self.output, self.written..self.replied),
            "unsent bytes of {}",
            client.id
        );
        assert_eq!(
            (*requests, flags.crash_count),
            (self.requests, self.faults),
            "{}",
            client.id
        );
    }
}

fn all(stretch: &Stretch) -> Vec<u8> {
    stretch.to_vec().expect("pread")
}

/// The point at which a turn may be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    Claim,
    Begin,
    Read,
    Method,
    Commit,
    Write,
    Park,
    End,
}

/// The course of a turn, as far as there are bytes.
#[derive(Clone, Debug)]
struct Plan {
    read: u16,
    /// Bytes of each frame and of its reply.
    frames: Vec<(u16, u16)>,
    write: u16,
    dies_at: Option<Point>,
}

/// The next action, and its client.
#[derive(Clone, Debug)]
enum Act {
    Accept {
        is_unix: bool,
    },
    Send(Index, u16),
    Hear(Index),
    Give,
    Flush,
    /// The channel is full.
    FlushFails,
    Take(Index),
    TakeAll,
    Turn(Index, Plan),
    /// The worker hands a request over to its app, and perhaps dies before that is complete.
    Depart(Index, bool),
    /// The app answers: bytes of the frame and of its reply, and how many of the reply are written. The next request may
    /// go away in the same turn, and the worker may die in it.
    Answer(Index, [u16; 3], bool, Option<Point>),
    /// The worker looks for revoked leases.
    Look,
    GiveUp(Index),
    Close(Index),
    /// The master reads the worker's messages.
    Listen,
    Die,
}

fn act() -> impl Strategy<Value = Act> {
    let points = [
        Point::Claim,
        Point::Begin,
        Point::Read,
        Point::Method,
        Point::Commit,
        Point::Write,
        Point::Park,
        Point::End,
    ];
    let dies_at = proptest::option::weighted(0.15, select(points.to_vec()));
    let in_answer = vec![Point::Claim, Point::Commit, Point::Write, Point::Park];
    let dies_in_answer = proptest::option::weighted(0.15, select(in_answer));
    let size = || prop_oneof![3 => 0..40u16, 2 => 0..2000u16, 1 => any::<u16>()];
    let plan = (size(), vec((size(), size()), 0..5), size(), dies_at);
    let plan = plan.prop_map(|(read, frames, write, dies_at)| Plan {
        read,
        frames,
        write,
        dies_at,
    });
    prop_oneof![
        3 => any::<bool>().prop_map(|is_unix| Act::Accept { is_unix }),
        6 => (any::<Index>(), size()).prop_map(|(client, count)| Act::Send(client, count)),
        2 => any::<Index>().prop_map(Act::Hear),
        6 => Just(Act::Give),
        6 => Just(Act::Flush),
        1 => Just(Act::FlushFails),
        2 => any::<Index>().prop_map(Act::Take),
        1 => Just(Act::TakeAll),
        20 => (any::<Index>(), plan).prop_map(|(slot, plan)| Act::Turn(slot, plan)),
        6 => (any::<Index>(), proptest::bool::weighted(0.1)).prop_map(|(slot, dies)| Act::Depart(slot, dies)),
        6 => (any::<Index>(), [size(), size(), size()], any::<bool>(), dies_in_answer)
            .prop_map(|(slot, sizes, again, dies_at)| Act::Answer(slot, sizes, again, dies_at)),
        2 => Just(Act::Look),
        1 => any::<Index>().prop_map(Act::GiveUp),
        1 => any::<Index>().prop_map(Act::Close),
        4 => Just(Act::Listen),
        1 => Just(Act::Die),
    ]
}

/// A lease as the worker has it.
#[derive(Debug)]
struct Held {
    id: ClientId,
    lease_number: u32,
    socket: File,
    is_unix: bool,
}

/// A master's leases, a worker that acts as the test orders, and their clients.
struct World {
    shm: MasterShm,
    worker: WorkerShm,
    leases: Leases,
    waiting: Vec<Unleased>,
    over: BTreeSet<ClientId>,
    lives: BTreeMap<ClientId, Life>,
    held: BTreeMap<u32, Held>,
    /// Slots that the worker has released or closed, unread by the master.
    said: Vec<(u32, bool)>,
    /// Slots whose clients the master has revoked, unconfirmed by the worker.
    behind: BTreeSet<u32>,
    /// The slot of a turn that will not end, and whether its method is running.
    dying: Option<(u32, bool)>,
    /// All bytes that the worker ever wrote, and the leases that it has received.
    sum: Writes,
    heard: u64,
}

impl World {
    fn new() -> World {
        let (shm, worker) = shms();
        World {
            shm,
            worker,
            leases: Leases::new(SLOTS),
            waiting: Vec::new(),
            over: BTreeSet::new(),
            lives: BTreeMap::new(),
            held: BTreeMap::new(),
            said: Vec::new(),
            behind: BTreeSet::new(),
            dying: None,
            sum: Writes::default(),
            heard: 0,
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Accept { is_unix } => {
                let id = ClientId(self.lives.len() as u64);
                let (client, life) = Life::begin(id, *is_unix);
                self.lives.insert(id, life);
                let mut unleased = Unleased::new(client, 1);
                (unleased.bytes.in_base, unleased.bytes.out_base) = (
                    unleased.client.offsets.received,
                    unleased.client.offsets.sent,
                );
                self.waiting.push(unleased);
            }
            Act::Send(client, count) => self.life(client, |life| life.send((*count).into())),
            Act::Hear(client) => self.life(client, Life::hear),
            Act::Give => {
                if self.leases.has_free_slot() && !self.waiting.is_empty() {
                    let unleased = self.waiting.remove(0);
                    self.leases
                        .give(unleased, &self.shm)
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
                let is_taken = |slot: &u32| {
                    let state = self
                        .worker
                        .slot(*slot)
                        .and_then(|slot| slot.lease())
                        .map(|lease| lease.state);
                    matches!(state, Some(LeaseState::Revoked | LeaseState::RevokedParked))
                };
                let taken: Vec<u32> = self.held.keys().copied().filter(is_taken).collect();
                taken.into_iter().for_each(|slot| self.say(slot, false));
            }
            Act::GiveUp(slot) => {
                if let Some(slot) = self.pick(slot).filter(|slot| !self.is_away(*slot)) {
                    // The master revoked the lease before, or the worker releases it now: the worker is done with it.
                    let _ = self
                        .worker
                        .slot(slot)
                        .expect("held")
                        .revoke(self.held[&slot].lease_number);
                    self.say(slot, false);
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
                    }
                    self.say(slot, is_ours);
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

    fn say(&mut self, slot: u32, is_closed: bool) {
        self.held.remove(&slot).expect("it is held");
        self.said.push((slot, is_closed));
    }

    fn flush(&mut self) {
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
                self.heard += 1;
            }
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
        self.waiting.push(unleased);
    }

    fn listen(&mut self) {
        for (slot, is_closed) in mem::take(&mut self.said) {
            let was_behind = self.behind.remove(&slot);
            let done = if is_closed {
                self.leases.closed(slot, &self.shm)
            } else {
                self.leases.released(slot, &self.shm)
            };
            match done {
                Done::Known => assert!(was_behind && !is_closed),
                Done::Ended(client) => assert!(is_closed && self.over.insert(client.id)),
                Done::GivenUp(recovered) => {
                    assert!(!was_behind && !is_closed);
                    self.take_in(recovered);
                }
                Done::Nonsense => panic!("the worker has said so of slot {slot} with right"),
            }
        }
    }

    fn die(&mut self) {
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
            .extend(recovery.ended.iter().map(|client| client.id));
        (self.sum, self.heard) = (Writes::default(), 0);
        self.held.clear();
        self.said.clear();
        self.behind.clear();
    }

    /// Does what `worker/turn.rs` does, with meaningless frames.
    fn turn(&mut self, slot: u32, plan: &Plan) {
        let Held {
            id,
            lease_number,
            socket,
            is_unix,
        } = self.held.get_mut(&slot).expect("it is held");
        let (life, lease_number, is_unix) = (
            self.lives.get_mut(id).expect("there"),
            *lease_number,
            *is_unix,
        );
        let shared_slot = self.worker.slot(slot).expect("it is held");
        let lease = shared_slot.lease();
        if lease.is_some_and(|lease| lease.state == LeaseState::Away) {
            return;
        }
        let Some(found) = shared_slot.claim(lease_number) else {
            return self.say(slot, false);
        };
        let dying = &mut self.dying;
        let mut dies = |point| {
            let dies = plan.dies_at == Some(point);
            if dies {
                *dying = Some((slot, point == Point::Method));
            }
            dies
        };
        if dies(Point::Claim) {
            return;
        }
        let (cursors, mut flags) = (shared_slot.cursors(), shared_slot.flags());
        let is_parked = found == Claim::Parked;
        if is_parked && cursors.replied > 0 {
            let open = self.worker.open(slot, Region::Shared, cursors.tx.0);
            let count = cursors.replied.min(plan.write.into()) as usize;
            open.header
                .begin_write(slot, cursors.out_base, Some(self.sum));
            let sent = if count > 0 {
                moved(socket.write(&open.tx[cursors.tx.1 as usize..][..count]))
            } else {
                0
            };
            (self.sum, life.written) = (and_a_call_of(sent, self.sum), life.written + sent);
            if dies(Point::Write) {
                return;
            }
            open.header.complete_write(sent);
            // A line of the log, for example.
            self.sum = and_a_call_of(77, self.sum);
            let (out_base, sent) = (cursors.out_base + sent, sent as u32);
            let kept = Cursors {
                out_base,
                replied: cursors.replied - sent,
                tx: (cursors.tx.0, cursors.tx.1 + sent),
                ..cursors
            };
            open.slot.flip(&kept, flags);
            open.header.end_write();
            let is_idle = kept.replied == 0 && kept.have == 0;
            return open.slot.release(
                lease_number,
                if is_idle {
                    LeaseState::Idle
                } else {
                    LeaseState::Parked
                },
            );
        }
        let have = if is_parked { cursors.have as usize } else { 0 };
        if !is_parked {
            (flags.crash_count, flags.timed_out) = (0, false);
        }
        let (in_base, out_base) = if is_parked {
            (cursors.in_base, cursors.out_base)
        } else {
            cursors.ends()
        };
        if have > 0 {
            let begin = cursors.rx.1 as usize;
            self.worker
                .move_received(slot, cursors.rx.0, begin..begin + have, Region::Shared);
        }
        let open = self.worker.open(slot, Region::Shared, Region::Shared);
        open.slot.flip(
            &Cursors {
                have: have as u32,
                ..Cursors::idle(in_base, out_base)
            },
            flags,
        );
        if dies(Point::Begin) {
            return;
        }
        let room = plan.read.into();
        let count = moved(socket.read(&mut open.rx[have..][..room]));
        life.read += count;
        if dies(Point::Read) {
            return;
        }
        let (arrived, mut answered, mut replied) = (have + count as usize, 0, 0);
        for (frame, reply) in &plan.frames {
            if answered == arrived {
                break;
            }
            open.slot.execute(METHOD, answered as u32);
            if dies(Point::Method) {
                return;
            }
            // A fourth of the size, so that the reply buffer holds all replies.
            let (frame, reply) = (
                (arrived - answered).min(usize::from(*frame) + 1),
                usize::from(*reply) / 4,
            );
            let made = bytes_of(life.output, life.replied..life.replied + reply as u64);
            open.tx[replied..][..reply].copy_from_slice(&made);
            (answered, replied) = (answered + frame, replied + reply);
            let note = Note::new(open.header, open.slot, (METHOD, false), replied as u32);
            open.slot.commit(answered as u32, replied as u32);
            note.count(open.header, open.slot);
            open.slot.touch(2);
            (life.requests, life.faults) = (life.requests + 1, 0);
            (life.answered, life.replied) =
                (life.answered + frame as u64, life.replied + reply as u64);
            if dies(Point::Commit) {
                return;
            }
        }
        open.header.begin_write(slot, out_base, Some(self.sum));
        let count = replied.min(plan.write.into());
        let sent = if count > 0 {
            moved(socket.write(&open.tx[..count]))
        } else {
            0
        };
        (self.sum, life.written) = (and_a_call_of(sent, self.sum), life.written + sent);
        if dies(Point::Write) {
            return;
        }
        open.header.complete_write(sent);
        self.sum = and_a_call_of(77, self.sum);
        let (unread, unsent) = (arrived - answered, replied - sent as usize);
        let is_idle = unread == 0 && unsent == 0;
        if !is_idle {
            let region = if unread <= SMALL_LEN {
                Region::Small
            } else {
                Region::Large
            };
            self.worker
                .move_received(slot, Region::Shared, answered..arrived, region);
            self.worker.park_replies(slot, sent as usize..replied);
            if answered > 0 {
                (flags.crash_count, flags.timed_out) = (0, false);
            }
            let kept = Cursors {
                rx: (region, 0),
                tx: (Region::Large, 0),
                have: unread as u32,
                replied: unsent as u32,
                ..Cursors::idle(in_base + answered as u64, out_base + sent)
            };
            self.worker
                .slot(slot)
                .expect("it is held")
                .flip(&kept, flags);
            if dies(Point::Park) {
                return;
            }
        }
        if is_idle && is_unix && sent > 0 {
            let rest = Cursors::idle(in_base + answered as u64, out_base + sent);
            (flags.crash_count, flags.timed_out) = (0, false);
            self.worker
                .slot(slot)
                .expect("it is held")
                .flip(&rest, flags);
        }
        self.worker.header().end_write();
        if dies(Point::End) {
            return;
        }
        let state = if is_idle {
            LeaseState::Idle
        } else {
            LeaseState::Parked
        };
        self.worker
            .slot(slot)
            .expect("it is held")
            .release(lease_number, state);
    }

    /// Does what `worker/turn/away.rs` does when a request departs, if the client has unread bytes and no unsent ones.
    fn depart(&mut self, slot: u32, dies: bool) {
        let lease_number = self.held[&slot].lease_number;
        let shared_slot = self.worker.slot(slot).expect("it is held");
        let (cursors, flags) = (shared_slot.cursors(), shared_slot.flags());
        let lease = shared_slot.lease().expect("a worker writes no other");
        let may_go = lease.state == LeaseState::Parked && cursors.replied == 0 && cursors.have > 0;
        if !may_go || shared_slot.claim(lease_number).is_none() {
            return;
        }
        let parked = Cursors {
            tx: (Region::Shared, 0),
            ..cursors
        };
        shared_slot.flip(&parked, flags);
        shared_slot.execute(METHOD, 0);
        if dies {
            self.dying = Some((slot, true));
            return;
        }
        shared_slot.release(lease_number, LeaseState::Away);
    }

    /// Does what it does when the answer arrives.
    fn answer(&mut self, slot: u32, sizes: [u16; 3], again: bool, dies_at: Option<Point>) {
        let held = self.held.get_mut(&slot).expect("it is held");
        let (lease_number, is_unix) = (held.lease_number, held.is_unix);
        let life = self.lives.get_mut(&held.id).expect("there");
        let shared_slot = self.worker.slot(slot).expect("it is held");
        assert!(shared_slot.claim_away(lease_number));
        let dying = &mut self.dying;
        let mut dies = |point, is_running| {
            let dies = dies_at == Some(point);
            if dies {
                *dying = Some((slot, is_running));
            }
            dies
        };
        if dies(Point::Claim, true) {
            return;
        }
        let (cursors, mut flags) = (shared_slot.cursors(), shared_slot.flags());
        let [frame, reply, write] = sizes.map(u32::from);
        let (answered, replied) = (cursors.have.min(frame + 1), reply / 4);
        let open = self.worker.open(slot, cursors.rx.0, Region::Shared);
        let made = bytes_of(life.output, life.replied..life.replied + u64::from(replied));
        open.tx[..replied as usize].copy_from_slice(&made);
        let note = Note::new(open.header, open.slot, (METHOD, false), replied);
        open.slot.commit(answered, replied);
        note.count(open.header, open.slot);
        (life.requests, life.faults) = (life.requests + 1, 0);
        (life.answered, life.replied) = (
            life.answered + u64::from(answered),
            life.replied + u64::from(replied),
        );
        if dies(Point::Commit, false) {
            return;
        }
        open.header
            .begin_write(slot, cursors.out_base, Some(self.sum));
        let count = replied.min(write) as usize;
        let sent = if count > 0 {
            moved(held.socket.write(&open.tx[..count]))
        } else {
            0
        };
        (self.sum, life.written) = (and_a_call_of(sent, self.sum), life.written + sent);
        if dies(Point::Write, false) {
            return;
        }
        open.header.complete_write(sent);
        self.sum = and_a_call_of(77, self.sum);
        let (unread, unsent) = (cursors.have - answered, replied - sent as u32);
        self.worker
            .park_replies(slot, sent as usize..replied as usize);
        (flags.crash_count, flags.timed_out) = (0, false);
        let is_away = again && unread > 0 && unsent == 0;
        let tx = if is_away {
            Region::Shared
        } else {
            Region::Large
        };
        let kept = Cursors {
            rx: (cursors.rx.0, cursors.rx.1 + answered),
            tx: (tx, 0),
            have: unread,
            replied: unsent,
            ..Cursors::idle(
                cursors.in_base + u64::from(answered),
                cursors.out_base + sent,
            )
        };
        let is_idle = unread == 0 && unsent == 0;
        let shared_slot = self.worker.slot(slot).expect("it is held");
        if !is_idle || is_unix {
            shared_slot.flip(&kept, flags);
        }
        if dies(Point::Park, false) {
            return;
        }
        self.worker.header().end_write();
        let state = match (is_away, is_idle) {
            (true, _) => {
                shared_slot.execute(METHOD, 0);
                LeaseState::Away
            }
            (false, true) => LeaseState::Idle,
            (false, false) => LeaseState::Parked,
        };
        shared_slot.release(lease_number, state);
    }

    /// Checks that every client is in exactly one place, and that all counts are right.
    fn check(&self) {
        let leased: Vec<ClientId> = self.leases.iter().map(|(_, client)| client.id).collect();
        assert_eq!(self.leases.clients(), leased.len());
        let waiting = self.waiting.iter().map(|unleased| unleased.client.id);
        let mut all: Vec<ClientId> = leased
            .iter()
            .copied()
            .chain(waiting)
            .chain(self.over.iter().copied())
            .collect();
        all.sort_unstable_by_key(|id| id.0);
        assert_eq!(all, self.lives.keys().copied().collect::<Vec<_>>());
        assert_eq!(
            self.leases.has_free_slot(),
            leased.len() + self.behind.len() < SLOTS as usize
        );
        assert_eq!(
            self.leases.given(),
            self.heard + self.leases.outbox.len() as u64
        );
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn random_histories_keep_every_client_and_its_bytes(acts in vec(act(), 0..150)) {
        let mut world = World::new();
        for act in &acts {
            world.act(act);
            world.check();
        }
        world.die();
        world.check();
        let over = &world.over;
        for (_, life) in world.lives.iter_mut().filter(|(id, _)| !over.contains(id)) {
            let begin = Instant::now();
            while life.heard < life.written && begin.elapsed() < Duration::from_secs(10) {
                life.hear();
            }
            assert_eq!(life.heard, life.written);
        }
    }
}

/// A value that a broken worker writes into a word.
#[derive(Clone, Debug)]
enum Scribble {
    Anything(u64),
    /// A lease word with this state: of the generation that it should have, or of this one.
    Lease(u8, Option<u32>),
    Small(u16),
    /// A high and a low half.
    Halves(u16, u16),
}

/// Returns words of the shared memory, as offsets from its beginning; most of them are words of slots.
fn scribbles() -> impl Strategy<Value = Vec<(u64, Scribble)>> {
    let word = prop_oneof![1 => 0..2048u64, 6 => 2048..WORDS / 8, 4 => (0..u64::from(SLOTS)).prop_map(|slot| 2048 + slot * 16)];
    let scribble = prop_oneof![
        2 => any::<u64>().prop_map(Scribble::Anything),
        4 => (0..9u8, proptest::option::weighted(0.2, any::<u32>())).prop_map(|(state, other)| Scribble::Lease(state, other)),
        2 => any::<u16>().prop_map(Scribble::Small),
        2 => any::<(u16, u16)>().prop_map(|(high, low)| Scribble::Halves(high, low)),
    ];
    vec((word, scribble), 0..60)
}

fn scribble(leases: &Leases, shm: &MasterShm, scribbles: &[(u64, Scribble)]) {
    for (word, scribble) in scribbles {
        let slot = u32::try_from(word.saturating_sub(2048) / 16).expect("there are few");
        let own = match leases.entries.get(slot) {
            Some(LeaseEntry::Leased(leased)) => leased.lease_number,
            Some(LeaseEntry::Revoked) | None => 0,
        };
        let value = match *scribble {
            Scribble::Anything(value) => value,
            Scribble::Lease(state, other) => {
                u64::from(other.unwrap_or(own)) << 8 | u64::from(state)
            }
            Scribble::Small(value) => value.into(),
            Scribble::Halves(high, low) => u64::from(high) << 32 | u64::from(low),
        };
        shm.file()
            .write_all_at(&value.to_ne_bytes(), word * 8)
            .expect("the shared memory is that long");
    }
}

proptest! {
    #![proptest_config(few())]

    /// The clients' state is unpredictable then, but all clients are there, and nothing outside the shared memory is
    /// read.
    #[test]
    fn corrupt_shared_memory_loses_no_client_and_does_not_panic(
        acts in vec(act(), 0..60),
        nonsense in vec((scribbles(), any::<Index>(), 0..9u8), 1..8),
        written in any::<Option<(u64, u64)>>(),
        is_timed_out: bool,
    ) {
        let mut world = World::new();
        acts.iter().for_each(|act| world.act(act));
        world.flush();
        let mut back: Vec<Recovered> = mem::take(&mut world.waiting).into_iter().map(Ok).collect();
        let mut ended: Vec<ClientId> = world.over.iter().copied().collect();
        let World { shm, leases, lives, .. } = &mut world;
        let clock = 5_000_000_000;
        for (scribbles, slot, what) in &nonsense {
            scribble(leases, shm, scribbles);
            let slot = slot.index(SLOTS as usize + 1) as u32;
            let done = match what {
                0 => leases.closed(slot, shm),
                1 | 2 => leases.released(slot, shm),
                3 => {
                    back.extend(leases.revoke_all(shm));
                    Done::Known
                }
                4 | 5 => {
                    back.extend(leases.revoke(slot, shm));
                    Done::Known
                }
                6 => {
                    leases.watch(shm);
                    let _ = (leases.watched(shm), leases.in_turn(slot, shm));
                    let header = shm.header();
                    let _ = (header.busy(clock), header.recent(clock), header.turn(), header.executing());
                    Done::Known
                }
                _ => {
                    // One client is leased again, and perhaps revoked.
                    let next = back.iter().position(|recovered| recovered.is_ok() && leases.has_free_slot());
                    if let Some(Ok(unleased)) = next.map(|next| back.swap_remove(next)) {
                        back.extend(leases.give(unleased, shm).err().map(Err));
                    }
                    if let Some(batch) = leases.next_batch().filter(|_| *what == 7) {
                        shm.file().write_all_at(&[0xee; 8], 2048 * 8).expect("the shared memory is that long");
                        back.extend(leases.withdraw(batch, shm));
                    }
                    Done::Known
                }
            };
            match done {
                Done::Known | Done::Nonsense => {}
                Done::Ended(client) => ended.push(client.id),
                Done::GivenUp(recovered) => back.push(recovered),
            }
            assert_eq!(leases.clients(), leases.iter().count());
        }
        let leases = mem::replace(leases, Leases::new(SLOTS));
        let DeadWorkerClients { recovered, ended: also_ended, lost, .. } = leases.recover_clients(shm, written.map(|(bytes, calls)| Writes { bytes, calls }), is_timed_out);
        back.extend(recovered.into_iter().map(|(unleased, _)| Ok(unleased)));
        back.extend(lost.into_iter().map(Err));
        ended.extend(also_ended.iter().map(|client| client.id));

        let longest = Layout::new(SLOTS, 4096).max_reply().max(256 * 1024) + 64 * 1024;
        let (next, _) = shms();
        for recovered in back {
            match recovered {
                Err((_, client)) => ended.push(client.id),
                Ok(unleased) => {
                    let ClientBytes { unread, unsent, .. } = &unleased.bytes;
                    assert!(unread.len() <= longest && unsent.len() <= longest);
                    ended.push(unleased.client.id);
                    Leases::new(SLOTS).give(unleased, &next).expect("what one shared memory held fits into another");
                }
            }
        }
        ended.sort_unstable_by_key(|id| id.0);
        prop_assert_eq!(ended, lives.keys().copied().collect::<Vec<_>>());
    }
}
