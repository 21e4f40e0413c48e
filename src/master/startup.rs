//! How a master comes to be, and how much it can have.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::clients::client::Addresses;
use super::control::access::Roles;
use super::control::server::{ControlClients, MOST_CONTROL_CLIENTS};
use super::exporter::{self, Exporter};
use super::handover::inherited::Inherited;
use super::handover::queues::Boats;
use super::handover::restart::{self, Keeper};
use super::handover::snapshot::Living;
use super::handover::unpack::Unpacked;
use super::listeners::accept::Gate;
use super::listeners::activation::Handed;
use super::listeners::conflict::Own;
use super::listeners::listener::{self, ControlListener, Listener};
use super::listeners::outage::{FILE_GONE, Outage};
use super::memory::{self, Memory};
use super::reading::Checks;
use super::service_manager::Notifier;
use super::telemetry::counters::{Counts, Tally};
use super::telemetry::events::Events;
use super::workers::crash::{OomKills, Strikes};
use super::workers::watchdog::Watch;
use super::{Error, Master, Setup, Token};
use crate::channel::Scratch;
use crate::config::{Config, Count, Listen};
use crate::desk::Layout;
use crate::loop_clock::LoopClock;
use crate::pool::dispatch::Dispatcher;
use crate::pool::rebalance::Rebalancer;
use crate::pool::{Pool, Target};
use crate::proto::channel::MAX_LEASES;
use crate::proto::control::{Origin, places, temporary};
use crate::proto::names::{Address, Generation, WorkerId};
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable};
use crate::sys::signal::{Signal, Signals};
use crate::sys::user::{Holder, Unmapped, User};
use crate::sys::{clock, fd};

/// Descriptors that the master needs beside those of clients, listeners, workers and control clients: standard ones,
/// its poller, signals, its program, its log, what the store is watched by, and what is open for a moment only.
const OWN_DESCRIPTORS: u64 = 20;

/// A worker's channel and desk, and those of its successor while it is being replaced.
const WORKER_DESCRIPTORS: u64 = 4;

/// A socket that was handed over, and the copy of it that its listener has.
const DESCRIPTORS_PER_HANDED: u64 = 2;
/// The exporter's listener and its channel, and the listener that a reload brings.
const EXPORTER_DESCRIPTORS: u64 = 3;

/// Most clients that `auto` comes to.
const MOST_CLIENTS: u64 = 1_000_000;

/// Events a wait.
const BATCH: usize = 256;

