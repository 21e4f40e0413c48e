//! How a master comes to be.

use std::io;
use std::time::Instant;

use super::capacity::{client_limits, control_clients, target, worker_count};
use super::control::access::Roles;
use super::control::server::ControlClients;
use super::exporter::{self, Exporter};
use super::handover::inherited::{Inherited, descriptors_left};
use super::handover::restart::{self, HandoffStore};
use super::handover::snapshot::CarriedOver;
use super::handover::unpack::Unpacked;
use super::listeners::accept::Gate;
use super::listeners::conflict::OwnListeners;
use super::listeners::control_listener::open_control;
use super::listeners::listener::Listener;
use super::listeners::open::{join_listeners, open_new};
use super::memory::{self, Memory};
use super::{Error, Master, MasterSetup, Token};
use crate::channel::Scratch;
use crate::config::{Listen, Loaded};
use crate::loop_clock::LoopClock;
use crate::master::clients::Clients;
use crate::master::control::ControlServer;
use crate::master::handover::HandoverState;
use crate::master::handover::inherited::Stored;
use crate::master::handover::state_file::{SavedState, StateFile};
use crate::master::handover::unpack::ReceivedHandoff;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::Listeners;
use crate::master::listeners::control_listener::ControlListener;
use crate::master::listeners::outage::Outage;
use crate::master::reload::Reloads;
use crate::master::service_manager::ManagerLink;
use crate::master::settings::SettingsInForce;
use crate::master::signals::SignalQueue;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::pool::Pool;
use crate::proto::control::Origin;
use crate::proto::names::{Generation, WorkerId};
use crate::shm::Layout;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable};
use crate::sys::signal::{Signal, Signals};
use crate::sys::user::{Unmapped, User};
use crate::sys::{clock, fd};

/// Events a wait.
const BATCH: usize = 256;

impl Master {
    /// Opens everything that a master needs, and restores what a master before this one has left. No
    /// worker is started yet.
    ///
    /// # Errors
    /// The first step that fails, if the daemon cannot serve without it.
    pub(super) fn new(mut setup: MasterSetup) -> Result<Master, Error> {
        let started = Instant::now();
        let limit = fd::raise_limit().map_err(Error::system("read the limit of descriptors"))?;
        let queues = setup.inherited.as_ref().map_or(0, Inherited::queues);
        let descriptors = descriptors_left(limit, setup.handed.count(), queues);
        let count = worker_count(setup.config.workers.count);
        let limits = client_limits(&setup.config, count, descriptors)?;
        limits.warn_if_lowered();
        let memory = Memory::read(0);
        memory::warn_if_short(&setup.config.limits, memory, count);
        if let Err(e) = process::adopt_orphans() {
            log::warn!("processes started by workers may outlive them: {e}");
        }
        let executable =
            Executable::current().map_err(Error::system("open the running program"))?;
        let signals = catch_signals()?;
        let poller = Poller::new(BATCH).map_err(Error::system("make a poller"))?;
        let mut left = LeftBehind::from_inherited(setup.inherited.take());
        let listeners = open_listeners(&mut setup, &mut left, started)?;
        let (control_listener, control_outage) =
            open_control_socket(&setup, &listeners.all, &mut left, started)?;
        let exporter = open_exporter(&setup, &listeners.all, &control_listener, &left, started)?;
        let control = ControlServer {
            listener: control_listener,
            outage: control_outage,
            clients: ControlClients::new(
                control_clients(descriptors) as usize,
                Roles::new(left.user(), &setup.config.control, Unmapped::read()),
            ),
        };
        watch_all(&poller, &signals, &control, &listeners.all)
            .map_err(Error::system("watch a descriptor"))?;
        // An upgrade has blocked them until their handlers are there again.
        process::unblock_signals();
        let seed = clock::monotonic() ^ u64::from(std::process::id()) << 32;
        if let Some(why) = &setup.config_stale {
            log::error!(
                "keeping the last applied configuration because clients are connected: {why}"
            );
        }
        let config = &setup.config;
        let pool = Pool::new(target(config, left.generation()), started, seed)
            .with_next_id(left.next_worker());
        let layout = limits.layout(
            config.limits.max_frame.max(left.needed.max_frame()),
            left.needed.slots(),
        );
        let mut master = Master {
            started: left.started(started),
            descriptors,
            poller,
            clock: LoopClock::new(),
            signals: SignalQueue::new(signals),
            scratch: Scratch::default(),
            listeners,
            clients: Clients::new(config, limits.clients, layout),
            workers: Workers::new(pool, executable, started),
            control,
            handover: HandoverState::new(),
            telemetry: Telemetry::new(),
            manager: ManagerLink::new(setup.announce, started),
            exporter,
            reloads: Reloads::default(),
            lifecycle: Lifecycle::Running,
            name: setup.name,
            version: setup.version,
            settings: SettingsInForce {
                keys: setup.config_keys,
                file: setup.config_file,
                files: setup.config_files,
                standard_file: setup.standard_file,
                stale: setup.config_stale,
                missing_log: setup.missing_log,
                generation: left.generation(),
                last_generation: left.generation(),
                last_reload: None,
                log_level: None,
                count_origin: Origin::Config,
                memory,
                config: setup.config,
            },
        };
        master.restore(left, limit, started)?;
        Ok(master)
    }

