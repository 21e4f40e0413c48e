//! The leases of one worker: granted, revoked, given back, closed, and recovered when the worker
//! dies.
//!
//! A slot is reused only after the worker has released it: a revoked lease occupies its slot until
//! then.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::{io, mem};

use serde::{Deserialize, Serialize};

use crate::master::clients::client::{Client, Unleased};
use crate::proto::channel::MAX_LEASES;
use crate::proto::frame::OrderRule;
use crate::proto::lease::{ClientRecord, Lease};
use crate::proto::names::{ClientId, Offsets, Peer};
use crate::shm::{Claim, Header, LeaseState, MasterShm, Owner, Slot, Write};
use crate::sys::byte_counts::{self, ByteCounts, Writes};
use crate::sys::passed::ClientSocket;
use crate::table::Table;

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
    /// Counts leases; the last lease's number is its generation.
    lease_number: u32,
    /// Leases granted, minus those withdrawn because they could not be sent.
    given: u64,
    /// Slots whose leases have not been sent yet.
    outbox: Vec<u32>,
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
    /// Requests that the client had made when it was last looked at.
    requests: u64,
}

/// State of a client as its shared memory has it, for display.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotFigures {
    /// When the client last sent or received a byte: ns of CLOCK_MONOTONIC.
    pub(crate) active: u64,
    pub(crate) requests: u64,
    /// Number of unread and unsent bytes.
    pub(crate) bytes: u64,
}

/// Result of a worker's message that it is done with a slot.
#[derive(Debug)]
pub(crate) enum Done {
    /// The client had been revoked before.
    Known,
    /// The worker has ended the client.
    Ended(Client),
    /// The worker gave the client up.
    GivenUp(Recovered),
    /// The message contradicts the shared memory.
    Nonsense,
}

/// A request that was executing when its worker died.
#[derive(Clone, Debug)]
pub(crate) struct Interrupted {
    /// Number of the method in the shared memory.
    pub(crate) method: u32,
    /// How often this will have happened to the request when its client is leased again.
    pub(crate) crash_count: u8,
}

/// The clients that a dead worker left behind.
#[derive(Debug, Default)]
pub(crate) struct DeadWorkerClients {
    /// Clients that must be leased again, with all their unread and unsent bytes; and their
    /// requests that were executing.
    pub(crate) recovered: Vec<(Unleased, Option<Interrupted>)>,
    /// Clients that the worker had ended.
    pub(crate) ended: Vec<Client>,
    /// Clients that cannot be recovered, each with the reason.
    pub(crate) lost: Vec<(io::Error, Client)>,
    /// Clients whose unsent bytes are not known yet, each with its slot.
    pub(crate) waiting: Vec<(u32, Client)>,
}

impl DeadWorkerClients {
    /// Returns the same clients without waiting for unknown byte counts: the waiting clients count
    /// as lost.
    pub(crate) fn at_once(mut self) -> DeadWorkerClients {
        let unknown = |(_, client)| (io::ErrorKind::WouldBlock.into(), client);
        self.lost.extend(self.waiting.drain(..).map(unknown));
        self
    }
}

/// The leases of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeasesSnapshot {
    pub(crate) used: u32,
    #[serde(rename = "generation")]
    pub(crate) lease_number: u32,
    pub(crate) given: u64,
    /// Clients by slot; `None` where a lease was revoked and the worker has not confirmed it yet.
    pub(crate) entries: Vec<(u32, Option<ClientSnapshot>)>,
}

/// A client with its lease.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientSnapshot {
    pub(crate) id: ClientId,
    pub(crate) socket: RawFd,
    pub(crate) peer: Peer,
    pub(crate) order: OrderRule,
    pub(crate) listener: u32,
    pub(crate) since: u32,
    pub(crate) moves: u32,
    #[serde(rename = "generation")]
    pub(crate) lease_number: u32,
    pub(crate) requests: u64,
    #[serde(default)]
    pub(crate) offsets: Offsets,
}