impl Master {
    /// Opens, binds and catches all that it needs; no worker is started yet.
    pub(super) fn new(setup: Setup) -> Result<Master, Error> {
        let Setup {
            name,
            version,
            mut config,
            mut config_keys,
            config_file,
            mut config_files,
            standard_file,
            announce,
            handed,
            ..
        } = setup;
        let mut config_stale = setup.config_stale;
        let inherited = setup.inherited;
        let started = Instant::now();
        let limit = fd::raise_limit().map_err(Error::system("read the limit of descriptors"))?;
        let boats = inherited.as_ref().map_or(0, Inherited::boats);
        let descriptors = descriptors_left(limit, handed.count(), boats);
        let limits = client_limits(&config, worker_count(config.workers.count), descriptors)?;
        limits.warn_if_lowered();
        let applied_at = SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .as_secs();
        let memory = Memory::read(0);
        memory::warn_if_short(&config.limits, memory, worker_count(config.workers.count));
        if let Err(e) = process::adopt_orphans() {
            log::warn!("what workers start may outlive them: {e}");
        }
        let executable =
            Executable::current().map_err(Error::system("open the running program"))?;
        let signals = Signals::catch(&[
            Signal::Terminate,
            Signal::Interrupt,
            Signal::Child,
            Signal::Continue,
            Signal::User1,
            Signal::User2,
            Signal::Hangup,
            Signal::TerminalInput,
            Signal::TerminalOutput,
        ])
        .map_err(Error::system("catch signals"))?;
        let poller = Poller::new(BATCH).map_err(Error::system("make a poller"))?;
        let keepalive = config.limits.tcp_keepalive;
        let (mut keeps, mut left, mut kept, mut listener_number) = (None, None, Vec::new(), 0);
        let last = inherited.as_ref().and_then(Inherited::last_for_clients);
        let mut living = None;
        let mut there = Layout::new(0, 0);
        if let Some(Inherited {
            handover,
            kept: has,
            listeners,
            living: goes_on,
            stored,
            faults,
        }) = inherited
        {
            faults
                .iter()
                .for_each(|fault| log::error!("of what the master before left: {fault}"));
            listener_number = handover.listener_number;
            there = needed(
                has.as_ref().map(|(_, handoff)| handoff.unpacked()),
                goes_on.as_ref(),
            );
            living = goes_on;
            kept = listeners
                .into_iter()
                .filter_map(|(record, socket)| Listener::kept(&record, socket).ok())
                .collect();
            (keeps, left) = (
                has.map(|(book, handoff)| (book, handoff, stored)),
                Some(handover),
            );
        }
        let generation =
            Generation(left.as_ref().map_or(0, |handover| handover.last_generation) + 1);
        let next_worker = left
            .as_ref()
            .map_or(WorkerId(1), |handover| handover.next_worker);
        let opened = match (
            open_new(
                &config.listen,
                &handed,
                &kept,
                &mut listener_number,
                keepalive,
                started,
            ),
            last,
        ) {
            (Err(e), Some(last)) => {
                config_stale = Some(e.to_string());
                (config, config_keys, config_files) = (last.config, last.keys, last.files);
                open_new(
                    &config.listen,
                    &handed,
                    &kept,
                    &mut listener_number,
                    keepalive,
                    started,
                )?
            }
            (opened, _) => opened?,
        };
        let (listeners, leaving) =
            join_listeners(&config.listen, &handed, kept, opened, keepalive)?;
        handed.warn_of_unused(&config.listen);

        // Clients that are there are not closed for want of these two, which are tried again.
        let (has_clients, had) = (
            left.is_some(),
            living.as_mut().and_then(|living| living.control.take()),
        );
        let (mut control_listener, control_outage) = open_control(
            &name,
            &config,
            &listeners,
            had,
            has_clients.then_some(started),
        )?;
        control_listener.link(&name);
        let start = exporter::start(&name, &config, control_listener.path());
        let open_exporter = |address| {
            let own = || Own::of(&listeners, None, Some(&control_listener));
            Exporter::open(address, start, has_clients, started)
                .map_err(|e| own().named_in(e, Some(address)))
        };
        let exporter = config
            .metrics
            .listen
            .as_ref()
            .map(open_exporter)
            .transpose()?;

        let watch = Error::system("watch a descriptor");
        poller
            .add(&signals, Token::Signals.into(), Interest::Read)
            .map_err(&watch)?;
        if control_outage.is_none() {
            poller
                .add(&control_listener, Token::Control.into(), Interest::Clients)
                .map_err(&watch)?;
        }
        for listener in listeners
            .iter()
            .filter(|listener| listener.outage.is_none())
        {
            // The gate opens when a worker is ready.
            poller
                .add(
                    listener,
                    Token::Listener(listener.number).into(),
                    Interest::End,
                )
                .map_err(&watch)?;
        }
        let user = process::user();
        // Its name is for people only.
        let known = left
            .as_ref()
            .and_then(|handover| handover.user.clone())
            .filter(|(_, uid)| *uid == user);
        let user = known.map_or_else(
            || {
                User::of(user).unwrap_or_else(|_| User {
                    name: user.to_string(),
                    uid: user,
                })
            },
            |(name, uid)| User { name, uid },
        );
        // They were held back while this process became this program, if it was another one.
        process::unblock_signals();
        let seed = clock::monotonic() ^ u64::from(std::process::id()) << 32;
        if let Some(why) = &config_stale {
            log::error!(
                "the configuration that was applied last stays in force, for the sake of its clients: {why}"
            );
        }
        let mut master = Master {
            pool: Pool::new(target(&config, generation), started, seed).beginning_with(next_worker),
            dispatcher: Dispatcher::new(config.workers.dispatch),
            addresses: Addresses::new(&config.limits, [].iter()),
            control: ControlClients::new(
                control_clients(descriptors) as usize,
                Roles::new(user, &config.control, Unmapped::read()),
            ),
            // As at a reload: clients that are there have room, with all that is parked of them.
            layout: limits.layout(
                config.limits.max_frame.max(there.max_frame()),
                there.slots(),
            ),
            max_clients: limits.clients,
            listener_number,
            name,
            version,
            config,
            config_keys,
            config_file,
            config_files,
            standard_file,
            announce: Some(announce),
            started: living.as_ref().map_or(started, |living| living.started),
            generation,
            last_generation: generation,
            reload: None,
            last_reload: None,
            reload_reading: None,
            checks: Checks::default(),
            executable,
            executable_path: process::program_path(),
            is_same_program: false,
            upgrade: None,
            descriptors,
            notifier: Notifier::from_environment(started),
            poller,
            signals,
            asked_to_stop: None,
            scratch: Scratch::default(),
            control_listener,
            control_outage,
            handed,
            listeners,
            leaving,
            exporter,
            gate: Gate::new(),
            clock: LoopClock::new(),
            arrived: Vec::new(),
            is_drained: false,
            count_origin: Origin::Config,
            workers: BTreeMap::new(),
            outgoing: None,
            seats: Vec::new(),
            watch: Watch::default(),
            rebalancer: Rebalancer::new(),
            asked_balance: None,
            strikes: Strikes::default(),
            last_failure: None,
            oom_kills: OomKills::new(process::oom_kills(), started),
            ended_sessions: Vec::new(),
            memory,
            unleased: VecDeque::new(),
            handshakes: Vec::new(),
            next_client: 1,
            clients: 0,
            counts: Counts {
                applied_at,
                ..Counts::default()
            },
            tally: Tally::default(),
            events: Events::default(),
            log_level: None,
            keeper: None,
            config_stale,
            missing_log: setup.missing_log,
        };
        // From here on nothing fails that would close the clients that were left.
        let mut unpacked = Unpacked::default();
        if let Some((book, handoff, stored)) = keeps {
            let boats;
            (boats, unpacked) = handoff.take_over();
            master.keeper = Some(Keeper::over(boats, book, stored));
        } else if restart::is_wanted() {
            master.keeper = Some(Keeper::new(limit).map_err(Error::system("make boats"))?);
        }
        master.listeners.iter_mut().for_each(Listener::own);
        if let Some(handover) = left {
            master.take_over(handover, unpacked);
        }
        if let Some(exporter) = &master.exporter {
            master.watch_metrics(exporter);
        }
        if let Some(living) = living {
            master.go_on(living, started).map_err(&watch)?;
        }
        master.store_all(started);
        Ok(master)
    }
}

