//! Unpacks the handoff queues of an earlier master: the shared memory of workers that are gone, and their clients.
//!
//! The datagrams stay in the queues, so a start that fails, or is killed, loses no client. They are removed when no
//! client waits any more.

mod client;
mod crowd;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;
use std::{io, mem};

use crate::channel::{Channel, Scratch};
use crate::loop_clock::Shortage;
use crate::master::clients::client::Client;
use crate::master::clients::leases::recovery::DeadWorkerClients;
use crate::master::clients::place::OrphanedShm;
use crate::master::handover::queues::HandoffQueues;
use crate::master::handover::unleased::is_for_unleased;
use crate::master::handover::unpack::client::{UnpackedClient, recover};
pub(crate) use crate::master::handover::unpack::crowd::UnpackSpace;
use crate::master::telemetry::by_kind::By;
use crate::master::telemetry::counters::Loss;
use crate::proto::channel::MAX_LEASES;
use crate::proto::handoff::HandoffMessage;
use crate::proto::lease::ClientRecord;
use crate::proto::message::Message;
use crate::proto::names::{ClientId, WorkerId};
use crate::shm::{Layout, LeaseState, MasterShm};
use crate::sys::socket::{self, Received};

/// How often a datagram is retried while the kernel has no memory: about 5 s in all.
const MAX_REFUSALS: u32 = 56;

/// The contents of the handoff queues.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Shared memory, by its worker.
    shms: BTreeMap<WorkerId, Rc<OrphanedShm>>,
    clients: BTreeMap<ClientId, UnpackedClient>,
    /// Clients that could not be kept.
    pub(crate) lost: By<Loss>,
    /// Clients among those chosen to be closed that had already disconnected.
    ended: u64,
    /// The reasons why datagrams could not be used.
    pub(crate) faults: Vec<String>,
    /// The number of datagrams that are still in each queue.
    pub(crate) datagrams: Vec<usize>,
    /// The number of descriptors in these datagrams.
    pub(crate) descriptors: usize,
    /// Whether a client is in the datagrams that this master does not have, so that they must not stay in the queues.
    pub(crate) has_stray: bool,
    /// Whether datagrams are left in a queue that were not unpacked.
    pub(crate) is_unfinished: bool,
}

/// Handoff queues and their contents, which are still in the queues.
#[derive(Debug)]
pub(crate) struct ReceivedHandoff {
    queues: HandoffQueues,
    unpacked: Unpacked,
}

impl ReceivedHandoff {
    /// Unpacks these queues and those that have only their second end (`single`), as far as there is space.
    pub(crate) fn unpack(
        queues: HandoffQueues,
        single: &[Channel<HandoffMessage, HandoffMessage>],
        space: &UnpackSpace,
    ) -> ReceivedHandoff {
        let (mut unpacked, mut scratch) = (Unpacked::default(), Scratch::default());
        for out in queues.ends().iter().map(|ends| &ends.out).chain(single) {
            let datagrams = unpacked.unpack(out, &mut scratch, space);
            unpacked.datagrams.push(datagrams);
        }
        // Datagrams of queues without a first end are lost with them.
        unpacked.has_stray |= !single.is_empty();
        unpacked.close_surplus(space);
        ReceivedHandoff { queues, unpacked }
    }

    /// Returns the handoff queues of a master that continues; they are empty.
    pub(crate) fn empty(queues: HandoffQueues) -> ReceivedHandoff {
        ReceivedHandoff {
            queues,
            unpacked: Unpacked::default(),
        }
    }

    pub(crate) fn queue_count(&self) -> usize {
        self.queues.ends().len()
    }

    pub(crate) fn unpacked(&self) -> &Unpacked {
        &self.unpacked
    }

    /// Counts the clients that are nowhere: a queue was lost, the queues were full, or a worker was killed with its
    /// master. `clients` is the number of all clients.
    pub(crate) fn count_missing(&mut self, clients: u64) {
        let unpacked = &mut self.unpacked;
        // A record stays in its queue when its client is closed.
        let is_there = |client: &&UnpackedClient| {
            let (is_open, ..) = unpacked.rank(client.worker, &client.record);
            is_open
        };
        let closed = |orphan: &OrphanedShm| {
            let OrphanedShm { record, shm } = orphan;
            shm.header().unknown_closed().min(record.slots.into())
        };
        let known = unpacked.clients.values().filter(is_there).count() as u64
            + unpacked.lost.total()
            + unpacked.not_packed()
            + unpacked.ended
            + unpacked.shms().map(closed).sum::<u64>();
        unpacked
            .lost
            .add(Loss::Store, clients.saturating_sub(known));
    }

