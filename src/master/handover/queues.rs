//! Handoff queues, in which a master leaves its clients for the next one: see `proto/handoff.rs`.
//!
//! The service manager has both ends of each queue from the start, and every worker has the ends for packing. A master
//! that exits in order packs all clients itself; if it is killed, each worker packs its own. The next master recovers
//! the clients from their shared memory, as after the death of a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::channel::{Channel, Scratch, Sent};
use crate::loop_clock::Shortage;
use crate::master::clients::leases::Leases;
use crate::master::clients::place::OrphanedShm;
use crate::proto::channel::MAX_HANDOFF_QUEUES;
use crate::proto::handoff::{HandoffMessage, ShmRecord};
use crate::proto::lease::ClientRecord;
use crate::shm::MasterShm;
use crate::sys::socket;
use crate::sys::socket::Received;

/// Clients per handoff queue: even with the kernel's smallest buffer a queue holds twice as many.
const CLIENTS_PER_QUEUE: u64 = 3000;

/// Wanted size of a queue's buffer, in bytes; the kernel may allow less (socket(7)).
const BUFFER_LEN: usize = 4 << 20;

/// How often a master that exits retries to pack a datagram while the kernel has no memory: about 1 s in all.
const MAX_REFUSALS: u32 = 16;

/// All handoff queues.
#[derive(Debug, Default)]
pub(crate) struct HandoffQueues(Vec<QueueEnds>);

/// Both ends of a queue: the first is for packing, the second for unpacking.
#[derive(Debug)]
pub(crate) struct QueueEnds {
    pub(crate) into: Channel<HandoffMessage, HandoffMessage>,
    pub(crate) out: Channel<HandoffMessage, HandoffMessage>,
    /// Datagrams in the queue that this master has sent, or has adopted from an earlier one.
    sent: usize,
}

/// The clients of a worker that is gone, and its shared memory.
#[derive(Debug)]
pub(crate) struct OrphanedClients {
    pub(crate) orphan: OrphanedShm,
    pub(crate) leases: Leases,
}

impl HandoffQueues {
    /// Creates enough queues for these clients.
    pub(crate) fn new(clients: u64) -> io::Result<HandoffQueues> {
        HandoffQueues::complete(BTreeMap::new(), clients).map(|(queues, _)| queues)
    }

    /// Returns how many queues these clients need.
    pub(crate) fn wanted(clients: u64) -> u64 {
        (clients / CLIENTS_PER_QUEUE + 2).min(MAX_HANDOFF_QUEUES as u64)
    }

    /// Completes the queues of an earlier master, by number, with new ones, so that there are enough for these clients.
    /// Returns the numbers of the new ones as well.
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

    /// Returns the queues of a master that continues.
    pub(crate) fn from_ends(ends: Vec<QueueEnds>) -> HandoffQueues {
        HandoffQueues(ends)
    }

    pub(crate) fn ends(&self) -> &[QueueEnds] {
        &self.0
    }