impl Leases {
    pub(crate) fn new(slots: u32) -> Leases {
        Leases {
            entries: Table::new(),
            free: Vec::new(),
            used: 0,
            slots,
            clients: 0,
            lease_number: 0,
            given: 0,
            outbox: Vec::new(),
        }
    }

    /// Restores the leases of a worker of another master from the records of its handoff queue:
    /// slot, generation, client. Records of slots that do not exist are dropped; of two in one slot
    /// the later one is used. Which of them is true cannot be known.
    pub(crate) fn from_records(slots: u32, clients: Vec<(u32, u32, Client)>) -> Leases {
        let mut leases = Leases::new(slots);
        for (slot, lease_number, client) in clients.into_iter().filter(|(slot, _, _)| *slot < slots)
        {
            leases.entries.insert(
                slot,
                LeaseEntry::Leased(Leased {
                    client,
                    lease_number,
                    requests: 0,
                }),
            );
            leases.used = leases.used.max(slot + 1);
        }
        leases.clients = leases.iter().count();
        leases
    }

    /// Returns the snapshot from which the next program restores these leases. `None` while some
    /// are not sent yet.
    pub(crate) fn snapshot(&self) -> Option<LeasesSnapshot> {
        let entry = |slot: u32| match self.entries.get(slot)? {
            LeaseEntry::Revoked => Some((slot, None)),
            LeaseEntry::Leased(Leased {
                client,
                lease_number,
                requests,
            }) => {
                let Client {
                    id,
                    peer,
                    order,
                    listener,
                    since,
                    moves,
                    offsets,
                    ..
                } = *client;
                let socket = client.socket.as_raw_fd();
                let (lease_number, requests) = (*lease_number, *requests);
                let client = ClientSnapshot {
                    id,
                    socket,
                    peer,
                    order,
                    listener,
                    since,
                    moves,
                    lease_number,
                    requests,
                    offsets,
                };
                Some((slot, Some(client)))
            }
        };
        let (used, lease_number, given) = (self.used, self.lease_number, self.given);
        let entries = (0..self.used).filter_map(entry).collect();
        self.outbox.is_empty().then_some(LeasesSnapshot {
            used,
            lease_number,
            given,
            entries,
        })
    }

