//! The master: owns all clients and leases them to workers.
//!
//! One thread runs one loop, in a fixed order: wait; handle the events of signals, workers and control clients;
//! reconcile (the pool decides, the master starts and ends workers); lease clients, the new ones last. On an old
//! kernel, a second thread closes the descriptors that clients pass: [`crate::sys::passed`]. The loop blocks in its one
//! wait, and once more at SIGTERM, for about a second at most, if the service manager has not confirmed the store. It
//! parses no byte of a client. Events kill a worker only if its channel cannot be used any more: it sent an invalid
//! message, closed the channel, has another version, or a system call on the channel failed. They start workers in one
//! case: a zygote has forked one, or has ended, and the births that it owes are requested from another zygote or
//! executed at once. A reload and an upgrade start a child that checks. An error of one client or one worker is handled
//! where it occurs; only a failing poller and a pool that gives up end the loop.
//!
//! A client moves in one way, whether its worker died, drains, is stuck or is too busy: its lease is revoked, its
//! unread and unsent bytes are recovered from the shared memory, and it is leased to another worker
//! ([`clients::leases`]).

mod capacity;
mod children;
mod clients;
mod control;
mod error;
mod exporter;
mod handover;
mod lifecycle;
mod listeners;
mod memory;
mod metrics;
mod reload;
mod reports;
mod requests;
mod retry;
mod service_manager;
mod settings;
mod shutdown;
mod signals;
mod startup;
mod telemetry;
mod token;
mod workers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::exporter::Exporter;
use self::handover::upgrade::Upgrade;
use self::token::Token;
use self::workers::outgoing::Outgoing;
use self::workers::spread::Spreading;
use self::workers::worker::Worker;
use crate::config::Loaded;
use crate::loop_clock::LoopClock;
use crate::master::clients::Clients;
use crate::master::control::ControlServer;
use crate::master::control::pending::{PendingKind, PendingReply};
use crate::master::control::reply::ControlReply;
use crate::master::handover::HandoverState;
use crate::master::handover::unleased::Leasing;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::Listeners;
use crate::master::listeners::served::Served;
use crate::master::reload::Reloads;
use crate::master::retry::Outage;
use crate::master::service_manager::ManagerLink;
use crate::master::settings::SettingsInForce;
use crate::master::signals::SignalQueue;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::proto::control::{Stopped, Verb};
use crate::proto::exporter::ExporterService;
use crate::proto::names::Address;
use crate::sys::clock;
use crate::sys::poll::{PollEvent, Poller, Woken};

pub use self::error::Error;
pub use self::handover::origin::MasterOrigin;
pub use self::handover::upgrade::{check_handover, name_process};
pub use self::handover::upgrade_resume::resume;
pub use self::listeners::activation::ActivatedSockets;
pub use self::reload::reading::read_configuration;
pub use self::service_manager::{report_failure, wait_before_failing};
pub(crate) use self::workers::zygote::ZYGOTE;

/// Announces the addresses at which the daemon serves, and that of a listener that any client can call, if there is one.
pub type Announce = Box<dyn Fn(&[String], Option<&Address>)>;

/// The arguments of a master.
pub struct MasterSetup {
    /// The daemon's name.
    pub name: String,
    /// The daemon's version.
    pub version: &'static str,
    /// The configuration.
    pub loaded: Loaded,
    /// The file of the configuration; `None` if none was named and the standard file does not exist.
    pub config_file: Option<PathBuf>,
    /// The standard file, which a reload reads if `config_file` is `None`.
    pub standard_file: PathBuf,
    /// The configuration that was given as arguments; then no file is read.
    pub command_line: Option<String>,
    /// Whether `fdpassd dev` starts the daemon: then one failed start of a worker rolls a reload back.
    pub is_dev: bool,
    /// Called once, when the first worker is ready.
    pub announce: Announce,
    /// The sockets that systemd has passed.
    pub activated: ActivatedSockets,
    /// Where the state of the master comes from.
    pub origin: MasterOrigin,
    /// Why `loaded` differs from the configuration file, if it does.
    pub config_stale: Option<String>,
    /// Why lines go to standard error instead of the log.
    pub missing_log: Option<String>,
}

/// Runs a master until a signal or an operator stops it.
///
/// # Errors
/// The reason why it cannot start or continue.
pub fn run(setup: MasterSetup) -> Result<(), Error> {
    let mut master = Master::new(setup)?;
    match master.serve() {
        Ok(()) => master.close(),
        // The next master may be able to continue.
        Err(e) => {
            master.hand_over();
            return Err(e);
        }
    }
    Ok(())
}

