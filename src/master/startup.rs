//! How a master comes to be.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Instant, SystemTime};

use super::capacity::{client_limits, control_clients, target, worker_count};
use super::clients::client::Addresses;
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
use super::reload::reading::Checks;
use super::service_manager::Notifier;
use super::telemetry::counters::{Counts, Tally};
use super::telemetry::events::EventLog;
use super::workers::crash::{OomKills, Strikes};
use super::workers::watchdog::Watch;
use super::{Error, Master, MasterSetup, Token};
use crate::channel::Scratch;
use crate::loop_clock::LoopClock;
use crate::master::clients::Clients;
use crate::master::control::ControlServer;
use crate::master::handover::HandoverState;
use crate::master::listeners::Listeners;
use crate::master::reload::Reloads;
use crate::master::service_manager::ManagerLink;
use crate::master::settings::SettingsInForce;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::pool::Pool;
use crate::pool::dispatch::Dispatcher;
use crate::pool::rebalance::Rebalancer;
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
    /// Opens, binds and catches all that it needs; no worker is started yet.
    pub(super) fn new(setup: MasterSetup) -> Result<Master, Error> {
        let MasterSetup {
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
        let queues = inherited.as_ref().map_or(0, Inherited::queues);
        let descriptors = descriptors_left(limit, handed.count(), queues);
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
        let mut carried_over = None;
        let mut there = Layout::new(0, 0);
        if let Some(Inherited {
            saved_state,
            kept: has,
            listeners,
            carried_over: goes_on,
            stored,
            faults,
        }) = inherited
        {
            faults
                .iter()
                .for_each(|fault| log::error!("of what the master before left: {fault}"));
            listener_number = saved_state.listener_number;
            there = needed(
                has.as_ref().map(|(_, handoff)| handoff.unpacked()),
                goes_on.as_ref(),
            );
            carried_over = goes_on;
            kept = listeners
                .into_iter()
                .filter_map(|(record, socket)| Listener::from_record(&record, socket).ok())
                .collect();
            (keeps, left) = (
                has.map(|(state_file, handoff)| (state_file, handoff, stored)),
                Some(saved_state),
            );
        }
        let generation = Generation(
            left.as_ref()
                .map_or(0, |saved_state| saved_state.last_generation)
                + 1,
        );
        let next_worker = left
            .as_ref()
            .map_or(WorkerId(1), |saved_state| saved_state.next_worker);
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
            carried_over
                .as_mut()
                .and_then(|carried_over| carried_over.control.take()),
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
            let own = || OwnListeners::from_listeners(&listeners, None, Some(&control_listener));
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
            .and_then(|saved_state| saved_state.user.clone())
            .filter(|(_, uid)| *uid == user);
        let user = known.map_or_else(
            || {
                User::from_uid(user).unwrap_or_else(|_| User {
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
                "keeping the last applied configuration because clients are connected: {why}"
            );
        }
        let mut master = Master {
            name,
            version,
            started: carried_over
                .as_ref()
                .map_or(started, |carried_over| carried_over.started),
            descriptors,
            poller,
            signals,
            asked_to_stop: None,
            scratch: Scratch::default(),
            exporter,
            clock: LoopClock::new(),
            arrived: Vec::new(),
            listeners: Listeners {
                activated: handed,
                all: listeners,
                closing: leaving,
                last_number: listener_number,
                gate: Gate::new(),
                is_drained: false,
            },
            clients: Clients {
                unleased: VecDeque::new(),
                handshakes: Vec::new(),
                addresses: Addresses::new(&config.limits, [].iter()),
                next_id: 1,
                count: 0,
                max: limits.clients,
                layout: limits.layout(
                    config.limits.max_frame.max(there.max_frame()),
                    there.slots(),
                ),
                dispatcher: Dispatcher::new(config.workers.dispatch),
            },
            workers: Workers {
                pool: Pool::new(target(&config, generation), started, seed)
                    .beginning_with(next_worker),
                all: BTreeMap::new(),
                seats: Vec::new(),
                outgoing: None,
                watch: Watch::default(),
                rebalancer: Rebalancer::new(),
                requested_rebalance: None,
                strikes: Strikes::default(),
                last_failure: None,
                oom_kills: OomKills::new(process::oom_kills(), started),
                ended_sessions: Vec::new(),
                executable,
            },
            control: ControlServer {
                listener: control_listener,
                outage: control_outage,
                clients: ControlClients::new(
                    control_clients(descriptors) as usize,
                    Roles::new(user, &config.control, Unmapped::read()),
                ),
            },
            handover: HandoverState {
                store: None,
                upgrade: None,
                executable_path: process::program_path(),
                is_same_program: false,
            },
            telemetry: Telemetry {
                counts: Counts {
                    applied_at,
                    ..Counts::default()
                },
                tally: Tally::default(),
                events: EventLog::default(),
            },
            manager: ManagerLink {
                notifier: Notifier::from_environment(started),
                announce: Some(announce),
            },
            reloads: Reloads {
                current: None,
                reading: None,
                checks: Checks::default(),
            },
            settings: SettingsInForce {
                config,
                keys: config_keys,
                file: config_file,
                files: config_files,
                standard_file,
                stale: config_stale,
                missing_log: setup.missing_log,
                generation,
                last_generation: generation,
                last_reload: None,
                log_level: None,
                count_origin: Origin::Config,
                memory,
            },
        };
        // From here on nothing fails that would close the clients that were left.
        let mut unpacked = Unpacked::default();
        if let Some((state_file, handoff, stored)) = keeps {
            let queues;
            (queues, unpacked) = handoff.take_over();
            master.handover.store = Some(HandoffStore::from_parts(queues, state_file, stored));
        } else if restart::is_wanted() {
            master.handover.store =
                Some(HandoffStore::new(limit).map_err(Error::system("make handoff queues"))?);
        }
        master.listeners.all.iter_mut().for_each(Listener::own);
        if let Some(saved_state) = left {
            master.take_over(saved_state, unpacked);
        }
        if let Some(exporter) = &master.exporter {
            master.watch_metrics(exporter);
        }
        if let Some(carried_over) = carried_over {
            master.go_on(carried_over, started).map_err(&watch)?;
        }
        master.store_all(started);
        Ok(master)
    }
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
