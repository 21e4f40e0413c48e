//! Handoff queues: what a master leaves its clients in for the next one, see `proto/handoff.rs`.
//!
//! Both ends of each lie with the service manager from the beginning, and every worker has the ends that are packed into. A
//! master that goes in good order packs all clients itself; of one that dies each worker packs its own. What the next
//! master unpacks is recovered as after the death of a worker: the shared memory tells all, and comes along.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::channel::{Channel, Sent};
use crate::master::clients::leases::Leases;
use crate::proto::channel::MAX_HANDOFF_QUEUES;
use crate::proto::handoff::{HandoffMessage, ShmRecord};
use crate::proto::lease::ClientRecord;
use crate::shm::MasterShm;
use crate::sys::socket;

/// Clients for whom there is one more handoff queue: with the smallest buffer that the kernel gives, it takes twice as many.
const CLIENTS_PER_QUEUE: u64 = 3000;

/// Bytes of memory that a handoff queue is wanted to have for what lies in it; the kernel gives what it allows (socket(7)).
const BUFFER_LEN: usize = 4 << 20;

/// All handoff queues.
#[derive(Debug, Default)]
pub(crate) struct HandoffQueues(Vec<QueueEnds>);

/// What goes into the first end comes out of the second.
#[derive(Debug)]
pub(crate) struct QueueEnds {
    pub(crate) into: Channel<HandoffMessage, HandoffMessage>,
    pub(crate) out: Channel<HandoffMessage, HandoffMessage>,
}

/// Shared memory whose worker is gone, and the clients on it.
#[derive(Debug)]
pub(crate) struct OrphanedShm {
    pub(crate) record: ShmRecord,
    pub(crate) shm: MasterShm,
    pub(crate) leases: Leases,
}

impl HandoffQueues {
    /// So many that all of these clients find room.
    pub(crate) fn new(clients: u64) -> io::Result<HandoffQueues> {
        HandoffQueues::complete(BTreeMap::new(), clients).map(|(queues, _)| queues)
    }

    /// How many that are.
    pub(crate) fn wanted(clients: u64) -> u64 {
        (clients / CLIENTS_PER_QUEUE + 2).min(MAX_HANDOFF_QUEUES as u64)
    }

    /// Those that were made before, each by its number, and new ones in the place of those that are missing: so many in all
    /// that these clients find room. Returns the numbers of the new ones as well.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub(crate) fn complete(
        mut found: BTreeMap<usize, QueueEnds>,
        clients: u64,
    ) -> io::Result<(HandoffQueues, Vec<usize>)> {
        let last = found.last_key_value().map_or(0, |(number, _)| number + 1);
        let (mut ends, mut new) = (Vec::new(), Vec::new());
        for number in 0..last.max(HandoffQueues::wanted(clients) as usize) {
            ends.push(match found.remove(&number) {
                Some(ends) => ends,
                None => {
                    new.push(number);
                    QueueEnds::new()?
                }
            });
        }
        Ok((HandoffQueues(ends), new))
    }

    /// Those of a master that goes on.
    pub(crate) fn from_ends(ends: Vec<QueueEnds>) -> HandoffQueues {
        HandoffQueues(ends)
    }

    pub(crate) fn ends(&self) -> &[QueueEnds] {
        &self.0
    }

    /// What workers pack into.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|ends| ends.into.as_fd())
    }

    /// Packs shared memory and all clients on it. Returns how many found no room.
    pub(crate) fn pack(&mut self, orphan: &OrphanedShm) -> usize {
        let slots = orphan.leases.slots();
        let records = orphan
            .leases
            .records(&slots)
            .map(|(lease, socket)| (lease.record, socket))
            .collect();
        self.pack_all(&orphan.record, &orphan.shm, records)
    }

    /// Packs shared memory and these clients on it. Returns how many found no room.
    pub(crate) fn pack_all(
        &mut self,
        record: &ShmRecord,
        shm: &MasterShm,
        clients: Vec<(ClientRecord, BorrowedFd<'_>)>,
    ) -> usize {
        let mut is_off = self.load(
            &HandoffMessage::Shm(Box::new(record.clone())),
            &[shm.file().as_fd()],
        );
        let (records, sockets): (Vec<ClientRecord>, Vec<BorrowedFd<'_>>) =
            clients.into_iter().unzip();
        let most = ClientRecord::max_in_datagram(&records);
        let mut left = 0;
        for (records, sockets) in records.chunks(most).zip(sockets.chunks(most)) {
            is_off = is_off
                && self.load(
                    &HandoffMessage::Clients(record.worker, records.to_vec()),
                    sockets,
                );
            left += if is_off { 0 } else { records.len() };
        }
        left
    }

    /// Sends a datagram into the first handoff queue that has room; whether one had.
    fn load(&mut self, what: &HandoffMessage, descriptors: &[BorrowedFd<'_>]) -> bool {
        self.0
            .iter_mut()
            .any(|ends| matches!(ends.into.send(what, descriptors), Ok(Sent::Queued)))
    }
}

impl QueueEnds {
    fn new() -> io::Result<QueueEnds> {
        let (into, out) = Channel::pair()?;
        // As much as there is to be had. Less is more handoff queues full, and no harm.
        let _ = socket::set_send_buffer(&into, BUFFER_LEN);
        Ok(QueueEnds {
            into,
            out: Channel::new(out),
        })
    }
}
