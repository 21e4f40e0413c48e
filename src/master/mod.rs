//! THE SUPERVISOR: owns every client, and lends it to workers.
//!
//! One thread, one loop, one order: wait; take in what happened (signals, workers, control, listeners); reconcile; act.
//! Nothing here sleeps, and nothing blocks but the one wait. It parses nothing that a client sent. Taking in starts and
//! kills nobody, acting decides nothing. What belongs to one client or one worker and goes wrong is dealt with where it
//! happens; only a broken poller ends the loop. (One exception to "taking in kills nobody": a worker that says what is no
//! message is killed on the spot, for nothing that it says may be taken in any more.)
//!
//! Whatever moves a client, a death, a drain, a stall, a rebalancing, does it in one way: its lease is taken, what is unread
//! and unsent of it is recovered from the desk, and it is leased to another worker ([`leases`]).

mod accept;
mod balance;
mod blame;
mod client;
mod control;
mod error;
mod exporter;
mod leases;
mod listener;
mod reload;
mod start;
mod status;
mod steer;
mod supervise;
mod token;
mod verbs;
mod watch;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Instant;

use accept::Gate;
use blame::Strikes;
use client::{Addresses, Unleased};
use control::ControlClients;
pub use error::Error;
use exporter::Exporter;
use listener::{ControlListener, Listener};
use reload::Reload;
use steer::AskedBalance;
use token::Token;
use watch::Watch;
use worker::Worker;

use crate::channel::Scratch;
use crate::config::Config;
use crate::desk::Layout;
use crate::logging;
use crate::pool::dispatch::Dispatcher;
use crate::pool::rebalance::Rebalancer;
use crate::pool::{Action, Pool};
use crate::proto::channel::ToWorker;
use crate::proto::control::{Code, LastReload, Origin};
use crate::proto::names::{Generation, WorkerId};
use crate::sys::poll::{Event, Poller};
use crate::sys::process::Executable;
use crate::sys::signal::{Signal, Signals};

/// Tells whoever started the daemon at which addresses it serves.
pub type Announce = Box<dyn Fn(&[String])>;

/// What a master is to supervise.
pub struct Setup {
    /// The daemon's name.
    pub name: String,
    /// Its version.
    pub version: &'static str,
    /// What the operator wants.
    pub config: Config,
    /// Where that was read; none if nobody named a file and there was none at the standard place.
    pub config_file: Option<PathBuf>,
    /// The standard place, which a reload looks at in that case.
    pub standard_file: PathBuf,
    /// Called once, when the first worker is ready.
    pub announce: Announce,
}

/// Runs a master until it is asked to stop.
///
/// # Errors
/// Why it cannot start, or cannot go on.
pub fn run(setup: Setup) -> Result<(), Error> {
    let mut master = Master::new(setup)?;
    master.serve()?;
    master.close();
    Ok(())
}

/// A seat among the workers: what stays when its worker is replaced.
#[derive(Debug, Default)]
struct Seat {
    /// Workers that were here.
    spawned: u64,
    /// What those before the present ones did.
    totals: Totals,
    /// How the last one ended that was not asked to.
    last_death: Option<String>,
}

/// What the master itself counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    refused: u64,
    moved: u64,
    lost: u64,
    deaths: u64,
    stalls: u64,
    reruns: u64,
    closed_for_crashes: u64,
    /// Workers that had to be killed because they did not finish in time.
    killed: u64,
}

/// What a worker, or all that were at a seat, did.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    requests: u64,
    errors: u64,
    panics: u64,
    log_errors: u64,
}

impl Totals {
    /// This and what a worker did by now. The figures are its own word: they are summed up and no more.
    fn plus(self, worker: &Worker) -> Totals {
        let header = worker.desk.header();
        self.and(Totals {
            requests: header.requests(),
            errors: header.errors(),
            panics: header.panics(),
            log_errors: header.log_errors(),
        })
    }

    fn and(self, other: Totals) -> Totals {
        Totals {
            requests: self.requests.saturating_add(other.requests),
            errors: self.errors.saturating_add(other.errors),
            panics: self.panics.saturating_add(other.panics),
            log_errors: self.log_errors.saturating_add(other.log_errors),
        }
    }
}

