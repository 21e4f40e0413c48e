//! Reload: applies the configuration files as they are now, without a client noticing, or not at all.
//!
//! ```text
//! prepare   read, check, open the log, bind new listeners          a mistake: rejected, nothing was touched
//! roll      start new workers, a few at a time; each old one       not ready: rolled back, workers of the old
//!           retires when the new one for its seat is ready         configuration replace the new ones likewise
//! commit    listeners, limits, log, generation                     applied
//! ```
//!
//! A generation is the number of a configuration that was tried; each has its own, also one that was rolled back.

pub(crate) mod outcome;
pub(crate) mod prepared;
pub(crate) mod reading;

use std::path::PathBuf;
use std::time::Instant;

use self::outcome::ReloadOutcome;
use self::prepared::{PreparedReload, limits_under};
use self::reading::{Checks, ReloadReading};
use crate::config::{Config, Loaded};
use crate::master::capacity::{client_limits, target, worker_count};
use crate::master::clients::Clients;
use crate::master::memory::Memory;
use crate::master::settings::SettingsInForce;
use crate::master::telemetry::events::Asker;
use crate::master::{Master, exporter};
use crate::proto::control::{About, Checked, Kind, Refusal, Reloaded};
use crate::proto::log::LogLevel;
use crate::proto::names::Generation;
use crate::shm::Layout;

/// Reloads: the one under way, and the child that reads configurations.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    /// The configuration whose workers are being started.
    pub(crate) current: Option<PreparedReload>,
    /// Listeners that were about to close and that the configuration in `current` keeps.
    reserved: Vec<u32>,
    /// Set while the configuration of a reload is being read.
    pub(crate) reading: Option<ReloadReading>,
    checks: Checks,
}

impl Reloads {
    /// Returns the configuration of a generation that starts workers.
    pub(crate) fn config_of<'a>(
        &'a self,
        generation: Generation,
        settings: &'a SettingsInForce,
    ) -> &'a Config {
        let next = self.prepared(generation);
        next.map_or(&settings.config, PreparedReload::config)
    }

    /// Returns the memory by which the buffers of a generation's workers are limited.
    pub(crate) fn memory_of(
        &self,
        generation: Generation,
        settings: &SettingsInForce,
    ) -> Option<Memory> {
        let next = self.prepared(generation);
        next.map_or(settings.memory, |reload| reload.memory)
    }

    /// Returns the level of the log of new workers of a generation.
    pub(crate) fn log_level_of(
        &self,
        generation: Generation,
        settings: &SettingsInForce,
    ) -> LogLevel {
        if settings.generation == generation {
            return settings.log_level();
        }
        self.config_of(generation, settings).log.level
    }

    /// Returns the layout of the shared memory of new workers, of any generation.
    pub(crate) fn layout(&self, clients: &Clients) -> Layout {
        let next = self.current.as_ref();
        next.map_or(clients.layout, |reload| reload.layout)
    }

    fn prepared(&self, generation: Generation) -> Option<&PreparedReload> {
        let next = self.current.as_ref();
        next.filter(|reload| reload.generation == generation)
    }
}

impl Master {
    /// Begins to apply the configuration files as they are now, with `force` also if one of them is empty.
    ///
    /// # Errors
    /// `refused`, `busy` or `rejected`; nothing has changed then.
    pub(crate) fn begin_reload(
        &mut self,
        asker: Asker,
        force: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.lifecycle.check_reload(now)?;
        self.read_for_reload(asker, force, now)
            .inspect_err(|refusal| {
                let refusal = refusal.clone();
                self.report_reload(&ReloadOutcome::Rejected { asker, refusal });
            })
    }

    /// Starts the workers of a configuration that has been read, or rejects it.
    fn finish_reading(&mut self, read: ReloadReading, loaded: Result<Loaded, Refusal>) {
        let ReloadReading {
            reading,
            asker,
            began,
        } = read;
        match loaded.and_then(|loaded| self.prepare(reading.file.clone(), loaded, began)) {
            Ok(prepared) => self.roll(prepared, asker),
            Err(refusal) => {
                self.lifecycle.end_reload();
                self.report_reload(&ReloadOutcome::Rejected { asker, refusal });
            }
        }
    }