    /// Returns the sockets of all clients.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.iter().map(|(_, client)| client.socket.as_fd())
    }

    /// Restores the leases from a snapshot. `take` returns the descriptor of a number.
    ///
    /// # Errors
    /// Those of `take`; `InvalidData` for a slot that does not exist.
    pub(crate) fn from_snapshot(
        slots: u32,
        snapshot: LeasesSnapshot,
        mut take: impl FnMut(RawFd) -> io::Result<OwnedFd>,
    ) -> io::Result<Leases> {
        let mut leases = Leases::new(slots);
        (leases.used, leases.lease_number, leases.given) =
            (snapshot.used, snapshot.lease_number, snapshot.given);
        for (slot, client) in snapshot.entries {
            if slot >= snapshot.used || snapshot.used > slots {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let entry = match client {
                None => LeaseEntry::Revoked,
                Some(ClientSnapshot {
                    id,
                    socket,
                    peer,
                    order,
                    listener,
                    since,
                    moves,
                    lease_number,
                    requests,
                    offsets,
                }) => {
                    let socket =
                        ClientSocket::shared(take(socket)?, matches!(peer, Peer::Unix { .. }));
                    let client = Client {
                        id,
                        socket,
                        peer,
                        order,
                        listener,
                        since,
                        moves,
                        offsets,
                    };
                    leases.clients += 1;
                    LeaseEntry::Leased(Leased {
                        client,
                        lease_number,
                        requests,
                    })
                }
            };
            leases.entries.insert(slot, entry);
        }
        leases.free = (0..leases.used)
            .rev()
            .filter(|slot| leases.entries.get(*slot).is_none())
            .collect();
        Ok(leases)
    }

    /// Returns the slots of all clients.
    pub(crate) fn slots(&self) -> Vec<u32> {
        self.iter().map(|(slot, _)| slot).collect()
    }

    /// Returns the number of leased clients.
    pub(crate) fn clients(&self) -> usize {
        self.clients
    }

    /// Returns the number of leases granted.
    pub(crate) fn given(&self) -> u64 {
        self.given
    }

    /// Returns whether one more client has a slot.
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

    /// Returns the clients in these slots, each with the figures of its slot.
    pub(crate) fn page<'a>(
        &'a self,
        slots: Range<u32>,
        shm: &'a MasterShm,
    ) -> impl Iterator<Item = (&'a Client, SlotFigures)> {
        slots.filter_map(|slot| {
            let (client, shared_slot) = (self.client(slot)?, shm.slot(slot)?);
            let cursors = shared_slot.cursors();
            // The last cursors in the slot of an idle client do not count: it has nothing there.
            let is_idle = self.state(slot, shm) == Some(LeaseState::Idle);
            let unsent = if is_idle {
                0
            } else {
                u64::from(cursors.replied)
            };
            let unread = if is_idle {
                0
            } else {
                u64::from(cursors.have).saturating_sub(cursors.answered.into())
            };
            let bytes = unsent + unread;
            Some((
                client,
                SlotFigures {
                    active: shared_slot.last_active(),
                    requests: shared_slot.requests(),
                    bytes,
                },
            ))
        })
    }

    /// Returns the client in a slot.
    pub(crate) fn client(&self, slot: u32) -> Option<&Client> {
        match self.entries.get(slot)? {
            LeaseEntry::Leased(leased) => Some(&leased.client),
            LeaseEntry::Revoked => None,
        }
    }

    /// Returns the slot of a client.
    pub(crate) fn slot_of(&self, id: ClientId) -> Option<u32> {
        self.iter()
            .find(|(_, client)| client.id == id)
            .map(|(slot, _)| slot)
    }

    /// Leases a client: fills a slot and lays the client's bytes into their regions. The next batch
    /// sends the lease.
    ///
    /// # Errors
    /// Those of writing to the shared memory, with the client.
    ///
    /// # Panics
    /// Without a free slot: dispatch chooses only workers that have one.
    pub(crate) fn give(
        &mut self,
        unleased: Unleased,
        shm: &MasterShm,
    ) -> Result<(), (io::Error, Client)> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        let Unleased {
            client,
            bytes,
            flags,
            times,
            requests,
            ..
        } = unleased;
        let cursors = match shm.store(slot, &bytes) {
            Ok(cursors) => cursors,
            Err(e) => {
                self.free.push(slot);
                return Err((e, client));
            }
        };
        self.lease_number = self.lease_number.wrapping_add(1);
        // A client that got its last reply is not served: it only gets time to read the reply.
        let is_idle = bytes.unread.is_empty()
            && bytes.unsent.is_empty()
            && !flags.closing
            && !flags.overloaded;
        let state = if is_idle {
            LeaseState::Idle
        } else {
            LeaseState::Parked
        };
        let shared_slot = shm.slot(slot).expect("a worker with room has a free slot");
        shared_slot.preset(state, self.lease_number, cursors, flags, times, requests);
        self.entries.insert(
            slot,
            LeaseEntry::Leased(Leased {
                client,
                lease_number: self.lease_number,
                requests,
            }),
        );
        self.clients += 1;
        self.given += 1;
        self.outbox.push(slot);
        Ok(())
    }

    /// Returns the slots of the next message of leases.
    pub(crate) fn next_batch(&mut self) -> Option<Vec<u32>> {
        let count = self.outbox.len().min(MAX_LEASES);
        (count > 0).then(|| self.outbox.drain(..count).collect())
    }

    /// Returns the lease records of these slots, and the descriptors that are sent with them.
    pub(crate) fn records<'a>(
        &'a self,
        batch: &'a [u32],
    ) -> impl Iterator<Item = (Lease, BorrowedFd<'a>)> {
        batch
            .iter()
            .filter_map(|slot| match self.entries.get(*slot)? {
                LeaseEntry::Leased(Leased {
                    client,
                    lease_number,
                    ..
                }) => {
                    let Client {
                        id,
                        order,
                        peer,
                        moves,
                        listener,
                        since,
                        offsets,
                        ..
                    } = *client;
                    let record = ClientRecord {
                        client: id,
                        slot: *slot,
                        lease_number: *lease_number,
                        order,
                        moves,
                        listener,
                        since,
                        offsets,
                    };
                    Some((Lease { record, peer }, client.socket.as_fd()))
                }
                LeaseEntry::Revoked => None,
            })
    }

    /// Withdraws the leases of this batch and all others that were not sent. The worker does not
    /// know of them.
    pub(crate) fn withdraw(&mut self, batch: Vec<u32>, shm: &MasterShm) -> Vec<Recovered> {
        let unsent: Vec<u32> = batch.into_iter().chain(self.outbox.drain(..)).collect();
        self.given -= unsent.len() as u64;
        let mut back = Vec::new();
        for slot in unsent {
            // The shared memory may contradict this only if the worker is broken, as it has not
            // received the lease. Then the lease stays.
            if let Some(recovered) = self.revoke(slot, shm) {
                self.vacate(slot, shm);
                back.push(recovered);
            }
        }
        back
    }

    /// Revokes the lease of a client unless the client is in a turn. The worker must be notified
    /// afterwards.
    pub(crate) fn revoke(&mut self, slot: u32, shm: &MasterShm) -> Option<Recovered> {
        let Some(LeaseEntry::Leased(leased)) = self.entries.get(slot) else {
            return None;
        };
        let found = shm.slot(slot)?.revoke(leased.lease_number)?;
        Some(recover_idle(
            slot,
            self.leave_behind(slot)?,
            found,
            shm,
            Owner::Alive,
        ))
    }

    /// Revokes the leases of all clients that are in no turn.
    pub(crate) fn revoke_all(&mut self, shm: &MasterShm) -> Vec<Recovered> {
        (0..self.used)
            .filter_map(|slot| self.revoke(slot, shm))
            .collect()
    }

    /// Handles the worker's message that it closed the client in this slot.
    pub(crate) fn closed(&mut self, slot: u32, shm: &MasterShm) -> Done {
        match self.state(slot, shm) {
            Some(LeaseState::Closed) => match self.leave_behind(slot) {
                Some(client) => {
                    self.vacate(slot, shm);
                    Done::Ended(client)
                }
                None => Done::Nonsense,
            },
            _ => Done::Nonsense,
        }
    }

    /// Handles the worker's message that it has released this slot.
    pub(crate) fn released(&mut self, slot: u32, shm: &MasterShm) -> Done {
        if matches!(self.entries.get(slot), Some(LeaseEntry::Revoked)) {
            self.vacate(slot, shm);
            return Done::Known;
        }
        let found = match self.state(slot, shm) {
            Some(LeaseState::Revoked) => Claim::Idle,
            Some(LeaseState::RevokedParked) => Claim::Parked,
            _ => return Done::Nonsense,
        };
        let Some(client) = self.leave_behind(slot) else {
            return Done::Nonsense;
        };
        let recovered = recover_idle(slot, client, found, shm, Owner::Alive);
        self.vacate(slot, shm);
        Done::GivenUp(recovered)
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
    fn leave_behind(&mut self, slot: u32) -> Option<Client> {
        match mem::replace(self.entries.get_mut(slot)?, LeaseEntry::Revoked) {
            LeaseEntry::Leased(leased) => {
                self.clients -= 1;
                Some(leased.client)
            }
            LeaseEntry::Revoked => None,
        }
    }

    fn vacate(&mut self, slot: u32, shm: &MasterShm) {
        if self.entries.take(slot).is_some() {
            if let Some(shared_slot) = shm.slot(slot) {
                shared_slot.clear();
            }
            self.free.push(slot);
        }
    }

    /// Records how many requests each client has made so far.
    pub(crate) fn watch(&mut self, shm: &MasterShm) {
        for slot in 0..self.used {
            if let (Some(LeaseEntry::Leased(leased)), Some(shared_slot)) =
                (self.entries.get_mut(slot), shm.slot(slot))
            {
                leased.requests = shared_slot.requests();
            }
        }
    }

    /// Returns how many requests each client has made since then, by slot.
    pub(crate) fn watched(&self, shm: &MasterShm) -> Vec<(u32, u64)> {
        let since = |slot: u32| match self.entries.get(slot) {
            Some(LeaseEntry::Leased(leased)) => Some((
                slot,
                shm.slot(slot)?.requests().saturating_sub(leased.requests),
            )),
            Some(LeaseEntry::Revoked) | None => None,
        };
        (0..self.used).filter_map(since).collect()
    }

    /// Returns the client of the turn that the worker is in, according to the worker.
    pub(crate) fn in_turn(&self, slot: u32, shm: &MasterShm) -> Option<&Client> {
        match self.entries.get(slot)? {
            LeaseEntry::Leased(leased) if self.state(slot, shm) == Some(LeaseState::Busy) => {
                Some(&leased.client)
            }
            LeaseEntry::Leased(_) | LeaseEntry::Revoked => None,
        }
    }

    /// Recovers the clients of a dead worker. `written` is what its thread has written in all, if
    /// that is known; `is_timed_out` is whether it was killed for the request that it was
    /// executing.
    pub(crate) fn into_left(
        mut self,
        shm: &MasterShm,
        written: Option<Writes>,
        is_timed_out: bool,
    ) -> DeadWorkerClients {
        let mut left = DeadWorkerClients::default();
        for slot in 0..self.used {
            let state = self.state(slot, shm);
            let Some(client) = self.leave_behind(slot) else {
                continue;
            };
            let mut interrupted = None;
            let recovered = match state {
                Some(LeaseState::Idle | LeaseState::Revoked) => {
                    recover_idle(slot, client, Claim::Idle, shm, Owner::Dead)
                }
                Some(LeaseState::Parked | LeaseState::RevokedParked) => {
                    recover_idle(slot, client, Claim::Parked, shm, Owner::Dead)
                }
                Some(LeaseState::Busy) => {
                    let found = recover_after_death(slot, client, written, shm, is_timed_out);
                    found.map(|(unleased, request)| {
                        interrupted = request;
                        unleased
                    })
                }
                Some(LeaseState::Closed) => {
                    left.ended.push(client);
                    continue;
                }
                // A slot with a client cannot be free: the shared memory is inconsistent.
                Some(LeaseState::Free) | None => Err((io::ErrorKind::InvalidData.into(), client)),
            };
            match recovered {
                Ok(unleased) => left.recovered.push((unleased, interrupted)),
                // The connection had already ended.
                Err((reason, client)) if reason.kind() == io::ErrorKind::ConnectionAborted => {
                    left.ended.push(client)
                }
                Err((reason, client)) if reason.kind() == io::ErrorKind::WouldBlock => {
                    left.waiting.push((slot, client))
                }
                Err(lost) => left.lost.push(lost),
            }
        }
        left
    }
}