/// The supervisor.
struct Master {
    name: String,
    version: &'static str,
    /// In force.
    config: Config,
    config_file: Option<PathBuf>,
    standard_file: PathBuf,
    announce: Option<Announce>,
    started: Instant,
    /// Of the configuration in force, and the last one that was given to any.
    generation: Generation,
    last_generation: Generation,
    reload: Option<Reload>,
    last_reload: Option<LastReload>,
    executable: Executable,
    /// How many descriptors this process may have.
    descriptors: u64,
    poller: Poller,
    signals: Signals,
    scratch: Scratch,
    control_listener: ControlListener,
    control: ControlClients,
    listeners: Vec<Listener>,
    /// Numbers of those that are to close when nobody waits there any more.
    leaving: Vec<u32>,
    /// The last one given.
    listener_number: u32,
    exporter: Option<Exporter>,
    gate: Gate,
    /// The operator wants nobody new to be accepted.
    is_drained: bool,
    pool: Pool,
    count_origin: Origin,
    workers: BTreeMap<WorkerId, Worker>,
    seats: Vec<Seat>,
    watch: Watch,
    rebalancer: Rebalancer,
    asked_balance: Option<AskedBalance>,
    strikes: Strikes,
    /// How the last worker ended that was not asked to.
    last_failure: Option<String>,
    /// What the kernel had ended for lack of memory by the last death.
    oom_kills: Option<u64>,
    dispatcher: Dispatcher,
    layout: Layout,
    /// Clients without a worker.
    unleased: VecDeque<Unleased>,
    addresses: Addresses,
    next_client: u64,
    clients: u64,
    max_clients: u64,
    counts: Counts,
}

impl Master {
    /// The loop.
    fn serve(&mut self) -> Result<(), Error> {
        let mut events: Vec<Event> = Vec::new();
        let mut readable = Vec::new();
        let now = Instant::now();
        self.reconcile(now)?;
        self.keep_exporter(now);
        while !self.pool.is_finished() {
            let patience = self.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            self.poller.wait(&mut events, patience).map_err(Error::system("wait for events"))?;
            let now = Instant::now();
            events.sort_unstable_by_key(|event| event.token);
            readable.clear();
            for event in &events {
                match Token::of(event.token) {
                    Some(Token::Signals) => self.take_signals(now),
                    Some(Token::Worker(id)) => self.attend(id, event.writable, now),
                    Some(Token::Control) => self.control.accept(&self.control_listener, &self.poller, now),
                    Some(Token::ControlClient(number)) => self.serve_control(number, event, now),
                    Some(Token::Listener(number)) => readable.push(number),
                    None => {}
                }
            }
            self.control.look_at_deadlines(&self.poller, &self.control_listener, now);
            self.look_at_workers(now);
            self.reconcile(now)?;
            self.keep_exporter(now);
            // Where nobody waits any more no event comes, either.
            readable.extend(self.leaving.iter().copied());
            self.lease_clients(&readable, now);
            self.set_gate(now);
            self.answer_waiting(now);
        }
        Ok(())
    }

