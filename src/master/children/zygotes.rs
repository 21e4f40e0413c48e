//! The zygotes of the generations that start workers, and what their messages and ends mean for the workers.

use std::io;
use std::time::Instant;

use crate::config::Config;
use crate::master::Master;
use crate::master::workers::zygote::{Birth, BirthNews, Orphaned};
use crate::proto::app::AppZygoteSpec;
use crate::proto::log::Log;
use crate::proto::names::Generation;
use crate::proto::zygote::StartZygote;
use crate::shm::Layout;
use crate::sys::process::Exit;

/// The most messages of a zygote that are handled at a time; the poller reports that there are more.
const MAX_MESSAGES: usize = 64;

impl Master {
    /// Handles messages of a zygote, and sends it the requests that wait.
    pub(crate) fn attend_zygote(&mut self, generation: Generation, now: Instant) {
        for _ in 0..MAX_MESSAGES {
            let news = self
                .workers
                .receive_from_zygote(generation, &self.poller, now);
            match news {
                None => break,
                Some(BirthNews::Nothing) => {}
                Some(BirthNews::Forked(birth, forked)) => {
                    let worker = (birth.seat, birth.id, birth.generation);
                    self.begin_worker(worker, Some(forked), now);
                }
                Some(BirthNews::Failed(birth, error)) => {
                    let telemetry = &mut self.telemetry;
                    self.workers
                        .report_failed_births([(birth, error)], telemetry, now);
                }
            }
            // The poller reports a message that comes unasked.
            if !self.workers.zygotes.is_asked(generation) {
                break;
            }
        }
        let failed = self.workers.request_births(generation);
        self.workers
            .report_failed_births(failed, &mut self.telemetry, now);
    }

    /// Handles the end of a zygote, which is not collected yet.
    pub(super) fn end_zygote(
        &mut self,
        (pid, generation): (u32, Generation),
        exit: Exit,
        now: Instant,
    ) {
        // The last messages survive the death.
        self.attend_zygote(generation, now);
        match self.workers.zygote_ended(pid, exit, &self.poller) {
            None => {}
            Some(Orphaned::Fail(births, cause)) => {
                let error = || io::Error::other(format!("its zygote {cause}"));
                let failed = births.into_iter().map(|birth| (birth, error()));
                let telemetry = &mut self.telemetry;
                self.workers.report_failed_births(failed, telemetry, now);
            }
            Some(Orphaned::Again(generation, births)) => {
                self.replace_zygote(generation, births, now);
            }
            Some(Orphaned::Execute(births)) => self.execute_births(births, now),
        }
    }

    /// Starts another zygote for a generation, unless it starts no more workers.
    fn replace_zygote(&mut self, generation: Generation, births: Vec<Birth>, now: Instant) {
        if births.is_empty() && !self.wanted_zygotes().contains(&generation) {
            return;
        }
        let start = self.zygote_settings(generation);
        if let Err(e) = self.workers.start_zygote(start, true, &self.poller, now) {
            log::warn!("a zygote for generation {generation} cannot be started: {e}");
            self.workers.abandon_zygotes(generation);
            return self.execute_births(births, now);
        }
        for birth in births {
            self.start_worker(birth.seat, birth.id, birth.generation, now);
        }
    }

    /// Starts workers by executing the program.
    fn execute_births(&mut self, births: Vec<Birth>, now: Instant) {
        for birth in births {
            self.begin_worker((birth.seat, birth.id, birth.generation), None, now);
        }
    }

    /// Ends the zygotes that are not needed any more.
    pub(crate) fn keep_zygotes(&mut self) {
        let wanted = self.wanted_zygotes();
        self.workers.zygotes.keep_only(&wanted, &self.poller);
    }

    /// Returns the generations that may start workers.
    fn wanted_zygotes(&self) -> Vec<Generation> {
        if self.workers.pool.is_stopping() {
            return Vec::new();
        }
        let next = self.reloads.current.as_ref();
        let next = next.map(|reload| reload.generation);
        next.into_iter().chain([self.settings.generation]).collect()
    }

    /// Returns the first message to the zygote of a generation.
    pub(super) fn zygote_settings(&self, generation: Generation) -> StartZygote {
        let config = self.reloads.config_of(generation, &self.settings);
        StartZygote {
            name: self.name.clone(),
            generation,
            master: std::process::id(),
            log: Log {
                level: self.reloads.log_level_of(generation, &self.settings),
                ..config.log.clone()
            },
            own_table: config.own_table(),
            app: app_zygote(config, self.reloads.layout(&self.clients)),
        }
    }
}

/// Returns the app of a configuration, if its zygote forks apps as well.
fn app_zygote(config: &Config, layout: Layout) -> Option<AppZygoteSpec> {
    let app = config.app.spec().filter(|_| config.app.preload)?;
    let max_reply = layout.max_reply();
    Some(AppZygoteSpec { app, max_reply })
}