/// Recovers a client in whose turn its worker died, and its request that was executing.
///
/// # Errors
/// `ConnectionAborted` when the connection is over, `WouldBlock` when the byte counts are not known
/// yet, otherwise the reason why they never will be.
pub(crate) fn recover_after_death(
    slot: u32,
    client: Client,
    written: Option<Writes>,
    shm: &MasterShm,
    is_timed_out: bool,
) -> Result<(Unleased, Option<Interrupted>), (io::Error, Client)> {
    let mut unleased = recover_from_turn(slot, client, written, shm)?;
    let executing = shm
        .slot(slot)
        .and_then(|shared_slot| shared_slot.executing());
    let interrupted = executing.map(|method| {
        let flags = &mut unleased.flags;
        if is_timed_out {
            flags.timed_out = true;
        } else {
            flags.crash_count = flags.crash_count.saturating_add(1);
        }
        Interrupted {
            method,
            crash_count: flags.crash_count,
        }
    });
    Ok((unleased, interrupted))
}

/// Recovers a client that is in no turn from its shared memory. The cursors of an idle client refer
/// to bytes that are all answered and all sent.
fn recover_idle(
    slot: u32,
    client: Client,
    found: Claim,
    shm: &MasterShm,
    owner: Owner,
) -> Recovered {
    let byte_counts = match found {
        Claim::Parked => None,
        Claim::Idle => {
            let (received, written) = shm
                .slot(slot)
                .map_or((0, 0), |shared_slot| shared_slot.cursors().ends());
            Some(ByteCounts { received, written })
        }
    };
    recover(slot, client, byte_counts, shm, owner)
}

