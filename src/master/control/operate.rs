//! Changes by the operator at run time: the number of workers, single workers, and whether clients are accepted.

use std::time::{Duration, Instant};

use crate::logging;
use crate::master::Master;
use crate::master::capacity::client_limits;
use crate::master::telemetry::counters::Reason;
use crate::master::telemetry::events::Asker;
use crate::master::workers::rebalance::{RequestedRebalance, sum_up};
use crate::pool::rebalance;
use crate::proto::channel::ToWorker;
use crate::proto::control::{
    About, Kicked, Kind, LogLevelInForce, MovedLoad, Origin, Refusal, RefusalCode, Release,
    SetLogLevel,
};
use crate::proto::names::{ClientId, MAX_WORKERS, WorkerId};
use crate::proto::text::Counted;
use crate::sys::socket;

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::Refused, message)
}

impl Master {
    /// Sets the number of workers until the next reload.
    pub(crate) fn scale(&mut self, asker: Asker, count: u32) -> Result<(), Refusal> {
        if !(1..=MAX_WORKERS).contains(&count) {
            return Err(refused(format!(
                "there can be 1 to {MAX_WORKERS} workers, not {count}"
            )));
        }
        let limits = client_limits(&self.settings.config, count as usize, self.descriptors)
            .map_err(|e| refused(e.to_string()))?;
        limits.warn_if_lowered();
        // The slots of existing shared memory do not change.
        self.clients.max = limits.clients_in(self.clients.layout);
        let before = self.workers.pool.target().count;
        let about = About {
            workers: Some(count),
            ..asker.about()
        };
        self.telemetry.events.note(
            Kind::Scaled,
            about,
            format_args!("{asker}: {} instead of {before}", Counted(count, "worker")),
        );
        self.workers.pool.scale(count as usize);
        self.settings.count_origin = Origin::Runtime;
        self.settings.scaled_in = Some(self.settings.last_generation);
        Ok(())
    }

    /// Adds or removes one worker, on a signal.
    pub(crate) fn step(&mut self, asker: Asker, by: i32) {
        let count = u32::try_from(self.workers.pool.target().count)
            .unwrap_or(MAX_WORKERS)
            .saturating_add_signed(by);
        if let Err(refusal) = self.scale(asker, count) {
            log::warn!("{asker}: {}", refusal.message);
        }
    }

    /// Replaces one worker or all of them.
    pub(crate) fn recycle(
        &mut self,
        asker: Asker,
        worker: Option<WorkerId>,
    ) -> Result<(), Refusal> {
        let what = match worker {
            None => {
                self.workers.pool.recycle_all();
                "all workers".to_owned()
            }
            Some(id) if self.workers.pool.recycle(id) => format!("worker {id}"),
            Some(id) => return Err(self.no_ready_worker(id)),
        };
        let about = About {
            worker,
            ..asker.about()
        };
        self.telemetry.events.note(
            Kind::Recycling,
            about,
            format_args!("{asker}: replacing {what}"),
        );
        Ok(())
    }

    /// Moves all clients away from a worker, which keeps running.
    pub(crate) fn hold(&mut self, asker: Asker, id: WorkerId) -> Result<(), Refusal> {
        if !self.workers.pool.hold(id) {
            return Err(self.no_ready_worker(id));
        }
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        let why = (Reason::Hold, Duration::ZERO);
        let moved = self
            .workers
            .revoke_and_notify(id, why, clients, telemetry, &self.poller);
        let about = About {
            worker: Some(id),
            clients: Some(moved as u64),
            ..asker.about()
        };
        self.telemetry.events.note(
            Kind::WorkerHeld,
            about,
            format_args!(
                "{asker}: worker {id} is held; {} moved",
                Counted(moved, "client")
            ),
        );
        Ok(())
    }

    pub(crate) fn release(&mut self, asker: Asker, what: &Release) -> Result<(), Refusal> {
        match what {
            Release::Worker(id) if self.workers.pool.release(*id) => {
                let about = About {
                    worker: Some(*id),
                    ..asker.about()
                };
                self.telemetry.events.note(
                    Kind::WorkerReleased,
                    about,
                    format_args!("{asker}: worker {id} is released"),
                );
            }
            Release::Worker(id) => {
                return Err(match self.workers.pool.member(*id) {
                    Some(_) => refused(format!("worker {id} is not held")),
                    None => self.no_ready_worker(*id),
                });
            }
            Release::Method(name) if self.workers.strikes.release(name) => {
                let sentence = format_args!("{asker}: method {name:?} is run again");
                self.telemetry
                    .events
                    .note(Kind::MethodReleased, asker.about(), sentence);
                self.workers.send_quarantined(&self.poller);
            }
            Release::Method(name) => {
                return Err(refused(format!("method {name:?} is not quarantined")));
            }
        }
        Ok(())
    }

