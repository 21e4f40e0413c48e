//! What a master leaves for itself when it becomes another program: its workers and all that it has of them.
//!
//! Processes, descriptors, shared memory and leases go on; only what can be found out again is left out. It is written into a file
//! in memory, whose number the new program is told, with the numbers of all descriptors.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::config::{Config, Loaded};
use crate::master::clients::leases::{Leases, LeasesSnapshot};
use crate::master::control::connection::ControlSnapshot;
use crate::master::handover::inherited::{Inherited, Stored};
use crate::master::handover::queues::{HandoffQueues, QueueEnds};
use crate::master::handover::state_file::{MAGIC, OLDEST, SavedState, StateFile, check_version};
use crate::master::handover::unpack::ReceivedHandoff;
use crate::master::handover::upgrade::Upgrade;
use crate::master::listeners::control_listener::ControlListener;
use crate::master::listeners::listener::ListenerRecord;
use crate::master::workers::outgoing::Outgoing;
use crate::master::workers::trust::Believed;
use crate::master::workers::worker::Worker;
use crate::master::{Handed, Master, Token};
use crate::pool::MemberState;
use crate::proto::channel::{MethodName, VERSION};
use crate::proto::names::{Generation, WorkerId};
use crate::proto::paths::{Exact, exact};
use crate::shm::{Counters, LAYOUT_VERSION, Layout, MasterShm};
use crate::sys::inherited::LeftOpen;
use crate::sys::memory::plain_file;
use crate::sys::poll::Interest;

/// A master, to be gone on with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UpgradeSnapshot {
    /// Of all that is here, and the oldest version that can read it.
    pub(crate) version: u64,
    #[serde(default)]
    oldest: u64,
    /// Of the channel, and of the layout of shared memory.
    pub(crate) channel: u32,
    #[serde(default = "first_layout")]
    layout: u32,
    pub(crate) name: String,
    #[serde(rename = "handover")]
    pub(crate) saved_state: SavedState,
    next_client: u64,
    refused: u64,
    #[serde(with = "exact")]
    standard_file: PathBuf,
    #[serde(with = "exact", default)]
    executable: Option<PathBuf>,
    /// Whether the program is the one that wrote this. None by a version that does not ask for that.
    #[serde(default)]
    pub(crate) same: Option<bool>,
    up: Duration,
    control: (RawFd, Exact),
    /// The log file, if lines go to one.
    #[serde(default)]
    pub(crate) log: Option<RawFd>,
    listeners: Vec<(ListenerRecord, RawFd)>,
    handed: Vec<(String, RawFd)>,
    #[serde(rename = "boats")]
    handoff_queues: Vec<(RawFd, RawFd)>,
    #[serde(rename = "book")]
    state_file: Option<RawFd>,
    /// Names under which the service manager has what it keeps.
    #[serde(default)]
    stored: BTreeSet<String>,
    workers: Vec<WorkerSnapshot>,
    control_clients: Vec<ControlSnapshot>,
}

/// That of version 0.1.0, which did not tell it.
fn first_layout() -> u32 {
    1
}

#[derive(Debug, Serialize, Deserialize)]
struct WorkerSnapshot {
    id: WorkerId,
    pid: u32,
    seat: usize,
    generation: Generation,
    up: Duration,
    channel: RawFd,
    #[serde(rename = "desk")]
    shm: RawFd,
    slots: u32,
    longest: u32,
    methods: Vec<MethodName>,
    is_held: bool,
    /// What is believed of its counters, if those are not believed any more.
    #[serde(default)]
    counters: Option<Counters>,
    leases: LeasesSnapshot,
}

/// What goes on while this process becomes another program.
#[derive(Debug)]
pub(crate) struct CarriedOver {
    pub(crate) next_client: u64,
    pub(crate) refused: u64,
    pub(crate) started: Instant,
    pub(crate) control: Option<ControlListener>,
    pub(crate) executable: Option<PathBuf>,
    /// Whether this program is the same as before.
    pub(crate) is_same: bool,
    pub(crate) control_clients: Vec<(OwnedFd, ControlSnapshot)>,
    pub(crate) workers: Vec<(Worker, bool)>,
    /// They are of another version, and are to be replaced before anything is leased to them.
    pub(crate) are_foreign: bool,
}

