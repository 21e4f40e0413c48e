//! Reload: the configuration file as it is now, applied without a client noticing, or not at all.
//!
//! ```text
//! prepare   read, check, open the log, bind what is new            a mistake: rejected, nothing was touched
//! roll      new workers, one by one beside the old ones, which     not ready: rolled back, the old ones
//!           drain as soon as theirs is ready                       come back in the same way
//! commit    listeners, limits, log, generation                     applied
//! ```
//!
//! A generation is the number of a configuration that was tried; each has its own, also one that was rolled back.

pub(crate) mod reading;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use self::reading::ReloadReading;
use crate::config::{self, Config, ControlConfig, Keys, Loaded};
use crate::logging;
use crate::master::capacity::{ClientLimits, client_limits, target, worker_count};
use crate::master::listeners::listener::Listener;
use crate::master::listeners::plan;
use crate::master::memory::{self, Memory};
use crate::master::reload::reading::Checks;
use crate::master::telemetry::events::Asker;
use crate::master::{Error, Master, exporter};
use crate::proto::control::{
    About, Kind, LastReload, Origin, Place, Refusal, RefusalCode, Reloaded, Verdict,
};
use crate::proto::names::Generation;

/// A configuration on its way into force.
#[derive(Debug)]
pub(crate) struct Reload {
    pub(crate) generation: Generation,
    pub(crate) config: Config,
    config_keys: Keys,
    config_file: Option<PathBuf>,
    config_files: Vec<PathBuf>,
    max_clients: u64,
    pub(crate) memory: Option<Memory>,
    listeners: Vec<Planned>,
    exporter: exporter::PlannedExporter,
    log: logging::Prepared,
    began: Instant,
}

/// What becomes of an entry of `listen`.
#[derive(Debug)]
enum Planned {
    /// The listener of this number stays.
    Keep(u32),
    /// This one is new; clients can connect already.
    New(Box<Listener>),
}

/// Reloads: the one under way, and the child that reads configurations.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    pub(crate) current: Option<Reload>,
    /// Set while the configuration of a reload is being read.
    pub(crate) reading: Option<ReloadReading>,
    pub(crate) checks: Checks,
}

