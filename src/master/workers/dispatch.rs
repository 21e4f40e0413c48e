//! Leases clients to workers.

use std::borrow::Cow;

use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Loss;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::pool::Member;
use crate::pool::dispatch::Candidate;
use crate::proto::names::WorkerId;
use crate::sys::clock;
use crate::sys::poll::Poller;

impl Workers {
    /// Returns the ready workers as dispatch sees them; `was_leased` for clients that were leased before.
    pub(crate) fn candidates(&self, was_leased: bool) -> Vec<Candidate> {
        let monotonic = clock::monotonic();
        let candidate = |(member, worker): (&Member, &Worker)| Candidate {
            // A client that moves should not move twice.
            is_leaving: was_leased && self.pool.is_leaving(member),
            ..worker.candidate(was_leased, monotonic)
        };
        let mut candidates = Vec::with_capacity(self.all.len());
        candidates.extend(self.ready_members().map(candidate));
        candidates
    }

    /// Leases all clients without a worker, as far as there is capacity.
    pub(crate) fn lease_unleased(&mut self, clients: &mut Clients, telemetry: &mut Telemetry) {
        let mut has_asked = false;
        while !clients.unleased.is_empty() {
            let mut candidates = self.candidates(true);
            while let Some(unleased) = clients.unleased.pop_front() {
                let fitting = self.fitting(&unleased, &candidates);
                let meant = unleased.to.and_then(|to| {
                    fitting
                        .iter()
                        .position(|c| c.worker == to && c.has_capacity && !c.is_unhealthy)
                });
                let Some(index) = meant.or_else(|| clients.dispatcher.pick(&fitting)) else {
                    clients.unleased.push_front(unleased);
                    break;
                };
                let candidate = &mut candidates[index];
                self.lease(candidate, unleased, true, clients, telemetry);
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

    /// Returns the candidates as they apply to one client: a worker from before `max-frame` was raised may have no
    /// region for all the parked bytes. If no worker has one, and no new worker is being started, the client goes to
    /// any worker, where the lease fails.
    fn fitting<'c>(
        &self,
        unleased: &Unleased,
        candidates: &'c [Candidate],
    ) -> Cow<'c, [Candidate]> {
        if unleased.bytes.unread.is_empty() && unleased.bytes.unsent.is_empty() {
            return Cow::Borrowed(candidates);
        }
        let fits = |c: &Candidate| self.all[&c.worker].shm.has_regions_for(&unleased.bytes);
        if candidates.iter().all(fits) || !(candidates.iter().any(fits) || self.pool.is_rolling()) {
            return Cow::Borrowed(candidates);
        }
        let adapted = candidates.iter().map(|c| Candidate {
            has_capacity: c.has_capacity && fits(c),
            ..*c
        });
        Cow::Owned(adapted.collect())
    }

    /// Leases a client to a candidate, and brings the candidate up to date.
    pub(crate) fn lease(
        &mut self,
        candidate: &mut Candidate,
        unleased: Unleased,
        was_leased: bool,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
    ) {
        let worker = self
            .all
            .get_mut(&candidate.worker)
            .expect("only existing workers have capacity");
        if !worker.leases.has_unsent() {
            self.to_flush.push(worker.id);
        }
        let leased = worker.leases.give(unleased, &worker.shm);
        if leased.is_ok() && !was_leased {
            worker.note_new();
        }
        if worker.leases.must_be_sent() {
            clients.put_back(worker.send_leases(), telemetry);
        }
        // The busy share is kept: reading it needs the clock, and it does not change that fast.
        *candidate = Candidate {
            busy: candidate.busy,
            is_leaving: candidate.is_leaving,
            ..worker.candidate(was_leased, 0)
        };
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
        for id in std::mem::take(&mut self.to_flush) {
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
