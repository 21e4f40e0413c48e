//! The leases of one worker: granted, sent, withdrawn, and their slots.
//!
//! A slot is reused only after the worker has released it: a revoked lease occupies its slot until then.

use std::os::fd::{AsFd, BorrowedFd};
use std::{io, mem};

use crate::master::clients::client::{Client, Unleased};
use crate::master::clients::leases::changes::ChangeReport;
use crate::master::clients::leases::left_places::LeftPlaces;
use crate::master::clients::leases::preset::preset;
use crate::proto::channel::MAX_LEASES;
use crate::proto::lease::{ClientRecord, Lease};
use crate::proto::names::ClientId;
use crate::shm::{LeaseState, MasterShm};
use crate::table::Table;

pub(crate) mod changes;
mod close_reason;
pub(crate) mod goaway;
mod left_places;
pub(crate) mod listing;
pub(crate) mod preset;
pub(crate) mod recovery;
pub(crate) mod reports;
mod revoke;
pub(crate) mod snapshot;

/// A client that was recovered, or why it could not be.
pub(crate) type Recovered = Result<Unleased, (io::Error, Client)>;

/// The leases of one worker, by slot of its shared memory.
#[derive(Debug)]
pub(crate) struct Leases {
    entries: Table<LeaseEntry>,
    /// Free slots below `used`. The slot freed last is used first, because its memory is warm.
    free: Vec<u32>,
    /// Number of slots that were ever used.
    used: u32,
    slots: u32,
    clients: usize,
    changes: ChangeReport,
    /// The number of the last lease.
    lease_number: u32,
    /// Leases granted, minus those withdrawn because they could not be sent.
    granted: u64,
    /// Slots whose leases have not been sent yet.
    outbox: Vec<u32>,
    left_places: LeftPlaces,
    /// The clients are in a handoff queue, so that their slots must stay as they are.
    are_packed: bool,
}

#[derive(Debug)]
enum LeaseEntry {
    Leased(Leased),
    /// The client has left the slot, and the worker has not confirmed it yet.
    Revoked,
}

#[derive(Debug)]
struct Leased {
    client: Client,
    lease_number: u32,
    /// Requests that the client had made when their count last began.
    requests: u64,
    /// The master has closed the client, and has counted that.
    is_counted: bool,
}

// The master's part of the memory of an idle client.
const _: () = assert!(size_of::<Option<LeaseEntry>>() <= 80);

impl Leases {
    pub(crate) fn new(slots: u32) -> Leases {
        Leases {
            entries: Table::new(),
            free: Vec::new(),
            used: 0,
            slots,
            clients: 0,
            changes: ChangeReport::default(),
            lease_number: 0,
            granted: 0,
            outbox: Vec::new(),
            left_places: LeftPlaces::default(),
            are_packed: false,
        }
    }

