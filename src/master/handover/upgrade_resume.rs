//! Continues as another program with the state of the program before: see [`UpgradeSnapshot`].

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::config::Loaded;
use crate::master::clients::leases::Leases;
use crate::master::handover::carried_over::CarriedOver;
use crate::master::handover::inherited::Inherited;
use crate::master::handover::origin::MasterOrigin;
use crate::master::handover::queues::{HandoffQueues, QueueEnds};
use crate::master::handover::state_file::StateFile;
use crate::master::handover::store::Stored;
use crate::master::handover::unpack::ReceivedHandoff;
use crate::master::handover::upgrade_snapshot::{UpgradeSnapshot, WorkerSnapshot};
use crate::master::listeners::control_listener::ControlListener;
use crate::master::workers::trusted_counters::TrustedCounters;
use crate::master::workers::worker::{Life, Worker};
use crate::master::{ActivatedSockets, Announce, MasterSetup};
use crate::shm::{Layout, MasterShm};
use crate::sys::inherited::LeftOpen;

/// Continues with the master that this process was. `number` is that of the descriptor of its snapshot. Returns the
/// setup, and the log file if one was open.
///
/// # Errors
/// The reason why that is impossible.
pub fn resume(
    number: &str,
    version: &'static str,
    announcer: impl FnOnce(String) -> Announce,
) -> Result<(MasterSetup, Option<File>), String> {
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
        .revive(loaded, version, announcer)
        .map_err(|e| format!("the state is incomplete: {e}"))
}

/// Returns when something began that has lasted this long.
fn ago(now: Instant, lasted: Duration) -> Instant {
    now.checked_sub(lasted).unwrap_or(now)
}

impl WorkerSnapshot {
    /// Returns the worker, and whether it is held.
    fn revive(self, layout: u32, fds: &mut LeftOpen, now: Instant) -> io::Result<(Worker, bool)> {
        let layout = Layout::with_version(layout, self.slots, self.longest)
            .ok_or(io::ErrorKind::InvalidData)?;
        let shm = MasterShm::from_file(File::from(fds.take(self.shm)?), layout)?;
        let channel = Channel::new(fds.take(self.channel)?);
        let leases = Leases::from_snapshot(self.slots, self.leases, |number| fds.take(number))?;
        let identity = (self.id, self.pid, self.seat, self.generation);
        let started = ago(now, self.up);
        let mut worker = Worker::adopt(identity, channel, shm, leases, self.methods, started);
        // No snapshot is made while a worker is starting.
        worker.life = Life::Serving;
        worker.app = self.app;
        worker.runtime = self.runtime;
        worker.unhealthy = self.unhealthy;
        worker.writes.open();
        if let Some(counters) = self.counters {
            worker.trusted = TrustedCounters::with_counters(counters, now);
        }
        Ok((worker, self.is_held))
    }
}

/// Takes the descriptors of these records.
fn take_all<T>(fds: &mut LeftOpen, records: Vec<(T, RawFd)>) -> io::Result<Vec<(T, OwnedFd)>> {
    records
        .into_iter()
        .map(|(record, number)| Ok((record, fds.take(number)?)))
        .collect()
}

/// Takes the handoff queues and the state file; there is no store without a state file.
fn revive_store(
    queues: Vec<(RawFd, RawFd)>,
    state_file: Option<RawFd>,
    fds: &mut LeftOpen,
) -> io::Result<Option<(StateFile, ReceivedHandoff)>> {
    let ends = queues.into_iter().map(|(into, out)| {
        let into = Channel::new(fds.take(into)?);
        Ok(QueueEnds::from_channels(into, Channel::new(fds.take(out)?)))
    });
    let queues = HandoffQueues::from_ends(ends.collect::<io::Result<_>>()?);
    let Some(number) = state_file else {
        return Ok(None);
    };
    let state_file = StateFile::open(File::from(fds.take(number)?)).map_err(io::Error::other)?;
    Ok(Some((state_file, ReceivedHandoff::empty(queues))))
}

impl UpgradeSnapshot {
    /// Takes over all descriptors.
    ///
    /// # Errors
    /// When one of them is not open, or shared memory or the state file is invalid.
    fn revive(
        self,
        loaded: Loaded,
        version: &'static str,
        announcer: impl FnOnce(String) -> Announce,
    ) -> io::Result<(MasterSetup, Option<File>)> {
        let (mut fds, now) = (LeftOpen::default(), Instant::now());
        let (are_foreign, layout) = (self.has_foreign_workers(), self.versions.layout);
        let workers = self.workers.into_iter();
        let workers = workers
            .map(|worker| worker.revive(layout, &mut fds, now))
            .collect::<io::Result<_>>()?;
        let (number, path) = self.control;
        let control = ControlListener::from_fd(fds.take(number)?, &path.0, self.control_file);
        let log = self.log.and_then(|number| fds.take(number).ok());
        let kept = revive_store(self.handoff_queues, self.state_file, &mut fds)?;
        let listeners = take_all(&mut fds, self.listeners)?;
        let activated = ActivatedSockets::from_named(take_all(&mut fds, self.activated)?);
        let control_clients = self.control_clients.into_iter();
        let control_clients = control_clients
            .filter_map(|client| Some((fds.take(client.socket).ok()?, client)))
            .collect();
        let command_line = self.saved_state.command_line.clone();
        let is_dev = self.saved_state.is_dev;
        let config_file = self.saved_state.config_file.clone();
        let inherited = Inherited {
            saved_state: self.saved_state,
            kept,
            listeners,
            stored: Stored::with_names(self.manager.stored),
            faults: Vec::new(),
        };
        let carried_over = CarriedOver {
            next_client: self.next_client,
            refused: self.refused,
            started: ago(now, self.up),
            control: Some(control),
            executable: self.executable,
            is_same: self.same.unwrap_or(false),
            control_clients,
            unsent: self.manager.unsent,
            workers,
            are_foreign,
        };
        let setup = MasterSetup {
            announce: announcer(self.name.clone()),
            name: self.name,
            version,
            loaded,
            config_file,
            standard_file: self.standard_file,
            command_line,
            is_dev,
            activated,
            origin: MasterOrigin::Upgraded(Box::new(inherited), Box::new(carried_over)),
            config_stale: self.stale,
            missing_log: None,
        };
        Ok((setup, log.map(File::from)))
    }
}
