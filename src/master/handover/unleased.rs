//! Clients that wait for a worker are also in the handoff queues, so that a killed master leaves them to the next one.
//!
//! ```text
//! left by a dead worker       its shared memory is packed as it is, with interrupted requests and the app
//! given back by a live one    their bytes are copied to new shared memory
//! leased or removed           the slot is closed: a record that is still in a queue means nothing
//! none waits any more         the queues are emptied
//! ```
//!
//! Only the master has the clients of a dead worker, so they are packed at once. Clients that a live worker gave back
//! are usually leased in the same iteration of the loop; those that are not are packed at its end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::channel::Scratch;
use crate::master::Master;
use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::clients::leases::preset::preset;
use crate::master::clients::place::{ClientPlace, OrphanedShm};
use crate::master::handover::queues::HandoffQueues;
use crate::proto::names::{Generation, WorkerId};
use crate::proto::text::Counted;
use crate::shm::{Layout, MasterShm};
use crate::sys::{clock, socket};

/// The wait after an attempt for which the queues had no space.
const RETRY: Duration = Duration::from_secs(1);

/// By how many the records of closed slots in the queues may exceed the others: with more, all clients are packed again,
/// and then the earlier datagrams are removed. So a client is packed at most twice on average, however many wait.
const MAX_STALE: usize = 3000;

/// Descriptors in flight that packing leaves to leases. The limit of open files also limits those in flight (unix(7)).
const FOR_LEASES: u64 = 4096;

/// The lease number of all slots in shared memory that is made for clients without a worker.
const LEASE_NUMBER: u32 = 1;

/// Returns whether shared memory of this number was made for clients without a worker.
pub(crate) fn is_for_unleased(worker: WorkerId) -> bool {
    worker.0 > u64::MAX / 2
}

/// Whether this iteration of the loop has leased what it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leasing {
    /// Most clients will have a worker soon.
    Ahead,
    Done,
}

/// The clients without a worker in the handoff queues.
#[derive(Debug, Default)]
pub(crate) struct PackedUnleased {
    /// Records whose slots are not closed.
    places: Rc<Cell<usize>>,
    /// All records in the queues, also those of closed slots and of shared memory.
    sent: usize,
    /// When the queues are tried again.
    due: Option<Instant>,
    /// The queues had no space.
    is_full: bool,
    /// The number from which the id of the shared memory that was made last is derived.
    last_number: u64,
}

/// The datagrams of an earlier master, which are still in the queues.
#[derive(Debug, Default)]
pub(crate) struct EarlierDatagrams {
    /// The number of datagrams in each queue.
    pub(crate) counts: Vec<usize>,
    /// The number of descriptors in the datagrams.
    pub(crate) descriptors: usize,
    /// Whether a client is in them that this master does not have.
    pub(crate) has_stray: bool,
    /// Whether there are others, which were not unpacked.
    pub(crate) is_unfinished: bool,
    /// Shared memory that this master has counted; the record of it in them is outdated.
    pub(crate) counted: Vec<Rc<OrphanedShm>>,
}

impl PackedUnleased {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Returns a number for shared memory without a worker. It is unique among those of earlier masters, too.
    pub(crate) fn next_number(&mut self) -> WorkerId {
        self.last_number = clock::monotonic().max(self.last_number + 1);
        WorkerId(u64::MAX - self.last_number)
    }

