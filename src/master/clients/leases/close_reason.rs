//! The reasons why leased clients are closed.

use super::{LeaseEntry, Leases};
use crate::shm::{CloseReason, MasterShm};

impl Leases {
    /// Notes that the master closes the client in this slot and counts that. Returns false if it has done so before.
    pub(crate) fn set_counted(&mut self, slot: u32) -> bool {
        match self.entries.get_mut(slot) {
            Some(LeaseEntry::Leased(leased)) => !std::mem::replace(&mut leased.is_counted, true),
            Some(LeaseEntry::Revoked) | None => false,
        }
    }

    /// Returns why the worker has closed the client in a slot; `None` if that is counted already. Workers count the
    /// clients that they lose.
    pub(super) fn close_reason(&self, slot: u32, shm: &MasterShm) -> Option<CloseReason> {
        let is_counted = match self.entries.get(slot) {
            Some(LeaseEntry::Leased(leased)) => leased.is_counted,
            Some(LeaseEntry::Revoked) | None => true,
        };
        let reason = shm.slot(slot)?.flags().close_reason;
        (!is_counted && reason != CloseReason::Lost).then_some(reason)
    }
}
