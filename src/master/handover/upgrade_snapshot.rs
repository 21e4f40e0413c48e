//! The snapshot of a master for the program that it executes in an upgrade.
//!
//! Processes, descriptors, shared memory and leases continue; a snapshot leaves out only what can be found out again.
//! It is JSON in a memory file, with the numbers of all descriptors; the program gets the number of the file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::{Config, Loaded};
use crate::master::Master;
use crate::master::clients::leases::snapshot::LeasesSnapshot;
use crate::master::control::connection::ControlSnapshot;
use crate::master::handover::state_file::{MAGIC, OLDEST, SavedState, check_version};
use crate::master::listeners::record::ListenerRecord;
use crate::master::listeners::socket_file::FileIdentity;
use crate::master::workers::app::WorkerApp;
use crate::master::workers::worker::Worker;
use crate::pool::MemberState;
use crate::proto::channel::{MethodName, RuntimeInfo, VERSION};
use crate::proto::names::{Generation, WorkerId};
use crate::proto::paths::{Exact, exact};
use crate::shm::{Counters, LAYOUT_VERSION, Layout};
use crate::sys::memory::plain_file;

/// The state of a master that continues as another program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UpgradeSnapshot {
    #[serde(flatten)]
    pub(crate) versions: Versions,
    pub(crate) name: String,
    #[serde(rename = "handover")]
    pub(crate) saved_state: SavedState,
    pub(crate) next_client: u64,
    pub(crate) refused: u64,
    #[serde(with = "exact")]
    pub(crate) standard_file: PathBuf,
    #[serde(with = "exact", default)]
    pub(crate) executable: Option<PathBuf>,
    /// Whether the program that reads this snapshot is the one that wrote it. `None` in snapshots of older versions.
    #[serde(default)]
    pub(crate) same: Option<bool>,
    pub(crate) up: Duration,
    /// Why the configuration in force is not that of the file.
    #[serde(default)]
    pub(crate) stale: Option<String>,
    pub(crate) control: (RawFd, Exact),
    /// The file of the control socket.
    #[serde(default)]
    pub(crate) control_file: Option<FileIdentity>,
    /// The log file, if lines go to one.
    #[serde(default)]
    pub(crate) log: Option<RawFd>,
    pub(crate) listeners: Vec<(ListenerRecord, RawFd)>,
    #[serde(rename = "handed")]
    pub(crate) activated: Vec<(String, RawFd)>,
    #[serde(rename = "boats")]
    pub(crate) handoff_queues: Vec<(RawFd, RawFd)>,
    #[serde(rename = "book")]
    pub(crate) state_file: Option<RawFd>,
    #[serde(flatten)]
    pub(crate) manager: ManagerSnapshot,
    pub(crate) workers: Vec<WorkerSnapshot>,
    pub(crate) control_clients: Vec<ControlSnapshot>,
}

/// The link to the service manager, as far as it continues.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ManagerSnapshot {
    /// Names in its store.
    pub(crate) stored: BTreeSet<String>,
    /// Messages without descriptors that it has not accepted yet.
    pub(crate) unsent: Vec<String>,
}

/// The versions of what a snapshot describes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Versions {
    /// The version of the snapshot, and the oldest version that can read it.
    version: u64,
    #[serde(default)]
    oldest: u64,
    /// The versions of the channel and of the layout of shared memory.
    channel: u32,
    #[serde(default = "first_layout")]
    pub(crate) layout: u32,
}

