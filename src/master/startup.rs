//! Creates a master.

use std::time::Instant;

use super::capacity::{client_limits, control_clients, target, worker_count};
use super::control::access::Roles;
use super::control::server::ControlClients;
use super::exporter::{self, Exporter};
use super::handover::inherited::available_descriptors;
use super::listeners::conflict::OwnListeners;
use super::listeners::gate::Gate;
use super::listeners::listener::Listener;
use super::listeners::open::{ListenerOpener, OnOpenError, join_listeners};
use super::listeners::open_control::open_control;
use super::memory::{self, Memory};
use super::{ActivatedSockets, Announce, Error, Master, MasterSetup, Token};
use crate::config::Config;
use crate::loop_clock::LoopClock;
use crate::master::capacity::ClientLimits;
use crate::master::clients::Clients;
use crate::master::control::ControlServer;
use crate::master::handover::HandoverState;
use crate::master::handover::origin::MasterOrigin;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::Listeners;
use crate::master::listeners::control_listener::ControlListener;
use crate::master::listeners::drain::state::DrainState;
use crate::master::listeners::served::Served;
use crate::master::reload::Reloads;
use crate::master::service_manager::ManagerLink;
use crate::master::settings::SettingsInForce;
use crate::master::signals::SignalQueue;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::pool::Pool;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable};
use crate::sys::signal::{Signal, Signals};
use crate::sys::user::Unmapped;
use crate::sys::{clock, fd};

/// Events a wait.
const BATCH: usize = 256;

impl Master {
    /// Opens everything that a master needs, and restores what an earlier one has left. No worker is started yet.
    ///
    /// # Errors
    /// The first step that fails, if the daemon cannot serve without it.
    pub(super) fn new(mut setup: MasterSetup) -> Result<Master, Error> {
        let now = Instant::now();
        let mut origin = std::mem::replace(&mut setup.origin, MasterOrigin::Fresh);
        origin.log_faults();
        let limit = fd::raise_limit().map_err(Error::system("read the limit of descriptors"))?;
        let descriptors =
            available_descriptors(limit, setup.activated.count(), origin.queue_count());
        prepare_process();
        let executable =
            Executable::current().map_err(Error::system("open the running program"))?;
        let signals = catch_signals()?;
        let poller = Poller::new(BATCH).map_err(Error::system("make a poller"))?;
        let mut listeners = open_listeners(&mut setup, &mut origin, now)?;
        // The configuration is in force from here on: that of the file, or the last one.
        let count = worker_count(setup.loaded.config.workers.count);
        let limits = client_limits(&setup.loaded.config, count, descriptors)?;
        limits.warn_if_lowered();
        let memory = Memory::read(0);
        memory::warn_if_short(&setup.loaded.config.limits, memory, count);
        let mut control =
            open_control_server(&setup, &listeners.all, &mut origin, descriptors, now)?;
        let exporter = open_exporter(&setup, &listeners.all, &control.listener, &origin, now)?;
        let all = &mut listeners.all;
        watch_all(&poller, &signals, &mut control, all, &origin, now)?;
        // An upgrade has blocked them until the handlers exist again.
        process::unblock_signals();
        let mut settings = SettingsInForce::new(
            setup.loaded,
            setup.config_file,
            setup.standard_file,
            setup.command_line,
            origin.generation(),
        );
        (settings.stale, settings.missing_log) = (setup.config_stale, setup.missing_log);
        (settings.memory, settings.is_dev) = (memory, setup.is_dev);
        let mut master = Master {
            // An upgrade does not change the start of the daemon.
            started: origin.carried_over().map_or(now, |state| state.started),
            descriptors,
            poller,
            clock: LoopClock::new(),
            signals: SignalQueue::new(signals),
            listeners,
            clients: new_clients(&settings.config, &limits, &origin),
            workers: Workers::new(new_pool(&settings, &origin, now), executable, now),
            control,
            handover: HandoverState::new(),
            telemetry: Telemetry::new(),
            manager: link_to_manager(setup.announce, &settings.config, &mut origin, now),
            exporter,
            reloads: Reloads::default(),
            lifecycle: Lifecycle::Running,
            name: setup.name,
            version: setup.version,
            settings,
        };
        master.restore(origin, limit, now)?;
        master.clients.end_left_apps(now);
        Ok(master)
    }
}

/// Finds the service manager. Unless this process was ready before an upgrade, the manager waits for the workers.
fn link_to_manager(
    announce: Announce,
    config: &Config,
    origin: &mut MasterOrigin,
    now: Instant,
) -> ManagerLink {
    let mut manager = ManagerLink::new(announce, now);
    if origin.carried_over().is_none() {
        manager.begin_start(config.workers.start_timeout, now);
    }
    manager
}

/// Adopts what workers leave behind, and protects the master when memory runs out, as far as the system allows it.
fn prepare_process() {
    if let Err(e) = process::adopt_orphans() {
        log::warn!("processes started by workers may outlive them: {e}");
    }
    if let Err(e) = process::protect_from_oom() {
        log::debug!("the kernel may kill the master when memory runs out: {e}");
    }
}

fn new_clients(config: &Config, limits: &ClientLimits, origin: &MasterOrigin) -> Clients {
    let needed = origin.needed_layout();
    let max_frame = config.limits.max_frame.max(needed.max_frame());
    let layout = limits.layout(max_frame, needed.slots());
    Clients::new(config, limits.clients_in(layout), layout)
}