    /// Restores what was left. From here on nothing fails that would close the clients that were left.
    fn restore(&mut self, left: LeftBehind, limit: u64, now: Instant) -> Result<(), Error> {
        let mut unpacked = Unpacked::default();
        if let Some((state_file, handoff, stored)) = left.kept {
            let queues;
            (queues, unpacked) = handoff.take_over();
            self.handover.store = Some(HandoffStore::from_parts(queues, state_file, stored));
        } else if restart::is_wanted() {
            self.handover.store =
                Some(HandoffStore::new(limit).map_err(Error::system("make handoff queues"))?);
        }
        let state_file = self.handover.store.as_ref().map(HandoffStore::state_file);
        self.clients.figures = state_file.map(|state_file| state_file.figures().clone());
        self.listeners.all.iter_mut().for_each(Listener::own);
        if let Some(saved_state) = left.saved_state {
            self.take_over(saved_state, unpacked);
        }
        if let Some(exporter) = &self.exporter {
            exporter.watch(&self.poller);
        }
        if let Some(carried_over) = left.carried_over {
            self.go_on(carried_over, now)
                .map_err(Error::system("watch a descriptor"))?;
        }
        self.store_all(now);
        Ok(())
    }
}

/// What a master before this one has left.
struct LeftBehind {
    saved_state: Option<SavedState>,
    /// The store of the service manager, if clients are kept in one.
    kept: Option<(StateFile, ReceivedHandoff, Stored)>,
    listeners: Vec<Listener>,
    /// The state that an upgrade carries over, which was never left.
    carried_over: Option<CarriedOver>,
    /// The configuration that was applied last, if there are clients that need it.
    last: Option<Loaded>,
    /// The slots and the longest frame that the clients need.
    needed: Layout,
}

impl LeftBehind {
    /// Logs what could not be taken over.
    fn from_inherited(inherited: Option<Inherited>) -> LeftBehind {
        let last = inherited.as_ref().and_then(Inherited::last_for_clients);
        let Some(inherited) = inherited else {
            return LeftBehind {
                saved_state: None,
                kept: None,
                listeners: Vec::new(),
                carried_over: None,
                last,
                needed: Layout::new(0, 0),
            };
        };
        for fault in &inherited.faults {
            log::error!("restoring the previous master's state: {fault}");
        }
        let handoff = inherited.kept.as_ref().map(|(_, handoff)| handoff);
        let needed = needed(
            handoff.map(ReceivedHandoff::unpacked),
            inherited.carried_over.as_ref(),
        );
        let listeners = inherited
            .listeners
            .into_iter()
            .filter_map(|(record, socket)| Listener::from_record(&record, socket).ok());
        let stored = inherited.stored;
        LeftBehind {
            listeners: listeners.collect(),
            saved_state: Some(inherited.saved_state),
            kept: inherited
                .kept
                .map(|(state_file, handoff)| (state_file, handoff, stored)),
            carried_over: inherited.carried_over,
            last,
            needed,
        }
    }

    /// Returns the first generation of this master.
    fn generation(&self) -> Generation {
        let last = self
            .saved_state
            .as_ref()
            .map_or(0, |state| state.last_generation);
        Generation(last + 1)
    }

    fn next_worker(&self) -> WorkerId {
        self.saved_state
            .as_ref()
            .map_or(WorkerId(1), |state| state.next_worker)
    }

    /// Returns the start of the daemon, which an upgrade does not change.
    fn started(&self, now: Instant) -> Instant {
        self.carried_over
            .as_ref()
            .map_or(now, |carried_over| carried_over.started)
    }

