//! When the functions of [`Hooks`](super::Hooks) are called.

use std::collections::HashSet;
use std::time::Duration;

use super::WorkerLoop;
use super::methods::Service;
use crate::proto::channel::Health;
use crate::proto::names::ClientId;
use crate::proto::text::shortened;
use crate::sys::clock;

/// The state of the loop for the functions of the daemon that no request calls.
#[derive(Debug, Default)]
pub(super) struct HookState {
    pub(super) left: LeftClients,
    pub(super) health: HealthSchedule,
}

impl HookState {
    /// Returns the state of a worker that is healthy `now`.
    pub(super) fn new(service: &dyn Service, now: u64) -> HookState {
        HookState {
            left: LeftClients::new(service.wants_left_clients()),
            health: HealthSchedule::new(service.health_interval(), now),
        }
    }
}

/// Clients that have left this worker since the state was last notified of it.
#[derive(Debug, Default)]
pub(super) struct LeftClients {
    /// Clients that were closed here, and do not come back.
    closed: Vec<ClientId>,
    /// Clients that were leased to other workers, or could come back under another lease.
    moved: Vec<ClientId>,
    /// Whether the state is notified.
    is_wanted: bool,
}

impl LeftClients {
    fn new(is_wanted: bool) -> LeftClients {
        LeftClients {
            is_wanted,
            ..LeftClients::default()
        }
    }

    pub(super) fn close(&mut self, client: ClientId) {
        if self.is_wanted {
            self.closed.push(client);
        }
    }

    pub(super) fn release(&mut self, client: ClientId) {
        if self.is_wanted {
            self.moved.push(client);
        }
    }
}

/// The schedule of health checks.
#[derive(Debug, Default)]
pub(super) struct HealthSchedule {
    /// None if the daemon has no health function.
    interval: Option<Duration>,
    /// ns of CLOCK_MONOTONIC.
    next: u64,
    /// The health that the master knows.
    reported: Option<String>,
}

impl HealthSchedule {
    /// Returns the schedule of a worker that is healthy `now`.
    fn new(interval: Option<Duration>, now: u64) -> HealthSchedule {
        let mut schedule = HealthSchedule {
            interval,
            ..HealthSchedule::default()
        };
        schedule.schedule(now);
        schedule
    }

    /// Returns when the next check is due.
    pub(super) fn next(&self) -> Option<u64> {
        self.interval.map(|_| self.next)
    }

    fn schedule(&mut self, now: u64) {
        self.next = clock::after(now, self.interval.unwrap_or_default());
    }
}

impl WorkerLoop<'_> {
    /// Checks the health if that is due, and notes what the master must know.
    pub(super) fn check_health(&mut self, service: &mut dyn Service) {
        let is_due = self
            .hooks
            .health
            .next()
            .is_some_and(|next| next <= self.time.now);
        if !is_due || !self.may_serve() {
            return;
        }
        match service.check_health() {
            Ok(found) => {
                if found != self.hooks.health.reported {
                    self.hooks.health.reported.clone_from(&found);
                    self.report_health(found);
                }
            }
            Err(why) => self.break_off(&why),
        }
        self.time.now = clock::monotonic();
        self.hooks.health.schedule(self.time.now);
    }

    /// Notes what the master must know: why the worker is unhealthy, or that it is healthy again.
    pub(super) fn report_health(&mut self, unhealthy: Option<String>) {
        let unhealthy = unhealthy.map(shortened);
        self.master.health = Some(Health { unhealthy });
    }

    /// Notifies the state of the clients that have left, after the master was: it waits for no method.
    pub(super) fn notify_of_left_clients(&mut self, service: &mut dyn Service) {
        if self.hooks.left.closed.is_empty() && self.hooks.left.moved.is_empty() {
            return;
        }
        let moved = std::mem::take(&mut self.hooks.left.moved);
        let mut left: Vec<ClientId> = std::mem::take(&mut self.hooks.left.closed);
        if !moved.is_empty() {
            // The next lease of a client may have been picked up before the end of the last one was noticed.
            let served: HashSet<ClientId> = (0..self.connections.bound())
                .filter_map(|index| Some(self.connections.get(index)?.client))
                .collect();
            left.extend(moved.into_iter().filter(|client| !served.contains(client)));
        }
        for client in left {
            if let Err(why) = service.client_has_left(client) {
                return self.break_off(&why);
            }
        }
    }
}
