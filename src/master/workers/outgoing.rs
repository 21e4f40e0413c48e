//! Ends the workers of another version that an upgrade has taken over. Their channel protocol or
//! the layout of their shared memory differs, so nothing is leased to them any more.
//!
//! No new worker is started until they are gone. The lease of each client that is in no turn is
//! revoked at once; executing requests get `restart-grace`, as at a restart. Then the workers are
//! killed, and the clients that they still had are recovered as after every death.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::telemetry::counters::Reason;
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;

/// Time between two checks of turns that last.
const TICK: Duration = Duration::from_millis(5);

/// Set while all existing workers must end.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// When the workers are killed, whatever they execute.
    until: Instant,
    next_look: Instant,
}

impl Outgoing {
    pub(crate) fn new(now: Instant, grace: Duration) -> Outgoing {
        Outgoing {
            until: now + grace,
            next_look: now,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.next_look
    }
}

impl Master {
    /// Ends the grace of executing requests, as the daemon stops or restarts.
    pub(crate) fn hurry_outgoing(&mut self, now: Instant) {
        if let Some(outgoing) = &mut self.workers.outgoing {
            (outgoing.until, outgoing.next_look) = (now, now);
        }
    }

    /// Revokes the clients of workers of another version, and ends those workers that have none
    /// left. Returns whether any workers are left.
    pub(crate) fn end_outgoing(&mut self, now: Instant) -> bool {
        let Some(outgoing) = &mut self.workers.outgoing else {
            return false;
        };
        outgoing.next_look = now + TICK;
        let is_late = outgoing.until <= now;
        let ids: Vec<WorkerId> = self.workers.all.keys().copied().collect();
        if ids.is_empty() {
            self.workers.outgoing = None;
            return false;
        }
        for id in ids {
            self.take_all(id, Reason::Restart);
            let Some(worker) = self
                .workers
                .all
                .get_mut(&id)
                .filter(|worker| !worker.is_unneeded)
            else {
                continue;
            };
            let clients = worker.leases.clients();
            if clients > 0 && !is_late {
                continue;
            }
            worker.is_unneeded = true;
            worker.kill();
            let about = About {
                clients: Some(clients as u64),
                ..worker.about()
            };
            let sentence = format_args!(
                "{} is of another version; killing it with {}",
                worker.name(),
                Counted(clients, "client")
            );
            self.telemetry
                .events
                .note(Kind::WorkerKilled, about, sentence);
        }
        true
    }
}
