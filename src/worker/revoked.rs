//! Clients whose leases are over, while only this process could keep them.
//!
//! From the end of a lease until the client is leased to another worker or packed, only the master has it. If the
//! master is killed in that time, this process packs the client, so it keeps its socket until the master has closed the
//! slot ([`LeftSlot`](crate::shm::LeftSlot)). Without another master to come, nothing is kept.

use std::time::Duration;

use super::connection::Connection;
use super::turn::FOREIGN;
use super::{WorkerLoop, number};
use crate::shm::WorkerShm;
use crate::sys::clock;

/// The time between two looks at the slots: doubled from the first to the last. The master closes them at the end of an
/// iteration of its loop, which no event reports.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LAST_WAIT: Duration = Duration::from_millis(64);

/// The clients whose sockets are kept.
#[derive(Debug)]
pub(super) struct RevokedClients {
    all: Vec<RevokedClient>,
    wait: Duration,
    /// ns of CLOCK_MONOTONIC.
    next_look: Option<u64>,
}

#[derive(Debug)]
struct RevokedClient {
    slot: u32,
    connection: Connection,
    /// The master knows that the lease is over.
    is_reported: bool,
}

impl RevokedClient {
    /// Returns whether the client may be nowhere else.
    fn must_be_kept(&self, shm: &WorkerShm) -> bool {
        let slot = shm.slot(self.slot);
        slot.is_some_and(|slot| slot.must_be_kept(self.connection.lease_number))
    }
}

impl Default for RevokedClients {
    fn default() -> RevokedClients {
        RevokedClients {
            all: Vec::new(),
            wait: FIRST_WAIT,
            next_look: None,
        }
    }
}

impl RevokedClients {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns when the slots must be looked at again: ns of CLOCK_MONOTONIC.
    pub(super) fn next_look(&self) -> Option<u64> {
        self.next_look
    }

    /// Keeps a client. The next look is soon.
    fn keep(&mut self, client: RevokedClient) {
        self.all.push(client);
        (self.wait, self.next_look) = (FIRST_WAIT, None);
    }

    /// Sets the next look, if clients are kept: later each time. `now` is ns of CLOCK_MONOTONIC.
    fn schedule(&mut self, now: u64) {
        if self.all.is_empty() {
            (self.wait, self.next_look) = (FIRST_WAIT, None);
        } else if self.next_look.is_none_or(|next| next <= now) {
            self.next_look = Some(clock::after(now, self.wait));
            self.wait = (self.wait * 2).min(LAST_WAIT);
        }
    }
}

impl WorkerLoop<'_> {
    /// Keeps the socket of a client whose lease is over. A worker that retires reports that at once, as its clients
    /// move only then; another one when its copy is closed, because its slot is then used again.
    pub(super) fn keep_revoked(&mut self, slot: u32, connection: Connection) {
        let is_reported = self.ending.is_retiring || self.handoff.is_none();
        if is_reported {
            self.master.released.push(slot);
        }
        if self.handoff.is_some() {
            self.revoked.keep(RevokedClient {
                slot,
                connection,
                is_reported,
            });
        } else {
            self.numbers.take(number(&connection.socket));
        }
    }

    /// Closes the sockets of clients that the master has leased or packed.
    pub(super) fn close_moved(&mut self) {
        if self.revoked.is_empty() {
            return;
        }
        // In a restart the master has packed all clients of this worker.
        let are_packed = self.shm.header().packed_at().is_some();
        let mut kept = Vec::new();
        for client in std::mem::take(&mut self.revoked.all) {
            if !are_packed && client.must_be_kept(&self.shm) {
                kept.push(client);
                continue;
            }
            let connection = &client.connection;
            if !connection.has_its_socket() {
                self.break_off(FOREIGN);
                kept.push(client);
                continue;
            }
            if let Some(handoff) = self.handoff {
                handoff.unregister_lease(client.slot, connection.lease_number);
            }
            self.numbers.take(number(&connection.socket));
            if !client.is_reported {
                self.master.released.push(client.slot);
            }
        }
        self.revoked.all = kept;
        self.revoked.schedule(self.time.now);
    }
}