    /// Returns the sockets of all clients.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.iter().map(|(_, client)| client.socket.as_fd())
    }

    /// Returns the slots of all clients.
    pub(crate) fn slots(&self) -> Vec<u32> {
        self.iter().map(|(slot, _)| slot).collect()
    }

    /// Returns the number of leased clients.
    pub(crate) fn clients(&self) -> usize {
        self.clients
    }

    /// Returns the number of leases granted, minus those withdrawn because they could not be sent.
    pub(crate) fn granted(&self) -> u64 {
        self.granted
    }

    /// Returns whether there is a slot for one more client.
    pub(crate) fn has_free_slot(&self) -> bool {
        !self.free.is_empty() || self.used < self.slots
    }

    /// Returns the clients, each with its slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Client)> {
        (0..self.used).filter_map(|slot| Some((slot, self.client(slot)?)))
    }

    /// Returns the bound below which all slots lie that were ever used.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// Returns the client in a slot.
    pub(crate) fn client(&self, slot: u32) -> Option<&Client> {
        match self.entries.get(slot)? {
            LeaseEntry::Leased(leased) => Some(&leased.client),
            LeaseEntry::Revoked => None,
        }
    }

    /// Returns the client in a slot, to be changed.
    pub(crate) fn client_mut(&mut self, slot: u32) -> Option<&mut Client> {
        match self.entries.get_mut(slot)? {
            LeaseEntry::Leased(leased) => Some(&mut leased.client),
            LeaseEntry::Revoked => None,
        }
    }

    /// Returns the slot of a client.
    pub(crate) fn slot_of(&self, id: ClientId) -> Option<u32> {
        self.iter()
            .find(|(_, client)| client.id == id)
            .map(|(slot, _)| slot)
    }

    /// Leases a client: fills a slot and writes the client's bytes to its regions. The next batch sends the lease.
    ///
    /// # Errors
    /// Those of writing to the shared memory, with the client.
    ///
    /// # Panics
    /// Without a free slot: dispatch chooses only workers that have one.
    pub(crate) fn grant(
        &mut self,
        unleased: Unleased,
        shm: &MasterShm,
    ) -> Result<(), (io::Error, Client)> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        let mut unleased = unleased;
        let left_len = self.left_places.prepare(&mut unleased);
        let lease_number = self.lease_number.wrapping_add(1);
        if let Err(e) = preset(&unleased, slot, lease_number, shm) {
            self.free.push(slot);
            return Err((e, unleased.client));
        }
        self.lease_number = lease_number;
        let Unleased {
            client,
            requests,
            place,
            left_slot,
            bytes,
            ..
        } = unleased;
        self.left_places.keep(slot, place, bytes, left_len);
        self.left_places.keep_slot(slot, left_slot);
        self.entries.insert(
            slot,
            LeaseEntry::Leased(Leased {
                client,
                lease_number: self.lease_number,
                requests,
                is_counted: false,
            }),
        );
        self.clients += 1;
        self.changes.note();
        self.granted += 1;
        self.outbox.push(slot);
        Ok(())
    }

    /// Returns whether the leases must be sent before another client is leased.
    pub(crate) fn must_be_sent(&self) -> bool {
        self.left_places.must_be_sent()
    }

    /// Closes the places that the clients of this batch had before. Must be called when their leases have been sent.
    pub(crate) fn close_left_places(&mut self, batch: &[u32]) {
        self.left_places.close(batch);
    }

    /// Returns the lease number of the client in a slot; 0 without a client.
    fn lease_number_of(&self, slot: u32) -> u32 {
        match self.entries.get(slot) {
            Some(LeaseEntry::Leased(leased)) => leased.lease_number,
            Some(LeaseEntry::Revoked) | None => 0,
        }
    }

    /// Returns the slots of the next message of leases.
    pub(crate) fn next_batch(&mut self) -> Option<Vec<u32>> {
        self.left_places.begin_batch();
        let count = self.outbox.len().min(MAX_LEASES);
        (count > 0).then(|| self.outbox.drain(..count).collect())
    }

    /// Returns the lease records of these slots, and the descriptors that are sent with them.
    pub(crate) fn records<'a>(
        &'a self,
        batch: &'a [u32],
    ) -> impl Iterator<Item = (Lease, BorrowedFd<'a>)> {
        batch.iter().filter_map(|slot| {
            let LeaseEntry::Leased(leased) = self.entries.get(*slot)? else {
                return None;
            };
            let client = &leased.client;
            let record = ClientRecord {
                client: client.id,
                slot: *slot,
                lease_number: leased.lease_number,
                order: client.order,
                moves: client.moves,
                listener: client.listener,
                since: client.since,
                offsets: client.rare.offsets(),
            };
            let peer = client.peer;
            Some((Lease { record, peer }, client.socket.as_fd()))
        })
    }

    /// Withdraws the leases of this batch and all others that were not sent. The worker does not know of them.
    pub(crate) fn withdraw(&mut self, batch: Vec<u32>, shm: &MasterShm) -> Vec<Recovered> {
        let unsent: Vec<u32> = batch.into_iter().chain(self.outbox.drain(..)).collect();
        self.granted -= unsent.len() as u64;
        let mut back = Vec::new();
        for slot in unsent {
            // The shared memory may contradict this only if the worker is broken, as it has not received the lease.
            // Then the lease stays.
            if let Some(mut recovered) = self.revoke(slot, shm) {
                self.free_slot(slot, shm);
                if let Ok(unleased) = &mut recovered {
                    self.left_places.give_back(slot, unleased);
                }
                back.push(recovered);
            }
        }
        back
    }

    /// Returns whether there are leases that have not been sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Returns the number of slots for more clients.
    pub(crate) fn free_slots(&self) -> usize {
        self.free.len() + (self.slots - self.used) as usize
    }

    /// Notes that the clients are in a handoff queue. From then on no slot is freed.
    pub(crate) fn set_packed(&mut self) {
        self.are_packed = true;
    }

    /// Returns the state in the lease word of a slot, if the word is that of the client's lease.
    fn state(&self, slot: u32, shm: &MasterShm) -> Option<LeaseState> {
        let Some(LeaseEntry::Leased(leased)) = self.entries.get(slot) else {
            return None;
        };
        let lease = shm.slot(slot)?.lease()?;
        (lease.number == leased.lease_number).then_some(lease.state)
    }

    /// Removes the client from its slot, which is not free yet.
    fn take_client(&mut self, slot: u32) -> Option<Client> {
        match mem::replace(self.entries.get_mut(slot)?, LeaseEntry::Revoked) {
            LeaseEntry::Leased(leased) => {
                self.clients -= 1;
                self.changes.note();
                Some(leased.client)
            }
            LeaseEntry::Revoked => None,
        }
    }

    fn free_slot(&mut self, slot: u32, shm: &MasterShm) {
        if self.are_packed {
            return;
        }
        if self.entries.take(slot).is_some() {
            if let Some(shared_slot) = shm.slot(slot) {
                shared_slot.clear();
            }
            self.free.push(slot);
        }
    }

    /// Records how many requests each client has made so far, for [`Leases::counted_requests`].
    pub(crate) fn begin_request_count(&mut self, shm: &MasterShm) {
        for slot in 0..self.used {
            if let (Some(LeaseEntry::Leased(leased)), Some(shared_slot)) =
                (self.entries.get_mut(slot), shm.slot(slot))
            {
                leased.requests = shared_slot.requests();
            }
        }
    }

    /// Returns how many requests each client has made since the last [`Leases::begin_request_count`], by slot.
    pub(crate) fn counted_requests(&self, shm: &MasterShm) -> Vec<(u32, u64)> {
        let since = |slot: u32| match self.entries.get(slot) {
            Some(LeaseEntry::Leased(leased)) => Some((
                slot,
                shm.slot(slot)?.requests().saturating_sub(leased.requests),
            )),
            Some(LeaseEntry::Revoked) | None => None,
        };
        (0..self.used).filter_map(since).collect()
    }

    /// Returns the client in this slot if its lease word shows that the worker is in its turn.
    pub(crate) fn in_turn(&self, slot: u32, shm: &MasterShm) -> Option<&Client> {
        match self.entries.get(slot)? {
            LeaseEntry::Leased(leased) if self.state(slot, shm) == Some(LeaseState::Busy) => {
                Some(&leased.client)
            }
            LeaseEntry::Leased(_) | LeaseEntry::Revoked => None,
        }
    }
}

#[cfg(test)]
mod tests;
