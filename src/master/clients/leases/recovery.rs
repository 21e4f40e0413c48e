//! Recovery of the clients of a worker from its shared memory.

use std::io;
use std::rc::Rc;

use crate::master::clients::client::{Client, Unleased};
use crate::master::clients::leases::{LeaseEntry, Leased, Leases, Recovered};
use crate::master::clients::place::{ClientPlace, OrphanedShm};
use crate::proto::names::{Offsets, Peer};
use crate::shm::{Claim, CloseReason, Header, LeaseState, MasterShm, Owner, Slot, Write};
use crate::sys::byte_counts::{self, ByteCounts, Writes};
use crate::sys::process::ProcessIdentity;

/// A request that was executing when its worker died.
#[derive(Clone, Debug)]
pub(crate) struct Interrupted {
    /// Number of the method in the shared memory.
    pub(crate) method: u32,
    /// How often this will have happened to the request when its client is leased again.
    pub(crate) crash_count: u8,
    /// Whether its worker was ended because the request took too long.
    pub(crate) is_timed_out: bool,
}

/// The clients that a dead worker left behind.
#[derive(Debug, Default)]
pub(crate) struct DeadWorkerClients {
    /// Clients that must be leased again, with all their unread and unsent bytes; and their requests that were
    /// executing.
    pub(crate) recovered: Vec<(Unleased, Option<Interrupted>)>,
    /// Clients that the worker had closed, or whose connections have ended, each with the reason unless it is counted.
    pub(crate) ended: Vec<(Client, Option<CloseReason>)>,
    /// Clients that cannot be recovered, each with the reason.
    pub(crate) lost: Vec<(io::Error, Client)>,
    /// Clients whose unsent bytes are not known yet, each with its slot.
    pub(crate) in_handshake: Vec<(u32, Client)>,
    /// The app of the worker, which may not have ended.
    pub(crate) app: Option<ProcessIdentity>,
    /// The slot and the lease number of each recovered client.
    pub(crate) slots: Vec<(u32, u32)>,
}

impl DeadWorkerClients {
    /// Records whether the interrupted requests may have caused the death.
    pub(crate) fn set_suspects(&mut self, are_suspects: bool) {
        for (unleased, interrupted) in &mut self.recovered {
            if interrupted.is_some() {
                unleased.flags.is_suspect = are_suspects;
            }
        }
    }

    /// Adds a client, recovered or not, that was in this slot with this lease number. `left` is the reason if its
    /// connection has ended.
    fn add(
        &mut self,
        recovered: Recovered,
        interrupted: Option<Interrupted>,
        (slot, lease_number): (u32, u32),
        left: Option<CloseReason>,
    ) {
        match recovered {
            Ok(unleased) => {
                self.recovered.push((unleased, interrupted));
                self.slots.push((slot, lease_number));
            }
            // The connection had already ended.
            Err((reason, client)) if reason.kind() == io::ErrorKind::ConnectionAborted => {
                self.ended.push((client, left))
            }
            Err((reason, client)) if reason.kind() == io::ErrorKind::WouldBlock => {
                self.in_handshake.push((slot, client))
            }
            Err(lost) => self.lost.push(lost),
        }
    }

    /// Notes that the recovered clients have their places in this shared memory, which is that of their worker.
    pub(crate) fn note_places(&mut self, orphan: &Rc<OrphanedShm>) {
        for ((unleased, _), (slot, lease_number)) in self.recovered.iter_mut().zip(&self.slots) {
            let moves = unleased.client.moves;
            unleased.place = Some(ClientPlace::new(orphan, *slot, *lease_number, moves));
        }
    }

    /// Returns the same clients without waiting for unfinished handshakes: the clients in handshakes are lost.
    pub(crate) fn at_once(mut self) -> DeadWorkerClients {
        let unknown = |(_, client)| (io::ErrorKind::WouldBlock.into(), client);
        self.lost.extend(self.in_handshake.drain(..).map(unknown));
        self
    }
}

impl Leases {
    /// Restores the leases of a worker of another master from its records in a handoff queue, each with slot, lease
    /// number and client. Of two records with the same slot, the later one is used, as it cannot be known which one is
    /// right. Also returns the clients of the other ones and of slots that do not exist.
    pub(crate) fn from_records(
        slots: u32,
        clients: Vec<(u32, u32, Client)>,
    ) -> (Leases, Vec<Client>) {
        let (mut leases, mut without_slot) = (Leases::new(slots), Vec::new());
        for (slot, lease_number, client) in clients {
            if slot >= slots {
                without_slot.push(client);
                continue;
            }
            let leased = Leased {
                client,
                lease_number,
                requests: 0,
                is_counted: false,
            };
            let earlier = leases.entries.insert(slot, LeaseEntry::Leased(leased));
            if let Some(LeaseEntry::Leased(earlier)) = earlier {
                without_slot.push(earlier.client);
            }
            leases.used = leases.used.max(slot + 1);
        }
        leases.clients = leases.iter().count();
        (leases, without_slot)
    }