    /// Returns the queues and their contents to the master that serves from now on.
    pub(crate) fn take_over(self) -> (HandoffQueues, Unpacked) {
        (self.queues, self.unpacked)
    }
}

impl Unpacked {
    /// Unpacks one handoff queue. Returns the number of datagrams.
    fn unpack(
        &mut self,
        out: &Channel<HandoffMessage, HandoffMessage>,
        scratch: &mut Scratch,
        space: &UnpackSpace,
    ) -> usize {
        let (mut datagrams, mut bytes, mut shortage) = (0, 0, Shortage::<Instant>::default());
        loop {
            match self.make_room(out, bytes, scratch, space) {
                Ok(Received::Message {
                    length,
                    descriptors,
                    cut,
                }) => {
                    datagrams += 1;
                    bytes += length;
                    self.add(&scratch.bytes()[..length], descriptors, cut);
                }
                // This master serves no client yet.
                Ok(Received::Shortage) if shortage.refusals() < MAX_REFUSALS => {
                    crate::sys::poll::pause(shortage.next_wait());
                }
                Ok(Received::Shortage) => {
                    self.note_fault("cannot unpack a handoff queue: out of memory".to_owned());
                    self.is_unfinished = true;
                    return datagrams;
                }
                Ok(Received::Nothing | Received::Closed) => return datagrams,
                Err(e) => {
                    self.note_fault(format!("cannot unpack a handoff queue: {e}"));
                    self.is_unfinished = true;
                    return datagrams;
                }
            }
        }
    }

    /// Peeks at the datagram after this many bytes. First closes clients if its descriptors could not be opened
    /// otherwise.
    fn make_room(
        &mut self,
        out: &Channel<HandoffMessage, HandoffMessage>,
        bytes: usize,
        scratch: &mut Scratch,
        space: &UnpackSpace,
    ) -> io::Result<Received> {
        socket::peek_from(out, bytes)?;
        match socket::peek_bytes(out, scratch.bytes())? {
            Received::Message { length, .. } => {
                let message = HandoffMessage::decode(&scratch.bytes()[..length]);
                let next = message.map_or(MAX_LEASES, |message| message.descriptors());
                self.crowd_out(space.before(self.shms.len(), next));
                socket::peek_from(out, bytes)?;
                socket::peek_message(out, scratch.bytes())
            }
            other => Ok(other),
        }
    }

    /// Notes why datagrams could not be used.
    fn note_fault(&mut self, fault: String) {
        self.has_stray = true;
        self.faults.push(fault);
    }

    /// Adds a datagram. `cut` is whether the limit of descriptors kept some of its descriptors from being opened.
    fn add(&mut self, datagram: &[u8], mut descriptors: Vec<OwnedFd>, cut: bool) {
        let arrived = descriptors.len();
        self.has_stray |= cut;
        match HandoffMessage::decode(datagram) {
            Ok(HandoffMessage::Shm(mut record)) => {
                self.descriptors += 1;
                // The queues are not in the order of time.
                let other = self.shms.get(&record.worker);
                record.is_counted |= other.is_some_and(|orphan| orphan.record.is_counted);
                let layout = Layout::from_record(&record).ok_or_else(|| {
                    io::Error::other(format!("its layout {} is unknown", record.layout))
                });
                let file: io::Result<File> = descriptors
                    .pop()
                    .map(File::from)
                    .ok_or_else(|| io::ErrorKind::InvalidData.into());
                match layout.and_then(|layout| MasterShm::from_file(file?, layout)) {
                    Ok(shm) => {
                        let (worker, record) = (record.worker, *record);
                        self.shms
                            .insert(worker, Rc::new(OrphanedShm { record, shm }));
                    }
                    Err(e) => self.note_fault(format!(
                        "the shared memory of worker {} cannot be used: {e}",
                        record.worker
                    )),
                }
            }
            Ok(HandoffMessage::Clients(worker, records)) => {
                let missing = records.len().saturating_sub(arrived);
                self.lost.add(
                    if cut { Loss::Descriptors } else { Loss::Store },
                    missing as u64,
                );
                self.descriptors += records.len();
                self.has_stray |= missing > 0;
                for (record, socket) in records.into_iter().zip(descriptors) {
                    self.add_client(UnpackedClient {
                        worker,
                        record,
                        socket,
                    });
                }
            }
            Err(malformed) => {
                self.note_fault(format!("in a handoff queue: {malformed}"));
                self.lost.add(Loss::Store, arrived as u64);
            }
        }
    }

