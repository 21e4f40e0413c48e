//! THE SUPERVISOR: owns every client, and lends it to workers.
//!
//! One thread, one loop, one order: wait; take in what happened (signals, workers, control, listeners); reconcile; act.
//! Nothing here sleeps, and nothing blocks but the one wait. It parses nothing that a client sent. Taking in starts and
//! kills nobody, acting decides nothing. What belongs to one client or one worker and goes wrong is dealt with where it
//! happens; only a broken poller ends the loop. (One exception to "taking in kills nobody": a worker that says what is no
//! message is killed on the spot, for nothing that it says may be taken in any more.)

mod accept;
mod client;
mod control;
mod error;
mod listener;
mod status;
mod supervise;
mod worker;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use accept::Gate;
use client::{Addresses, Unleased};
use control::ControlClients;
pub use error::Error;
use listener::{ControlListener, Listener};
use worker::Worker;

use crate::channel::Scratch;
use crate::config::{Config, Count};
use crate::desk::Layout;
use crate::logging;
use crate::pool::dispatch::Dispatcher;
use crate::pool::{Action, Pool};
use crate::proto::channel::ToWorker;
use crate::proto::control::places;
use crate::proto::names::{Generation, WorkerId};
use crate::sys::poll::{Event, Interest, Poller};
use crate::sys::process::{self, Executable};
use crate::sys::signal::{Signal, Signals};
use crate::sys::{clock, fd};

/// Descriptors that the master needs beside those of clients, listeners, workers and control clients: standard ones,
/// its poller, signals, its program, its log, and what is open for a moment only.
const OWN_DESCRIPTORS: u64 = 20;

/// A worker's channel and desk, and those of its successor while it is being replaced.
const WORKER_DESCRIPTORS: u64 = 4;

/// Most clients that `auto` comes to.
const MOST_CLIENTS: u64 = 1_000_000;

/// Events a wait.
const BATCH: usize = 256;

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
    /// Where that was read.
    pub config_file: Option<PathBuf>,
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

/// Where an event comes from. In the order in which a turn of the loop takes them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Signals,
    Worker(WorkerId),
    Control,
    ControlClient(u64),
    Listener(usize),
}

/// The number that a poller keeps: the kind in the upper eight bits, so that it sorts like the kinds.
impl From<Token> for u64 {
    fn from(token: Token) -> u64 {
        let (kind, index) = match token {
            Token::Signals => (0, 0),
            Token::Worker(id) => (1, id.0),
            Token::Control => (2, 0),
            Token::ControlClient(number) => (3, number),
            Token::Listener(index) => (4, index as u64),
        };
        kind << 56 | index
    }
}

impl Token {
    fn of(number: u64) -> Option<Token> {
        let index = number & ((1 << 56) - 1);
        match number >> 56 {
            0 => Some(Token::Signals),
            1 => Some(Token::Worker(WorkerId(index))),
            2 => Some(Token::Control),
            3 => Some(Token::ControlClient(index)),
            4 => Some(Token::Listener(index as usize)),
            _ => None,
        }
    }
}

/// A seat among the workers, and what stays when its worker is replaced.
#[derive(Debug, Default)]
struct Seat {
    worker: Option<Worker>,
    /// Workers that were here.
    spawned: u64,
    /// What those before this one did.
    totals: Totals,
    /// How the last one ended that was not asked to.
    last_death: Option<String>,
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
        Totals {
            requests: self.requests.saturating_add(header.requests()),
            errors: self.errors.saturating_add(header.errors()),
            panics: self.panics.saturating_add(header.panics()),
            log_errors: self.log_errors.saturating_add(header.log_errors()),
        }
    }
}

/// The supervisor.
struct Master {
    name: String,
    version: &'static str,
    config: Config,
    config_file: Option<PathBuf>,
    announce: Option<Announce>,
    started: Instant,
    generation: Generation,
    executable: Executable,
    poller: Poller,
    signals: Signals,
    scratch: Scratch,
    control_listener: ControlListener,
    control: ControlClients,
    listeners: Vec<Listener>,
    gate: Gate,
    pool: Pool,
    seats: Vec<Seat>,
    dispatcher: Dispatcher,
    layout: Layout,
    /// Clients without a worker.
    unleased: VecDeque<Unleased>,
    addresses: Addresses,
    next_client: u64,
    clients: u64,
    max_clients: u64,
    refused: u64,
    moved: u64,
    lost: u64,
    /// Workers that had to be killed because they did not finish in time.
    killed: u64,
}

