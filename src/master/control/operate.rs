//! Changes by the operator at run time that need more than the workers: their number, clients, and the level of the log.

use crate::logging;
use crate::master::Master;
use crate::master::capacity::client_limits;
use crate::master::telemetry::events::Asker;
use crate::proto::channel::ToWorker;
use crate::proto::control::{
    About, Kicked, Kind, LogLevelInForce, Origin, Refusal, RefusalCode, SetLogLevel,
};
use crate::proto::names::{ClientId, MAX_WORKERS};
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
        let level = self.settings.log_level();
        self.workers
            .send_all(&ToWorker::LogLevel(level), &self.poller);
    }
}
