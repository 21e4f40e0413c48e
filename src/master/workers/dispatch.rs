//! Leases clients to workers.

use crate::config::Dispatch;
use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Loss;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::pool::Member;
use crate::pool::candidates::{Candidate, Candidates};
use crate::pool::dispatch::Dispatcher;
use crate::proto::names::{Peer, WorkerId};
use crate::sys::clock;
use crate::sys::poll::Poller;

impl Workers {
    /// Leases all clients without a worker, as far as there is capacity.
    pub(crate) fn lease_unleased(&mut self, clients: &mut Clients, telemetry: &mut Telemetry) {
        let mut has_asked = false;
        while !clients.unleased.is_empty() {
            let now = clock::monotonic();
            let mut candidates = self.candidates_for_moves(clients.dispatcher.policy());
            while let Some(unleased) = clients.unleased.pop_front() {
                let dispatcher = &mut clients.dispatcher;
                let Some(chosen) = self.choose(&unleased, &mut candidates, dispatcher, now) else {
                    clients.unleased.push_front(unleased);
                    break;
                };
                self.lease(chosen, unleased, true, clients, telemetry);
                candidates.update(&self.look_for_move(chosen, now));
            }
            // The remaining clients wait until a worker reports capacity. One more pass covers capacity that became
            // free before that report was requested.
            if has_asked || clients.unleased.is_empty() {
                return;
            }
            for worker in self.ready() {
                let _ = worker.want_capacity();
            }
            has_asked = true;
        }
    }

    /// Returns the ready workers as dispatch sees them for clients that were leased before.
    fn candidates_for_moves(&self, policy: Dispatch) -> Candidates {
        let known = |(member, worker): (&Member, &Worker)| Candidate {
            is_leaving: self.pool.is_leaving(member),
            ..worker.at_rest()
        };
        Candidates::new(policy, self.ready_members().map(known).collect())
    }

    /// Looks at a worker for clients that were leased before; `now` is ns of CLOCK_MONOTONIC.
    fn look_for_move(&self, id: WorkerId, now: u64) -> Candidate {
        let member = self.pool.member(id);
        let (Some(member), Some(worker)) = (member, self.all.get(&id)) else {
            return Candidate::default();
        };
        Candidate {
            // A client that moves should not move twice.
            is_leaving: self.pool.is_leaving(member),
            ..worker.candidate(true, now)
        }
    }

    /// Returns the worker for a client that was leased before: the one that it is meant for, if that is healthy and has
    /// capacity.
    ///
    /// A worker from before `max-frame` was raised may have no region for all the parked bytes. If no worker has one,
    /// and no new worker is being started, the client goes to any worker, where the lease fails.
    fn choose(
        &self,
        unleased: &Unleased,
        candidates: &mut Candidates,
        dispatcher: &mut Dispatcher,
        now: u64,
    ) -> Option<WorkerId> {
        let look = |id| self.look_for_move(id, now);
        let fits = |id: WorkerId| self.all[&id].shm.has_regions_for(&unleased.bytes);
        let has_bytes = !(unleased.bytes.unread.is_empty() && unleased.bytes.unsent.is_empty());
        let mut ids = candidates.known().iter().map(|known| known.worker);
        let is_restricted =
            has_bytes && !ids.clone().all(fits) && (ids.any(fits) || self.pool.is_rolling());
        let may_take = |id| !is_restricted || fits(id);
        let is_healthy = |to: &WorkerId| candidates.get(*to).is_some_and(|it| !it.is_unhealthy);
        let meant = unleased.to.filter(is_healthy).filter(|to| may_take(*to));
        if let Some(to) = meant.filter(|to| candidates.has_capacity(*to, look)) {
            return Some(to);
        }
        match is_restricted {
            true => dispatcher.pick_among(candidates, look, may_take),
            false => dispatcher.pick(candidates, look),
        }
    }

    /// Leases a client to a worker.
    pub(super) fn lease(
        &mut self,
        worker: WorkerId,
        unleased: Unleased,
        was_leased: bool,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
    ) {
        let worker = self
            .all
            .get_mut(&worker)
            .expect("only existing workers have capacity");
        if matches!(unleased.client.peer, Peer::Unix { .. }) {
            worker.writes.open();
        }
        if !worker.leases.has_unsent() {
            self.dispatch.to_flush.push(worker.id);
        }
        let leased = worker.leases.grant(unleased, &worker.shm);
        if leased.is_ok() && !was_leased {
            worker.note_new();
        }
        if worker.leases.must_be_sent() {
            clients.put_back(worker.send_leases(), telemetry);
        }
        if let Err((error, client)) = leased {
            clients.lose(Loss::from_error(&error), &error, client, telemetry);
        }
    }

    /// Sends the leases made in this iteration of the loop. The leases of a worker with a full channel are withdrawn.
    pub(crate) fn flush_leases(
        &mut self,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) {
        for id in self.dispatch.to_flush.drain(..) {
            if let Some(worker) = self.all.get_mut(&id) {
                clients.put_back(worker.send_leases(), telemetry);
                worker.watch_channel(poller);
            }
        }
    }

    /// Returns whether a new client can be leased. If not, the workers that it waits for are asked to report when they
    /// have capacity: all, or the one whose turn it is.
    pub(crate) fn have_capacity(&self, awaited: Option<WorkerId>) -> bool {
        let awaited = awaited.and_then(|id| self.ready().find(|worker| worker.id == id));
        if let Some(worker) = awaited {
            return worker.has_capacity() || worker.want_capacity();
        }
        // The second pass does not use `any`: each worker must be asked.
        self.ready().any(|worker| worker.has_capacity())
            || self.ready().filter(|worker| worker.want_capacity()).count() > 0
    }
}
