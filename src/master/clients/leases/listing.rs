//! The leased clients, listed page by page for display.

use std::ops::Range;

use crate::master::clients::client::Client;
use crate::master::clients::leases::Leases;
use crate::proto::names::Peer;
use crate::proto::rpc::GoawayReason;
use crate::shm::{LeaseState, MasterShm};

/// State of a client as its shared memory has it, for display.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotFigures {
    /// When the client last sent or received a byte: ns of CLOCK_MONOTONIC.
    pub(crate) active: u64,
    pub(crate) requests: u64,
    /// Number of unread and unsent bytes.
    pub(crate) bytes: u64,
    /// `None` if the client has no worker.
    pub(crate) state: Option<LeaseState>,
    /// Number of the method that executes its request.
    pub(crate) executing: Option<u32>,
    pub(crate) wants_goaway: bool,
    pub(crate) goaway: Option<GoawayReason>,
    /// The address in the PROXY protocol header of a client in a turn, which the worker has not reported yet.
    pub(crate) source: Option<Peer>,
}

impl Leases {
    /// Returns the clients in these slots, each with the figures of its slot.
    pub(crate) fn page<'a>(
        &'a self,
        slots: Range<u32>,
        shm: &'a MasterShm,
    ) -> impl Iterator<Item = (&'a Client, SlotFigures)> {
        slots.filter_map(|slot| {
            let (client, shared_slot) = (self.client(slot)?, shm.slot(slot)?);
            let (cursors, flags) = (shared_slot.cursors(), shared_slot.flags());
            // The last cursors in the slot of an idle client do not count: it has nothing there.
            let state = self.state(slot, shm);
            let is_idle = state == Some(LeaseState::Idle);
            let is_busy = state == Some(LeaseState::Busy);
            let bytes = if is_idle {
                0
            } else {
                let unread = u64::from(cursors.have).saturating_sub(cursors.answered.into());
                u64::from(cursors.replied) + unread
            };
            Some((
                client,
                SlotFigures {
                    active: shared_slot.last_active(),
                    requests: shared_slot.requests(),
                    bytes,
                    state,
                    executing: shared_slot.executing(),
                    wants_goaway: flags.wants_goaway,
                    goaway: flags.goaway,
                    source: is_busy.then(|| client.source_in(slot, shm)).flatten(),
                },
            ))
        })
    }
}
