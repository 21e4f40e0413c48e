//! Watches workers while they have clients: which of them are stuck, and which are too busy.
//!
//! Every half `stall-timeout` the master looks at the shared memory. A worker that shows no sign of
//! life since the last check is sent a ping. A worker that has been in one turn, or has not
//! answered, for `stall-timeout` is stuck: it gets no new leases, and all its clients but the one
//! that it is stuck with are revoked, without asking it. When its heartbeat returns, it gets work
//! again; if that does not happen within `request-timeout`, it is killed, but only after one more
//! check: it may have recovered since the last one. Without clients there are no checks and no
//! wake-ups.
//!
//! A worker that only waits for a CPU is not stuck. Its clients would have to wait for one
//! elsewhere as well, and on an overloaded machine they were moved to and fro so fast that hardly
//! any was served.

use std::time::{Duration, Instant};

use crate::config::RebalanceMode;
use crate::loop_clock::LoopClock;
use crate::master::Master;
use crate::master::clients::Clients;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::Workers;
use crate::master::workers::worker::{Heartbeat, Worker};
use crate::pool::{MemberState, rebalance};
use crate::proto::channel::ToWorker;
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::{clock, process};

/// When the next checks are due.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    next_look: Option<Instant>,
    next_balance: Option<Instant>,
}

impl Watch {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.next_look, self.next_balance]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Worker {
    /// Returns when the current turn began: ns of CLOCK_MONOTONIC.
    fn turn_since(&self) -> Option<u64> {
        self.shm.header().turn().map(|turn| turn.since)
    }

    /// Returns whether the worker is executing a request.
    pub(crate) fn is_executing(&self) -> bool {
        let turn = self.shm.header().turn();
        turn.and_then(|turn| self.shm.slot(turn.slot)?.executing())
            .is_some()
    }

    /// Returns the method that the worker executes, if that takes longer than a moment.
    pub(crate) fn method_in_turn(&self) -> Option<&str> {
        self.method_of(self.shm.header().executing()?)
    }

    /// Returns the name of the method with this number.
    fn method_of(&self, number: u32) -> Option<&str> {
        let method = self.methods.get((number as usize).checked_sub(1)?)?;
        Some(&method.name)
    }

    /// Checks for a heartbeat, and sends a ping if there is none. Returns how long the worker may
    /// have been stuck, and when that reaches `limit`.
    fn check_heartbeat(
        &mut self,
        limit: Duration,
        clock: &LoopClock,
        now: Instant,
    ) -> (Duration, Option<Instant>) {
        let beats = self.shm.header().heartbeats();
        let has_beaten = beats != self.heartbeat.heartbeats;
        if has_beaten {
            self.heartbeat = Heartbeat {
                heartbeats: beats,
                ..Heartbeat::default()
            };
        }
        let silent = match (self.turn_since(), self.heartbeat.asked) {
            (Some(since), _) => ago(since, clock),
            (None, Some(asked)) => now.duration_since(asked),
            (None, None) if has_beaten => Duration::ZERO,
            (None, None) => {
                self.heartbeat.asked = Some(now);
                self.mention(&ToWorker::Ping);
                Duration::ZERO
            }
        };
        if !silent.is_zero() && self.heartbeat.ran.is_none() {
            self.heartbeat.ran = process::scheduling(self.pid).map(|scheduling| scheduling.ran);
        }
        (
            silent,
            now.checked_add(limit.saturating_sub(silent))
                .filter(|_| silent < limit),
        )
    }

    /// Returns whether the worker was silent for lack of a CPU: it is runnable, and has hardly run
    /// since.
    fn is_starved(&self, limit: Duration) -> bool {
        let (Some(then), Some(now)) = (self.heartbeat.ran, process::scheduling(self.pid)) else {
            return false;
        };
        now.is_runnable && now.ran.saturating_sub(then) < (limit / 4).min(LONG_RUN)
    }
}

/// Returns the time since `since`, by the same clock, without the time in which this process could
/// not run.
fn ago(since: u64, clock: &LoopClock) -> Duration {
    Duration::from_nanos(
        clock::monotonic()
            .saturating_sub(since)
            .saturating_sub(clock.gaps_since(since)),
    )
}

impl Workers {
    /// Ends the checks after the last client has left, unless a worker is stuck.
    pub(crate) fn rest(&mut self, clients: &Clients) {
        if clients.count() == 0
            && self.watch.deadline().is_some()
            && !self.pool.members().any(|member| member.is_stalled)
        {
            self.watch = Watch::default();
        }
    }
}

impl Master {
    /// Schedules a check, as there may be leases now.
    pub(crate) fn watch_from(&mut self, now: Instant) {
        if self.workers.watch.next_look.is_none()
            && self.workers.all.keys().any(|id| self.is_watched(*id))
        {
            self.workers.watch.next_look = Some(now + self.stall_limit() / 2);
            // Each check schedules the next one here, and must not postpone the rebalancing.
            if self.settings.config.workers.rebalance == RebalanceMode::Auto {
                self.workers
                    .watch
                    .next_balance
                    .get_or_insert(now + rebalance::INTERVAL);
            }
        }
    }

    /// Returns the time after which a worker is stuck.
    fn stall_limit(&self) -> Duration {
        let limits = &self.settings.config.limits;
        limits
            .request_timeout
            .map_or(limits.stall_timeout, |most| most.min(limits.stall_timeout))
    }

