//! Watches workers while they have clients: which of them are stuck, and which are too busy.
//!
//! Every half `stall-timeout` the master looks at the shared memory. A worker that shows no sign of life since the last
//! check is sent a ping. A worker that has been in one turn, or has not answered, for `stall-timeout` is stuck: it gets
//! no new leases, and all its clients but the one that it is stuck with are revoked, without asking it. When its
//! heartbeat returns, it gets work again; if that does not happen within `request-timeout`, it is killed, but only
//! after one more check: it may have recovered since the last one. Without clients there are no checks and no wake-ups.
//!
//! A worker whose app answers nothing for `stall-timeout` while requests wait for a permit is stuck, too: it gets work
//! again when an answer comes. It is not killed, because it checks the time of each request itself.
//!
//! A worker that only waits for a CPU is not stuck. Its clients would have to wait for one elsewhere as well, and on an
//! overloaded machine they were moved to and fro so fast that hardly any was served.

use std::time::{Duration, Instant};

use crate::config::{Config, RebalanceMode};
use crate::loop_clock::LoopClock;
use crate::master::clients::Clients;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::Workers;
use crate::master::workers::worker::{Heartbeat, Worker};
use crate::pool::{Member, MemberState, rebalance};
use crate::proto::channel::ToWorker;
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::poll::Poller;
use crate::sys::{clock, process};

/// When the next checks are due.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    next_check: Option<Instant>,
    next_rebalance: Option<Instant>,
}

impl Watch {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.next_check, self.next_rebalance]
            .into_iter()
            .flatten()
            .min()
    }
}

/// The answers of a worker's app when requests were first found waiting for a permit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AppWatch {
    /// How long the app had run.
    ran: Option<Duration>,
    /// The requests that were answered when the worker was found stuck because of its app.
    stuck_at: Option<u64>,
}

impl Worker {
    /// Returns how long requests have waited for a permit while the app answers nothing.
    fn check_app(&mut self, clock: &LoopClock) -> Duration {
        let full_since = self.shm.header().full_since();
        let waited = full_since.map_or(Duration::ZERO, |since| ago(since, clock));
        let ran = |pid| process::scheduling(pid).map(|scheduling| scheduling.ran);
        if waited.is_zero() {
            self.app_watch.ran = None;
        } else if self.app_watch.ran.is_none() {
            self.app_watch.ran = self.app.pid.and_then(ran);
        }
        waited
    }

    /// Returns whether the worker was stuck because of its app and may still be. The requests that waited were moved, so
    /// only an answer shows that the app works.
    fn is_app_silent(&mut self) -> bool {
        let answered = self.believed.counters().requests();
        let is_silent = self.app_watch.stuck_at == Some(answered) && self.shm.header().away() > 0;
        if !is_silent {
            self.app_watch.stuck_at = None;
        }
        is_silent
    }

    /// Returns whether the app answers nothing for lack of a CPU.
    fn is_app_starved(&self, limit: Duration) -> bool {
        self.app
            .pid
            .is_some_and(|pid| has_starved(pid, self.app_watch.ran, limit))
    }

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
    pub(crate) fn method_of(&self, number: u32) -> Option<&str> {
        let method = self.methods.get((number as usize).checked_sub(1)?)?;
        Some(&method.name)
    }

    /// Returns the name of the worker with the request that it executes, if there is one.
    fn name_with_request(&self) -> String {
        let turn = self.shm.header().turn();
        let client = turn.and_then(|turn| self.leases.in_turn(turn.slot, &self.shm));
        // The slot has the numbers of inline methods, too.
        let number = turn.and_then(|turn| self.shm.slot(turn.slot)?.executing());
        let name = self.name();
        match (client, number.and_then(|number| self.method_of(number))) {
            (Some(client), Some(method)) => format!(
                "{name} in method {method:?} of client {} ({})",
                client.id, client.peer
            ),
            _ => name,
        }
    }

    /// Checks for a heartbeat, and sends a ping if there is none. Returns how long the worker may have been stuck, and
    /// when that reaches `limit`.
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
                self.try_send(&ToWorker::Ping);
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

    /// Returns whether the worker was silent for lack of a CPU: it is runnable, and has hardly run since.
    fn is_starved(&self, limit: Duration) -> bool {
        has_starved(self.pid, self.heartbeat.ran, limit)
    }
}

