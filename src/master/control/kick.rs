//! `kick`: an operator closes a client.
//!
//! A client that has asked for a goaway gets it when its request is answered, but is closed at the latest after a few
//! seconds, or when it is kicked again. Any other client is closed at once.

use std::time::Instant;

use crate::master::Master;
use crate::master::telemetry::events::Asker;
use crate::proto::channel::{Goaway, ToWorker};
use crate::proto::control::{About, Kicked, Kind, Refusal, RefusalCode};
use crate::proto::names::{ClientId, WorkerId};
use crate::proto::rpc::GoawayReason;
use crate::sys::socket;

impl Master {
    /// Closes a client, with or without a worker; with a goaway first, if it can get one.
    ///
    /// # Errors
    /// `Refused` if there is no such client.
    pub(crate) fn kick(
        &mut self,
        asker: Asker,
        id: ClientId,
        now: Instant,
    ) -> Result<Kicked, Refusal> {
        let about = About {
            client: Some(id),
            ..asker.about()
        };
        let told = self
            .find_leased(id)
            .and_then(|place| self.begin_kick(place, id, now));
        if let Some(peer) = told {
            let sentence =
                format_args!("{asker}: client {id} ({peer}) gets a goaway and is closed");
            self.telemetry
                .events
                .note(Kind::ClientKicked, about, sentence);
            return Ok(Kicked {
                client: id,
                peer,
                goaway: true,
            });
        }
        let Some(peer) = self.close_client(id) else {
            let why = format!("there is no client {id}");
            return Err(Refusal::new(RefusalCode::Refused, why));
        };
        let sentence = format_args!("{asker}: client {id} ({peer}) is closed");
        self.telemetry
            .events
            .note(Kind::ClientKicked, about, sentence);
        Ok(Kicked {
            client: id,
            peer,
            goaway: false,
        })
    }

    /// Closes the kicked clients that have not left in time.
    pub(super) fn close_overdue(&mut self, now: Instant) {
        for id in self.clients.goaways.take_overdue(now) {
            if let Some(peer) = self.close_client(id) {
                log::info!("client {id} ({peer}) was kicked and has not left: closed");
            }
        }
    }

    /// Returns the worker and the slot of a client that is leased, and learns its address.
    fn find_leased(&mut self, id: ClientId) -> Option<(WorkerId, u32)> {
        let mut all = self.workers.all.iter_mut();
        all.find_map(|(worker_id, worker)| {
            let slot = worker.leases.slot_of(id)?;
            let _ = worker.leases.update_proxied(slot, &worker.shm);
            Some((*worker_id, slot))
        })
    }

    /// Has a client get a goaway, if it has asked for that and was not kicked before. Returns its identity if it gets one.
    fn begin_kick(
        &mut self,
        (worker_id, slot): (WorkerId, u32),
        id: ClientId,
        now: Instant,
    ) -> Option<String> {
        let worker = self.workers.all.get_mut(&worker_id)?;
        let reason = GoawayReason::Kicked;
        let is_first = |_, goaway| goaway != Some(GoawayReason::Kicked);
        let lease = worker
            .leases
            .begin_goaway(slot, reason, is_first, &worker.shm)?;
        let peer = worker.leases.client(slot)?.address().to_string();
        let goaway = Goaway {
            reason,
            leases: vec![lease],
        };
        self.workers
            .send(worker_id, ToWorker::Goaway(goaway), &self.poller);
        self.clients.goaways.await_kicked(id, now);
        Some(peer)
    }

    /// Closes a client now, and counts it. Returns its identity; `None` if there is no such client.
    ///
    /// A worker that is in a turn of the client, or stuck in one, keeps the lease until it finds the connection ended;
    /// the client notices the end at once.
    fn close_client(&mut self, id: ClientId) -> Option<String> {
        self.clients.goaways.forget_kicked(id);
        if let Some(unleased) = self.clients.take_unleased(id) {
            let peer = unleased.client.address();
            self.clients
                .end_unleased(unleased, GoawayReason::Kicked, &mut self.telemetry);
            return Some(peer.to_string());
        }
        if let Some(client) = self.clients.take_without_worker(id) {
            socket::end(&client.socket);
            self.telemetry.counts.kicked += 1;
            let peer = client.address();
            self.clients.remove(client, &self.telemetry);
            return Some(peer.to_string());
        }
        let (worker_id, slot) = self.find_leased(id)?;
        let worker = self.workers.all.get_mut(&worker_id)?;
        let client = worker.leases.client(slot)?;
        let peer = client.address();
        socket::end(&client.socket);
        // A client that is in a turn may be closed several times.
        self.telemetry.counts.kicked += u64::from(worker.leases.set_counted(slot));
        if let Some(taken) = worker.leases.revoke(slot, &worker.shm) {
            let client = taken.map_or_else(|(_, client)| client, |unleased| unleased.client);
            self.clients.remove(client, &self.telemetry);
            self.workers
                .send(worker_id, ToWorker::LeasesRevoked, &self.poller);
        }
        Some(peer.to_string())
    }
}