    /// Returns the daemon's user. The name is for people only, so it may be the one that was known
    /// before: looking it up may wait for a directory server.
    fn user(&self) -> User {
        let uid = process::user();
        let known = self
            .saved_state
            .as_ref()
            .and_then(|state| state.user.clone());
        match known.filter(|(_, known)| *known == uid) {
            Some((name, uid)) => User { name, uid },
            None => User::from_uid(uid).unwrap_or_else(|_| User {
                name: uid.to_string(),
                uid,
            }),
        }
    }
}

fn catch_signals() -> Result<Signals, Error> {
    Signals::catch(&[
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
    .map_err(Error::system("catch signals"))
}

/// Opens the listeners of the configuration, and keeps those that were left. If a new one cannot be
/// opened and there are clients, the configuration that was applied last stays in force.
fn open_listeners(
    setup: &mut MasterSetup,
    left: &mut LeftBehind,
    now: Instant,
) -> Result<Listeners, Error> {
    let keepalive = setup.config.limits.tcp_keepalive;
    let mut number = left
        .saved_state
        .as_ref()
        .map_or(0, |state| state.listener_number);
    let kept = std::mem::take(&mut left.listeners);
    let mut open =
        |listen: &[Listen], handed| open_new(listen, handed, &kept, &mut number, keepalive, now);
    let opened = match (open(&setup.config.listen, &setup.handed), left.last.take()) {
        (Err(e), Some(last)) => {
            setup.config_stale = Some(e.to_string());
            (setup.config, setup.config_keys, setup.config_files) =
                (last.config, last.keys, last.files);
            open(&setup.config.listen, &setup.handed)?
        }
        (opened, _) => opened?,
    };
    let handed = std::mem::take(&mut setup.handed);
    let (all, closing) = join_listeners(&setup.config.listen, &handed, kept, opened, keepalive)?;
    handed.warn_of_unused(&setup.config.listen);
    Ok(Listeners {
        activated: handed,
        all,
        closing,
        last_number: number,
        gate: Gate::new(),
        is_drained: false,
    })
}

/// Opens the control socket. With clients, a socket that cannot be opened is an outage, and is tried
/// again.
fn open_control_socket(
    setup: &MasterSetup,
    listeners: &[Listener],
    left: &mut LeftBehind,
    now: Instant,
) -> Result<(ControlListener, Option<Outage>), Error> {
    let carried_over = left.carried_over.as_mut();
    let had = carried_over.and_then(|carried_over| carried_over.control.take());
    let clients_since = left.saved_state.as_ref().map(|_| now);
    let (mut listener, outage) =
        open_control(&setup.name, &setup.config, listeners, had, clients_since)?;
    listener.link(&setup.name);
    Ok((listener, outage))
}

/// Opens the listener of the exporter, if one is configured. With clients, one that cannot be opened
/// is an outage, and is tried again.
fn open_exporter(
    setup: &MasterSetup,
    listeners: &[Listener],
    control: &ControlListener,
    left: &LeftBehind,
    now: Instant,
) -> Result<Option<Exporter>, Error> {
    let Some(address) = &setup.config.metrics.listen else {
        return Ok(None);
    };
    let start = exporter::start(&setup.name, &setup.config, control.path());
    let has_clients = left.saved_state.is_some();
    Exporter::open(address, start, has_clients, now)
        .map(Some)
        .map_err(|e| {
            OwnListeners::from_listeners(listeners, None, Some(control)).named_in(e, Some(address))
        })
}

/// Adds all descriptors to the poller. The gate opens when a worker is ready.
fn watch_all(
    poller: &Poller,
    signals: &Signals,
    control: &ControlServer,
    listeners: &[Listener],
) -> io::Result<()> {
    poller.add(signals, Token::Signals.into(), Interest::Read)?;
    if control.outage.is_none() {
        poller.add(&control.listener, Token::Control.into(), Interest::Clients)?;
    }
    for listener in listeners
        .iter()
        .filter(|listener| listener.outage.is_none())
    {
        poller.add(
            listener,
            Token::Listener(listener.number).into(),
            Interest::End,
        )?;
    }
    Ok(())
}

/// Slots for all clients that there are, and the longest frame that may be parked of one.
fn needed(unpacked: Option<&Unpacked>, carried_over: Option<&CarriedOver>) -> Layout {
    let workers = carried_over
        .into_iter()
        .flat_map(|carried_over| &carried_over.workers);
    let lives = workers.map(|(worker, _)| (worker.shm.layout(), worker.leases.clients()));
    let shms = unpacked
        .into_iter()
        .flat_map(|unpacked| unpacked.occupied());
    let all: Vec<(Layout, usize)> = lives
        .chain(shms)
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