    /// Notes the places of clients that are in datagrams of an earlier master, which have this many descriptors.
    fn adopt<'c>(&mut self, places: impl Iterator<Item = &'c mut ClientPlace>, descriptors: usize) {
        places.for_each(|place| place.set_packed(&self.places));
        self.sent += descriptors;
    }

    /// Removes everything from the queues, because no client in them waits any more. If the kernel has no memory to
    /// receive a datagram, the rest is removed later.
    fn empty(&mut self, queues: &mut HandoffQueues, now: Instant) {
        (self.due, self.is_full) = (None, false);
        if self.sent > 0 {
            if queues.empty(&mut Scratch::default()) {
                self.sent = 0;
            } else {
                self.due = Some(now + RETRY);
            }
        }
    }

    /// Sends the records of clients of one shared memory, while the queues have at most `most` records. Returns for how
    /// many of these clients there was space.
    fn send(
        &mut self,
        clients: &[&mut Unleased],
        queues: &mut HandoffQueues,
        most: usize,
    ) -> usize {
        let orphan = clients
            .first()
            .and_then(|unleased| Some(Rc::clone(unleased.place.as_ref()?.orphan())));
        let space = most.saturating_sub(self.sent + 1);
        let Some(orphan) = orphan.filter(|_| space > 0) else {
            return 0;
        };
        let records: Vec<_> = clients
            .iter()
            .take(space)
            .filter_map(|unleased| {
                let client = &unleased.client;
                Some((
                    unleased.place.as_ref()?.record(client),
                    client.socket.as_fd(),
                ))
            })
            .collect();
        let count = records.len();
        let packed = count - queues.pack_all(&orphan.record, &orphan.shm, records);
        self.sent += packed + 1;
        packed
    }

    /// Packs clients of one shared memory, while the queues have at most `most` records. Returns whether there was
    /// space for all.
    fn pack(
        &mut self,
        clients: &mut [&mut Unleased],
        queues: &mut HandoffQueues,
        most: usize,
    ) -> bool {
        let packed = self.send(clients, queues, most);
        for unleased in &mut clients[..packed] {
            if let Some(place) = &mut unleased.place {
                place.set_packed(&self.places);
                unleased.left_slot = None;
            }
        }
        packed == clients.len()
    }

    /// Returns whether the packed clients should be packed once more: there are many more records of closed slots than
    /// others, or the former leave no space for all waiting clients.
    fn is_outdated(&self, waiting: impl FnOnce() -> usize, most: usize) -> bool {
        let places = self.places.get();
        let stale = self.sent.saturating_sub(places);
        stale > MAX_STALE && (stale > places + MAX_STALE || stale + waiting() > most)
    }

    /// Packs the packed clients once more, then removes the earlier datagrams, most of whose records are of closed
    /// slots. So each client is in a queue throughout. Returns whether there was space for that.
    fn renew<'c>(
        &mut self,
        clients: impl Iterator<Item = &'c mut Unleased>,
        queues: &mut HandoffQueues,
        most: usize,
    ) -> bool {
        let (datagrams, records) = (queues.sent(), self.sent);
        let packed = clients.filter(|unleased| unleased.is_packed());
        for clients in by_shm(packed).values() {
            if self.send(clients, queues, most) < clients.len() {
                return false;
            }
        }
        queues.remove_sent(&datagrams, &mut Scratch::default());
        self.sent -= records;
        true
    }

    /// Does the same as [`PackedUnleased::renew`]. Without space for that, empties the queues, and the clients must be
    /// packed again at once.
    fn renew_or_empty(
        &mut self,
        clients: &mut Clients,
        queues: &mut HandoffQueues,
        most: usize,
        now: Instant,
    ) {
        if self.renew(clients.all_unleased_mut(), queues, most) {
            return;
        }
        self.empty(queues, now);
        let places = clients.all_unleased_mut();
        let places = places.filter_map(|unleased| unleased.place.as_mut());
        places.for_each(ClientPlace::set_unpacked);
        self.due = Some(now);
    }

    /// Packs those of these clients that are in no queue. Returns whether there was space for all.
    fn pack_all<'c>(
        &mut self,
        clients: impl Iterator<Item = &'c mut Unleased>,
        queues: &mut HandoffQueues,
        most: usize,
        (layout, generation): (Layout, Generation),
    ) -> bool {
        let (placed, mut others): (Vec<_>, Vec<_>) = clients
            .filter(|unleased| can_be_packed(unleased))
            .partition(|unleased| unleased.place.is_some());
        let mut has_space = true;
        for clients in by_shm(placed.into_iter()).values_mut() {
            has_space &= self.pack(clients, queues, most);
        }
        let max_frame = layout.max_frame();
        for clients in others.chunks_mut(Layout::max_slots(max_frame).max(1) as usize) {
            has_space &= self.copy(clients, max_frame, generation).unwrap_or(false);
            let copied = clients
                .iter_mut()
                .filter(|unleased| unleased.place.is_some());
            let mut copied: Vec<_> = copied.map(|unleased| &mut **unleased).collect();
            has_space &= self.pack(&mut copied, queues, most);
        }
        has_space
    }

    /// Notes whether the queues had space for all clients, and warns of the first time that they had not.
    fn note_space(&mut self, has_space: bool, clients: &Clients, now: Instant) {
        if !has_space && !self.is_full {
            let unpacked = clients.all_unleased();
            let unpacked = unpacked.filter(|unleased| !unleased.is_packed()).count();
            log::warn!(
                "the handoff queues have no space: {} would be lost if the master were killed now",
                Counted(unpacked, "waiting client")
            );
        }
        self.due = (!has_space).then(|| now + RETRY);
        self.is_full = !has_space;
    }

    /// Copies the bytes of clients to shared memory, which becomes their place. Returns whether all were copied.
    fn copy(
        &mut self,
        clients: &mut [&mut Unleased],
        max_frame: u32,
        generation: Generation,
    ) -> io::Result<bool> {
        let layout = Layout::new(clients.len() as u32, max_frame);
        let shm = MasterShm::new(layout)?;
        let worker = (self.next_number(), 0, generation);
        let record = layout.record(worker, Vec::new());
        let orphan = Rc::new(OrphanedShm::new(record, shm, None));
        let mut are_all_copied = true;
        for (slot, unleased) in (0..).zip(clients) {
            if let Err(e) = preset(unleased, slot, LEASE_NUMBER, &orphan.shm) {
                let id = unleased.client.id;
                log::debug!("cannot copy the bytes of waiting client {id}: {e}");
                are_all_copied = false;
                continue;
            }
            let moves = unleased.client.moves;
            unleased.place = Some(ClientPlace::new(&orphan, slot, LEASE_NUMBER, moves));
        }
        Ok(are_all_copied)
    }
}

