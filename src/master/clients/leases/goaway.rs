//! Leased clients that get a goaway.

use crate::master::clients::leases::{LeaseEntry, Leases};
use crate::proto::names::ClientId;
use crate::proto::rpc::GoawayReason;
use crate::shm::MasterShm;

impl Leases {
    /// Notes that clients get a goaway: at most `most` of those for which `is_due` is true, that have asked for it, and
    /// that do not get one already. Returns the slot and the lease number of each, for the message to the worker.
    pub(crate) fn begin_goaways(
        &mut self,
        reason: GoawayReason,
        is_due: impl Fn(ClientId) -> bool,
        most: usize,
        shm: &MasterShm,
    ) -> Vec<(u32, u32)> {
        let mut told = Vec::new();
        for slot in 0..self.used {
            if told.len() == most {
                break;
            }
            let is_it = |id: ClientId, goaway: Option<GoawayReason>| goaway.is_none() && is_due(id);
            told.extend(self.begin_goaway(slot, reason, is_it, shm));
        }
        told
    }

    /// Notes that the client in a slot gets a goaway, if it has asked for one and `is_it` is true for its id and for
    /// the reason of a goaway that was noted before. Returns the slot and the lease number.
    pub(crate) fn begin_goaway(
        &mut self,
        slot: u32,
        reason: GoawayReason,
        is_it: impl Fn(ClientId, Option<GoawayReason>) -> bool,
        shm: &MasterShm,
    ) -> Option<(u32, u32)> {
        // The worker would receive the message before the lease.
        if self.has_unsent() {
            return None;
        }
        let Some(LeaseEntry::Leased(leased)) = self.entries.get_mut(slot) else {
            return None;
        };
        if !is_it(leased.client.id, leased.client.goaway) {
            return None;
        }
        let flags = shm.slot(slot)?.flags();
        if !flags.wants_goaway || flags.closing {
            return None;
        }
        // If the lease ends first, the next worker learns of it by the flags.
        leased.client.goaway = Some(reason);
        Some((slot, leased.lease_number))
    }

    /// Notes the reasons of goaways in the slots of a worker that has exited, for the next master: a worker reads no
    /// message while it executes a request, so it may have exited without the reasons.
    pub(crate) fn note_goaways(&self, shm: &MasterShm) {
        for slot in 0..self.used {
            let Some(LeaseEntry::Leased(leased)) = self.entries.get(slot) else {
                continue;
            };
            if let (Some(reason), Some(shared)) = (leased.client.goaway, shm.slot(slot)) {
                let mut flags = shared.flags();
                flags.goaway = flags.goaway.max(Some(reason));
                shared.set_flags(flags);
            }
        }
    }
}
