//! Unpacks the handoff queues of an earlier master: the shared memory of workers that are gone, and their clients.
//!
//! Each client needs a descriptor. If the limit allows fewer, the clients that were active most recently are kept, and
//! the others are closed with an error reply. The datagrams stay in the queues until their clients are packed again for
//! the master after this one, so a start that fails, or is killed, loses no client.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use std::{io, mem};

use crate::channel::{Channel, Scratch};
use crate::loop_clock::Shortage;
use crate::master::clients::client::Client;
use crate::master::clients::leases::Leases;
use crate::master::clients::leases::recovery::DeadWorkerClients;
use crate::master::clients::place::LeftShm;
use crate::master::clients::reject::reject;
use crate::master::handover::queues::HandoffQueues;
use crate::master::handover::waiting::is_for_waiting;
use crate::master::telemetry::by_kind::By;
use crate::master::telemetry::counters::Loss;
use crate::proto::handoff::HandoffMessage;
use crate::proto::lease::ClientRecord;
use crate::proto::message::Message;
use crate::proto::names::{ClientId, Peer, WorkerId};
use crate::proto::rpc;
use crate::shm::{Layout, LeaseState, MasterShm};
use crate::sys::clock;
use crate::sys::passed::ClientSocket;
use crate::sys::socket::{self, Received};

/// The reply to a client that is closed because too many descriptors are open.
const CROWDED: &str =
    "the daemon was restarted with a lower limit of descriptors than it has clients";

/// How often a datagram is retried while the kernel has no memory: about 5 s in all.
const MAX_REFUSALS: u32 = 56;

/// The contents of the handoff queues.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Shared memory, by its worker.
    shms: BTreeMap<WorkerId, Rc<LeftShm>>,
    clients: BTreeMap<ClientId, UnpackedClient>,
    /// Clients that could not be kept.
    pub(crate) lost: By<Loss>,
    /// Clients among those chosen by [`Unpacked::crowd_out`] that had already disconnected.
    ended: u64,
    /// The reasons why datagrams could not be used.
    pub(crate) faults: Vec<String>,
    /// The number of datagrams that are still in each queue.
    pub(crate) datagrams: Vec<usize>,
}

/// A client as its record describes it.
#[derive(Debug)]
struct UnpackedClient {
    worker: WorkerId,
    record: ClientRecord,
    socket: OwnedFd,
}

impl UnpackedClient {
    /// Returns the client, or `None` if it has disconnected.
    fn into_client(self) -> Option<Client> {
        let peer = match socket::peer(&self.socket).ok()? {
            Ok(address) => Peer::from(address),
            Err(socket::Credentials { pid, uid, gid }) => Peer::Unix { pid, uid, gid },
        };
        let record = self.record;
        Some(Client {
            id: record.client,
            socket: ClientSocket::shared(self.socket, matches!(peer, Peer::Unix { .. })),
            peer,
            order: record.order,
            listener: record.listener,
            since: record.since,
            moves: record.moves,
            offsets: record.offsets,
        })
    }
}

/// Recovers clients, each with its slot and lease number, as after the death of their worker. The time since they were
/// packed does not count: they were not served.
fn recover(left: &Rc<LeftShm>, clients: Vec<(u32, u32, Client)>) -> DeadWorkerClients {
    let LeftShm { record, shm } = &**left;
    shm.settle();
    let header = shm.header();
    let (leases, without_slot) = Leases::from_records(record.slots, clients);
    let mut recovery = leases
        .recover_clients(shm, header.final_writes(), header.is_timed_out())
        .at_once();
    let contradiction = |client| (io::ErrorKind::InvalidData.into(), client);
    recovery
        .lost
        .extend(without_slot.into_iter().map(contradiction));
    recovery.note_places(left);
    let packed_for = header.packed_at().map_or(Duration::ZERO, clock::since);
    for (unleased, _) in &mut recovery.recovered {
        unleased.excuse(packed_for);
    }
    recovery
}