/// Descriptors for clients and for what the number of workers and listeners decides, out of so many, beside so many sockets
/// that were handed over and so many boats that there are.
fn descriptors_left(limit: u64, handed: usize, boats: usize) -> u64 {
    let boats = if boats > 0 || restart::is_wanted() {
        Boats::wanted(limit).max(boats as u64)
    } else {
        0
    };
    let kept = if boats > 0 { 1 + 2 * boats } else { 0 };
    limit.saturating_sub(DESCRIPTORS_PER_HANDED * handed as u64 + kept)
}

/// How many clients, and desks that they lie on, can be taken out of boats under this configuration.
///
/// # Errors
/// When there are no descriptors for any.
pub(super) fn room_for_clients(
    config: &Config,
    limit: u64,
    handed: usize,
    boats: usize,
) -> Result<usize, Error> {
    let descriptors = descriptors_left(limit, handed, boats);
    let possible = client_limits(config, worker_count(config.workers.count), descriptors)?.possible;
    // One datagram of clients is there before it is known which of them stay.
    let open = fd::open().unwrap_or(limit - descriptors) + OWN_DESCRIPTORS;
    let room = limit
        .saturating_sub(open + MAX_LEASES as u64)
        .min(possible)
        .max(1);
    Ok(usize::try_from(room).unwrap_or(usize::MAX))
}

