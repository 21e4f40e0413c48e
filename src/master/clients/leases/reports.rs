//! The worker's reports of slots that it has closed or released.

use crate::master::clients::client::Client;
use crate::master::clients::leases::recovery::recover_given_up;
use crate::master::clients::leases::{LeaseEntry, Leases, Recovered};
use crate::shm::{Claim, CloseReason, LeaseState, MasterShm};

/// The meaning of a worker's report that a slot is closed or released.
#[derive(Debug)]
pub(crate) enum SlotReport {
    /// The lease had been revoked before.
    AlreadyRevoked,
    /// The worker has ended the client, for this reason; without one it is counted already.
    Ended(Client, Option<CloseReason>),
    /// The worker gave the client up.
    GivenUp(Recovered),
    /// The message contradicts the shared memory.
    Contradiction,
}

impl Leases {
    /// Handles the worker's message that it closed the client in this slot.
    pub(crate) fn closed(&mut self, slot: u32, shm: &MasterShm) -> SlotReport {
        match self.state(slot, shm) {
            Some(LeaseState::Closed) => {
                let reason = self.close_reason(slot, shm);
                let _ = self.update_proxied(slot, shm);
                match self.take_client(slot) {
                    Some(client) => {
                        shm.header().add_known_closed();
                        self.free_slot(slot, shm);
                        SlotReport::Ended(client, reason)
                    }
                    None => SlotReport::Contradiction,
                }
            }
            _ => SlotReport::Contradiction,
        }
    }

    /// Handles the worker's message that it has released this slot: it has given up the client, or it does not use the
    /// slot any more, whose lease was revoked before.
    pub(crate) fn released(&mut self, slot: u32, shm: &MasterShm) -> SlotReport {
        if matches!(self.entries.get(slot), Some(LeaseEntry::Revoked)) {
            self.free_slot(slot, shm);
            return SlotReport::AlreadyRevoked;
        }
        let found = match self.state(slot, shm) {
            Some(LeaseState::Revoked) => Claim::Idle,
            Some(LeaseState::RevokedParked) => Claim::Parked,
            _ => return SlotReport::Contradiction,
        };
        let place = (slot, self.lease_number_of(slot));
        let _ = self.update_proxied(slot, shm);
        let Some(client) = self.take_client(slot) else {
            return SlotReport::Contradiction;
        };
        SlotReport::GivenUp(recover_given_up(place, client, found, shm))
    }
}