/// Returns the layout of version 0.1.0, which did not record it.
fn first_layout() -> u32 {
    1
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerSnapshot {
    pub(crate) id: WorkerId,
    pub(crate) pid: u32,
    pub(crate) seat: usize,
    pub(crate) generation: Generation,
    pub(crate) up: Duration,
    pub(crate) channel: RawFd,
    #[serde(rename = "desk")]
    pub(crate) shm: RawFd,
    pub(crate) slots: u32,
    pub(crate) longest: u32,
    pub(crate) methods: Vec<MethodName>,
    pub(crate) is_held: bool,
    /// The last valid counters, if they have become invalid.
    #[serde(default)]
    pub(crate) counters: Option<Counters>,
    #[serde(default)]
    pub(crate) app: WorkerApp,
    #[serde(default)]
    pub(crate) runtime: Option<RuntimeInfo>,
    /// Why the worker is unhealthy.
    #[serde(default)]
    pub(crate) unhealthy: Option<String>,
    pub(crate) leases: LeasesSnapshot,
}

impl UpgradeSnapshot {
    /// Writes it into a file.
    pub(crate) fn write(&self) -> io::Result<File> {
        let text = serde_json::to_vec(self)?;
        let file = plain_file(c"snapshot")?;
        file.write_all_at(&text, 0)?;
        Ok(file)
    }

    /// Reads a snapshot of this length.
    pub(crate) fn read(file: &File, length: u64) -> Result<UpgradeSnapshot, String> {
        let mut text = vec![0; usize::try_from(length).map_err(|e| e.to_string())?];
        file.read_exact_at(&mut text, 0)
            .map_err(|e| e.to_string())?;
        serde_json::from_slice(&text).map_err(|e| format!("cannot read the state: {e}"))
    }

    /// Checks that this program can continue with it. Returns the configuration in force.
    ///
    /// # Errors
    /// The reason why it cannot.
    pub(crate) fn check(&self) -> Result<Loaded, String> {
        check_version(self.versions.version, self.versions.oldest)
            .map_err(|why| format!("cannot read the state: {why}"))?;
        if Layout::with_version(self.versions.layout, 1, 1).is_none() {
            return Err(format!(
                "the shared memory of its workers has layout {}, which it does not know",
                self.versions.layout
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
            given: self.saved_state.given(),
            files: self.saved_state.config_files.clone(),
        })
    }

    /// Returns whether its workers use another version of the channel or of the shared memory.
    pub(crate) fn has_foreign_workers(&self) -> bool {
        self.versions.channel != VERSION || self.versions.layout != LAYOUT_VERSION
    }
}

impl Master {
    /// Returns the snapshot, or `None` while something is in progress that it cannot describe.
    pub(crate) fn snapshot(&self, now: Instant) -> Option<UpgradeSnapshot> {
        let is_quiet = self.clients.unleased.is_empty()
            && self.clients.handshakes.is_empty()
            && self.clients.ending_apps.is_empty()
            && self.listeners.have_followed_drain()
            && self.workers.all.values().all(Worker::has_sent_all);
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

    /// Returns the snapshot without workers, which is enough to check whether a program can continue with it.
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
            versions: Versions {
                version: MAGIC,
                oldest: OLDEST,
                channel: VERSION,
                layout: LAYOUT_VERSION,
            },
            name: self.name.clone(),
            saved_state: self.saved_state(),
            next_client: self.clients.next_id,
            refused: self.telemetry.counts.refused,
            standard_file: self.settings.standard_file.clone(),
            executable: self.handover.executable_path.clone(),
            same: Some(self.handover.is_upgrade_to_same()),
            up: self.started.elapsed(),
            stale: self.settings.stale.clone(),
            control: (
                number(self.control.listener.as_fd()),
                Exact(self.control.listener.path().to_owned()),
            ),
            control_file: Some(self.control.listener.file_identity()),
            log: None,
            listeners: listeners.collect(),
            activated: self
                .listeners
                .activated
                .iter()
                .map(|(name, socket)| (name.clone(), number(socket.as_fd())))
                .collect(),
            handoff_queues: ends
                .map(|ends| (number(ends.into.as_fd()), number(ends.out.as_fd())))
                .collect(),
            state_file: store.map(|store| number(store.state_file.file().as_fd())),
            manager: ManagerSnapshot {
                stored: store
                    .map(|store| store.stored.names.clone())
                    .unwrap_or_default(),
                unsent: self.manager.notifier.unsent(),
            },
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
            counters: worker.trusted.last().cloned(),
            app: worker.app.clone(),
            runtime: worker.runtime,
            unhealthy: worker.unhealthy.clone(),
            leases: worker.leases.snapshot()?,
        })
    }

    /// Returns the descriptors of a snapshot.
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
            all.push(store.state_file.file().as_fd());
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
}