fn new_pool(settings: &SettingsInForce, origin: &MasterOrigin, now: Instant) -> Pool {
    let seed = clock::monotonic() ^ u64::from(std::process::id()) << 32;
    let target = target(&settings.config, origin.generation(), settings.is_dev);
    let pool = Pool::new(target, now, seed);
    pool.with_next_id(origin.next_worker())
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

/// Opens the listeners of the configuration, and keeps those of an earlier master. If a new one cannot be opened and
/// there are clients, the configuration that was applied last stays in force, and those of its listeners that cannot be
/// opened are tried again later.
fn open_listeners(
    setup: &mut MasterSetup,
    origin: &mut MasterOrigin,
    now: Instant,
) -> Result<Listeners, Error> {
    let activated = std::mem::take(&mut setup.activated);
    let keepalive = setup.loaded.config.limits.tcp_keepalive;
    let drain = origin.drain(now);
    let refuses = drain.is_some_and(DrainState::refuses);
    let left = origin.take_listeners(refuses);
    let mut opener = ListenerOpener {
        activated: &activated,
        left: &left,
        keepalive,
        refuses,
        last_number: origin.listener_number(),
        now,
    };
    let mut chosen = opener.choose(&setup.loaded.config.listen, OnOpenError::FailStart);
    if let Err(e) = &chosen
        && origin.has_clients()
    {
        use_last(setup, &activated, origin, e);
        chosen = opener.choose(&setup.loaded.config.listen, OnOpenError::RetryLater);
    }
    let last_number = opener.last_number;
    if let Some(why) = &setup.config_stale {
        log::error!("keeping the last applied configuration because clients are connected: {why}");
    }
    let listen = &setup.loaded.config.listen;
    let (all, closing) = join_listeners(listen, &activated, left, chosen?, keepalive)?;
    activated.warn_of_unused(listen);
    Ok(Listeners {
        activated,
        all,
        closing,
        changed: Vec::new(),
        last_number,
        last_served: 0,
        gate: Gate::new(),
        drain,
    })
}

/// Replaces the configuration, whose listeners cannot be opened because of `error`, by the one that was applied last if
/// that is another one. Removes the entries for which systemd has passed no socket.
fn use_last(
    setup: &mut MasterSetup,
    activated: &ActivatedSockets,
    origin: &MasterOrigin,
    error: &Error,
) {
    let loaded = &mut setup.loaded;
    let last = origin.last_for_clients();
    if let Some(last) = last.filter(|last| last.config.to_toml() != loaded.config.to_toml()) {
        setup.config_stale = Some(error.to_string());
        *loaded = last;
    }
    let (available, missing) = activated.available(&loaded.config.listen);
    loaded.config.listen = available;
    if let Some(e) = missing {
        setup.config_stale.get_or_insert(e.to_string());
    }
}

/// Opens the control socket. After an earlier master, a socket that cannot be opened is an outage, and is retried.
fn open_control_server(
    setup: &MasterSetup,
    listeners: &[Listener],
    origin: &mut MasterOrigin,
    descriptors: u64,
    now: Instant,
) -> Result<ControlServer, Error> {
    let config = &setup.loaded.config;
    let previous = origin.carried_over().and_then(|state| state.control.take());
    let retry_from = (!origin.is_fresh()).then_some(now);
    let (mut listener, outage) =
        open_control(&setup.name, config, listeners, previous, retry_from)?;
    listener.link(&setup.name);
    let roles = Roles::new(origin.user(), &config.control, Unmapped::read());
    Ok(ControlServer {
        listener,
        outage,
        clients: ControlClients::new(control_clients(descriptors) as usize, roles),
    })
}

/// Opens the listeners of the exporter that are configured. After an earlier master, a listener that cannot be opened is
/// an outage, and is retried.
fn open_exporter(
    setup: &MasterSetup,
    listeners: &[Listener],
    control: &ControlListener,
    origin: &MasterOrigin,
    now: Instant,
) -> Result<Option<Exporter>, Error> {
    let config = &setup.loaded.config;
    let start = exporter::start(&setup.name, config, control.path());
    Exporter::open(config, start, !origin.is_fresh(), now).map_err(|(e, address)| {
        OwnListeners::from_listeners(listeners, None, Some(control)).explain(e, Some(address))
    })
}

/// Adds all descriptors to the poller. The gate opens when a worker is ready. If this master follows another
/// one, a socket that cannot be watched is an outage, and is tried again.
///
/// # Errors
/// Those of [`Poller::add`]; if this master follows another one, only those of the signals.
fn watch_all(
    poller: &Poller,
    signals: &Signals,
    control: &mut ControlServer,
    listeners: &mut [Listener],
    origin: &MasterOrigin,
    now: Instant,
) -> Result<(), Error> {
    let added = poller.add(signals, Token::Signals.into(), Interest::Read);
    added.map_err(Error::system("watch for signals"))?;
    if !origin.is_fresh() {
        control.watch(Interest::Clients, poller, now);
        for listener in listeners
            .iter_mut()
            .filter(|listener| listener.is_watched())
        {
            listener.watch(Interest::End, poller, now);
        }
        return Ok(());
    }
    if control.outage.is_none() {
        control.add_to(poller, Interest::Clients)?;
    }
    for listener in listeners.iter().filter(|listener| listener.is_watched()) {
        listener.add_to(poller, Interest::End)?;
    }
    Ok(())
}