impl Master {
    /// Begins to apply the configuration files as they are now, with `force` also if one of them is empty.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub(crate) fn begin_reload(
        &mut self,
        asker: Asker,
        force: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.lifecycle.check_reload(now)?;
        self.read_for_reload(asker, force, now)
            .inspect_err(|refusal| self.reject_reload(asker, refusal))
    }

    /// The configuration has been read, or not.
    pub(crate) fn finish_reload(
        &mut self,
        asked: &ReloadReading,
        file: Option<PathBuf>,
        loaded: Result<Loaded, Refusal>,
        now: Instant,
    ) {
        let asker = asked.asker;
        match loaded.and_then(|loaded| self.prepare(file, loaded, asked.began)) {
            Ok(reload) => {
                let workers = worker_count(reload.config.workers.count) as u32;
                let generation = reload.generation;
                let about = About {
                    generation: Some(generation),
                    workers: Some(workers),
                    ..asker.about()
                };
                let sentence =
                    format_args!("{asker}: reloading; generation {generation} is being started");
                self.telemetry
                    .events
                    .note(Kind::ReloadBegun, about, sentence);
                self.workers
                    .pool
                    .reload(target(&reload.config, reload.generation));
                self.reloads.current = Some(reload);
                self.lifecycle.roll();
                self.tell_reloading(now);
            }
            Err(refusal) => {
                self.lifecycle.end_reload();
                self.reject_reload(asker, &refusal);
                self.control.clients.say_reloaded(&Err(refusal));
            }
        }
    }

    fn reject_reload(&mut self, asker: Asker, refusal: &Refusal) {
        let sentence = format_args!(
            "{asker}: the new configuration is rejected: {}",
            sentence_of(refusal)
        );
        self.telemetry
            .events
            .note(Kind::ReloadRejected, asker.about(), sentence);
        self.note_verdict(Verdict::Rejected, Some(refusal.message.clone()));
    }

    /// The file that a reload reads; none if there is none.
    pub(crate) fn next_file(&self) -> Option<PathBuf> {
        self.settings.file.clone().or_else(|| {
            self.settings
                .standard_file
                .exists()
                .then(|| self.settings.standard_file.clone())
        })
    }

    /// The configuration that a reload would try, but for the numbers of its users and groups, which are not looked up.
    pub(crate) fn read_next(&self, file: Option<&Path>) -> Result<Loaded, Refusal> {
        let loaded = self.settings.config.load_next_unresolved(
            &self.settings.keys,
            file,
            &self.settings.standard_file,
        );
        loaded.map_err(|error| rejection(&error))
    }

    /// How many clients there may be under a configuration.
    pub(crate) fn limits_under(&self, config: &Config) -> Result<ClientLimits, Refusal> {
        client_limits(config, worker_count(config.workers.count), self.descriptors)
            .map_err(|e| Refusal::new(RefusalCode::Rejected, e.to_string()))
    }

    /// Everything that can fail before anything is changed.
    fn prepare(
        &mut self,
        file: Option<PathBuf>,
        loaded: Loaded,
        began: Instant,
    ) -> Result<Reload, Refusal> {
        let Loaded {
            config,
            keys: config_keys,
            files: config_files,
        } = loaded;
        let reject = |sentence: String| Refusal::new(RefusalCode::Rejected, sentence);
        let limits = self.limits_under(&config)?;
        limits.warn_if_lowered();
        let memory = Memory::read(self.parked());
        memory::warn_if_short(&config.limits, memory, worker_count(config.workers.count));
        // The clients there are come along, with all that is parked of them: some of it perhaps since a configuration before
        // the one in force, if there were clients ever since.
        let before = if self.clients.count() > 0 {
            self.clients.layout.max_frame()
        } else {
            self.settings.config.limits.max_frame
        };
        let frame = config.limits.max_frame.max(before);
        let log = logging::prepare(&self.name, &config.log).map_err(|e| reject(e.to_string()))?;
        let exporter = self
            .plan_exporter(&config)
            .map_err(|e| reject(e.to_string()))?;
        let listeners = self
            .plan_listeners(&config)
            .map_err(|e| reject(e.to_string()))?;
        self.settings.last_generation = Generation(self.settings.last_generation.0 + 1);
        // For whoever is started from now on, also by the configuration before: it may get its clients back, with more
        // bytes than it could have let them have.
        self.clients.layout = limits.layout(frame, self.clients.layout.slots());
        Ok(Reload {
            generation: self.settings.last_generation,
            config,
            config_keys,
            config_file: file,
            config_files,
            max_clients: limits.clients,
            memory,
            listeners,
            exporter,
            log,
            began,
        })
    }

    /// Binds what is new, and changes what stays; that is undone if not all can be done.
    fn plan_listeners(&mut self, config: &Config) -> Result<Vec<Planned>, Error> {
        let keepalive = config.limits.tcp_keepalive;
        let wanted = self.listeners.activated.wanted(&config.listen)?;
        let kept = plan::keep(&self.listeners.all, &wanted, plan::is_found);
        let mut planned = Vec::new();
        for (wanted, kept) in wanted.iter().zip(&kept) {
            planned.push(match kept {
                Some(index) => Planned::Keep(self.listeners.all[*index].number),
                None => {
                    self.listeners.last_number += 1;
                    let opened = Listener::open(
                        self.listeners.last_number,
                        wanted,
                        &self.listeners.activated,
                        keepalive,
                    )
                    .map_err(|e| self.own_addresses().named_in(e, wanted.address()))?;
                    Planned::New(Box::new(opened))
                }
            });
        }
        for (wanted, index) in wanted
            .iter()
            .zip(kept)
            .filter_map(|(wanted, kept)| Some((wanted, kept?)))
        {
            if let Err(e) = self.listeners.all[index].adopt(wanted.entry, keepalive) {
                self.restore_listeners();
                return Err(e);
            }
        }
        // One that was about to go may be wanted again: it must not go now.
        let is_kept = |number: &u32| {
            planned
                .iter()
                .any(|p| matches!(p, Planned::Keep(kept) if kept == number))
        };
        self.listeners.closing.retain(|number| !is_kept(number));
        Ok(planned)
    }

    /// All listeners are again as the configuration in force has them, which they have been before.
    fn restore_listeners(&mut self) {
        // There have been sockets of all names when it was applied, and there are.
        let wanted = self
            .listeners
            .activated
            .wanted(&self.settings.config.listen)
            .unwrap_or_default();
        for (listener, wanted) in self.listeners.all.iter_mut().zip(&wanted) {
            warn(
                "restore a listener",
                listener.adopt(wanted.entry, self.settings.config.limits.tcp_keepalive),
            );
        }
        self.listeners.closing = self
            .listeners
            .all
            .iter()
            .skip(wanted.len())
            .map(|listener| listener.number)
            .collect();
    }

    /// All workers of the new configuration are ready: from now on it is in force.
    pub(crate) fn commit_reload(&mut self, now: Instant) {
        let Some(reload) = self.reloads.current.take() else {
            return;
        };
        self.lifecycle.end_reload();
        let Reload {
            generation,
            config,
            config_keys,
            config_file,
            config_files,
            max_clients,
            memory,
            listeners,
            exporter,
            log,
            began,
        } = reload;
        log.commit();
        if config.control != self.settings.config.control {
            self.change_control(&config.control, now);
        }
        self.exchange_listeners(listeners, &config);
        self.store_all(now);
        let counting = |config: &Config| {
            (
                config.limits.max_clients_per_address,
                config.limits.ipv6_prefix,
            )
        };
        if counting(&config) != counting(&self.settings.config) {
            self.clients.addresses = self.count_addresses(&config);
        }
        self.clients.dispatcher.set_policy(config.workers.dispatch);
        self.workers.strikes.forgive();
        self.say_quarantined();
        (self.settings.config, self.settings.keys) = (config, config_keys);
        (self.settings.file, self.settings.files) = (config_file, config_files);
        (self.settings.generation, self.settings.memory) = (generation, memory);
        if self.settings.log_level.take().is_some() {
            // Those of this generation that heard of it, too.
            self.tell_log_level();
        }
        self.settings.stale = None;
        self.settings.missing_log = None;
        (self.clients.max, self.settings.count_origin) = (max_clients, Origin::Config);
        self.exchange_exporter(exporter, now);
        self.replace_lost_control(now);
        self.watch_anew(now);
        self.listeners
            .activated
            .warn_of_unused(&self.settings.config.listen);
        let took = now.duration_since(began);
        let workers = self
            .ready_workers()
            .filter(|worker| worker.generation == generation)
            .count() as u32;
        let about = About {
            generation: Some(generation),
            workers: Some(workers),
            ..About::default()
        };
        let sentence = format_args!(
            "reloaded: generation {generation} is in force after {} ms",
            took.as_millis()
        );
        self.telemetry
            .events
            .note(Kind::ReloadApplied, about, sentence);
        self.note_verdict(Verdict::Applied, None);
        self.control.clients.say_reloaded(&Ok(Reloaded {
            generation,
            workers,
            seconds: took.as_secs_f64(),
        }));
    }

    /// The new configuration is given up.
    pub(crate) fn abandon_reload(&mut self, why: String) {
        self.lifecycle.end_reload();
        if self.reloads.reading.take().is_some() {
            self.note_verdict(Verdict::RolledBack, Some(why.clone()));
            return self
                .control
                .clients
                .say_reloaded(&Err(Refusal::new(RefusalCode::RolledBack, why)));
        }
        let Some(reload) = self.reloads.current.take() else {
            return;
        };
        let about = About {
            generation: Some(reload.generation),
            ..About::default()
        };
        let sentence = format_args!("generation {} is rolled back: {why}", reload.generation);
        self.telemetry
            .events
            .note(Kind::ReloadRolledBack, about, sentence);
        self.restore_listeners();
        self.note_verdict(Verdict::RolledBack, Some(why.clone()));
        self.control
            .clients
            .say_reloaded(&Err(Refusal::new(RefusalCode::RolledBack, why)));
    }

    /// Changes who can connect to the control socket, and who may do what there.
    fn change_control(&mut self, control: &ControlConfig, now: Instant) {
        if control.mode() != self.settings.config.control.mode()
            && self.control.listener.is_reachable()
        {
            warn(
                "set the mode of the control socket",
                self.control.listener.set_mode(control.mode()),
            );
        }
        // Who waits there came by the mode before, and is taken for what it was then: without groups it is the mode that
        // keeps strangers out.
        self.control
            .clients
            .accept(&self.control.listener, &self.poller, now);
        self.control.clients.roles.change(control);
    }

    fn note_verdict(&mut self, verdict: Verdict, message: Option<String>) {
        let at = SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or(Duration::ZERO)
            .as_secs();
        self.telemetry.counts.reloads.add(verdict, 1);
        if verdict == Verdict::Applied {
            self.telemetry.counts.applied_at = at;
        }
        self.settings.last_reload = Some(LastReload {
            at,
            verdict,
            message,
        });
        self.tell_reloaded(verdict != Verdict::Rejected, self.clock.now());
    }

    /// New listeners are watched, and those that are not wanted any more go when nobody waits there any more. The first ones
    /// are in the order of the configuration.
    fn exchange_listeners(&mut self, planned: Vec<Planned>, config: &Config) {
        let mut before = std::mem::take(&mut self.listeners.all);
        // There were sockets of all names when it was planned, and there are.
        let wanted = self
            .listeners
            .activated
            .wanted(&config.listen)
            .unwrap_or_default();
        for (planned, wanted) in planned.into_iter().zip(&wanted) {
            match planned {
                Planned::Keep(number) => {
                    let kept = before.iter().position(|listener| listener.number == number);
                    self.listeners.all.extend(kept.map(|index| {
                        let mut listener = before.remove(index);
                        listener.set_place(&wanted.place);
                        listener
                    }));
                }
                Planned::New(listener) => {
                    warn(
                        &format!("watch {}", listener.address),
                        self.watch_listener(&listener),
                    );
                    let sentence = format_args!("listening on {}", listener.address);
                    self.telemetry
                        .events
                        .note(Kind::ListenerOpened, About::default(), sentence);
                    self.listeners.all.push(*listener);
                }
            }
        }
        self.listeners
            .closing
            .extend(before.iter().map(|listener| listener.number));
        self.listeners.all.extend(before);
    }
}

/// What was found to be possible before, and is not now: the rest is in force all the same.
fn warn(what: &str, result: Result<(), impl fmt::Display>) {
    if let Err(e) = result {
        log::error!("cannot {what}: {e}");
    }
}

pub(crate) fn rejection(error: &config::Error) -> Refusal {
    let place = Place {
        file: error.origin().into(),
        line: error.line(),
        column: error.column(),
        display: error.to_string(),
    };
    Refusal {
        code: RefusalCode::Rejected,
        message: error.message().to_owned(),
        place: Some(place),
    }
}

/// A refusal in one line.
fn sentence_of(Refusal { message, place, .. }: &Refusal) -> String {
    match place {
        Some(Place {
            file,
            line: Some(line),
            column: Some(column),
            ..
        }) => {
            format!("{}:{line}:{column}: {message}", file.display())
        }
        Some(Place { file, .. }) => format!("{}: {message}", file.display()),
        None => message.clone(),
    }
}
