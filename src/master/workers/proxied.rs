//! Clients whose PROXY protocol headers workers have read.

use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::clients::leases::Recovered;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::proto::channel::ToWorker;
use crate::proto::names::WorkerId;
use crate::sys::poll::Poller;

impl Workers {
    /// Learns the addresses of clients, and which connections have become clients, as a worker has reported. If an
    /// address has too many clients, because a reload has set a limit since the worker started, those in no turn are
    /// rejected.
    pub(super) fn update_proxied(
        &mut self,
        id: WorkerId,
        slots: &[u32],
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) {
        let Some(worker) = self.all.get_mut(&id) else {
            return;
        };
        let mut has_revoked = false;
        for slot in slots {
            let Some(client) = worker.leases.update_proxied(*slot, &worker.shm) else {
                continue;
            };
            if clients.count_proxied(client, telemetry) {
                continue;
            }
            match worker.leases.revoke(*slot, &worker.shm) {
                Some(Ok(unleased)) => clients.reject_over_limit(unleased, telemetry),
                Some(lost @ Err(_)) => clients.put_back(vec![lost], telemetry),
                None => {
                    if let Some(client) = worker.leases.client_mut(*slot) {
                        clients.count_beyond_limit(client, telemetry);
                    }
                    continue;
                }
            }
            has_revoked = true;
        }
        if has_revoked {
            self.send(id, ToWorker::LeasesRevoked, poller);
        }
    }
}

/// Returns whether a worker has given a client up only because the master must count it for its address. Such a client
/// has not moved, and the same worker should get it again.
pub(super) fn is_uncounted(recovered: &Recovered) -> bool {
    recovered.as_ref().is_ok_and(Unleased::is_uncounted)
}