impl Master {
    fn new(setup: Setup) -> Result<Master, Error> {
        let Setup { name, version, config, config_file, announce } = setup;
        let started = Instant::now();
        let workers = worker_count(config.workers.count);
        let descriptors = fd::raise_limit().map_err(Error::system("read the limit of descriptors"))?;
        let control_clients = (descriptors / 8).clamp(4, 64);
        let taken =
            OWN_DESCRIPTORS + control_clients + WORKER_DESCRIPTORS * workers as u64 + config.listen.len() as u64;
        let max_clients = most_clients(&config, descriptors, taken)?;
        let layout = Layout::new(u32::try_from(max_clients).unwrap_or(u32::MAX), config.limits.max_frame);

        let executable = Executable::current().map_err(Error::system("open the running program"))?;
        let signals =
            Signals::catch(&[Signal::Terminate, Signal::Interrupt, Signal::Child, Signal::User1, Signal::Hangup])
                .map_err(Error::system("catch signals"))?;
        let poller = Poller::new(BATCH).map_err(Error::system("make a poller"))?;
        let control_listener = open_control(&name, &config)?;
        let keepalive = config.limits.tcp_keepalive;
        let listeners: Vec<Listener> = (0..)
            .zip(&config.listen)
            .map(|(number, wanted)| Listener::bind(number, wanted, keepalive))
            .collect::<Result<_, _>>()?;

        let watch = Error::system("watch a descriptor");
        poller.add(&signals, Token::Signals.into(), Interest::Read).map_err(&watch)?;
        poller.add(&control_listener, Token::Control.into(), Interest::Read).map_err(&watch)?;
        for (index, listener) in listeners.iter().enumerate() {
            poller.add(listener, Token::Listener(index).into(), Interest::Read).map_err(&watch)?;
            // The gate opens when a worker is ready.
            poller.disarm(listener, Token::Listener(index).into()).map_err(&watch)?;
        }
        let seed = clock::monotonic() ^ u64::from(std::process::id()) << 32;
        Ok(Master {
            pool: Pool::new(workers, config.workers.start_timeout, started, seed),
            seats: std::iter::repeat_with(Seat::default).take(workers).collect(),
            dispatcher: Dispatcher::new(config.workers.dispatch),
            addresses: Addresses::new(config.limits.max_clients_per_address),
            control: ControlClients::new(control_clients as usize, process::user()),
            name,
            version,
            config,
            config_file,
            announce: Some(announce),
            started,
            generation: Generation(1),
            executable,
            poller,
            signals,
            scratch: Scratch::default(),
            control_listener,
            listeners,
            gate: Gate::new(),
            layout,
            unleased: VecDeque::new(),
            next_client: 1,
            clients: 0,
            max_clients,
            refused: 0,
            moved: 0,
            lost: 0,
            killed: 0,
        })
    }

    /// The loop.
    fn serve(&mut self) -> Result<(), Error> {
        let mut events: Vec<Event> = Vec::new();
        let mut readable = Vec::new();
        self.reconcile(Instant::now())?;
        while !self.pool.is_finished() {
            let patience = self.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            self.poller.wait(&mut events, patience).map_err(Error::system("wait for events"))?;
            let now = Instant::now();
            events.sort_unstable_by_key(|event| event.token);
            readable.clear();
            for event in &events {
                match Token::of(event.token) {
                    Some(Token::Signals) => self.take_signals(now),
                    Some(Token::Worker(id)) => self.hear(id, event.writable, now),
                    Some(Token::Control) => self.control.accept(&self.control_listener, &self.poller, now),
                    Some(Token::ControlClient(number)) => self.serve_control(number, event, now),
                    Some(Token::Listener(index)) => readable.push(index),
                    None => {}
                }
            }
            self.control.look_at_deadlines(&self.poller, &self.control_listener, now);
            self.reconcile(now)?;
            self.lease_clients(&readable, now);
            self.set_gate(now);
        }
        Ok(())
    }

