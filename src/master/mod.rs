//! THE SUPERVISOR: owns every client, and lends it to workers.
//!
//! One thread, one loop, one order: wait; take in what happened (signals, workers, control, listeners); reconcile; act. (On
//! an old kernel a second thread closes what clients pass, and does nothing else: [`crate::sys::passed`].)
//! Nothing here sleeps, and nothing blocks but the one wait. It parses nothing that a client sent. Taking in starts and
//! kills nobody, acting decides nothing. What belongs to one client or one worker and goes wrong is dealt with where it
//! happens; only a broken poller ends the loop. (One exception to "taking in kills nobody": a worker that says what is no
//! message is killed on the spot, for nothing that it says may be taken in any more.)
//!
//! Whatever moves a client, a death, a drain, a stall, a rebalancing, does it in one way: its lease is taken, what is unread
//! and unsent of it is recovered from the shared memory, and it is leased to another worker ([`clients::leases`]).

mod capacity;
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
mod requests;
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
use self::workers::worker::Worker;
use crate::channel::Scratch;
use crate::config::{Config, Keys};
use crate::loop_clock::LoopClock;
use crate::master::clients::Clients;
use crate::master::control::ControlServer;
use crate::master::control::pending::{PendingKind, PendingReply};
use crate::master::control::request::ControlReply;
use crate::master::handover::HandoverState;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::Listeners;
use crate::master::reload::Reloads;
use crate::master::service_manager::Details;
use crate::master::service_manager::ManagerLink;
use crate::master::settings::SettingsInForce;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::pool::Action;
use crate::proto::channel::ToWorker;
use crate::proto::control::{Stopped, Verb};
use crate::sys::clock;
use crate::sys::poll::{PollEvent, Poller, Woken};
use crate::sys::signal::{Signal, Signals};

pub use self::error::Error;
pub use self::handover::inherited::Inherited;
pub use self::handover::snapshot::{Resumed, resume};
pub use self::handover::upgrade::{check_handover, name_process};
pub use self::listeners::activation::Handed;
pub use self::reload::reading::read_configuration;
pub use self::service_manager::{report_failure, wait_before_failing};

/// Tells whoever started the daemon at which addresses it serves.
pub type Announce = Box<dyn Fn(&[String])>;

/// What a master is to supervise.
pub struct MasterSetup {
    /// The daemon's name.
    pub name: String,
    /// Its version.
    pub version: &'static str,
    /// What the operator wants.
    pub config: Config,
    /// The keys that the file has.
    pub config_keys: Keys,
    /// Where that was read; none if nobody named a file and there was none at the standard place.
    pub config_file: Option<PathBuf>,
    /// All files that were read, in their order.
    pub config_files: Vec<PathBuf>,
    /// The standard place, which a reload looks at in that case.
    pub standard_file: PathBuf,
    /// Called once, when the first worker is ready.
    pub announce: Announce,
    /// The sockets that systemd has bound for it.
    pub handed: Handed,
    /// What a master before this one has left.
    pub inherited: Option<Inherited>,
    /// Why this is not the configuration of the file.
    pub config_stale: Option<String>,
    /// Why lines go to standard error instead of the log.
    pub missing_log: Option<String>,
}

/// Runs a master until it is asked to stop.
///
/// # Errors
/// Why it cannot start, or cannot go on.
pub fn run(setup: MasterSetup) -> Result<(), Error> {
    let mut master = Master::new(setup)?;
    match master.serve() {
        Ok(()) => master.close(),
        // What ends this master need not end the next one.
        Err(e) => {
            master.hand_over();
            return Err(e);
        }
    }
    Ok(())
}

/// The supervisor: its identity, its loop, and the owners of its state.
struct Master {
    name: String,
    version: &'static str,
    started: Instant,
    /// How many descriptors this process may have, besides those for what was handed over.
    descriptors: u64,
    poller: Poller,
    /// Times every deadline of the loop.
    clock: LoopClock,
    signals: Signals,
    /// Signals that have arrived and are not handled yet.
    arrived: Vec<Signal>,
    /// The last signal to stop, and when it came.
    asked_to_stop: Option<(Signal, Instant)>,
    scratch: Scratch,
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
    /// The loop.
    fn serve(&mut self) -> Result<(), Error> {
        let mut events: Vec<PollEvent> = Vec::new();
        let (mut readable, mut ended) = (Vec::new(), Vec::new());
        let now = self.clock.now();
        // Those who ended while this process became this program.
        self.reap(now);
        self.reconcile(now)?;
        self.keep_exporter(now);
        while !self.workers.pool.is_finished() || self.workers.outgoing.is_some() {
            self.wait(&mut events)?;
            let now = self.clock.now();
            if !self.arrived.is_empty() {
                self.take_signals(now);
            }
            events.sort_unstable_by_key(|event| event.token);
            readable.clear();
            ended.clear();
            for event in &events {
                match Token::from_number(event.token) {
                    Some(Token::Signals) => self.take_signals(now),
                    Some(Token::Worker(id)) => self.attend(id, event.writable, now),
                    Some(Token::Control) => {
                        self.control.accept(&self.poller, now);
                        if event.has_ended {
                            self.look_at_control(now);
                        }
                    }
                    Some(Token::Metrics) => self.check_exporter(now),
                    Some(Token::Store) => self.look_at_store(now),
                    // After everybody else.
                    Some(Token::ControlClient(_)) => {}
                    Some(Token::Listener(number)) => {
                        readable.push(number);
                        ended.extend(event.has_ended.then_some(number));
                    }
                    None => {}
                }
            }
            self.serve_control_clients(&events, now);
            self.check_readings(now);
            self.control.expire(&self.poller, now);
            self.look_at_workers(now);
            self.clients.check_handshakes(&mut self.telemetry, now);
            self.reconcile(now)?;
            self.keep_exporter(now);
            // Where nobody waits any more no event comes, either.
            readable.extend(self.listeners.closing.iter().copied());
            self.lease_clients(&readable, now);
            self.look_at_ended(&ended, now);
            self.bind_ended(now);
            self.try_store(now);
            self.workers.rest(&self.clients);
            self.set_gate(now);
            self.report_to_manager(now);
            self.complete_requests(now);
            self.keep_state();
            self.upgrade(now);
            // The upgrade was refused, if this is reached.
            self.complete_requests(now);
        }
        Ok(())
    }