/// The master: its identity, its loop, and the owners of its state.
struct Master {
    name: String,
    version: &'static str,
    started: Instant,
    /// How many descriptors this process may have, besides those for what was handed over.
    descriptors: u64,
    poller: Poller,
    /// Times every deadline of the loop.
    clock: LoopClock,
    signals: SignalQueue,
    settings: SettingsInForce,
    listeners: Listeners,
    clients: Clients,
    workers: Workers,
    control: ControlServer,
    handover: HandoverState,
    telemetry: Telemetry,
    manager: ManagerLink,
    exporter: Option<Exporter>,
    reloads: Reloads,
    lifecycle: Lifecycle,
}

impl Master {
    /// Runs the loop.
    fn serve(&mut self) -> Result<(), Error> {
        let mut events: Vec<PollEvent> = Vec::new();
        let now = self.clock.now();
        // Children that ended while this process became this program.
        self.reap(now);
        self.reconcile(now)?;
        self.keep_exporter(now);
        while !self.workers.pool.is_finished()
            || self.workers.outgoing.is_some()
            || !self.clients.ending_apps.is_empty()
        {
            self.wait(&mut events)?;
            let now = self.clock.now();
            if self.signals.has_arrived() {
                self.handle_signals(now);
            }
            let (mut readable, ended) = self.handle_events(&mut events, now);
            self.serve_control_clients(&events, now);
            self.check_readings(now);
            self.control.expire(&self.poller, now);
            self.workers.check(
                &self.settings.config,
                &self.clock,
                &mut self.clients,
                &mut self.telemetry,
                &self.poller,
                now,
            );
            self.clients.check_handshakes(&mut self.telemetry, now);
            self.clients.check_ending_apps(&mut self.telemetry, now);
            // Starting a worker takes a while. Clients that another one can serve do not wait for it.
            self.lease_before_starts();
            self.keep_unleased(Leasing::Ahead, now);
            self.reconcile(now)?;
            let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
            self.workers
                .move_part(clients, telemetry, &self.poller, now);
            self.keep_zygotes();
            self.keep_exporter(now);
            // No event reports that the queue of a closing listener is empty.
            readable.extend(self.listeners.closing.iter().copied());
            self.serve_listeners(&mut readable, &ended, now);
            self.keep_unleased(Leasing::Done, now);
            self.report_to_manager(now);
            self.complete_requests(now);
            self.write_changed_state();
            self.advance_upgrade_without_signals(now);
            // An upgrade does not return unless it was refused.
            self.complete_requests(now);
        }
        Ok(())
    }

    /// Leases the clients without a worker, unless all workers end: these have packed what they had.
    fn lease_before_starts(&mut self) {
        if !self.lifecycle.is_ending() && !self.clients.unleased.is_empty() {
            let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
            self.workers.lease_unleased(clients, telemetry);
            self.workers.flush_leases(clients, telemetry, &self.poller);
        }
    }

    /// Handles events, those of control clients aside. Returns the numbers of the listeners where clients wait, and of
    /// those that have ended.
    fn handle_events(&mut self, events: &mut [PollEvent], now: Instant) -> (Vec<u32>, Vec<u32>) {
        events.sort_unstable_by_key(|event| event.token);
        let (mut readable, mut ended) = (Vec::new(), Vec::new());
        for event in events {
            match Token::from_number(event.token) {
                Some(Token::Signals) => self.handle_signals(now),
                Some(Token::Worker(id)) => self.attend(id, event.writable, now),
                Some(Token::Zygote(generation)) => self.attend_zygote(generation, now),
                Some(Token::Control) => {
                    self.control.accept(&self.poller, now);
                    if event.has_ended {
                        self.control
                            .check_ended(&mut self.telemetry.events, &self.poller, now);
                    }
                }
                Some(Token::Exporter(service)) => self.check_exporter(service, now),
                Some(Token::Store) => self.check_store(now),
                // Served by `serve_control_clients`, after all other events.
                Some(Token::ControlClient(_)) => {}
                Some(Token::Listener(number)) => {
                    readable.push(number);
                    ended.extend(event.has_ended.then_some(number));
                }
                None => {}
            }
        }
        (readable, ended)
    }

