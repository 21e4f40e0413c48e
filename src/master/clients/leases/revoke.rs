//! Leases that the master revokes.

use crate::master::clients::leases::recovery::recover_given_up;
use crate::master::clients::leases::{LeaseEntry, Leases, Recovered};
use crate::shm::{LeaseState, MasterShm};

impl Leases {
    /// Revokes the lease of a client unless the client is in a turn. The worker must be notified afterwards.
    pub(crate) fn revoke(&mut self, slot: u32, shm: &MasterShm) -> Option<Recovered> {
        let Some(LeaseEntry::Leased(leased)) = self.entries.get(slot) else {
            return None;
        };
        let lease_number = leased.lease_number;
        let found = shm.slot(slot)?.revoke(lease_number)?;
        let _ = self.update_proxied(slot, shm);
        let client = self.take_client(slot)?;
        Some(recover_given_up((slot, lease_number), client, found, shm))
    }

    /// Revokes the lease of a client that is in no turn and has no bytes here, so that the move copies none.
    pub(crate) fn revoke_idle(&mut self, slot: u32, shm: &MasterShm) -> Option<Recovered> {
        let is_idle = self.state(slot, shm) == Some(LeaseState::Idle);
        is_idle.then(|| self.revoke(slot, shm)).flatten()
    }

    /// Revokes the leases of all clients that are in no turn.
    pub(crate) fn revoke_all(&mut self, shm: &MasterShm) -> Vec<Recovered> {
        (0..self.used)
            .filter_map(|slot| self.revoke(slot, shm))
            .collect()
    }

    /// Revokes the leases of at most `most` clients that are in no turn, from a slot on, and sets the slot to that of the
    /// first client that was not looked at.
    pub(crate) fn revoke_from(
        &mut self,
        slot: &mut u32,
        most: usize,
        shm: &MasterShm,
    ) -> Vec<Recovered> {
        let mut revoked = Vec::new();
        while *slot < self.used {
            // If no client follows, this is the end, although there may be more slots.
            let is_leased = matches!(self.entries.get(*slot), Some(LeaseEntry::Leased(_)));
            if is_leased && revoked.len() == most {
                break;
            }
            revoked.extend(self.revoke(*slot, shm));
            *slot += 1;
        }
        revoked
    }
}