    /// Begins to replace the workers by those of a prepared configuration.
    fn roll(&mut self, prepared: PreparedReload, asker: Asker) {
        let generation = prepared.generation;
        let about = About {
            generation: Some(generation),
            workers: Some(worker_count(prepared.config().workers.count) as u32),
            ..asker.about()
        };
        let sentence = format_args!("{asker}: reloading; generation {generation} is being started");
        self.telemetry
            .events
            .note(Kind::ReloadBegun, about, sentence);
        self.settings.last_generation = generation;
        let closing = &mut self.listeners.closing;
        self.reloads.reserved = closing
            .extract_if(.., |number| prepared.keeps(*number))
            .collect();
        self.workers
            .pool
            .reload(target(prepared.config(), generation, self.settings.is_dev));
        self.reloads.current = Some(prepared);
        self.lifecycle.roll();
        self.manager.notify_reloading();
    }

    /// Puts the configuration into force whose workers are all ready now. The loop reports the outcome when it has
    /// stored the listeners.
    pub(crate) fn commit_reload(&mut self, now: Instant) -> Option<ReloadOutcome> {
        let prepared = self.reloads.current.take()?;
        self.lifecycle.end_reload();
        self.reloads.reserved.clear();
        let (generation, began) = (prepared.generation, prepared.began);
        let Loaded {
            config,
            given,
            files,
        } = prepared.loaded;
        prepared.log.commit();
        self.control.reconfigure(
            &self.settings.config.control,
            &config.control,
            &self.poller,
            now,
        );
        let (telemetry, poller) = (&mut self.telemetry, &self.poller);
        self.listeners
            .exchange(prepared.listeners, &config, telemetry, poller, now);
        let (before, leased) = (&self.settings.config, self.workers.leased());
        self.clients.reconfigure(before, &config, leased);
        (self.clients.max, self.clients.layout) = (prepared.max_clients, prepared.layout);
        if self.settings.is_scaled_in(generation) {
            self.limit_to_scaled(&config);
        }
        self.workers.crash_limits.release_all();
        self.workers.send_quarantined(&self.poller);
        let loaded = Loaded {
            config,
            given,
            files,
        };
        self.settings
            .apply(loaded, prepared.file, generation, prepared.memory);
        if self.settings.log_level.take().is_some() {
            // Workers of this generation may have received the level that an operator set during the reload.
            self.send_log_level();
        }
        let config = &self.settings.config;
        let start = exporter::start(&self.name, config, self.control.listener.path());
        let (current, poller) = (&mut self.exporter, &self.poller);
        prepared.exporter.commit(current, start, poller, now);
        self.listeners.activated.warn_of_unused(&config.listen);
        self.control.replace_lost(&self.poller, now);
        self.workers
            .restart_watch(&self.settings.config, &self.clients, now);
        let ready = self.workers.ready();
        let workers = ready
            .filter(|worker| worker.generation == generation)
            .count() as u32;
        Some(ReloadOutcome::Applied(Reloaded {
            generation,
            workers,
            seconds: now.duration_since(began).as_secs_f64(),
        }))
    }

    /// Gives up the reload under way, if there is one.
    pub(crate) fn abandon_reload(&mut self, why: String) {
        self.lifecycle.end_reload();
        let generation = if self.reloads.reading.take().is_some() {
            None
        } else if let Some(prepared) = self.reloads.current.take() {
            // Its workers may have parked more bytes of a client than a slot of the layout before holds.
            self.clients.layout = prepared.layout;
            self.listeners.closing.append(&mut self.reloads.reserved);
            Some(prepared.generation)
        } else {
            return;
        };
        self.report_reload(&ReloadOutcome::RolledBack { generation, why });
    }

    /// Returns what a reload would change, if it were accepted.
    fn check(&self, file: Option<PathBuf>, next: Loaded) -> Result<Checked, Refusal> {
        limits_under(&next.config, self.descriptors)?;
        let count = self.workers.pool.target().count;
        Ok(Checked {
            file,
            files: next.files,
            changes: self.settings.with_changes(count).changes(&next.config),
        })
    }

    /// Limits the clients by the number of workers that an operator has set during the reload.
    fn limit_to_scaled(&mut self, config: &Config) {
        let count = self.workers.pool.target().count;
        if let Ok(limits) = client_limits(config, count, self.descriptors) {
            self.clients.max = limits.clients_in(self.clients.layout);
        }
    }
}
