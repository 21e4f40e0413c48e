//! The health of workers: where the clients of an unhealthy one go.

use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::poll::Poller;

/// How long clients stay with an unhealthy worker after another one has become healthy. Workers that were unhealthy for
/// the same reason usually recover together, and then each keeps its clients.
const RECOVERY_TIME: Duration = Duration::from_secs(5);

/// The time between two attempts to move the clients of an unhealthy worker. No message reports that a turn has ended,
/// or that the app has answered.
const BUSY_CHECK: Duration = Duration::from_millis(100);

impl Workers {
    /// Notes the health of a worker. The clients of one that has become unhealthy move to healthy ones, if there are
    /// any: without one they would only move from one unhealthy worker to another.
    pub(super) fn set_health(
        &mut self,
        id: WorkerId,
        unhealthy: Option<String>,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let Some(worker) = self.all.get_mut(&id) else {
            return;
        };
        let (before, about) = (worker.unhealthy.take(), worker.about());
        worker.unhealthy.clone_from(&unhealthy);
        self.dispatch.discard_candidates();
        let name = worker.name();
        match unhealthy {
            None if before.is_some() => {
                let sentence = format_args!("{name} is healthy again");
                telemetry.events.note(Kind::WorkerHealthy, about, sentence);
                self.expect_moves(now);
            }
            Some(why) if before.is_none() => {
                let moved = self.move_from_unhealthy(id, clients, telemetry, poller);
                let about = About {
                    clients: Some(moved.unwrap_or(0) as u64),
                    ..about
                };
                let consequence = match moved {
                    Some(moved) => format!("; {} moved to other workers", Counted(moved, "client")),
                    None if !self.is_serving(id) => String::new(),
                    None => "; no worker is healthy, so its clients stay".to_owned(),
                };
                let sentence = format_args!("{name} is unhealthy: {why}{consequence}");
                telemetry
                    .events
                    .note(Kind::WorkerUnhealthy, about, sentence);
                self.expect_moves_of_busy(now);
            }
            _ => {}
        }
    }

    /// Notes that a worker has become healthy or ready: the clients of those that stay unhealthy move soon.
    pub(super) fn expect_moves(&mut self, now: Instant) {
        if self.unhealthy_with_clients().next().is_some() {
            self.watch.expect_moves(now + RECOVERY_TIME);
        }
    }

    /// Schedules the move of clients that stay with an unhealthy worker because they are in a turn, or their requests
    /// are away.
    fn expect_moves_of_busy(&mut self, now: Instant) {
        if self.has_healthy() && self.unhealthy_with_clients().next().is_some() {
            self.watch.expect_moves(now + BUSY_CHECK);
        }
    }

    /// Moves the clients of all unhealthy workers to healthy ones.
    pub(super) fn move_from_all_unhealthy(
        &mut self,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let unhealthy: Vec<WorkerId> = self.unhealthy_with_clients().map(|w| w.id).collect();
        for id in unhealthy {
            let moved = self.move_from_unhealthy(id, clients, telemetry, poller);
            let (Some(moved @ 1..), Some(worker)) = (moved, self.all.get(&id)) else {
                continue;
            };
            let about = About {
                clients: Some(moved as u64),
                ..worker.about()
            };
            let (name, moved) = (worker.name(), Counted(moved, "client"));
            let sentence =
                format_args!("{name} is still unhealthy; {moved} moved to healthy workers");
            telemetry
                .events
                .note(Kind::WorkerUnhealthy, about, sentence);
        }
        self.expect_moves_of_busy(now);
    }

    /// Moves the clients of a worker to healthy ones. Returns how many have moved; `None` if none is healthy, or if the
    /// worker ends anyway.
    fn move_from_unhealthy(
        &mut self,
        id: WorkerId,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) -> Option<usize> {
        if !self.has_healthy() || !self.is_serving(id) {
            return None;
        }
        let why = (Reason::Unhealthy, Duration::ZERO);
        Some(self.revoke_and_notify(id, why, clients, telemetry, poller))
    }

    fn has_healthy(&self) -> bool {
        self.ready().any(|worker| worker.unhealthy.is_none())
    }

    fn is_serving(&self, id: WorkerId) -> bool {
        self.ready().any(|worker| worker.id == id)
    }

    fn unhealthy_with_clients(&self) -> impl Iterator<Item = &Worker> {
        self.ready()
            .filter(|worker| worker.unhealthy.is_some() && worker.leases.clients() > 0)
    }
}
