//! Clients that get a goaway.

use crate::master::workers::Workers;
use crate::proto::channel::{Goaway, ToWorker};
use crate::proto::names::ClientId;
use crate::proto::rpc::GoawayReason;
use crate::sys::poll::Poller;

impl Workers {
    /// Requests of the workers a goaway for the clients for which `is_due` holds, at most `most` of those that have
    /// asked for it and for which none is requested yet. Returns their number.
    pub(crate) fn begin_goaways(
        &mut self,
        reason: GoawayReason,
        is_due: impl Fn(ClientId) -> bool,
        most: usize,
        poller: &Poller,
    ) -> usize {
        let mut told = 0;
        for id in self.ids() {
            let Some(worker) = self.all.get_mut(&id) else {
                continue;
            };
            let leases = worker
                .leases
                .begin_goaways(reason, &is_due, most - told, &worker.shm);
            if leases.is_empty() {
                continue;
            }
            told += leases.len();
            self.send(id, ToWorker::Goaway(Goaway { reason, leases }), poller);
        }
        told
    }
}