    /// Returns the ends for packing.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|ends| ends.into.as_fd())
    }

    /// Packs shared memory and its clients in these slots. Returns the number of clients without space.
    pub(crate) fn pack(&mut self, clients: &OrphanedClients, slots: &[u32]) -> usize {
        if slots.is_empty() {
            return 0;
        }
        let records = clients
            .leases
            .records(slots)
            .map(|(lease, socket)| (lease.record, socket))
            .collect();
        let OrphanedShm { record, shm } = &clients.orphan;
        self.pack_with(record, shm, records, MAX_REFUSALS)
    }

    /// Packs shared memory and these clients, without waiting. Returns the number of clients without space.
    pub(crate) fn pack_all(
        &mut self,
        record: &ShmRecord,
        shm: &MasterShm,
        clients: Vec<(ClientRecord, BorrowedFd<'_>)>,
    ) -> usize {
        self.pack_with(record, shm, clients, 0)
    }

    /// Does the same as [`HandoffQueues::pack_all`], but tries a datagram for which the kernel has no memory again
    /// `max_refusals` times.
    fn pack_with(
        &mut self,
        record: &ShmRecord,
        shm: &MasterShm,
        clients: Vec<(ClientRecord, BorrowedFd<'_>)>,
        max_refusals: u32,
    ) -> usize {
        let mut is_sent = self.pack_shm(record, shm, max_refusals);
        let (records, sockets): (Vec<ClientRecord>, Vec<BorrowedFd<'_>>) =
            clients.into_iter().unzip();
        let most = ClientRecord::max_in_datagram(&records);
        let mut without_space = 0;
        for (records, sockets) in records.chunks(most).zip(sockets.chunks(most)) {
            is_sent = is_sent
                && self.send(
                    &HandoffMessage::Clients(record.worker, records.to_vec()),
                    sockets,
                    max_refusals,
                );
            without_space += if is_sent { 0 } else { records.len() };
        }
        without_space
    }

    /// Packs shared memory alone: of two of its records the later one counts. Returns whether there was space.
    pub(crate) fn pack_shm(
        &mut self,
        record: &ShmRecord,
        shm: &MasterShm,
        max_refusals: u32,
    ) -> bool {
        self.send(
            &HandoffMessage::Shm(Box::new(record.clone())),
            &[shm.file().as_fd()],
            max_refusals,
        )
    }

    /// Removes the contents of all queues. Returns whether they are empty: the kernel may have no memory for that now.
    pub(crate) fn empty(&mut self, scratch: &mut Scratch) -> bool {
        let mut are_empty = true;
        for ends in &mut self.0 {
            are_empty &= loop {
                match socket::receive_message(&ends.out, scratch.bytes()) {
                    Ok(Received::Message { .. }) => ends.sent = ends.sent.saturating_sub(1),
                    Ok(Received::Shortage) => break false,
                    Ok(Received::Nothing | Received::Closed) | Err(_) => break true,
                }
            };
        }
        are_empty
    }

    /// Returns the number of datagrams in each queue that this master has sent.
    pub(crate) fn sent(&self) -> Vec<usize> {
        self.0.iter().map(|ends| ends.sent).collect()
    }

    /// Counts this many datagrams of an earlier master in each queue as sent by this one.
    pub(crate) fn adopt(&mut self, datagrams: &[usize]) {
        for (ends, count) in self.0.iter_mut().zip(datagrams) {
            ends.sent += count;
        }
    }

    /// Removes this many datagrams from the front of each queue, and from the number of those that were sent.
    pub(crate) fn remove_sent(&mut self, datagrams: &[usize], scratch: &mut Scratch) {
        self.remove_first(datagrams, scratch);
        for (ends, count) in self.0.iter_mut().zip(datagrams) {
            ends.sent = ends.sent.saturating_sub(*count);
        }
    }

    /// Removes this many datagrams from the front of each queue.
    pub(crate) fn remove_first(&self, datagrams: &[usize], scratch: &mut Scratch) {
        for (ends, count) in self.0.iter().zip(datagrams) {
            for _ in 0..*count {
                let _ = socket::receive_message(&ends.out, scratch.bytes());
            }
        }
    }

    /// Removes the datagrams at the front of each queue that this master has not sent, and closes the clients in them
    /// whose cookies are not among `kept`. Returns their number.
    pub(crate) fn close_rest(&self, kept: &BTreeSet<u64>, scratch: &mut Scratch) -> usize {
        let mut closed = 0;
        for ends in &self.0 {
            for _ in ends.sent..ends.waiting(scratch) {
                let received = socket::receive_message(&ends.out, scratch.bytes());
                if let Ok(Received::Message { descriptors, .. }) = received {
                    let is_kept = |client| match socket::cookie(client) {
                        Ok(cookie) => cookie.is_some_and(|cookie| kept.contains(&cookie)),
                        // Shared memory.
                        Err(_) => true,
                    };
                    let clients = descriptors.iter().filter(|client| !is_kept(*client));
                    closed += clients.inspect(|client| socket::end(client)).count();
                }
            }
        }
        closed
    }

    /// Sends a datagram into the first queue with space. Returns whether there was one.
    fn send(
        &mut self,
        message: &HandoffMessage,
        descriptors: &[BorrowedFd<'_>],
        max_refusals: u32,
    ) -> bool {
        let mut shortage = Shortage::<Instant>::default();
        loop {
            let mut is_short = false;
            for ends in &mut self.0 {
                match ends.into.send(message, descriptors) {
                    Ok(Sent::Queued) => {
                        ends.sent += 1;
                        return true;
                    }
                    Ok(Sent::Shortage) => is_short = true,
                    _ => {}
                }
            }
            if !is_short || shortage.refusals() >= max_refusals {
                return false;
            }
            crate::sys::poll::pause(shortage.next_wait());
        }
    }
}

impl QueueEnds {
    fn new() -> io::Result<QueueEnds> {
        let (into, out) = Channel::pair()?;
        // A smaller buffer only fills more queues.
        let _ = socket::set_send_buffer(&into, BUFFER_LEN);
        Ok(QueueEnds::from_channels(into, Channel::new(out)))
    }

    /// Returns the number of datagrams in the queue.
    fn waiting(&self, scratch: &mut Scratch) -> usize {
        let (mut datagrams, mut bytes) = (0, 0);
        while let Ok(()) = socket::peek_from(&self.out, bytes)
            && let Ok(Received::Message { length, .. }) =
                socket::peek_bytes(&self.out, scratch.bytes())
        {
            (datagrams, bytes) = (datagrams + 1, bytes + length);
        }
        datagrams
    }

    /// Returns a queue of these ends.
    pub(crate) fn from_channels(
        into: Channel<HandoffMessage, HandoffMessage>,
        out: Channel<HandoffMessage, HandoffMessage>,
    ) -> QueueEnds {
        QueueEnds { into, out, sent: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn clients_that_were_not_unpacked_are_closed() {
        let mut queues = HandoffQueues::new(1).expect("socketpair");
        let (mut theirs, ours) = UnixStream::pair().expect("socketpair");
        let kept = UnixStream::pair().expect("socketpair");
        let file = OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null"));
        let into = &queues.0[0].into;
        for descriptors in [vec![file.as_fd()], vec![ours.as_fd(), kept.1.as_fd()]] {
            let sent = socket::send_message(into, b"of the earlier master", &descriptors);
            assert_eq!(sent.expect("sendmsg"), socket::Sent::Queued);
        }
        let sent = socket::send_message(&queues.0[0].into, b"of this one", &[kept.1.as_fd()]);
        assert_eq!(sent.expect("sendmsg"), socket::Sent::Queued);
        queues.0[0].sent += 1;
        let cookies = socket::cookie(&kept.1).expect("a socket").into_iter();
        let closed = queues.close_rest(&cookies.collect(), &mut Scratch::default());
        assert_eq!(closed, 1);
        // Our copy is still open.
        assert_eq!(theirs.read(&mut [0]).expect("the end"), 0);
        let sent = socket::send_message(&kept.0, b"x", &[]).expect("it is connected");
        assert_eq!(sent, socket::Sent::Queued);
        assert_eq!(
            queues.sent()[0],
            queues.0[0].waiting(&mut Scratch::default())
        );
    }

    #[test]
    fn the_queues_hold_as_many_clients_as_the_unit_allows() {
        const UNIT: &str = include_str!("../../../packaging/systemd/fdpassd.service");
        let number = |key: &str| -> u64 {
            let value = UNIT.lines().find_map(|line| line.strip_prefix(key));
            value.and_then(|value| value.parse().ok()).expect(key)
        };
        let limit = number("LimitNOFILE=");
        let queues = HandoffQueues::wanted(limit);
        assert!(queues * CLIENTS_PER_QUEUE >= limit, "{queues} queues");
        // Both ends of each queue, and the state file.
        assert!(2 * queues < number("FileDescriptorStoreMax="));
    }
}