    /// Recovers the clients of a dead worker. `written` is what its thread has written in all, if that is known;
    /// `is_timed_out` is whether it was killed for the request that it was executing.
    pub(crate) fn recover_clients(
        mut self,
        shm: &MasterShm,
        written: Option<Writes>,
        is_timed_out: bool,
    ) -> DeadWorkerClients {
        let mut recovery = DeadWorkerClients {
            app: shm.header().app(),
            ..DeadWorkerClients::default()
        };
        for slot in 0..self.used {
            let state = self.state(slot, shm);
            let lease_number = self.lease_number_of(slot);
            let reason = self.close_reason(slot, shm);
            let _ = self.update_proxied(slot, shm);
            let Some(client) = self.take_client(slot) else {
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
                Some(LeaseState::Away) => {
                    let found = recover_idle(slot, client, Claim::Parked, shm, Owner::Dead);
                    found.map(|mut unleased| {
                        // The worker was killed for the request in its turn, if for any.
                        interrupted = interrupt(&mut unleased, slot, shm, false);
                        unleased
                    })
                }
                Some(LeaseState::Closed) => {
                    shm.header().add_known_closed();
                    recovery.ended.push((client, reason));
                    continue;
                }
                // A slot with a client cannot be free: the shared memory is inconsistent.
                Some(LeaseState::Free) | None => Err((io::ErrorKind::InvalidData.into(), client)),
            };
            let left = reason.map(|_| CloseReason::Left);
            recovery.add(recovered, interrupted, (slot, lease_number), left);
        }
        recovery
    }
}

/// Recovers a client in whose turn its worker died, and its request that was executing.
///
/// # Errors
/// `ConnectionAborted` when the connection is over, `WouldBlock` when the byte counts are not known yet, otherwise the
/// reason why they never will be.
pub(crate) fn recover_after_death(
    slot: u32,
    client: Client,
    written: Option<Writes>,
    shm: &MasterShm,
    is_timed_out: bool,
) -> Result<(Unleased, Option<Interrupted>), (io::Error, Client)> {
    let mut unleased = recover_from_turn(slot, client, written, shm)?;
    let interrupted = interrupt(&mut unleased, slot, shm, is_timed_out);
    Ok((unleased, interrupted))
}

/// Marks the first request of a recovered client, if it was executing when its worker died.
fn interrupt(
    unleased: &mut Unleased,
    slot: u32,
    shm: &MasterShm,
    is_timed_out: bool,
) -> Option<Interrupted> {
    let method = shm.slot(slot)?.executing()?;
    let flags = &mut unleased.flags;
    // A worker sets the flag itself when the app has not answered in time.
    flags.timed_out |= is_timed_out;
    if !flags.timed_out {
        flags.crash_count = flags.crash_count.saturating_add(1);
    }
    Some(Interrupted {
        method,
        crash_count: flags.crash_count,
        is_timed_out: flags.timed_out,
    })
}

/// Recovers a client from the slot that it has left, with the number of its lease, while the worker lives on.
pub(super) fn recover_given_up(
    (slot, lease_number): (u32, u32),
    client: Client,
    found: Claim,
    shm: &MasterShm,
) -> Recovered {
    let mut recovered = recover_idle(slot, client, found, shm, Owner::Alive);
    if let Ok(unleased) = &mut recovered {
        unleased.left_slot = Some(shm.left_slot(slot, lease_number));
    }
    recovered
}

/// Recovers a client that is in no turn from its shared memory. The cursors of an idle client refer to bytes that are
/// all answered and all sent.
pub(super) fn recover_idle(
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

/// Recovers a client from its shared memory. `byte_counts` are those of a client whose turn has not ended, or of an
/// idle one; for a parked one they are `None`, because its shared memory is complete.
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
    // The crash flags are those of the first unread frame. Once a frame is answered, that frame is gone.
    if shared_slot.cursors().answered > 0 {
        (flags.crash_count, flags.timed_out, flags.is_suspect) = (0, false, false);
    }
    let times = (shared_slot.since(), shared_slot.last_active());
    Ok(Unleased {
        client,
        bytes,
        flags,
        times,
        requests: shared_slot.requests(),
        to: None,
        place: None,
        left_slot: None,
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
    let Offsets { received, sent } = client.rare.offsets();
    let counted = byte_counts::read(&client.socket)?;
    Ok(counted.map(|counted| ByteCounts {
        received: counted.received.wrapping_add(received),
        written: counted.written.wrapping_add(sent),
    }))
}

/// Returns the byte counts of a Unix client. Its socket counts the bytes that are read from it. The bytes written to it
/// come from the worker's record or from the kernel's account of its thread.
fn unix_byte_counts(
    slot: u32,
    client: &Client,
    written: Option<Writes>,
    shm: &MasterShm,
) -> io::Result<ByteCounts> {
    let cursors = shm.slot(slot).ok_or(io::ErrorKind::InvalidData)?.cursors();
    let before = client.rare.offsets().received;
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

/// Returns the bytes of the write in progress. A worker of version 1 recorded the bytes of its whole process, and no
/// calls.
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
mod tests {
    use super::*;

    #[test]
    fn clients_whose_records_contradict_each_other_are_returned() {
        let records = [(0, 1, 1), (9, 1, 2), (0, 2, 3)]
            .map(|(slot, lease, id)| (slot, lease, Client::on_null(id)));
        let (leases, without_slot) = Leases::from_records(2, records.into());
        let ids: Vec<u64> = without_slot.iter().map(|client| client.id.0).collect();
        assert_eq!((leases.clients(), ids), (1, vec![2, 1]));
    }
}