    /// When there is something to do although nothing happens.
    fn deadline(&self) -> Option<Instant> {
        [self.pool.deadline(), self.gate.deadline(), self.control.deadline()].into_iter().flatten().min()
    }

    fn take_signals(&mut self, now: Instant) {
        for signal in self.signals.take() {
            match signal {
                Signal::Terminate => self.stop("SIGTERM", now),
                Signal::Interrupt => self.stop("SIGINT", now),
                Signal::Child => self.reap(now),
                Signal::User1 => self.reopen_log(),
                // Not caught yet.
                Signal::TerminalInput | Signal::TerminalOutput => {}
                Signal::Hangup => {
                    log::warn!("SIGHUP: this version cannot reload its configuration; nothing is changed")
                }
            }
        }
    }

    /// Begins the end; asked a second time, it comes at once.
    fn stop(&mut self, who: &str, now: Instant) {
        if self.pool.is_stopping() {
            log::warn!("{who} again: killing the workers that are left");
            return self.pool.stop(now);
        }
        let patience = self.config.limits.drain_timeout;
        log::info!("{who}: stopping; {} clients get {patience:?} for what is being executed", self.clients);
        self.pool.stop(now + patience);
        for listener in self.listeners.drain(..) {
            let _ = self.poller.remove(&listener);
        }
        std::mem::take(&mut self.unleased).into_iter().for_each(|unleased| self.forget(unleased.client));
    }

    fn reopen_log(&mut self) {
        match logging::reopen() {
            Ok(()) => log::info!("SIGUSR1: log file opened again"),
            Err(e) => log::warn!("cannot open the log file again: {e}; lines still go to the one that was open"),
        }
        for worker in self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut()) {
            // A worker whose channel is full is too busy for a log line that is worth waiting for.
            let _ = worker.channel.send(&ToWorker::Reopen, &[]);
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
                    Action::Spawn(seat, id) => self.spawn(seat, id, now),
                    Action::Kill(seat, id) => self.kill_late(seat, id),
                    Action::Stop(seat, _, by) => {
                        if let Some(worker) = self.seats[seat].worker.as_mut() {
                            worker.stop_by = Some(by);
                        }
                        self.tell_to_stop(seat, now);
                    }
                    Action::GiveUp => return Err(Error::NoWorker(self.reason_to_give_up())),
                }
            }
        }
    }

    fn reason_to_give_up(&self) -> String {
        let last = self.seats.iter().rev().find_map(|seat| seat.last_death.as_deref());
        format!("no worker ever became ready; the last one {}", last.unwrap_or("did not even start"))
    }

    /// Leaves nothing behind, then tells those who asked for the end.
    fn close(mut self) {
        log::info!("stopped");
        drop((self.listeners, self.control_listener));
        self.control.say_stopped(self.killed);
    }
}

/// One worker per CPU that this process may use: affinity and cgroup quota.
fn worker_count(count: Count) -> usize {
    match count {
        Count::Auto => std::thread::available_parallelism().map_or(1, usize::from).min(256),
        Count::Exactly(count) => count.get() as usize,
    }
}

/// How many clients there may be, with so many descriptors of which so many are taken.
fn most_clients(config: &Config, descriptors: u64, taken: u64) -> Result<u64, Error> {
    let possible = descriptors.saturating_sub(taken).min(u64::from(Layout::most_slots(config.limits.max_frame)));
    if possible == 0 {
        let sentence = format!("the limit of {descriptors} descriptors leaves none for clients: {taken} are needed");
        return Err(Error::System(sentence));
    }
    match config.limits.max_clients {
        None => Ok(possible.min(MOST_CLIENTS)),
        Some(wanted) if u64::from(wanted.get()) <= possible => Ok(u64::from(wanted.get())),
        Some(wanted) => {
            log::warn!(
                "max-clients lowered from {wanted} to {possible}: the limit is {descriptors} descriptors, of which \
                 {taken} are needed for other things"
            );
            Ok(possible)
        }
    }
}

fn open_control(name: &str, config: &Config) -> Result<ControlListener, Error> {
    let mode = config.control.mode;
    match &config.control.socket {
        Some(path) => ControlListener::bind(path, false, mode),
        None => {
            let places = places(name, process::user(), |key| std::env::var_os(key));
            ControlListener::bind(&places[0], true, mode)
        }
    }
}
