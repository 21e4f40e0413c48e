//! Watches workers while they have clients: which of them are stuck, and which are too busy.
//!
//! Every half `stall-timeout` the master looks at the shared memory. A worker that shows no sign of life since the last
//! check is sent a ping. A worker that has been in one turn, or has not answered, for `stall-timeout` is stuck: it gets
//! no new leases, and its leases are revoked without its help, except that of the client in the turn. When its
//! heartbeat returns, it gets clients again. If that does not happen within `request-timeout`, the worker is killed,
//! but only after one more check: it may have recovered since the last one. Without clients there are no checks and no
//! wake-ups.
//!
//! A worker whose app answers nothing for `stall-timeout` while requests wait for a permit is stuck, too: it gets
//! clients again when an answer comes. It is not killed, because it checks the time of each request itself. The runtime
//! of asynchronous methods counts as an app here; its CPU time is that of its thread.
//!
//! A worker that only waits for a CPU is not stuck. Its clients would have to wait for one elsewhere as well, and on an
//! overloaded machine they would move to and fro so fast that hardly any would be served.

use std::time::{Duration, Instant};

use crate::config::{Config, RebalanceMode};
use crate::loop_clock::LoopClock;
use crate::master::clients::Clients;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::pool::{MemberState, rebalance};
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::poll::Poller;

/// When the next checks are due.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    next_check: Option<Instant>,
    next_rebalance: Option<Instant>,
    /// When the clients of unhealthy workers move to healthy ones.
    moves_at: Option<Instant>,
}

impl Watch {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.next_check, self.next_rebalance, self.moves_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Schedules the move of the clients of unhealthy workers, unless one is scheduled already.
    pub(super) fn expect_moves(&mut self, at: Instant) {
        self.moves_at.get_or_insert(at);
    }
}

impl Workers {
    /// Schedules a check, as there may be leases now.
    pub(crate) fn watch_from(&mut self, config: &Config, clients: &Clients, now: Instant) {
        if self.watch.next_check.is_none() && self.is_any_watched(clients) {
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
    pub(crate) fn restart_watch(&mut self, config: &Config, clients: &Clients, now: Instant) {
        self.watch = Watch {
            moves_at: self.watch.moves_at,
            ..Watch::default()
        };
        self.watch_from(config, clients, now);
    }

    /// Ends the checks after the last client has left, unless a worker is stuck.
    pub(crate) fn end_watch(&mut self, clients: &Clients) {
        if clients.count() == 0 && self.watch.deadline().is_some() && !self.pool.has_stalled() {
            self.watch = Watch::default();
        }
    }

    /// Returns whether a worker is watched. Workers are looked at only if there are clients.
    fn is_any_watched(&self, clients: &Clients) -> bool {
        let has_clients = |worker: &Worker| worker.leases.clients() > 0;
        self.pool.has_stalled() || clients.count() > 0 && self.all.values().any(has_clients)
    }

    /// Returns whether a worker is watched: while it has clients, and, if it is stuck, until it recovers.
    fn is_watched(&self, id: WorkerId) -> bool {
        let worker = self.all.get(&id);
        worker.is_some_and(|worker| worker.leases.clients() > 0)
            || self.pool.member(id).is_some_and(|member| member.is_stalled)
    }

    /// Checks the workers and moves clients, if a check or a move is due.
    pub(crate) fn check(
        &mut self,
        config: &Config,
        clock: &LoopClock,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let is_last_check = self.pool.next_kill().is_some_and(|by| by <= now);
        if is_last_check || self.watch.next_check.is_some_and(|at| at <= now) {
            self.watch.next_check = None;
            self.read_counters(telemetry);
            self.oom_kills.update(now);
            let mut soonest = None;
            for id in self.ids() {
                let next = match self.check_worker(id, config, clock, telemetry, now) {
                    Finding::Held => {
                        // It may have been in a turn at the last attempt.
                        let why = (Reason::Hold, Duration::ZERO);
                        self.revoke_and_notify(id, why, clients, telemetry, poller);
                        // No message reports that a turn has ended, or that the app has answered.
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
            self.watch_from(config, clients, now);
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
        if self.watch.moves_at.take_if(|at| *at <= now).is_some() {
            self.move_from_all_unhealthy(clients, telemetry, poller, now);
        }
        self.spread_clients(config, clients, telemetry, poller, now);
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
        let (stuck_for, stuck_at) = worker.check_heartbeat(limit, clock, now);
        let waited = worker.check_app(clock);
        if stuck_for < limit && waited >= limit {
            return self.check_full(id, waited, limit, now);
        }
        if stuck_for < limit {
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
            request_timeout.is_some_and(|most| stuck_for >= most) && worker.is_executing();
        if !is_overdue && worker.is_starved(limit) {
            return Finding::Nothing(now.checked_add(limit / 2));
        }
        let kill_by =
            request_timeout.and_then(|most| now.checked_add(most.saturating_sub(stuck_for)));
        if self.pool.stalled(id, kill_by) {
            Finding::Stuck(Stuck::Itself(stuck_for))
        } else {
            Finding::Nothing(None)
        }
    }

    /// Checks a worker whose app has answered nothing for `waited`: it is stuck, unless the app only waits for a CPU.
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
        worker.app_watch.stuck_at = Some(worker.trusted.counters().requests());
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
        let (stuck_for, what) = match stuck {
            Stuck::Itself(stuck_for) => {
                let name = worker.name_with_request();
                (
                    stuck_for,
                    format!("{name} has been stuck for {stuck_for:.1?}"),
                )
            }
            Stuck::App(waited) => {
                let away = Counted(worker.shm.header().away() as usize, "request");
                let name = worker.name();
                let executor = worker.executor_name();
                let what =
                    format!("{name}: its {executor} has answered none of {away} for {waited:.1?}");
                (waited, what)
            }
        };
        let about = worker.about();
        let why = (Reason::Stall, stuck_for);
        let moved = self.revoke_and_notify(id, why, clients, telemetry, poller);
        let about = About {
            clients: Some(moved as u64),
            ..about
        };
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

/// Time between the checks of a held worker that still has clients.
const HELD_CHECK: Duration = Duration::from_millis(20);

/// Shortest time until the next check, whatever the clocks show.
const MIN_WAIT: Duration = Duration::from_millis(1);