    /// Waits for events. If this process could not run meanwhile, what has arrived by now is among them, and the manager is
    /// told at once that it runs again.
    fn wait(&mut self, events: &mut Vec<PollEvent>) -> Result<(), Error> {
        let timeout = self
            .deadline()
            .map(|deadline| deadline.saturating_duration_since(self.clock.now()));
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
            // That of a child tells only that it was stopped, too.
            self.arrived.extend(self.signals.take());
            is_interrupted = self.arrived.is_empty() || self.arrived.contains(&Signal::Continue);
        }
        if self.clock.end_wait(is_interrupted) {
            self.poller
                .wait(events, Some(Duration::ZERO))
                .map_err(Error::system("wait for events"))?;
            self.manager.notifier.hurry(self.clock.now());
        }
        Ok(())
    }

    /// When there is something to do although nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let asked_balance = self
            .workers
            .requested_rebalance
            .as_ref()
            .map(|asked| asked.until);
        // The gate was opened in this turn: of a listener where nobody waits no event tells that it can go.
        let leaving = (!self.listeners.closing.is_empty() && self.listeners.gate.pause.is_none())
            .then(|| self.clock.now());
        let exporter = self.exporter.as_ref().and_then(Exporter::deadline);
        let (pool, gate, control) = (
            self.workers.pool.deadline(),
            self.listeners.gate.deadline(),
            self.control.clients.deadline(),
        );
        let (watch, notifier) = (
            self.workers.watch.deadline(),
            self.manager.notifier.deadline(),
        );
        let upgrade = self.handover.upgrade.as_ref().map(Upgrade::deadline);
        let outgoing = self.workers.outgoing.as_ref().map(Outgoing::deadline);
        let store = self
            .handover
            .store
            .as_ref()
            .and_then(|store| store.canaries.deadline());
        let others = [
            watch,
            notifier,
            asked_balance,
            leaving,
            upgrade,
            exporter,
            outgoing,
            store,
            self.reloads.deadline(),
            self.outage_deadline(),
            self.clients.handshakes_deadline(),
        ];
        [pool, gate, control]
            .into_iter()
            .chain(others)
            .flatten()
            .min()
    }

    /// Does what the pool has decided.
    fn reconcile(&mut self, now: Instant) -> Result<(), Error> {
        if self.end_outgoing(now) {
            return Ok(());
        }
        // Some actions are facts of their own (a spawn that fails): until nothing is left to be done.
        loop {
            let actions = self.workers.pool.reconcile(now);
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                match action {
                    Action::Spawn {
                        seat,
                        id,
                        generation,
                    } => self.spawn(seat, id, generation, now),
                    Action::Kill { id, why } => self.kill_late(id, why),
                    Action::Drain { id, why, .. } => self.drain_worker(id, &why.to_string()),
                    Action::Stop { id, .. } if self.lifecycle.is_restarting() => {
                        self.tell(id, ToWorker::Retire)
                    }
                    Action::Stop { id, by } => self.tell_to_stop(id, by, now),
                    Action::Applied => {
                        if let Some(outcome) = self.commit_reload(now) {
                            self.store_all(now);
                            self.report_reload(&outcome);
                        }
                    }
                    Action::RolledBack => {
                        let reason = self.last_failure();
                        self.abandon_reload(format!("its workers do not become ready; {reason}"));
                    }
                    Action::GiveUp => {
                        let reason = self.last_failure();
                        return Err(Error::NoWorker(format!(
                            "no worker ever became ready; {reason}"
                        )));
                    }
                }
            }
        }
    }

    /// Why workers do not become ready.
    fn last_failure(&self) -> String {
        let last = self.workers.last_failure.as_deref();
        format!("the last one {}", last.unwrap_or("did not even start"))
    }

    /// Leaves nothing behind, then tells those who asked for the end.
    fn close(mut self) {
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

    fn check_exporter(&mut self, now: Instant) {
        if let Some(exporter) = &mut self.exporter {
            exporter.check_listener(&self.poller, &mut self.telemetry.events, now);
        }
    }

    /// Reports the state at the end of a turn to the service manager.
    fn report_to_manager(&mut self, now: Instant) {
        if !self.manager.notifier.is_present() {
            return;
        }
        let snapshot = self.status_snapshot();
        let missing = snapshot.missing(false);
        let summary = snapshot.summary(missing.len());
        let details = Details {
            last_reload: self.settings.last_reload.as_ref(),
            stale: self.settings.stale.as_deref(),
            missing: &missing,
        };
        self.manager.report(summary, &details, now);
    }
}
