//! Ends the workers of another version that an upgrade has taken over. Their channel protocol or the layout of their
//! shared memory differs, so nothing is leased to them any more.
//!
//! No new worker is started until they are gone. The lease of each client that is in no turn is revoked at once;
//! executing requests get `restart-grace`, as at a restart. Then the workers are killed, and the clients that they
//! still had are recovered as after every death.

use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::Workers;
use crate::master::workers::worker::KillReason;
use crate::proto::control::{About, Kind};
use crate::proto::text::Counted;

/// Time between two checks whether turns have ended.
const TICK: Duration = Duration::from_millis(5);

/// Set while all existing workers must end.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// When the workers are killed, whatever they execute.
    until: Instant,
    next_check: Instant,
}

impl Outgoing {
    pub(crate) fn new(now: Instant, grace: Duration) -> Outgoing {
        Outgoing {
            until: now + grace,
            next_check: now,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.next_check
    }
}

impl Workers {
    /// Ends the grace of executing requests, as the daemon stops or restarts.
    pub(crate) fn hurry_outgoing(&mut self, now: Instant) {
        if let Some(outgoing) = &mut self.outgoing {
            (outgoing.until, outgoing.next_check) = (now, now);
        }
    }

    /// Revokes the leases of clients of workers of another version, and kills those workers that have none left.
    /// Returns whether any workers are left.
    pub(crate) fn end_outgoing(
        &mut self,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> bool {
        let Some(outgoing) = &mut self.outgoing else {
            return false;
        };
        if self.all.is_empty() {
            self.outgoing = None;
            return false;
        }
        if now < outgoing.next_check {
            return true;
        }
        outgoing.next_check = now + TICK;
        let is_late = outgoing.until <= now;
        for id in self.ids() {
            self.revoke_all(id, (Reason::Restart, Duration::ZERO), clients, telemetry);
            let Some(worker) = self
                .all
                .get_mut(&id)
                .filter(|worker| worker.life.kill_reason().is_none())
            else {
                continue;
            };
            let leased = worker.leases.clients();
            if leased > 0 && !is_late {
                continue;
            }
            let about = About {
                clients: Some(leased as u64),
                ..worker.about()
            };
            let left = match leased {
                0 => String::new(),
                _ => format!("; it still has {}", Counted(leased, "client")),
            };
            let sentence =
                format_args!("{} is of another version; killing it{left}", worker.name());
            telemetry.events.note(Kind::WorkerKilled, about, sentence);
            worker.kill_for(KillReason::Unneeded);
        }
        true
    }
}