/// Returns whether a process is runnable and has hardly run since it had run for `then`.
fn has_starved(pid: u32, then: Option<Duration>, limit: Duration) -> bool {
    let (Some(then), Some(now)) = (then, process::scheduling(pid)) else {
        return false;
    };
    now.is_runnable && now.ran.saturating_sub(then) < (limit / 4).min(LONG_RUN)
}

/// Returns the time since `since`, by the same clock, without the time in which this process could not run.
fn ago(since: u64, clock: &LoopClock) -> Duration {
    Duration::from_nanos(
        clock::monotonic()
            .saturating_sub(since)
            .saturating_sub(clock.gaps_since(since)),
    )
}

impl Workers {
    /// Schedules a check, as there may be leases now.
    pub(crate) fn watch_from(&mut self, config: &Config, now: Instant) {
        if self.watch.next_check.is_none() && self.all.keys().any(|id| self.is_watched(*id)) {
            self.watch.next_check = Some(now + stall_limit(config) / 2);
            // Each check schedules the next one here, and must not postpone the rebalancing.
            if config.workers.rebalance == RebalanceMode::Auto {
                self.watch
                    .next_rebalance
                    .get_or_insert(now + rebalance::INTERVAL);
            }
        }
    }

    /// Schedules the checks by a new configuration: one that was planned by the old one may be too late or unwanted.
    pub(crate) fn restart_watch(&mut self, config: &Config, now: Instant) {
        self.watch = Watch::default();
        self.watch_from(config, now);
    }

    /// Ends the checks after the last client has left, unless a worker is stuck.
    pub(crate) fn end_watch(&mut self, clients: &Clients) {
        if clients.count() == 0
            && self.watch.deadline().is_some()
            && !self.pool.members().any(|member| member.is_stalled)
        {
            self.watch = Watch::default();
        }
    }

    /// Returns whether a worker is watched: while it has clients, and, if it is stuck, until it recovers.
    fn is_watched(&self, id: WorkerId) -> bool {
        let worker = self.all.get(&id);
        worker.is_some_and(|worker| worker.leases.clients() > 0)
            || self.pool.member(id).is_some_and(|member| member.is_stalled)
    }

    /// Checks the workers if a check is due.
    pub(crate) fn check(
        &mut self,
        config: &Config,
        clock: &LoopClock,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let is_due = |member: &Member| member.kill_by.is_some_and(|by| by <= now);
        let is_last_check = self.pool.members().any(is_due);
        if is_last_check || self.watch.next_check.is_some_and(|at| at <= now) {
            self.watch.next_check = None;
            self.read_counters(telemetry);
            let mut soonest = None;
            for id in self.ids() {
                let next = match self.check_worker(id, config, clock, telemetry, now) {
                    Finding::Held => {
                        // It may have been in a turn at the last attempt.
                        self.revoke_and_notify(id, Reason::Hold, clients, telemetry, poller);
                        // No message reports the end of a turn, or of an answer of the app.
                        let worker = self.all.get(&id);
                        worker
                            .is_some_and(|worker| worker.leases.clients() > 0)
                            .then(|| now + HELD_CHECK)
                    }
                    Finding::Stuck(stuck) => {
                        self.stall(id, stuck, clients, telemetry, poller);
                        None
                    }
                    Finding::Nothing(next) => next,
                };
                soonest = soonest.into_iter().chain(next).min();
            }
            self.watch_from(config, now);
            match (self.watch.next_check, soonest) {
                (Some(next), Some(soonest)) => {
                    self.watch.next_check = Some(next.min(soonest.max(now + MIN_WAIT)))
                }
                (Some(_), None) => {}
                (None, _) => self.watch = Watch::default(),
            }
        }
        if self.watch.next_rebalance.is_some_and(|at| at <= now) {
            self.watch.next_rebalance = Some(now + rebalance::INTERVAL);
            self.rebalance(clients, telemetry, poller, now);
        }
    }