/// Recovers a client from its shared memory. The byte counts are those of a client whose turn was
/// not ended; for all others the shared memory is complete.
fn recover(
    slot: u32,
    client: Client,
    byte_counts: Option<ByteCounts>,
    shm: &MasterShm,
    owner: Owner,
) -> Recovered {
    let bytes = match shm.recover(slot, byte_counts, owner) {
        Ok(bytes) => bytes,
        Err(e) => return Err((e, client)),
    };
    let shared_slot: Slot<'_> = shm.slot(slot).expect("leases have slots");
    let mut flags = shared_slot.flags();
    // Faults belong to the first unread frame: once a frame is answered, they belong to one that is
    // gone.
    if shared_slot.cursors().answered > 0 {
        (flags.crash_count, flags.timed_out) = (0, false);
    }
    let times = (shared_slot.since(), shared_slot.last_active());
    Ok(Unleased {
        client,
        bytes,
        flags,
        times,
        requests: shared_slot.requests(),
        to: None,
    })
}

/// Recovers a client in a turn: only the kernel knows how much was read and written in it.
fn recover_from_turn(
    slot: u32,
    client: Client,
    written: Option<Writes>,
    shm: &MasterShm,
) -> Recovered {
    let found = match client.peer {
        Peer::Unix { .. } => unix_byte_counts(slot, &client, written, shm).map(Some),
        Peer::V4 { .. } | Peer::V6 { .. } => tcp_byte_counts(&client),
    };
    match found {
        Ok(Some(byte_counts)) => recover(slot, client, Some(byte_counts), shm, Owner::Dead),
        Ok(None) => Err((io::ErrorKind::ConnectionAborted.into(), client)),
        Err(e) => Err((e, client)),
    }
}