    fn no_ready_worker(&self, id: WorkerId) -> Refusal {
        match self.workers.pool.member(id) {
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
        if self.workers.requested_rebalance.is_some() {
            return Err(Refusal::new(
                RefusalCode::Busy,
                "another rebalance is in progress",
            ));
        }
        let loads = self.workers.loads(now);
        let from = rebalance::requested(&loads);
        match from {
            Some(id) => {
                log::info!("{asker}: checking which clients can move from worker {id}");
                self.workers.count_requests(id);
            }
            None => log::info!("{asker}: the workers are evenly loaded"),
        }
        self.workers.requested_rebalance = Some(RequestedRebalance {
            asker,
            is_dry,
            from,
            until: now + rebalance::INTERVAL,
        });
        Ok(())
    }

    /// Returns the result of a requested rebalancing once its period of counting is over.
    pub(crate) fn end_balance(&mut self, now: Instant) -> Option<Vec<MovedLoad>> {
        self.workers
            .requested_rebalance
            .as_ref()
            .filter(|asked| asked.until <= now)?;
        let RequestedRebalance {
            asker,
            is_dry,
            from,
            ..
        } = self.workers.requested_rebalance.take()?;
        let Some(from) = from else {
            return Some(Vec::new());
        };
        let moves = self.workers.plan(from, &self.workers.loads(now));
        let (sums, planned) = (sum_up(from, &moves), moves.len());
        if is_dry {
            log::info!(
                "{asker}: {} would be moved from worker {from}",
                Counted(planned, "client")
            );
        } else {
            let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
            let count = self
                .workers
                .move_clients(from, moves, clients, telemetry, &self.poller);
            let about = About {
                worker: Some(from),
                clients: Some(count as u64),
                ..asker.about()
            };
            let sentence = format_args!(
                "{asker}: {} moved from worker {from}, the busiest",
                Counted(count, "client")
            );
            self.telemetry
                .events
                .note(Kind::Rebalanced, about, sentence);
        }
        Some(sums)
    }

    /// Closes a client, with or without a worker.
    ///
    /// A worker that is in a turn of the client, or stuck in one, keeps the lease until it finds the connection ended;
    /// the client notices the end at once.
    pub(crate) fn kick(&mut self, asker: Asker, id: ClientId) -> Result<Kicked, Refusal> {
        let leased = || {
            self.workers
                .all
                .iter()
                .find_map(|(worker, w)| Some((*worker, w.leases.slot_of(id)?)))
        };
        let peer = if let Some(client) = self.clients.take_without_worker(id) {
            socket::end(&client.socket);
            let peer = client.peer;
            self.clients.remove(client, &self.telemetry);
            peer
        } else if let Some((worker_id, slot)) = leased() {
            let worker = self
                .workers
                .all
                .get_mut(&worker_id)
                .expect("it was found there");
            let client = worker.leases.client(slot).expect("it was found there");
            let peer = client.peer;
            socket::end(&client.socket);
            if let Some(taken) = worker.leases.revoke(slot, &worker.shm) {
                let client = taken.map_or_else(|(_, client)| client, |unleased| unleased.client);
                self.clients.remove(client, &self.telemetry);
                self.workers
                    .send(worker_id, ToWorker::LeasesRevoked, &self.poller);
            } else {
                worker.leases.set_counted(slot);
            }
            peer
        } else {
            return Err(Refusal::new(
                RefusalCode::Refused,
                format!("there is no client {id}"),
            ));
        };
        self.telemetry.counts.kicked += 1;
        let about = About {
            client: Some(id),
            ..asker.about()
        };
        self.telemetry.events.note(
            Kind::ClientKicked,
            about,
            format_args!("{asker}: client {id} ({peer}) is closed"),
        );
        Ok(Kicked {
            client: id,
            peer: peer.to_string(),
        })
    }

    /// Changes the log level of the master and all workers if the request asks for that.
    pub(crate) fn log_level(&mut self, asker: Asker, asked: SetLogLevel) -> LogLevelInForce {
        let configured = self.settings.config.log.level;
        if let Some(level) = asked.level {
            self.settings.log_level = Some(level);
            logging::set_level(level);
            self.send_log_level();
            let sentence = format_args!("{asker}: the level of the log is {:?}", level.as_str());
            self.telemetry
                .events
                .note(Kind::LogLevelChanged, asker.about(), sentence);
        }
        LogLevelInForce {
            level: logging::level(),
            configured,
        }
    }

    /// Sends the log level to all workers.
    pub(crate) fn send_log_level(&mut self) {
        let level = self
            .settings
            .log_level
            .unwrap_or(self.settings.config.log.level);
        self.workers
            .send_all(&ToWorker::LogLevel(level), &self.poller);
    }
}