    fn check_worker(
        &mut self,
        id: WorkerId,
        config: &Config,
        clock: &LoopClock,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Finding {
        let is_watched = self.is_watched(id);
        let worker = self.all.get_mut(&id).filter(|_| is_watched);
        let (Some(worker), Some(member)) = (worker, self.pool.member(id)) else {
            return Finding::Nothing(None);
        };
        if matches!(member.state, MemberState::Held { .. }) {
            return Finding::Held;
        }
        let (limit, request_timeout) = (stall_limit(config), config.limits.request_timeout);
        let (silent, stuck_at) = worker.check_heartbeat(limit, clock, now);
        let waited = worker.check_app(clock);
        if silent < limit && waited >= limit {
            return self.check_full(id, waited, limit, now);
        }
        if silent < limit {
            if worker.is_app_silent() {
                return Finding::Nothing(None);
            }
            if self.pool.revived(id) {
                let name = worker.name();
                let sentence = format_args!("{name} responds again; back in rotation");
                telemetry
                    .events
                    .note(Kind::WorkerRevived, worker.about(), sentence);
            }
            let full_at = (!waited.is_zero()).then(|| now + (limit - waited));
            return Finding::Nothing(stuck_at.into_iter().chain(full_at).min());
        }
        let is_overdue =
            request_timeout.is_some_and(|most| silent >= most) && worker.is_executing();
        if !is_overdue && worker.is_starved(limit) {
            return Finding::Nothing(now.checked_add(limit / 2));
        }
        let kill_by = request_timeout.and_then(|most| now.checked_add(most.saturating_sub(silent)));
        if self.pool.stalled(id, kill_by) {
            Finding::Stuck(Stuck::Itself(silent))
        } else {
            Finding::Nothing(None)
        }
    }

    /// Finds a worker stuck whose app has answered nothing for `waited`, unless the app only waits for a CPU.
    fn check_full(
        &mut self,
        id: WorkerId,
        waited: Duration,
        limit: Duration,
        now: Instant,
    ) -> Finding {
        let Some(worker) = self.all.get_mut(&id) else {
            return Finding::Nothing(None);
        };
        if worker.is_app_starved(limit) {
            return Finding::Nothing(now.checked_add(limit / 2));
        }
        worker.app_watch.stuck_at = Some(worker.believed.counters().requests());
        if self.pool.stalled(id, None) {
            Finding::Stuck(Stuck::App(waited))
        } else {
            Finding::Nothing(None)
        }
    }

    /// Moves the clients of a worker that is stuck. The time does not count against them.
    fn stall(
        &mut self,
        id: WorkerId,
        stuck: Stuck,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) {
        let Some(worker) = self.all.get_mut(&id) else {
            return;
        };
        telemetry.counts.stalls += 1;
        let (silent, what) = match stuck {
            Stuck::Itself(silent) => {
                let name = worker.name_with_request();
                (silent, format!("{name} is stuck for {silent:.1?}"))
            }
            Stuck::App(waited) => {
                let away = Counted(worker.shm.header().away() as usize, "request");
                let name = worker.name();
                let what = format!("{name}: its app has answered none of {away} for {waited:.1?}");
                (waited, what)
            }
        };
        let mut revoked = worker.leases.revoke_all(&worker.shm);
        revoked
            .iter_mut()
            .flatten()
            .for_each(|unleased| unleased.excuse(silent));
        let moved = clients.requeue(revoked, Reason::Stall, telemetry);
        let about = About {
            clients: Some(moved as u64),
            ..worker.about()
        };
        if moved > 0 {
            self.send(id, ToWorker::LeasesRevoked, poller);
        }
        let sentence = format_args!(
            "{what}; {} moved to other workers until it responds",
            Counted(moved, "client")
        );
        telemetry.events.note(Kind::WorkerStalled, about, sentence);
    }
}

/// Result of the check of a worker.
enum Finding {
    /// There is nothing to do; when the worker would be stuck, if that can be foreseen.
    Nothing(Option<Instant>),
    Held,
    /// The worker has just been found stuck.
    Stuck(Stuck),
}

/// The stuck part, and for how long it is stuck.
enum Stuck {
    Itself(Duration),
    /// The app: requests wait for a permit.
    App(Duration),
}

/// Returns the time after which a worker is stuck.
fn stall_limit(config: &Config) -> Duration {
    let limits = &config.limits;
    limits
        .request_timeout
        .map_or(limits.stall_timeout, |most| most.min(limits.stall_timeout))
}

/// A worker that has run for longer without a heartbeat is in no ordinary turn.
const LONG_RUN: Duration = Duration::from_millis(10);

/// Time between the checks of a held worker that still has clients.
const HELD_CHECK: Duration = Duration::from_millis(20);

/// Shortest time until the next check, whatever the clocks show.
const MIN_WAIT: Duration = Duration::from_millis(1);