    /// Has the listeners follow a drain, leases clients, keeps the listeners bound, and opens or closes the gate.
    fn serve_listeners(&mut self, readable: &mut [u32], ended: &[u32], now: Instant) {
        self.workers.retry_channels(&self.poller, now);
        let keepalive = self.settings.config.limits.tcp_keepalive;
        let context = (&mut self.clients, &mut self.telemetry);
        self.listeners
            .follow_drain(self.lifecycle, keepalive, context, &self.poller, now);
        self.listeners.lease_clients(
            readable,
            &mut self.clients,
            &mut self.workers,
            &mut self.telemetry,
            &self.poller,
            now,
        );
        self.workers
            .watch_from(&self.settings.config, &self.clients, now);
        self.listeners
            .check_ended(ended, &mut self.telemetry, &self.poller, now);
        let config = &self.settings.config;
        let events = &mut self.telemetry.events;
        self.control
            .keep_open(&config.control, events, &self.poller, now);
        self.listeners
            .end_outages(keepalive, &mut self.telemetry, &self.poller, now);
        self.update_stored_listeners(now);
        self.retry_store(now);
        self.workers.end_watch(&self.clients);
        self.clients.dispatcher.expire(now);
        self.listeners.set_gate(
            self.lifecycle,
            &self.workers,
            &self.clients,
            &mut self.telemetry,
            &self.poller,
            now,
        );
    }

    /// Waits for events. If this process could not run for a while, the events include those that have occurred since,
    /// and the service manager gets the watchdog's message at once.
    fn wait(&mut self, events: &mut Vec<PollEvent>) -> Result<(), Error> {
        let now = self.clock.now();
        let deadline = self.deadline(now);
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(now));
        self.clock.begin_wait(clock::monotonic(), timeout);
        let mut is_interrupted = self
            .poller
            .wait(events, timeout)
            .map_err(Error::system("wait for events"))?
            == Woken::Interrupted;
        if is_interrupted {
            self.poller
                .wait(events, Some(Duration::ZERO))
                .map_err(Error::system("wait for events"))?;
            is_interrupted = self.signals.was_stopped();
        }
        if self.clock.end_wait(is_interrupted) {
            self.poller
                .wait(events, Some(Duration::ZERO))
                .map_err(Error::system("wait for events"))?;
            self.manager.notifier.hurry(self.clock.now());
        }
        Ok(())
    }

    /// Returns when the loop must run although no event occurs.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let requested_rebalance = self.workers.requested_rebalance.as_ref();
        let spreading = self.workers.spreading.as_ref();
        let store = self.handover.store.as_ref();
        [
            self.workers.pool.deadline(),
            self.workers.channels_deadline(now),
            self.workers.watch.deadline(),
            self.workers.outgoing.as_ref().map(Outgoing::deadline),
            requested_rebalance.map(|requested| requested.until),
            spreading.and_then(Spreading::deadline),
            self.listeners.deadline(self.lifecycle, now),
            self.clients.dispatcher.deadline(),
            self.workers.can_move().then_some(now),
            self.clients.handshakes_deadline(),
            self.clients.ending_apps_deadline(),
            self.clients.goaways.next(),
            self.control.clients.deadline(now),
            self.control.outage.as_ref().map(Outage::deadline),
            self.handover.upgrade.as_ref().map(Upgrade::deadline),
            store.and_then(|store| store.canaries.deadline()),
            store.and_then(|store| store.unleased.deadline()),
            self.manager.deadline(now),
            self.exporter.as_ref().and_then(Exporter::deadline),
            self.reloads.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Hands over if this is a restart. Otherwise closes everything, then replies to the control clients that requested
    /// the stop.
    fn close(mut self) {
        self.clients.end_left_apps(self.clock.now());
        if self.lifecycle.is_restarting() {
            return self.hand_over();
        }
        log::info!("stopped");
        drop((self.listeners.all, self.exporter, self.control.listener));
        let stopped = Stopped {
            pid: std::process::id(),
            killed: self.telemetry.counts.killed,
        };
        let reply = ControlReply::new(Verb::Stop, &stopped);
        let (clients, now) = (&mut self.control.clients, self.clock.now());
        for PendingReply { client, kind } in clients.pending() {
            if matches!(kind, PendingKind::Stopped) {
                // One reply fits into an empty socket buffer.
                clients.complete(client, &reply, &self.poller, now);
            }
        }
    }

    /// Has the exporter run, if one is configured.
    fn keep_exporter(&mut self, now: Instant) {
        if let Some(exporter) = &mut self.exporter {
            let events = &mut self.telemetry.events;
            exporter.keep_running(&self.workers.executable, &self.poller, events, now);
        }
    }

    fn check_exporter(&mut self, service: ExporterService, now: Instant) {
        if let Some(exporter) = &mut self.exporter {
            let events = &mut self.telemetry.events;
            exporter.check_ended(service, events, &self.poller, now);
        }
    }
}
