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
mod service_manager;
mod settings;
mod startup;
mod telemetry;
mod token;
mod workers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::clients::addresses::Addresses;
use self::exporter::Exporter;
use self::handover::upgrade::Upgrade;
use self::telemetry::counters::Totals;
use self::telemetry::events::Asker;
use self::token::Token;
use self::workers::outgoing::Outgoing;
use self::workers::worker::Worker;
use crate::channel::Scratch;
use crate::config::{Config, Keys};
use crate::logging;
use crate::loop_clock::LoopClock;
use crate::master::clients::Clients;
use crate::master::control::ControlServer;
use crate::master::handover::HandoverState;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::Listeners;
use crate::master::reload::Reloads;
use crate::master::service_manager::ManagerLink;
use crate::master::settings::SettingsInForce;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::pool::Action;
use crate::proto::channel::ToWorker;
use crate::proto::control::{About, Kind, Refusal, RefusalCode};
use crate::proto::text::Counted;
use crate::sys::clock;
use crate::sys::poll::{PollEvent, Poller, Woken};
use crate::sys::signal::{Signal, Signals};

pub use self::error::Error;
pub use self::handover::inherited::Inherited;
pub use self::handover::snapshot::{Resumed, resume};
pub use self::handover::upgrade::{check_handover, name_process};
pub use self::listeners::activation::Handed;
pub use self::reload::reading::read_configuration;
pub use self::service_manager::{say_why, wait_before_failing};

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