/// Slots for all clients that there are, and the longest frame that may be parked of one.
fn needed(unpacked: Option<&Unpacked>, living: Option<&Living>) -> Layout {
    let workers = living.into_iter().flat_map(|living| &living.workers);
    let lives = workers.map(|(worker, _)| (worker.desk.layout(), worker.leases.clients()));
    let desks = unpacked
        .into_iter()
        .flat_map(|unpacked| unpacked.occupied());
    let all: Vec<(Layout, usize)> = lives
        .chain(desks)
        .filter(|(_, clients)| *clients > 0)
        .collect();
    let clients: usize = all.iter().map(|(_, clients)| clients).sum();
    let longest = all
        .iter()
        .map(|(layout, _)| layout.max_frame())
        .max()
        .unwrap_or_default();
    Layout::new(u32::try_from(clients).unwrap_or(u32::MAX), longest)
}

/// For each listener of a configuration the one that is new, or nothing where a master before has left one.
fn open_new(
    entries: &[Listen],
    handed: &Handed,
    kept: &[Listener],
    number: &mut u32,
    keepalive: Option<Duration>,
    now: Instant,
) -> Result<Vec<Option<Listener>>, Error> {
    let wanted = handed.wanted(entries)?;
    let places = listener::keep(kept, &wanted, listener::is_any);
    let wanted_count = wanted.len();
    let mut opened: Vec<Option<Listener>> = Vec::new();
    for (wanted, place) in wanted.iter().zip(places) {
        if place.is_some() {
            opened.push(None);
            continue;
        }
        *number += 1;
        let listener = Listener::open(*number, wanted, handed, keepalive);
        let own = || Own::of(kept.iter().chain(opened.iter().flatten()), None, None);
        let listener = listener.map_err(|e| own().named_in(e, wanted.address()));
        // With another listener to serve at, an address may come later.
        let listener = match listener {
            Err(e) if wanted_count > 1 => Listener::missing(*number, wanted, e, now)?,
            opened => opened?,
        };
        opened.push(Some(listener));
    }
    let is_served = opened.iter().any(|listener| {
        listener
            .as_ref()
            .is_none_or(|listener| listener.outage.is_none())
    });
    match opened
        .iter()
        .flatten()
        .find_map(|listener| listener.outage.as_ref())
    {
        Some(outage) if !is_served => Err(Error::Unavailable(outage.reason.clone())),
        _ => Ok(opened),
    }
}

/// All listeners, in the order of the configuration; behind them those that were left and are not wanted any more, whose
/// numbers are told.
fn join_listeners(
    entries: &[Listen],
    handed: &Handed,
    kept: Vec<Listener>,
    opened: Vec<Option<Listener>>,
    keepalive: Option<Duration>,
) -> Result<(Vec<Listener>, Vec<u32>), Error> {
    let wanted = handed.wanted(entries)?;
    let places = listener::keep(&kept, &wanted, listener::is_any);
    let mut kept: Vec<Option<Listener>> = kept.into_iter().map(Some).collect();
    let mut listeners = Vec::new();
    for ((wanted, place), opened) in wanted.iter().zip(places).zip(opened) {
        if let Some(mut listener) = place.and_then(|index| kept[index].take()) {
            listener.adopt(wanted.entry, keepalive)?;
            listener.set_place(&wanted.place);
            listeners.push(listener);
        }
        listeners.extend(opened);
    }
    let mut rest: Vec<Listener> = kept.into_iter().flatten().collect();
    // The file is that of the one that was bound in its place.
    let is_replaced = |listener: &Listener| {
        listeners
            .iter()
            .any(|other| other.address == listener.address)
    };
    rest.iter_mut()
        .filter(|listener| is_replaced(listener))
        .for_each(Listener::disown_file);
    let leaving = rest.iter().map(|listener| listener.number).collect();
    listeners.extend(rest);
    Ok((listeners, leaving))
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
        Count::Auto => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(256),
        Count::Exactly(count) => count.get() as usize,
    }
}

/// Most control clients.
fn control_clients(descriptors: u64) -> u64 {
    (descriptors / 8).clamp(4, MOST_CONTROL_CLIENTS)
}