/// Returns how many records may be in the queues: what the limit of open files leaves to leases.
fn most_records(descriptors: u64) -> usize {
    (descriptors / 2).max(descriptors.saturating_sub(FOR_LEASES)) as usize
}

/// Returns clients with a place by their shared memory.
fn by_shm<'c>(
    clients: impl Iterator<Item = &'c mut Unleased>,
) -> BTreeMap<*const OrphanedShm, Vec<&'c mut Unleased>> {
    let mut by_shm = BTreeMap::<_, Vec<_>>::new();
    for unleased in clients {
        if let Some(place) = &unleased.place {
            let shm = Rc::as_ptr(place.orphan());
            by_shm.entry(shm).or_default().push(unleased);
        }
    }
    by_shm
}

/// Returns whether a client is in no queue and can be packed. Bytes in a dead worker's shared memory cannot be copied.
fn can_be_packed(unleased: &Unleased) -> bool {
    match &unleased.place {
        Some(place) => !place.is_packed(),
        None => !unleased.bytes.are_left(),
    }
}

impl Master {
    /// Leaves the clients that were taken over in the datagrams of the earlier master. If these must not stay, packs
    /// the clients again, and then removes them.
    pub(crate) fn keep_packed(&mut self, earlier: &EarlierDatagrams, now: Instant) {
        let is_usable = !earlier.has_stray && earlier.descriptors as u64 <= self.descriptors;
        let Some(store) = self.handover.store.as_mut().filter(|_| is_usable) else {
            return self.pack_again(earlier, now);
        };
        store.queues.adopt(&earlier.counts);
        // Without space for it, another kill would count its requests twice, which is less than to lose its clients.
        let counted = earlier.counted.iter();
        let is_packed =
            |orphan: &&Rc<OrphanedShm>| store.queues.pack_shm(&orphan.record, &orphan.shm, 0);
        let counted = counted.filter(is_packed).count();
        let places = self.clients.all_unleased_mut();
        let places = places.filter_map(|unleased| unleased.place.as_mut());
        store.unleased.adopt(places, earlier.descriptors + counted);
        self.keep_unleased(Leasing::Done, now);
    }

    /// Packs the clients that were taken over, and removes the datagrams in which they were.
    fn pack_again(&mut self, earlier: &EarlierDatagrams, now: Instant) {
        self.keep_unleased(Leasing::Done, now);
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let scratch = &mut Scratch::default();
        store.queues.remove_first(&earlier.counts, scratch);
        if earlier.is_unfinished {
            let kept = self.clients.all_unleased();
            let kept = kept.filter_map(|unleased| socket::cookie(&unleased.client.socket).ok()?);
            let closed = store.queues.close_rest(&kept.collect(), scratch);
            let closed = Counted(closed, "client");
            log::error!("closed {closed} of the previous master that could not be unpacked");
        }
        // The removed datagrams may have filled the queues.
        store.unleased.due = None;
        store.unleased.is_full = false;
        self.keep_unleased(Leasing::Done, now);
    }

