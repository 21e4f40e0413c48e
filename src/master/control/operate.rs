//! Changes by the operator at run time that need more than the workers: their number, and the level of the log.

use crate::logging;
use crate::master::Master;
use crate::master::capacity::client_limits;
use crate::master::telemetry::events::Asker;
use crate::proto::channel::ToWorker;
use crate::proto::control::{
    About, Kind, LogLevelInForce, Origin, Refusal, RefusalCode, SetLogLevel,
};
use crate::proto::names::MAX_WORKERS;
use crate::proto::text::Counted;

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
