//! How a master comes to be, and how much it can have.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::accept::Gate;
use super::blame::Strikes;
use super::client::Addresses;
use super::control::ControlClients;
use super::exporter::{self, Exporter};
use super::listener::{ControlListener, ExporterListener, Listener};
use super::watch::Watch;
use super::{Counts, Error, Master, Setup, Token};
use crate::channel::Scratch;
use crate::config::{Config, Count};
use crate::desk::Layout;
use crate::pool::dispatch::Dispatcher;
use crate::pool::rebalance::Rebalancer;
use crate::pool::{Pool, Target};
use crate::proto::control::{Origin, places};
use crate::proto::names::Generation;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable};
use crate::sys::signal::{Signal, Signals};
use crate::sys::{clock, fd};

/// Descriptors that the master needs beside those of clients, listeners, workers and control clients: standard ones,
/// its poller, signals, its program, its log, and what is open for a moment only.
const OWN_DESCRIPTORS: u64 = 20;

/// A worker's channel and desk, and those of its successor while it is being replaced.
const WORKER_DESCRIPTORS: u64 = 4;

/// The exporter's listener and its channel, and the listener that a reload brings.
const EXPORTER_DESCRIPTORS: u64 = 3;

/// Most clients that `auto` comes to.
const MOST_CLIENTS: u64 = 1_000_000;

/// Events a wait.
const BATCH: usize = 256;

impl Master {
    /// Opens, binds and catches all that it needs; no worker is started yet.
    pub(super) fn new(setup: Setup) -> Result<Master, Error> {
        let Setup { name, version, config, config_file, standard_file, announce } = setup;
        let started = Instant::now();
        let descriptors = fd::raise_limit().map_err(Error::system("read the limit of descriptors"))?;
        let limits = client_limits(&config, worker_count(config.workers.count), descriptors)?;
        let executable = Executable::current().map_err(Error::system("open the running program"))?;
        let signals = Signals::catch(&[
            Signal::Terminate,
            Signal::Interrupt,
            Signal::Child,
            Signal::User1,
            Signal::Hangup,
            Signal::TerminalInput,
            Signal::TerminalOutput,
        ])
        .map_err(Error::system("catch signals"))?;
        let poller = Poller::new(BATCH).map_err(Error::system("make a poller"))?;
        let control_listener = open_control(&name, &config)?;
        let keepalive = config.limits.tcp_keepalive;
        let bind = |(number, wanted)| Listener::bind(number, wanted, keepalive);
        let listeners: Vec<Listener> = (1..).zip(&config.listen).map(bind).collect::<Result<_, _>>()?;

        let exporter = config.metrics.listen.as_ref().map(ExporterListener::bind).transpose()?;
        let exporter = exporter
            .map(|listener| Exporter::new(listener, exporter::start(&name, &config, control_listener.path()), started));

        let watch = Error::system("watch a descriptor");
        poller.add(&signals, Token::Signals.into(), Interest::Read).map_err(&watch)?;
        poller.add(&control_listener, Token::Control.into(), Interest::Read).map_err(&watch)?;
        for listener in &listeners {
            let token = Token::Listener(listener.number).into();
            poller.add(listener, token, Interest::Read).map_err(&watch)?;
            // The gate opens when a worker is ready.
            poller.disarm(listener, token).map_err(&watch)?;
        }
        let seed = clock::monotonic() ^ u64::from(std::process::id()) << 32;
        let generation = Generation(1);
        Ok(Master {
            pool: Pool::new(target(&config, generation), started, seed),
            dispatcher: Dispatcher::new(config.workers.dispatch),
            addresses: Addresses::new(config.limits.max_clients_per_address, [].iter()),
            control: ControlClients::new(control_clients(descriptors) as usize, process::user()),
            layout: Layout::new(limits.slots, config.limits.max_frame),
            max_clients: limits.clients,
            listener_number: listeners.len() as u32,
            name,
            version,
            config,
            config_file,
            standard_file,
            announce: Some(announce),
            started,
            generation,
            last_generation: generation,
            reload: None,
            last_reload: None,
            executable,
            descriptors,
            poller,
            signals,
            scratch: Scratch::default(),
            control_listener,
            listeners,
            leaving: Vec::new(),
            exporter,
            gate: Gate::new(),
            is_drained: false,
            count_origin: Origin::Config,
            workers: BTreeMap::new(),
            seats: Vec::new(),
            watch: Watch::default(),
            rebalancer: Rebalancer::new(),
            asked_balance: None,
            strikes: Strikes::default(),
            last_failure: None,
            oom_kills: process::oom_kills(),
            unleased: VecDeque::new(),
            next_client: 1,
            clients: 0,
            counts: Counts::default(),
        })
    }
}

/// What the pool is to bring about.
pub(super) fn target(config: &Config, generation: Generation) -> Target {
    Target {
        generation,
        count: worker_count(config.workers.count),
        start_timeout: config.workers.start_timeout,
        drain_timeout: config.limits.drain_timeout,
        max_lifetime: config.workers.max_lifetime,
    }
}

/// One worker per CPU that this process may use: affinity and cgroup quota.
pub(super) fn worker_count(count: Count) -> usize {
    match count {
        Count::Auto => std::thread::available_parallelism().map_or(1, usize::from).min(256),
        Count::Exactly(count) => count.get() as usize,
    }
}

/// Most control clients.
fn control_clients(descriptors: u64) -> u64 {
    (descriptors / 8).clamp(4, 64)
}

/// How many clients there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientLimits {
    pub(super) clients: u64,
    /// Slots on each desk.
    pub(super) slots: u32,
}

/// How many there may be beside so many workers, with so many descriptors.
pub(super) fn client_limits(config: &Config, workers: usize, descriptors: u64) -> Result<ClientLimits, Error> {
    let for_workers = WORKER_DESCRIPTORS * workers as u64;
    let for_exporter = config.metrics.listen.as_ref().map_or(0, |_| EXPORTER_DESCRIPTORS);
    let for_listeners = config.listen.len() as u64 + for_exporter;
    let taken = OWN_DESCRIPTORS + control_clients(descriptors) + for_workers + for_listeners;
    let clients = most_clients(config, descriptors, taken)?;
    Ok(ClientLimits { clients, slots: u32::try_from(clients).unwrap_or(u32::MAX) })
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