/// How many clients there may be.
#[derive(Clone, Debug)]
pub(super) struct ClientLimits {
    pub(super) clients: u64,
    /// Slots on each desk.
    pub(super) slots: u32,
    /// As many as there are descriptors for, whatever the configuration wants.
    possible: u64,
    /// Why there may not be as many as the configuration wants.
    lowered: Option<String>,
}

impl ClientLimits {
    /// Desks that have room for so many clients at least, and for frames of this length.
    pub(super) fn layout(&self, max_frame: u32, slots: u32) -> Layout {
        Layout::new(
            self.slots.max(slots).min(Layout::most_slots(max_frame)),
            max_frame,
        )
    }

    /// Whoever puts them into force says so.
    pub(super) fn warn_if_lowered(&self) {
        if let Some(sentence) = &self.lowered {
            log::warn!("{sentence}");
        }
    }
}

/// How many there may be beside so many workers, with so many descriptors.
pub(super) fn client_limits(
    config: &Config,
    workers: usize,
    descriptors: u64,
) -> Result<ClientLimits, Error> {
    let for_workers = WORKER_DESCRIPTORS * workers as u64;
    let for_exporter = config
        .metrics
        .listen
        .as_ref()
        .map_or(0, |_| EXPORTER_DESCRIPTORS);
    let for_listeners = config.listen.len() as u64 + for_exporter;
    let taken = OWN_DESCRIPTORS + control_clients(descriptors) + for_workers + for_listeners;
    let possible = descriptors
        .saturating_sub(taken)
        .min(u64::from(Layout::most_slots(config.limits.max_frame)));
    if possible == 0 {
        let sentence = format!(
            "the limit of {descriptors} descriptors leaves none for clients: {taken} are needed"
        );
        return Err(Error::System(sentence));
    }
    let (clients, lowered) = match config.limits.max_clients {
        None => (possible.min(MOST_CLIENTS), None),
        Some(wanted) if u64::from(wanted.get()) <= possible => (wanted.get().into(), None),
        Some(wanted) => {
            let sentence = format!(
                "max-clients lowered from {wanted} to {possible}: the limit is {descriptors} descriptors, of which \
                 {taken} are needed for other things"
            );
            (possible, Some(sentence))
        }
    };
    Ok(ClientLimits {
        clients,
        slots: u32::try_from(clients).unwrap_or(u32::MAX),
        possible,
        lowered,
    })
}

/// Where the control socket is if it is not configured.
fn usual_place(name: &str, user: u32) -> PathBuf {
    let temporary = temporary(name, user);
    let mut places = places(name, user, |key| std::env::var_os(key));
    if places[0].parent() == Some(&temporary) && Holder::of(&temporary) == Holder::Others {
        places.remove(0);
        log::warn!(
            "{} is not a directory of uid {user} alone: the control socket is {}",
            temporary.display(),
            places[0].display()
        );
    }
    places.swap_remove(0)
}

/// The control socket: the one that this process `had` before it became this program, or a new one. If there are clients,
/// since then, and it cannot be had, another one takes its place that nobody can connect to, with the reason.
fn open_control(
    name: &str,
    config: &Config,
    listeners: &[Listener],
    had: Option<ControlListener>,
    clients_since: Option<Instant>,
) -> Result<(ControlListener, Option<Outage>), Error> {
    if let Some(control) = had {
        let is_gone = !control.is_reachable();
        return Ok((
            control,
            clients_since
                .filter(|_| is_gone)
                .map(|now| Outage::since(now, FILE_GONE)),
        ));
    }
    let usual = || usual_place(name, process::user());
    let path = config.control.socket.clone().unwrap_or_else(usual);
    let bound = ControlListener::bind(
        &path,
        config.control.socket.is_none(),
        config.control.mode(),
    );
    match (bound, clients_since) {
        (Ok(control), _) => Ok((control, None)),
        (Err(e), Some(now)) => {
            let missing =
                ControlListener::missing(&path).map_err(Error::system("make a socket"))?;
            Ok((missing, Some(Outage::after(&e, now))))
        }
        (Err(e), None) => {
            Err(Own::of(listeners, None, None).named_in(e, Some(&Address::Unix(path))))
        }
    }
}