/// A master that this process was before it became this program.
#[derive(Debug)]
pub struct Resumed {
    /// The daemon's name.
    pub name: String,
    /// What was in force.
    pub loaded: Loaded,
    /// Its file.
    pub config_file: Option<PathBuf>,
    /// Where that would be.
    pub standard_file: PathBuf,
    /// What was handed over to it.
    pub handed: Handed,
    /// All the rest.
    pub inherited: Inherited,
    /// The log file, as it was open.
    pub log: Option<File>,
}

impl UpgradeSnapshot {
    /// Written into a file.
    pub(crate) fn write(&self) -> io::Result<File> {
        let text = serde_json::to_vec(self)?;
        let file = plain_file(c"snapshot")?;
        file.write_all_at(&text, 0)?;
        Ok(file)
    }

    /// Reads one, as far as the length tells.
    pub(crate) fn read(file: &File, length: u64) -> Result<UpgradeSnapshot, String> {
        let mut text = vec![0; usize::try_from(length).map_err(|e| e.to_string())?];
        file.read_exact_at(&mut text, 0)
            .map_err(|e| e.to_string())?;
        serde_json::from_slice(&text).map_err(|e| format!("cannot read the state: {e}"))
    }

    /// Whether this program can go on with it.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self) -> Result<Loaded, String> {
        check_version(self.version, self.oldest)
            .map_err(|why| format!("cannot read the state: {why}"))?;
        if Layout::with_version(self.layout, 1, 1).is_none() {
            return Err(format!(
                "the shared memory of its workers has layout {}, which it does not know",
                self.layout
            ));
        }
        let known = self.saved_state.identities.as_ref();
        let config = Config::parse_kept(
            &self.saved_state.config,
            "the configuration in force",
            known,
        )
        .map_err(|e| {
            format!(
                "the configuration in force is not good for it: {}",
                e.message()
            )
        })?;
        Ok(Loaded {
            config,
            keys: self.saved_state.config_keys.clone(),
            files: self.saved_state.config_files.clone(),
        })
    }

    /// Whether its workers speak another channel, or have shared memory of another layout.
    pub(crate) fn has_foreign_workers(&self) -> bool {
        self.channel != VERSION || self.layout != LAYOUT_VERSION
    }

    /// Takes over all descriptors.
    ///
    /// # Errors
    /// When one of them is not there, or shared memory is none.
    fn revive(self, loaded: Loaded) -> io::Result<Resumed> {
        let (mut left, now) = (LeftOpen::default(), Instant::now());
        let are_foreign = self.has_foreign_workers();
        let ago = |up: Duration| now.checked_sub(up).unwrap_or(now);
        let mut workers = Vec::new();
        for snapshot in self.workers {
            let WorkerSnapshot {
                id,
                pid,
                seat,
                generation,
                up,
                channel,
                shm,
                slots,
                longest,
                methods,
                ..
            } = snapshot;
            let WorkerSnapshot {
                is_held,
                counters,
                leases,
                ..
            } = snapshot;
            let layout = Layout::with_version(self.layout, slots, longest)
                .ok_or(io::ErrorKind::InvalidData)?;
            let shm = MasterShm::from_file(File::from(left.take(shm)?), layout)?;
            let channel = Channel::new(left.take(channel)?);
            let leases = Leases::from_snapshot(slots, leases, |number| left.take(number))?;
            let mut worker = Worker::adopt(
                (id, pid, seat, generation),
                channel,
                shm,
                leases,
                methods,
                ago(up),
            );
            // A snapshot is made when none is starting.
            worker.has_been_ready = true;
            if let Some(counters) = counters {
                worker.believed = Believed::with_counters(counters, Instant::now());
            }
            workers.push((worker, is_held));
        }
        let control = Some(ControlListener::from_fd(
            left.take(self.control.0)?,
            &self.control.1.0,
        ));
        let log = self
            .log
            .and_then(|number| left.take(number).ok())
            .map(File::from);
        let mut ends = Vec::new();
        for (into, out) in self.handoff_queues {
            ends.push(QueueEnds {
                into: Channel::new(left.take(into)?),
                out: Channel::new(left.take(out)?),
            });
        }
        let state_file = self
            .state_file
            .map(|state_file| left.take(state_file))
            .transpose()?
            .map(File::from);
        let state_file = state_file
            .map(StateFile::open)
            .transpose()
            .map_err(io::Error::other)?;
        let mut take = |number| left.take(number);
        let listeners = self
            .listeners
            .into_iter()
            .map(|(record, number)| Ok((record, take(number)?)));
        let listeners = listeners.collect::<io::Result<_>>()?;
        let handed = self
            .handed
            .into_iter()
            .map(|(name, number)| Ok((name, take(number)?)));
        let handed = Handed::from_named(handed.collect::<io::Result<_>>()?);
        let control_clients = self.control_clients.into_iter();
        let control_clients = control_clients
            .filter_map(|client| Some((take(client.socket).ok()?, client)))
            .collect();
        let (next_client, refused, executable) = (self.next_client, self.refused, self.executable);
        let is_same = self.same.unwrap_or(false);
        let started = ago(self.up);
        let carried_over = CarriedOver {
            next_client,
            refused,
            started,
            control,
            executable,
            is_same,
            control_clients,
            workers,
            are_foreign,
        };
        let config_file = self.saved_state.config_file.clone();
        let kept = state_file.map(|state_file| {
            (
                state_file,
                ReceivedHandoff::empty(HandoffQueues::from_ends(ends)),
            )
        });
        let stored = Stored {
            names: self.stored,
            ..Stored::default()
        };
        let (saved_state, carried_over, faults) =
            (self.saved_state, Some(carried_over), Vec::new());
        let inherited = Inherited {
            saved_state,
            kept,
            listeners,
            carried_over,
            stored,
            faults,
        };
        let standard_file = self.standard_file;
        Ok(Resumed {
            name: self.name,
            loaded,
            config_file,
            standard_file,
            handed,
            inherited,
            log,
        })
    }
}