    /// When there is something to do although nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let asked_balance = self.asked_balance.as_ref().map(|asked| asked.until);
        // The gate was opened in this turn: of a listener where nobody waits no event tells that it can go.
        let leaving = (!self.leaving.is_empty() && self.gate.pause.is_none()).then(Instant::now);
        let exporter = self.exporter.as_ref().and_then(Exporter::deadline);
        let (pool, gate, control) = (self.pool.deadline(), self.gate.deadline(), self.control.deadline());
        [pool, gate, control, self.watch.deadline(), asked_balance, leaving, exporter].into_iter().flatten().min()
    }

    fn take_signals(&mut self, now: Instant) {
        for signal in self.signals.take() {
            match signal {
                Signal::Terminate => self.stop("SIGTERM", now),
                Signal::Interrupt => self.stop("SIGINT", now),
                Signal::Child => self.reap(now),
                Signal::User1 => self.reopen_log(now),
                Signal::Hangup => {
                    // The verdict is in the log and in the status; nobody waits for it.
                    if let Err(refusal) = self.begin_reload("SIGHUP", now)
                        && refusal.code != Code::Rejected
                    {
                        log::warn!("SIGHUP: {}", refusal.message);
                    }
                }
                Signal::TerminalInput => self.step("SIGTTIN", 1),
                Signal::TerminalOutput => self.step("SIGTTOU", -1),
            }
        }
    }

    /// Begins the end; asked a second time, it comes at once.
    fn stop(&mut self, who: &str, now: Instant) {
        if self.pool.is_stopping() {
            log::warn!("{who} again: killing the workers that are left");
            return self.pool.stop(now);
        }
        self.abandon_reload("the daemon is stopping".to_owned());
        let patience = self.config.limits.drain_timeout;
        log::info!("{who}: stopping; {} clients get {patience:?} for what is being executed", self.clients);
        self.pool.stop(now + patience);
        self.leaving.clear();
        for listener in self.listeners.drain(..) {
            let _ = self.poller.remove(&listener);
        }
        std::mem::take(&mut self.unleased).into_iter().for_each(|unleased| self.forget(unleased.client));
    }

    fn reopen_log(&mut self, now: Instant) {
        match logging::reopen() {
            Ok(()) => log::info!("SIGUSR1: log file opened again"),
            Err(e) => log::warn!("cannot open the log file again: {e}; lines still go to the one that was open"),
        }
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            self.tell(id, ToWorker::Reopen);
        }
        if let Some(exporter) = &mut self.exporter {
            exporter.reopen_log(now);
        }
    }

    /// Does what the pool has decided.
    fn reconcile(&mut self, now: Instant) -> Result<(), Error> {
        // Some actions are facts of their own (a spawn that fails): until nothing is left to be done.
        loop {
            let actions = self.pool.reconcile(now);
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                match action {
                    Action::Spawn { seat, id, generation } => self.spawn(seat, id, generation, now),
                    Action::Kill { id, why } => self.kill_late(id, why),
                    Action::Drain { id, why, .. } => self.drain_worker(id, &why.to_string()),
                    Action::Stop { id, by } => self.tell_to_stop(id, by, now),
                    Action::Applied => self.commit_reload(now),
                    Action::RolledBack => {
                        let reason = self.last_failure();
                        self.abandon_reload(format!("its workers do not become ready; {reason}"));
                    }
                    Action::GiveUp => {
                        let reason = self.last_failure();
                        return Err(Error::NoWorker(format!("no worker ever became ready; {reason}")));
                    }
                }
            }
        }
    }

    /// Why workers do not become ready.
    fn last_failure(&self) -> String {
        let last = self.last_failure.as_deref();
        format!("the last one {}", last.unwrap_or("did not even start"))
    }

    /// The record of a seat, which there is from the first time on that somebody is in it.
    fn seat(&mut self, index: usize) -> &mut Seat {
        if self.seats.len() <= index {
            self.seats.resize_with(index + 1, Seat::default);
        }
        &mut self.seats[index]
    }

    /// Leaves nothing behind, then tells those who asked for the end.
    fn close(mut self) {
        log::info!("stopped");
        drop((self.listeners, self.exporter, self.control_listener));
        self.control.say_stopped(self.counts.killed);
    }

    /// What all workers have done that there ever were.
    fn totals(&self) -> Totals {
        let gone = self.seats.iter().fold(Totals::default(), |totals, seat| totals.and(seat.totals));
        self.workers.values().fold(gone, Totals::plus)
    }

    /// How many clients each address has now, if that is limited.
    fn count_addresses(&self, config: &Config) -> Addresses {
        let leased = self.workers.values().flat_map(|worker| worker.leases.iter()).map(|(_, client)| &client.peer);
        let waiting = self.unleased.iter().map(|unleased| &unleased.client.peer);
        Addresses::new(config.limits.max_clients_per_address, leased.chain(waiting))
    }
}
