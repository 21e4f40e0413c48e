//! Closes clients for which there are no descriptors.
//!
//! Each client needs a descriptor. If the limit allows fewer, the clients that were active most recently are kept, and
//! the others are closed with an error reply. A datagram is read without its descriptors first, so clients are closed
//! only if its descriptors could not be opened otherwise.

use super::{Unpacked, UnpackedClient};
use crate::master::clients::leases::recovery::DeadWorkerClients;
use crate::master::clients::reject::reject;
use crate::master::telemetry::counters::Loss;
use crate::proto::names::ClientId;
use crate::proto::rpc;
use crate::sys::socket;

/// The reply to a client that is closed because too many descriptors are open.
const CROWDED: &str =
    "the daemon was restarted with a lower limit of descriptors than it has clients";

/// The descriptors that there are for unpacked clients and shared memory.
#[derive(Clone, Debug)]
pub(crate) struct UnpackSpace {
    /// Most clients that are kept, unless there is more shared memory than below.
    pub(crate) clients: usize,
    /// Shared memory that takes the place of no client.
    pub(crate) shms: usize,
    /// Descriptors that may be open until everything is unpacked.
    pub(crate) open: usize,
}

impl UnpackSpace {
    /// Returns space for this many clients, and any number of open descriptors.
    #[cfg(test)]
    pub(crate) fn for_clients(clients: usize) -> UnpackSpace {
        UnpackSpace {
            clients,
            shms: usize::MAX,
            open: usize::MAX,
        }
    }

    /// Returns how many clients may be open, with this many shared memories, before a datagram of `next` descriptors.
    /// If one datagram needs nearly all, only some of its descriptors are opened, so that other clients are kept.
    pub(super) fn before(&self, shms: usize, next: usize) -> usize {
        let free = self.open.saturating_sub(shms + next);
        free.max(self.clients / 2).max(1)
    }
}

impl Unpacked {
    /// Closes the clients that cannot be kept.
    pub(super) fn close_surplus(&mut self, space: &UnpackSpace) {
        let surplus_shms = self.shms.len().saturating_sub(space.shms);
        self.crowd_out(space.clients.saturating_sub(surplus_shms).max(1));
    }

    /// Closes clients that were active least recently, but first those whose slots are closed, so that at most `most`
    /// are left.
    pub(super) fn crowd_out(&mut self, most: usize) {
        let surplus = self.clients.len().saturating_sub(most);
        if surplus == 0 {
            return;
        }
        let mut by_activity: Vec<(bool, u64, ClientId)> = self
            .clients
            .iter()
            .map(|(id, client)| {
                let (is_open, ..) = self.rank(client.worker, &client.record);
                (is_open, self.active(client), *id)
            })
            .collect();
        by_activity.select_nth_unstable(surplus - 1);
        let out = by_activity[..surplus]
            .iter()
            .filter_map(|(_, _, id)| self.clients.remove(id))
            .collect();
        let (recoveries, stray) = self.sort_out(out);
        self.has_stray |= stray > 0;
        let before = self.lost.total();
        self.lost.add(Loss::Store, stray);
        for DeadWorkerClients {
            recovered, lost, ..
        } in recoveries
        {
            self.lost
                .add(Loss::Descriptors, (recovered.len() + lost.len()) as u64);
            for (unleased, _) in recovered {
                reject(&unleased, rpc::Code::Overloaded, CROWDED);
            }
            self.has_stray |= !lost.is_empty();
            lost.iter()
                .for_each(|(_, client)| socket::end(&client.socket));
        }
        self.ended += (surplus as u64).saturating_sub(self.lost.total() - before);
    }

    /// Returns when a client last sent or received a byte, in ns of CLOCK_MONOTONIC, or 0 if its slot is missing.
    fn active(&self, client: &UnpackedClient) -> u64 {
        let slot = self
            .shms
            .get(&client.worker)
            .and_then(|orphan| orphan.shm.slot(client.record.slot));
        slot.map_or(0, |slot| slot.last_active())
    }
}