    /// Packs the clients that wait for a worker: before leases are made, only if the wait is long or only the master
    /// has them. Empties the queues when no client waits.
    pub(crate) fn keep_unleased(&mut self, leasing: Leasing, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let (packed, queues) = (&mut store.unleased, &mut store.queues);
        // During a restart, clients of workers are in the queues as well.
        let may_empty = !self.lifecycle.is_restarting();
        let is_kept = packed.places.get() > 0;
        if may_empty && !is_kept && self.clients.all_unleased().next().is_none() {
            return packed.empty(queues, now);
        }
        let most = most_records(self.descriptors);
        let waiting = || self.clients.all_unleased().count();
        if may_empty && packed.is_outdated(waiting, most) {
            packed.renew_or_empty(&mut self.clients, queues, most, now);
        }
        if !self.clients.all_unleased().any(can_be_packed) {
            packed.due = None;
            return;
        }
        // A wait for a worker that becomes ready, or for the end of an app, is long. Packing clients of a dead worker
        // copies nothing.
        let is_urgent = |unleased: &Unleased| unleased.place.is_some() && can_be_packed(unleased);
        let must_pack = leasing == Leasing::Done
            || self.workers.pool.serving() == 0
            || self.clients.awaits_app()
            || self.clients.all_unleased().any(is_urgent);
        if !must_pack || (packed.is_full && packed.due.is_some_and(|due| due > now)) {
            return;
        }
        // Workers of a reload that is under way may have given back longer frames than those of the layout in force.
        let rolled = self.reloads.current.as_ref();
        let layout = rolled.map_or(self.clients.layout, |prepared| prepared.layout);
        let clients = self.clients.all_unleased_mut();
        let generation = self.settings.generation;
        let has_space = packed.pack_all(clients, queues, most, (layout, generation));
        packed.note_space(has_space, &self.clients, now);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;
    use crate::master::clients::client::Client;
    use crate::master::handover::state_file::SavedState;
    use crate::master::handover::unpack::{ReceivedHandoff, UnpackSpace};
    use crate::proto::names::{ClientId, Peer};

    /// Returns a client with half a frame, and the other end of its connection.
    fn unleased_client(id: u64) -> (Unleased, UnixStream) {
        let (socket, other) = UnixStream::pair().expect("socketpair");
        let client = Client {
            moves: 5,
            ..Client::with_socket(id, socket, Peer::UNIX)
        };
        let mut unleased = Unleased::new(client, 0);
        unleased.bytes.unread = vec![7; 1000].into();
        (unleased, other)
    }

    fn pack(packed: &mut PackedUnleased, client: &mut Unleased, queues: &mut HandoffQueues) {
        let clients = &mut [client];
        packed
            .copy(clients, 4096, Generation(1))
            .expect("shared memory");
        assert!(packed.pack(clients, queues, 100), "there is space");
    }

    #[test]
    fn only_the_open_place_of_a_client_counts() {
        for is_leased in [false, true] {
            let mut queues = HandoffQueues::new(10).expect("socketpair");
            let mut packed = PackedUnleased::default();
            let (mut client, _other) = unleased_client(1);
            pack(&mut packed, &mut client, &mut queues);
            // A lease that could not be sent leaves a record behind.
            client.place = None;
            pack(&mut packed, &mut client, &mut queues);
            assert_eq!((packed.places.get(), packed.sent), (1, 4));
            if is_leased {
                client.place = None;
                assert_eq!(packed.places.get(), 0);
            }
            let handoff = ReceivedHandoff::unpack(queues, &[], &UnpackSpace::for_clients(100));
            let (mut state, next) = (SavedState::default(), SavedState::default().next_worker);
            state.raise_numbers(handoff.unpacked());
            assert_eq!(state.next_worker, next, "it is the number of no worker");
            let (_, mut unpacked) = handoff.take_over();
            let recoveries = unpacked.recover_all();
            let recovered: Vec<_> = recoveries.iter().flat_map(|all| &all.recovered).collect();
            assert_eq!(recovered.len(), usize::from(!is_leased));
            for (recovered, interrupted) in recovered {
                assert_eq!(recovered.bytes.unread.len(), 1000);
                assert_eq!((recovered.client.moves, interrupted.is_none()), (5, true));
            }
            let lost = recoveries.iter().map(|all| all.lost.len()).sum::<usize>();
            assert_eq!((lost, unpacked.lost.total()), (0, 0));
        }
    }

    #[test]
    fn closed_records_are_removed_after_clients_are_packed_again() {
        let mut queues = HandoffQueues::new(10).expect("socketpair");
        let mut packed = PackedUnleased::default();
        let (mut client, _other) = unleased_client(1);
        let (mut leased, _another) = unleased_client(2);
        for _ in 0..20 {
            leased.place = None;
            pack(&mut packed, &mut leased, &mut queues);
        }
        pack(&mut packed, &mut client, &mut queues);
        leased.place = None;
        let records = packed.sent;
        assert!(
            !packed.renew([&mut client].into_iter(), &mut queues, records + 1),
            "no space"
        );
        assert!(packed.renew([&mut client].into_iter(), &mut queues, 100));
        assert_eq!((packed.places.get(), packed.sent), (1, 2));
        assert_eq!(queues.sent().iter().sum::<usize>(), 2);
        let handoff = ReceivedHandoff::unpack(queues, &[], &UnpackSpace::for_clients(100));
        let (_, mut unpacked) = handoff.take_over();
        assert_eq!(unpacked.shms().count(), 1);
        let recovered = unpacked.recover_all().remove(0).recovered;
        assert_eq!(recovered[0].0.client.id, ClientId(1));
    }

    /// Leases `part` clients at a time until none waits. Returns how many were packed again, and the most records.
    fn lease_all(waiting: usize, part: usize, most: usize) -> (usize, usize) {
        let mut packed = PackedUnleased {
            sent: waiting,
            ..PackedUnleased::default()
        };
        packed.places.set(waiting);
        let (mut again, mut records) = (0, waiting);
        while packed.places.get() > 0 {
            let places = packed.places.get().saturating_sub(part);
            packed.places.set(places);
            if packed.is_outdated(|| places, most) {
                again += places;
                records = records.max(packed.sent + places);
                packed.sent = places;
            }
        }
        (again, records)
    }

    #[test]
    fn clients_are_packed_twice_on_average_however_many_wait() {
        assert_eq!(lease_all(3_000, 1, 100_000), (0, 3_000));
        let (again, _) = lease_all(100_000, 512, 500_000);
        assert!((50_000..100_000).contains(&again), "{again}");
    }

    proptest! {
        #[test]
        fn fewer_clients_are_packed_again_than_were_leased(
            waiting in 1..200_000_usize,
            part in 1..5_000_usize,
            space in 0..200_000_usize,
        ) {
            let (again, records) = lease_all(waiting, part, waiting + MAX_STALE + space);
            prop_assert!(again <= waiting, "{again}");
            prop_assert!(records <= 2 * waiting);
        }

        #[test]
        fn closed_records_leave_space_for_all_waiting_clients(
            places in 0..200_000_usize,
            stale in 0..200_000_usize,
            others in 0..200_000_usize,
            most in 0..400_000_usize,
        ) {
            let packed = PackedUnleased { sent: places + stale, ..PackedUnleased::default() };
            packed.places.set(places);
            let is_outdated = packed.is_outdated(|| places + others, most);
            prop_assert!(is_outdated || stale <= MAX_STALE || stale + places + others <= most);
            prop_assert!(is_outdated || stale <= places + MAX_STALE);
            prop_assert!(!is_outdated || stale > MAX_STALE);
        }
    }

    #[test]
    fn queues_are_emptied_and_never_hold_too_many_records() {
        let mut queues = HandoffQueues::new(10).expect("socketpair");
        let mut packed = PackedUnleased::default();
        let (mut first, _other) = unleased_client(1);
        pack(&mut packed, &mut first, &mut queues);
        let (mut second, _other) = unleased_client(2);
        let clients = &mut [&mut second];
        packed
            .copy(clients, 4096, Generation(1))
            .expect("shared memory");
        assert!(!packed.pack(clients, &mut queues, 2), "no space");
        assert!(can_be_packed(&second), "later");
        packed.empty(&mut queues, Instant::now());
        let handoff = ReceivedHandoff::unpack(queues, &[], &UnpackSpace::for_clients(100));
        assert_eq!(handoff.unpacked().shms().count(), 0);
        assert!(!handoff.unpacked().has_clients());
    }
}