    /// Returns whether a worker is watched: while it has clients, and, if it is stuck, until it
    /// recovers.
    fn is_watched(&self, id: WorkerId) -> bool {
        let has_clients = self
            .workers
            .all
            .get(&id)
            .is_some_and(|worker| worker.leases.clients() > 0);
        has_clients
            || self
                .workers
                .pool
                .member(id)
                .is_some_and(|member| member.is_stalled)
    }

    /// Schedules the checks by a new configuration: one that was planned by the old one may be too
    /// late or unwanted.
    pub(crate) fn watch_anew(&mut self, now: Instant) {
        self.workers.watch = Watch::default();
        self.watch_from(now);
    }

    /// Checks the workers if a check is due.
    pub(crate) fn look_at_workers(&mut self, now: Instant) {
        let is_last_look = self
            .workers
            .pool
            .members()
            .any(|member| member.kill_by.is_some_and(|by| by <= now));
        if is_last_look || self.workers.watch.next_look.is_some_and(|at| at <= now) {
            self.workers.watch.next_look = None;
            self.look_at_counters();
            let limit = self.stall_limit();
            let ids: Vec<WorkerId> = self.workers.all.keys().copied().collect();
            let soonest = ids
                .into_iter()
                .filter_map(|id| self.look_at(id, limit, now))
                .min();
            self.watch_from(now);
            match (self.workers.watch.next_look, soonest) {
                (Some(next), Some(soonest)) => {
                    self.workers.watch.next_look = Some(next.min(soonest.max(now + MIN_WAIT)))
                }
                (Some(_), None) => {}
                (None, _) => self.workers.watch = Watch::default(),
            }
        }
        if self.workers.watch.next_balance.is_some_and(|at| at <= now) {
            self.workers.watch.next_balance = Some(now + rebalance::INTERVAL);
            self.balance(now);
        }
    }

    /// Checks one worker. Returns when it would be stuck.
    fn look_at(&mut self, id: WorkerId, limit: Duration, now: Instant) -> Option<Instant> {
        let is_watched = self.is_watched(id);
        let worker = self.workers.all.get_mut(&id).filter(|_| is_watched)?;
        let member = *self.workers.pool.member(id)?;
        if matches!(member.state, MemberState::Held { .. }) {
            // The worker may have been in a turn at the last attempt.
            self.revoke_and_notify(id, Reason::Hold);
            return None;
        }
        let (silent, stuck_at) = worker.check_heartbeat(limit, &self.clock, now);
        if silent < limit {
            if self.workers.pool.revived(id) {
                let worker = &self.workers.all[&id];
                let name = worker.name();
                let sentence = format_args!("{name} responds again; back in rotation");
                self.telemetry
                    .events
                    .note(Kind::WorkerRevived, worker.about(), sentence);
            }
            return stuck_at;
        }
        let is_overdue = self
            .settings
            .config
            .limits
            .request_timeout
            .is_some_and(|most| silent >= most)
            && worker.is_executing();
        if !is_overdue && worker.is_starved(limit) {
            return now.checked_add(limit / 2);
        }
        let kill_by = self
            .settings
            .config
            .limits
            .request_timeout
            .and_then(|most| now.checked_add(most.saturating_sub(silent)));
        if self.workers.pool.stalled(id, kill_by) {
            self.telemetry.counts.stalls += 1;
            let name = self.name_with_request(id);
            let moved = self.revoke_stalled(id, silent);
            let about = About {
                clients: Some(moved as u64),
                ..self.workers.all[&id].about()
            };
            let sentence = format_args!(
                "{name} is stuck for {silent:.1?}; {} moved to other workers until it responds",
                Counted(moved, "client")
            );
            self.telemetry
                .events
                .note(Kind::WorkerStalled, about, sentence);
        }
        None
    }

    /// Revokes the leases of all clients of a worker that are in no turn, and has it drop its
    /// copies. Returns their number.
    pub(crate) fn revoke_and_notify(&mut self, id: WorkerId, reason: Reason) -> usize {
        let moved = self.take_all(id, reason);
        if moved > 0 {
            self.tell(id, ToWorker::LeasesRevoked);
        }
        moved
    }

    /// Does the same for a worker that has been stuck for `silent`, which does not count against
    /// its clients.
    fn revoke_stalled(&mut self, id: WorkerId, silent: Duration) -> usize {
        let Some(worker) = self.workers.all.get_mut(&id) else {
            return 0;
        };
        let mut taken = worker.leases.revoke_all(&worker.shm);
        taken
            .iter_mut()
            .flatten()
            .for_each(|unleased| unleased.excuse(silent));
        let moved = self
            .clients
            .requeue(taken, Reason::Stall, &mut self.telemetry);
        if moved > 0 {
            self.tell(id, ToWorker::LeasesRevoked);
        }
        moved
    }

    /// Returns the name of a worker with the request that it executes, if there is one.
    fn name_with_request(&self, id: WorkerId) -> String {
        let worker = &self.workers.all[&id];
        let turn = worker.shm.header().turn();
        let client = turn.and_then(|turn| worker.leases.in_turn(turn.slot, &worker.shm));
        // The slot has the numbers of inline methods, too.
        let number = turn.and_then(|turn| worker.shm.slot(turn.slot)?.executing());
        match (client, number.and_then(|number| worker.method_of(number))) {
            (Some(client), Some(method)) => {
                format!(
                    "{} in method {method:?} of client {} ({})",
                    worker.name(),
                    client.id,
                    client.peer
                )
            }
            _ => worker.name(),
        }
    }
}

/// A worker that has run for longer without a heartbeat is in no ordinary turn.
const LONG_RUN: Duration = Duration::from_millis(10);

/// Shortest time until the next check, whatever the clocks show.
const MIN_WAIT: Duration = Duration::from_millis(1);