    /// Adds a client, or the later of two records if it was packed twice. Closes the slot of the earlier record, so
    /// that no later master takes it for the client's.
    fn add_client(&mut self, client: UnpackedClient) {
        let id = client.record.client;
        let Some(other) = self.clients.remove(&id) else {
            self.clients.insert(id, client);
            return;
        };
        let rank = |client: &UnpackedClient| self.rank(client.worker, &client.record);
        let (earlier, later) = if rank(&other) < rank(&client) {
            (other, client)
        } else {
            (client, other)
        };
        let slot_of = |client: &UnpackedClient| (client.worker, client.record.slot);
        if slot_of(&earlier) != slot_of(&later) {
            match self.shms.get(&earlier.worker) {
                Some(orphan) => orphan.close(earlier.record.slot, earlier.record.lease_number),
                None => self.has_stray = true,
            }
        }
        self.clients.insert(id, later);
    }

    /// Returns the rank of a record among those of its client; the highest one is valid. A closed slot is not valid,
    /// and more moves are a later lease. With equal moves a worker's record is later: the client waited before that
    /// lease.
    fn rank(&self, worker: WorkerId, record: &ClientRecord) -> (bool, u32, bool) {
        let orphan = self.shms.get(&worker);
        let slot = orphan.and_then(|orphan| orphan.shm.slot(record.slot));
        let lease = slot.and_then(|slot| slot.lease());
        let is_closed = lease.is_some_and(|lease| lease.state == LeaseState::Closed);
        (!is_closed, record.moves, !is_for_unleased(worker))
    }

    /// Recovers these clients. Closes those whose shared memory is missing, and returns their number. Ignores clients
    /// that have disconnected.
    fn sort_out(&self, clients: Vec<UnpackedClient>) -> (Vec<DeadWorkerClients>, u64) {
        let mut stray = 0;
        let mut by_worker: BTreeMap<WorkerId, Vec<(u32, u32, Client)>> = BTreeMap::new();
        for client in clients {
            let (worker, record) = (client.worker, client.record);
            let orphan = self.shms.get(&worker).map(|orphan| &**orphan);
            match client.into_client(orphan) {
                Some(client) if self.shms.contains_key(&worker) => by_worker
                    .entry(worker)
                    .or_default()
                    .push((record.slot, record.lease_number, client)),
                Some(_) => stray += 1,
                None => {}
            }
        }
        let recover = |(worker, clients)| Some(recover(self.shms.get(&worker)?, clients));
        (by_worker.into_iter().filter_map(recover).collect(), stray)
    }

    /// Recovers all clients. Closes and counts those whose shared memory is missing.
    pub(crate) fn recover_all(&mut self) -> Vec<DeadWorkerClients> {
        let clients = mem::take(&mut self.clients).into_values().collect();
        let (recoveries, stray) = self.sort_out(clients);
        self.has_stray |= stray > 0 || recoveries.iter().any(|all| !all.lost.is_empty());
        self.lost.add(Loss::Store, stray + self.not_packed());
        recoveries
    }

    /// Marks all shared memory as counted, so that a later master does not add its counters to the totals again. Must
    /// be called before any client has its place there, because the record is part of each place. Returns those that
    /// were not, whose records in the queues are outdated.
    pub(crate) fn set_counted(&mut self) -> Vec<Rc<OrphanedShm>> {
        let mut counted = Vec::new();
        for orphan in self.shms.values_mut() {
            if let Some(changed) = Rc::get_mut(orphan).filter(|orphan| !orphan.record.is_counted) {
                changed.record.is_counted = true;
                counted.push(Rc::clone(orphan));
            }
        }
        counted
    }

    /// Forgets the clients that workers could not pack, which are counted as lost, so that a later master does not
    /// count them again.
    pub(crate) fn forget_not_packed(&self) {
        self.shms()
            .for_each(|orphan| orphan.shm.header().forget_left_behind());
    }

    /// Returns the number of clients that workers could not pack.
    fn not_packed(&self) -> u64 {
        self.shms()
            .map(|OrphanedShm { record, shm }| shm.header().left_behind().min(record.slots.into()))
            .sum()
    }

    /// Returns all shared memory, with its records.
    pub(crate) fn shms(&self) -> impl Iterator<Item = &OrphanedShm> {
        self.shms.values().map(|orphan| &**orphan)
    }

    /// Returns the layout of each shared memory, and the number of its clients.
    pub(crate) fn occupied(&self) -> impl Iterator<Item = (Layout, usize)> {
        let clients = |worker| {
            self.clients
                .values()
                .filter(|client| client.worker == worker)
                .count()
        };
        self.shms
            .iter()
            .map(move |(worker, orphan)| (orphan.shm.layout(), clients(*worker)))
    }

    /// Returns whether any client is still connected.
    pub(crate) fn has_clients(&self) -> bool {
        self.clients
            .values()
            .any(|client| socket::peer(&client.socket).is_ok())
    }
}
