//! The ready workers as dispatch sees them for new clients, kept between the iterations of the loop.

#[cfg(test)]
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Instant;

use crate::config::Dispatch;
use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::clients::leases::changes::ClientChanges;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::pool::Member;
use crate::pool::candidates::{Candidate, Candidates};
use crate::pool::dispatch::Dispatcher;
use crate::proto::names::WorkerId;
use crate::sys::clock;

/// The state of dispatch between the iterations of the loop.
#[derive(Debug)]
pub(super) struct DispatchState {
    candidates: Candidates,
    /// The version of the pool's workers with which they were made; `None` if they must be made again.
    version: Option<u64>,
    /// Workers whose number of clients has changed since the last iteration in which clients were accepted.
    changes: ClientChanges,
    /// The time at which this iteration began to look at workers, in ns of CLOCK_MONOTONIC.
    now: u64,
    /// Workers with leases that have not been sent.
    pub(super) to_flush: Vec<WorkerId>,
    /// How often a worker was looked at.
    #[cfg(test)]
    looks: Cell<u64>,
}

impl DispatchState {
    pub(super) fn new() -> DispatchState {
        DispatchState {
            candidates: Candidates::new(Dispatch::LeastLoaded, Vec::new()),
            version: None,
            changes: ClientChanges::default(),
            now: 0,
            to_flush: Vec::new(),
            #[cfg(test)]
            looks: Cell::new(0),
        }
    }

    /// Has the candidates made again, because the health of a worker has changed.
    pub(super) fn discard_candidates(&mut self) {
        self.version = None;
    }

    #[cfg(test)]
    pub(super) fn looks(&self) -> u64 {
        self.looks.get()
    }

    /// Calls `choose` with the candidates and a function that looks at a worker.
    fn with<T>(
        &mut self,
        workers: &BTreeMap<WorkerId, Worker>,
        choose: impl FnOnce(&mut Candidates, &dyn Fn(WorkerId) -> Candidate) -> T,
    ) -> T {
        #[cfg(test)]
        let looks = &self.looks;
        let now = self.now;
        let look = |id: WorkerId| {
            #[cfg(test)]
            looks.set(looks.get() + 1);
            // A worker that has ended has no capacity.
            let worker = workers.get(&id);
            worker.map_or_else(Candidate::default, |worker| worker.candidate(false, now))
        };
        choose(&mut self.candidates, &look)
    }
}

impl Workers {
    /// Brings the candidates for new clients up to date: once in an iteration of the loop in which some may be accepted,
    /// before the following functions.
    pub(crate) fn begin_leasing(&mut self, policy: Dispatch) {
        self.dispatch.now = clock::monotonic();
        let version = Some(self.pool.version());
        if self.dispatch.version != version || self.dispatch.candidates.policy() != policy {
            self.dispatch.version = version;
            self.dispatch.candidates = self.new_candidates(policy);
        } else {
            while let Some(id) = self.dispatch.changes.pop() {
                if let Some(worker) = self.all.get_mut(&id) {
                    self.dispatch
                        .candidates
                        .set_clients(id, worker.leases.take_client_count());
                }
            }
            self.dispatch.candidates.begin();
        }
        debug_assert!(self.are_candidates_known());
    }

    fn new_candidates(&mut self, policy: Dispatch) -> Candidates {
        // Workers that are not ready any more report to the list before.
        self.dispatch.changes = ClientChanges::default();
        let ready: Vec<WorkerId> = self.ready().map(|worker| worker.id).collect();
        let mut known = Vec::with_capacity(ready.len());
        for id in ready {
            if let Some(worker) = self.all.get_mut(&id) {
                worker.leases.report_changes(&self.dispatch.changes, id);
                known.push(worker.at_rest());
            }
        }
        Candidates::new(policy, known)
    }

    /// Compares what is known of the candidates with the workers.
    fn are_candidates_known(&self) -> bool {
        let serves = |worker: &&Worker| {
            let member = self.pool.member(worker.id);
            member.is_some_and(Member::serves)
        };
        let serving = self.all.values().filter(serves);
        serving
            .map(Worker::at_rest)
            .eq(self.dispatch.candidates.known().iter().copied())
    }

    /// Returns whether there is a worker for a new client.
    pub(crate) fn can_pick_for_new(&mut self, dispatcher: &mut Dispatcher, now: Instant) -> bool {
        self.dispatch.with(&self.all, |candidates, look| {
            dispatcher.can_pick_for_new(candidates, look, now)
        })
    }

    /// Returns the worker for a new client.
    pub(crate) fn pick_for_new(&mut self, dispatcher: &mut Dispatcher) -> Option<WorkerId> {
        self.dispatch.with(&self.all, |candidates, look| {
            dispatcher.pick(candidates, look)
        })
    }

    /// Leases a new client to a worker that was picked for it.
    pub(crate) fn lease_new(
        &mut self,
        worker: WorkerId,
        unleased: Unleased,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
    ) {
        self.lease(worker, unleased, false, clients, telemetry);
        self.dispatch.with(&self.all, |candidates, look| {
            candidates.update(&look(worker))
        });
    }
}