/// Goes on with the master that this process was, by the number of the file that it left.
///
/// # Errors
/// Why that cannot be.
pub fn resume(number: &str) -> Result<Resumed, String> {
    let number = number
        .parse()
        .map_err(|_| "the location of the state is missing".to_owned())?;
    let file = LeftOpen::default()
        .take(number)
        .map(File::from)
        .map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let snapshot = UpgradeSnapshot::read(&file, length)?;
    let loaded = snapshot.check()?;
    snapshot
        .revive(loaded)
        .map_err(|e| format!("the state is incomplete: {e}"))
}

impl Master {
    /// All of it, and the descriptors that are in it. None while something is under way that it does not tell of.
    pub(crate) fn snapshot(&self, now: Instant) -> Option<UpgradeSnapshot> {
        let is_quiet = self.clients.unleased.is_empty()
            && self.clients.handshakes.is_empty()
            && self.workers.all.values().all(Worker::is_told_all);
        if !is_quiet || !self.workers.pool.is_settled() {
            return None;
        }
        let workers = self
            .workers
            .all
            .values()
            .map(|worker| self.worker_snapshot(worker, now))
            .collect::<Option<_>>()?;
        Some(UpgradeSnapshot {
            workers,
            control_clients: self.control.clients.snapshot(),
            ..self.snapshot_to_check()
        })
    }

