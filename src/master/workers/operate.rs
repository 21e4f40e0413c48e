//! Changes by an operator to single workers and to their load.

use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::telemetry::events::Asker;
use crate::master::workers::Workers;
use crate::master::workers::rebalance::{RequestedRebalance, sum_up};
use crate::pool::rebalance;
use crate::proto::control::{About, Kind, Rebalanced, Refusal, RefusalCode, Release};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::poll::Poller;

impl Workers {
    /// Replaces one worker or all of them.
    pub(crate) fn recycle(
        &mut self,
        asker: Asker,
        worker: Option<WorkerId>,
        telemetry: &mut Telemetry,
    ) -> Result<(), Refusal> {
        let what = match worker {
            None => {
                self.pool.recycle_all();
                "all workers".to_owned()
            }
            Some(id) if self.pool.recycle(id) => format!("worker {id}"),
            Some(id) => return Err(self.no_ready_worker(id)),
        };
        let about = About {
            worker,
            ..asker.about()
        };
        telemetry.events.note(
            Kind::Recycling,
            about,
            format_args!("{asker}: replacing {what}"),
        );
        Ok(())
    }

    /// Moves all clients away from a worker, which keeps running.
    pub(crate) fn hold(
        &mut self,
        asker: Asker,
        id: WorkerId,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) -> Result<(), Refusal> {
        if !self.pool.hold(id) {
            return Err(self.no_ready_worker(id));
        }
        let why = (Reason::Hold, Duration::ZERO);
        let moved = self.revoke_and_notify(id, why, clients, telemetry, poller);
        let about = About {
            worker: Some(id),
            clients: Some(moved as u64),
            ..asker.about()
        };
        telemetry.events.note(
            Kind::WorkerHeld,
            about,
            format_args!(
                "{asker}: worker {id} is held; {} moved",
                Counted(moved, "client")
            ),
        );
        Ok(())
    }

    /// Returns a held worker to service, or ends the quarantine of a method.
    pub(crate) fn release(
        &mut self,
        asker: Asker,
        what: &Release,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) -> Result<(), Refusal> {
        match what {
            Release::Worker(id) if self.pool.release(*id) => {
                let about = About {
                    worker: Some(*id),
                    ..asker.about()
                };
                telemetry.events.note(
                    Kind::WorkerReleased,
                    about,
                    format_args!("{asker}: worker {id} is released"),
                );
            }
            Release::Worker(id) => {
                return Err(match self.pool.member(*id) {
                    Some(_) => refused(format!("worker {id} is not held")),
                    None => self.no_ready_worker(*id),
                });
            }
            Release::Method(name) if self.crash_limits.release(name) => {
                let sentence = format_args!("{asker}: method {name:?} is run again");
                telemetry
                    .events
                    .note(Kind::MethodReleased, asker.about(), sentence);
                self.send_quarantined(poller);
            }
            Release::Method(name) => {
                return Err(refused(format!("method {name:?} is not quarantined")));
            }
        }
        Ok(())
    }

    fn no_ready_worker(&self, id: WorkerId) -> Refusal {
        match self.pool.member(id) {
            Some(_) => refused(format!("worker {id} does not serve at the moment")),
            None => refused(format!("there is no worker {id}")),
        }
    }

    /// Begins to count the requests of the busiest worker's clients, to find which of them could be moved.
    pub(crate) fn begin_balance(
        &mut self,
        asker: Asker,
        is_dry: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.requested_rebalance.is_some() {
            return Err(Refusal::new(
                RefusalCode::Busy,
                "another rebalance is in progress",
            ));
        }
        let loads = self.loads(now);
        let from = rebalance::requested(&loads);
        match from {
            Some(id) => {
                log::info!("{asker}: checking which clients can move from worker {id}");
                self.begin_request_count(id);
            }
            None => log::info!("{asker}: the workers are evenly loaded"),
        }
        self.requested_rebalance = Some(RequestedRebalance {
            asker,
            is_dry,
            from,
            until: now + rebalance::INTERVAL,
        });
        Ok(())
    }

    /// Returns the result of a requested rebalancing once its period of counting is over.
    pub(crate) fn end_balance(
        &mut self,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) -> Option<Rebalanced> {
        self.requested_rebalance
            .as_ref()
            .filter(|asked| asked.until <= now)?;
        let RequestedRebalance {
            asker,
            is_dry,
            from,
            ..
        } = self.requested_rebalance.take()?;
        let Some(from) = from else {
            return Some(Rebalanced {
                moves: Vec::new(),
                busy: 0,
            });
        };
        let moves = self.plan(from, &self.loads(now));
        let planned = moves.len();
        if is_dry {
            log::info!(
                "{asker}: {} would be moved from worker {from}",
                Counted(planned, "client")
            );
            return Some(sum_up(from, &moves, planned));
        }
        let moved = self.move_clients(from, moves, clients, telemetry, poller);
        let about = About {
            worker: Some(from),
            clients: Some(moved.len() as u64),
            ..asker.about()
        };
        let sentence = format_args!(
            "{asker}: {} moved from worker {from}, the busiest",
            Counted(moved.len(), "client")
        );
        telemetry.events.note(Kind::Rebalanced, about, sentence);
        Some(sum_up(from, &moved, planned))
    }
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::Refused, message)
}