/// Handoff queues and their contents, which are still in the queues.
#[derive(Debug)]
pub(crate) struct ReceivedHandoff {
    queues: HandoffQueues,
    unpacked: Unpacked,
}

impl ReceivedHandoff {
    /// Unpacks these queues and those that have only their second end (`single`). Keeps at most `capacity` clients and
    /// shared memories.
    pub(crate) fn unpack(
        queues: HandoffQueues,
        single: &[Channel<HandoffMessage, HandoffMessage>],
        capacity: usize,
    ) -> ReceivedHandoff {
        let mut unpacked = Unpacked::default();
        let mut scratch = Scratch::default();
        for out in queues.ends().iter().map(|ends| &ends.out).chain(single) {
            let datagrams = unpacked.unpack(out, &mut scratch, capacity);
            unpacked.datagrams.push(datagrams);
        }
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

    /// Counts the clients that are missing because a queue was lost. `clients` is the number of all clients.
    pub(crate) fn count_missing(&mut self, clients: u64) {
        let unpacked = &mut self.unpacked;
        let known = unpacked.clients.len() as u64
            + unpacked.lost.total()
            + unpacked.not_packed()
            + unpacked.ended;
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
        capacity: usize,
    ) -> usize {
        let (mut datagrams, mut shortage) = (0, Shortage::<Instant>::default());
        if let Err(e) = socket::peek_from_start(out) {
            self.faults
                .push(format!("cannot unpack a handoff queue: {e}"));
            return datagrams;
        }
        loop {
            match socket::peek_message(out, scratch.bytes()) {
                Ok(Received::Message {
                    length,
                    descriptors,
                    cut,
                }) => {
                    datagrams += 1;
                    self.add(&scratch.bytes()[..length], descriptors, cut);
                    self.crowd_out(capacity);
                }
                // This master serves no client yet.
                Ok(Received::Shortage) if shortage.refusals() < MAX_REFUSALS => {
                    crate::sys::poll::pause(shortage.next());
                }
                Ok(Received::Shortage) => {
                    self.faults
                        .push("cannot unpack a handoff queue: out of memory".to_owned());
                    return datagrams;
                }
                Ok(Received::Nothing | Received::Closed) => return datagrams,
                Err(e) => {
                    self.faults
                        .push(format!("cannot unpack a handoff queue: {e}"));
                    return datagrams;
                }
            }
        }
    }

    /// Adds a datagram. `cut` is whether the limit of descriptors kept some of its descriptors from being opened.
    fn add(&mut self, datagram: &[u8], mut descriptors: Vec<OwnedFd>, cut: bool) {
        let arrived = descriptors.len();
        match HandoffMessage::decode(datagram) {
            Ok(HandoffMessage::Shm(record)) => {
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
                        self.shms.insert(worker, Rc::new(LeftShm { record, shm }));
                    }
                    Err(e) => self.faults.push(format!(
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
                for (record, socket) in records.into_iter().zip(descriptors) {
                    // A client may have been packed twice.
                    let is_later = self.clients.get(&record.client).is_none_or(|other| {
                        self.rank(other.worker, &other.record) < self.rank(worker, &record)
                    });
                    if is_later {
                        self.clients.insert(
                            record.client,
                            UnpackedClient {
                                worker,
                                record,
                                socket,
                            },
                        );
                    }
                }
            }
            Err(malformed) => {
                self.faults.push(format!("in a handoff queue: {malformed}"));
                self.lost.add(Loss::Store, arrived as u64);
            }
        }
    }

    /// Returns the rank of a record among those of its client; the highest one is valid. A closed slot is not valid,
    /// and more moves are a later lease. With equal moves a worker's record is later: the client waited before that
    /// lease.
    fn rank(&self, worker: WorkerId, record: &ClientRecord) -> (bool, u32, bool) {
        let left = self.shms.get(&worker);
        let slot = left.and_then(|left| left.shm.slot(record.slot));
        let lease = slot.and_then(|slot| slot.lease());
        let is_closed = lease.is_some_and(|lease| lease.state == LeaseState::Closed);
        (!is_closed, record.moves, !is_for_waiting(worker))
    }

    /// Closes the clients that were active least recently, so that at most `capacity` descriptors stay open, including
    /// those of shared memory.
    fn crowd_out(&mut self, capacity: usize) {
        let surplus = (self.clients.len() + self.shms.len())
            .saturating_sub(capacity)
            .min(self.clients.len());
        if surplus == 0 {
            return;
        }
        let mut by_activity: Vec<(u64, ClientId)> = self
            .clients
            .iter()
            .map(|(id, client)| (self.active(client), *id))
            .collect();
        by_activity.select_nth_unstable(surplus - 1);
        let out = by_activity[..surplus]
            .iter()
            .filter_map(|(_, id)| self.clients.remove(id))
            .collect();
        let (recoveries, stray) = self.sort_out(out);
        let before = self.lost.total();
        self.lost.add(Loss::Store, stray);
        for DeadWorkerClients {
            recovered, lost, ..
        } in recoveries
        {
            self.lost
                .add(Loss::Descriptors, (recovered.len() + lost.len()) as u64);
            for (unleased, _) in recovered {
                reject(&unleased, rpc::Code::Overloaded, CROWDED);
            }
            lost.iter()
                .for_each(|(_, client)| socket::end(&client.socket));
        }
        self.ended += (surplus as u64).saturating_sub(self.lost.total() - before);
    }

    /// Returns when a client last sent or received a byte, in ns of CLOCK_MONOTONIC, or 0 if its slot is missing.
    fn active(&self, client: &UnpackedClient) -> u64 {
        let slot = self
            .shms
            .get(&client.worker)
            .and_then(|left| left.shm.slot(client.record.slot));
        slot.map_or(0, |slot| slot.last_active())
    }

    /// Recovers these clients. Closes those whose shared memory is missing, and returns their number. Ignores clients
    /// that have disconnected.
    fn sort_out(&self, clients: Vec<UnpackedClient>) -> (Vec<DeadWorkerClients>, u64) {
        let mut stray = 0;
        let mut by_worker: BTreeMap<WorkerId, Vec<(u32, u32, Client)>> = BTreeMap::new();
        for client in clients {
            let (worker, record) = (client.worker, client.record);
            match client.into_client() {
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
        self.lost.add(Loss::Store, stray + self.not_packed());
        recoveries
    }

    /// Marks all shared memory as counted, so that a later master does not add its counters to the totals again. Must
    /// be called before any client has its place there, because the record is part of each place.
    pub(crate) fn set_counted(&mut self) {
        for left in self.shms.values_mut() {
            if let Some(left) = Rc::get_mut(left) {
                left.record.is_counted = true;
            }
        }
    }

    /// Forgets the clients that workers could not pack, which are counted as lost, so that a later master does not
    /// count them again.
    pub(crate) fn forget_not_packed(&self) {
        self.shms()
            .for_each(|left| left.shm.header().forget_left_behind());
    }

    /// Returns the number of clients that workers could not pack.
    fn not_packed(&self) -> u64 {
        self.shms()
            .map(|LeftShm { record, shm }| shm.header().left_behind().min(record.slots.into()))
            .sum()
    }

    /// Returns all shared memory, with its records.
    pub(crate) fn shms(&self) -> impl Iterator<Item = &LeftShm> {
        self.shms.values().map(|left| &**left)
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
            .map(move |(worker, left)| (left.shm.layout(), clients(*worker)))
    }

    /// Returns whether any client is still connected.
    pub(crate) fn has_clients(&self) -> bool {
        self.clients
            .values()
            .any(|client| socket::peer(&client.socket).is_ok())
    }
}