    /// The same without workers: enough to find out whether a program could go on with it.
    pub(crate) fn snapshot_to_check(&self) -> UpgradeSnapshot {
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd();
        let listeners = self
            .listeners
            .all
            .iter()
            .filter_map(|listener| Some((listener.record()?, number(listener.as_fd()))));
        let store = self.handover.store.as_ref();
        let ends = store.into_iter().flat_map(|store| store.queues.ends());
        UpgradeSnapshot {
            version: MAGIC,
            oldest: OLDEST,
            channel: VERSION,
            layout: LAYOUT_VERSION,
            name: self.name.clone(),
            saved_state: self.saved_state(),
            next_client: self.clients.next_id,
            refused: self.telemetry.counts.refused,
            standard_file: self.settings.standard_file.clone(),
            executable: self.handover.executable_path.clone(),
            same: Some(self.handover.upgrade.as_ref().is_some_and(Upgrade::is_same)),
            up: self.started.elapsed(),
            control: (
                number(self.control.listener.as_fd()),
                Exact(self.control.listener.path().to_owned()),
            ),
            log: None,
            listeners: listeners.collect(),
            handed: self
                .listeners
                .activated
                .iter()
                .map(|(name, socket)| (name.clone(), number(socket.as_fd())))
                .collect(),
            handoff_queues: ends
                .map(|ends| (number(ends.into.as_fd()), number(ends.out.as_fd())))
                .collect(),
            state_file: store.map(|store| number(store.state_file().file().as_fd())),
            stored: store
                .map(|store| store.stored().clone())
                .unwrap_or_default(),
            workers: Vec::new(),
            control_clients: Vec::new(),
        }
    }

    fn worker_snapshot(&self, worker: &Worker, now: Instant) -> Option<WorkerSnapshot> {
        let layout = worker.shm.layout();
        let state = self.workers.pool.member(worker.id)?.state;
        Some(WorkerSnapshot {
            id: worker.id,
            pid: worker.pid,
            seat: worker.seat,
            generation: worker.generation,
            up: now.duration_since(worker.started),
            channel: worker.channel.as_fd().as_raw_fd(),
            shm: worker.shm.file().as_raw_fd(),
            slots: layout.slots(),
            longest: layout.max_frame(),
            methods: worker.methods.clone(),
            is_held: matches!(state, MemberState::Held { .. }),
            counters: worker.believed.last().cloned(),
            leases: worker.leases.snapshot()?,
        })
    }

    /// The descriptors that a snapshot tells of.
    pub(crate) fn left_open(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.control.listener.as_fd()];
        all.extend(
            self.listeners
                .all
                .iter()
                .filter(|listener| listener.record().is_some())
                .map(|l| l.as_fd()),
        );
        all.extend(
            self.listeners
                .activated
                .iter()
                .map(|(_, socket)| socket.as_fd()),
        );
        if let Some(store) = &self.handover.store {
            all.push(store.state_file().file().as_fd());
            all.extend(
                store
                    .queues
                    .ends()
                    .iter()
                    .flat_map(|ends| [ends.into.as_fd(), ends.out.as_fd()]),
            );
        }
        for worker in self.workers.all.values() {
            all.extend([worker.channel.as_fd(), worker.shm.file().as_fd()]);
            all.extend(worker.leases.sockets());
        }
        all.extend(self.control.clients.sockets());
        all
    }

    /// Goes on with the workers and control clients that this process has had.
    pub(crate) fn go_on(&mut self, carried_over: CarriedOver, now: Instant) -> io::Result<()> {
        let CarriedOver {
            next_client,
            refused,
            executable,
            is_same,
            control_clients,
            workers,
            are_foreign,
            ..
        } = carried_over;
        self.handover.is_same_program = is_same;
        (
            self.clients.next_id,
            self.telemetry.counts.refused,
            self.handover.executable_path,
        ) = (next_client, refused, executable);
        // Nobody is told again where it listens.
        self.manager.announce = None;
        for (worker, is_held) in workers {
            self.poller.add(
                &worker.channel,
                Token::Worker(worker.id).into(),
                Interest::Read,
            )?;
            if !are_foreign {
                self.workers
                    .pool
                    .adopt(worker.id, worker.seat, worker.generation, is_held, now);
            }
            self.clients.add(worker.leases.clients() as u64);
            self.workers.all.insert(worker.id, worker);
        }
        if are_foreign {
            self.workers.pool.disable_give_up();
            self.workers.outgoing = Some(Outgoing::new(
                now,
                self.settings.config.limits.restart_grace,
            ));
        }
        self.clients.addresses = self
            .workers
            .count_addresses(&self.settings.config, &self.clients);
        self.control
            .clients
            .adopt(control_clients, &self.poller, now);
        self.watch_from(now);
        self.note_upgraded();
        Ok(())
    }
}