/// Returns the byte counts of a TCP client, if its connection is not over.
fn tcp_byte_counts(client: &Client) -> io::Result<Option<ByteCounts>> {
    let Offsets { received, sent } = client.offsets;
    let counted = byte_counts::read(&client.socket)?;
    Ok(counted.map(|counted| ByteCounts {
        received: counted.received.wrapping_add(received),
        written: counted.written.wrapping_add(sent),
    }))
}

/// Returns the byte counts of a Unix client. Its socket counts the bytes that are read from it. The
/// bytes written to it come from the worker's record or from the kernel's account of its thread.
fn unix_byte_counts(
    slot: u32,
    client: &Client,
    written: Option<Writes>,
    shm: &MasterShm,
) -> io::Result<ByteCounts> {
    let cursors = shm.slot(slot).ok_or(io::ErrorKind::InvalidData)?.cursors();
    let before = client.offsets.received;
    let received = byte_counts::received(&client.socket, cursors.in_base.wrapping_sub(before))?
        .wrapping_add(before);
    let header = shm.header();
    let sent = match header.writing(slot, cursors.out_base) {
        None if !header.notes_every_write() => return Err(io::ErrorKind::Unsupported.into()),
        None => 0,
        Some(Write::Took(bytes)) => bytes,
        Some(Write::Began(before)) => {
            let (before, after) = before.zip(written).ok_or(io::ErrorKind::Unsupported)?;
            written_since(before, after, header)?
        }
    };
    Ok(ByteCounts {
        received,
        written: cursors.out_base.wrapping_add(sent),
    })
}

/// Returns the bytes of the write in progress. A worker of version 1 recorded the bytes of its
/// whole process, and no calls.
fn written_since(before: Writes, after: Writes, header: Header<'_>) -> io::Result<u64> {
    match header.writer() {
        Some(_) => after.by_one_call_since(before),
        None => after
            .bytes
            .checked_sub(before.bytes)
            .ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests;