/// Two signals to stop within this time are one.
const SIGNAL_ECHO_INTERVAL: Duration = Duration::from_millis(200);

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
                        self.control
                            .clients
                            .accept(&self.control.listener, &self.poller, now);
                        if event.has_ended {
                            self.look_at_control(now);
                        }
                    }
                    Some(Token::Metrics) => self.look_at_metrics(now),
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
            self.look_at_readings(now);
            self.control
                .clients
                .look_at_deadlines(&self.poller, &self.control.listener, now);
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
            self.keep_manager_informed(now);
            self.answer_waiting(now);
            self.keep_state();
            self.upgrade(now);
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
            self.reading_deadline(),
            self.outage_deadline(),
            self.clients.handshakes_deadline(),
        ];
        [pool, gate, control]
            .into_iter()
            .chain(others)
            .flatten()
            .min()
    }

    fn take_signals(&mut self, now: Instant) {
        let arrived = std::mem::take(&mut self.arrived)
            .into_iter()
            .chain(self.signals.take());
        for signal in arrived.collect::<Vec<_>>() {
            match signal {
                // What it tells is known by now.
                Signal::Continue => {}
                Signal::Terminate | Signal::Interrupt if self.is_echo(signal, now) => {}
                Signal::Terminate if self.handover.store.is_some() => {
                    self.terminate(Asker::from_signal("SIGTERM"), now)
                }
                Signal::Terminate => self.stop(Asker::from_signal("SIGTERM"), now),
                Signal::Interrupt => self.stop(Asker::from_signal("SIGINT"), now),
                Signal::Child => self.reap(now),
                Signal::User1 => {
                    if let Err(refusal) = self.reopen_log(Asker::from_signal("SIGUSR1"), now) {
                        log::warn!("SIGUSR1: {}", refusal.message);
                    }
                }
                Signal::User2 => {
                    if let Err(refusal) =
                        self.begin_upgrade(Asker::from_signal("SIGUSR2"), None, now)
                    {
                        log::warn!("SIGUSR2: {}", refusal.message);
                    }
                }
                Signal::Hangup => {
                    // The verdict is in the log and in the status; nobody waits for it.
                    if let Err(refusal) =
                        self.begin_reload(Asker::from_signal("SIGHUP"), false, now)
                        && refusal.code != RefusalCode::Rejected
                    {
                        log::warn!("SIGHUP: {}", refusal.message);
                        self.tell_reloaded(false, now);
                    }
                }
                Signal::TerminalInput => self.step(Asker::from_signal("SIGTTIN"), 1),
                Signal::TerminalOutput => self.step(Asker::from_signal("SIGTTOU"), -1),
            }
        }
    }

    /// Whether a signal to stop is the one before once more: timeout(1) sends it to its child, then to the whole group.
    fn is_echo(&mut self, signal: Signal, now: Instant) -> bool {
        let is_echo = matches!(self.asked_to_stop, Some((same, at)) if same == signal && now < at + SIGNAL_ECHO_INTERVAL);
        if !is_echo {
            self.asked_to_stop = Some((signal, now));
        }
        is_echo
    }

    /// Begins the end; asked a second time, it comes at once.
    fn stop(&mut self, asker: Asker, now: Instant) {
        if self.lifecycle.is_ending() {
            self.telemetry.events.note(
                Kind::Stopping,
                asker.about(),
                format_args!("{asker} again: killing the workers that are left"),
            );
            return self.workers.pool.stop(now);
        }
        self.lifecycle = Lifecycle::Stopping;
        self.abandon_reload("the daemon is stopping".to_owned());
        let timeout = self.settings.config.limits.drain_timeout;
        let about = About {
            clients: Some(self.clients.count()),
            ..asker.about()
        };
        let sentence = format_args!(
            "{asker}: stopping; {}; waiting up to {timeout:?} for running requests",
            Counted(self.clients.count(), "client")
        );
        self.telemetry.events.note(Kind::Stopping, about, sentence);
        self.workers.pool.stop(now + timeout);
        self.hurry_outgoing(now);
        self.tell_stopping(timeout, now);
        self.listeners.closing.clear();
        for listener in self.listeners.all.drain(..) {
            let _ = self.poller.remove(&listener);
        }
        self.clients.close_waiting(&self.telemetry);
    }

    /// Opens the log file again, here and in all other processes of the daemon.
    ///
    /// # Errors
    /// `Refused` when the master cannot open it; lines still go to the file that was open.
    fn reopen_log(&mut self, asker: Asker, now: Instant) -> Result<(), Refusal> {
        let opened = logging::reopen();
        for id in self.workers.all.keys().copied().collect::<Vec<_>>() {
            self.tell(id, ToWorker::Reopen);
        }
        if let Some(exporter) = &mut self.exporter {
            exporter.reopen_log(now);
        }
        opened.map_err(|e| {
            let why = format!("{e}; still writing to the previous log file");
            Refusal::new(RefusalCode::Refused, why)
        })?;
        let about = asker.about();
        self.telemetry.events.note(
            Kind::LogReopened,
            about,
            format_args!("{asker}: log file reopened"),
        );
        Ok(())
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
                        self.tell(id, ToWorker::Drain)
                    }
                    Action::Stop { id, by } => self.tell_to_stop(id, by, now),
                    Action::Applied => self.commit_reload(now),
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
        self.control
            .clients
            .say_stopped(self.telemetry.counts.killed);
    }

    /// What all workers have done that there ever were.
    fn totals(&self) -> Totals {
        let gone = self
            .workers
            .seats
            .iter()
            .fold(Totals::default(), |totals, seat| totals.and(seat.totals));
        self.workers.all.values().fold(gone, |totals, worker| {
            totals.plus(worker.believed.counters())
        })
    }

    /// Log lines that could not be written, by masters or workers.
    fn log_errors(&self) -> u64 {
        let own = self
            .telemetry
            .counts
            .log_errors
            .saturating_add(logging::errors());
        own.saturating_add(self.totals().log_errors)
    }

    /// How many clients each address has now, if that is limited.
    fn count_addresses(&self, config: &Config) -> Addresses {
        let leased = self
            .workers
            .all
            .values()
            .flat_map(|worker| worker.leases.iter())
            .map(|(_, client)| &client.peer);
        let waiting = self
            .clients
            .unleased
            .iter()
            .map(|unleased| &unleased.client.peer);
        Addresses::new(&config.limits, leased.chain(waiting))
    }
}
