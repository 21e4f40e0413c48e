//! The master's record of a worker: its process, its channel, its shared memory, and its candidacy in dispatch.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use std::{fmt, io};

use crate::channel::{Channel, Sent};
use crate::config::variables_of;
use crate::master::clients::leases::Leases;
use crate::master::telemetry::counters::Cause;
use crate::master::workers::NOT_NOW;
use crate::master::workers::app::WorkerApp;
use crate::master::workers::channel_state::{ChannelState, SendState};
use crate::master::workers::trusted_counters::TrustedCounters;
use crate::master::workers::write_account::WriteAccount;
use crate::master::workers::zygote::ForkedWorker;
use crate::pool::candidates::Candidate;
use crate::proto::channel::{MAX_LEASES, MethodName, RuntimeInfo, Start, ToMaster, ToWorker};
use crate::proto::control::About;
use crate::proto::handoff::ShmRecord;
use crate::proto::names::{Generation, WorkerId};
use crate::shm::{Layout, MasterShm};
use crate::sys::process::{self, Executable};

/// The most leases of new clients that a worker has not picked up: this many new clients can wait behind a request that
/// blocks it.
const NEW_WINDOW: usize = 16;

/// The most leases that a worker has not picked up, for clients that were leased before. They must be served anyway,
/// and few large messages cost less than many small ones.
const LEASED_WINDOW: u64 = 4 * MAX_LEASES as u64;

/// A worker process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) pid: u32,
    pub(crate) seat: usize,
    pub(crate) generation: Generation,
    pub(crate) started: Instant,
    pub(crate) channel: Channel<ToWorker, ToMaster>,
    pub(crate) shm: MasterShm,
    pub(crate) writes: WriteAccount,
    pub(crate) leases: Leases,
    /// The numbers of the last leases of new clients, as [`Leases::granted`] counts them.
    new_leases: VecDeque<u64>,
    pub(crate) methods: Vec<MethodName>,
    /// Why the worker is unhealthy, as its health function or its app reports it.
    pub(crate) unhealthy: Option<String>,
    /// Why the worker does not become ready, as it reports it, or why the master is killing it.
    pub(crate) failure: Option<String>,
    pub(crate) app: WorkerApp,
    /// The runtime of its asynchronous methods, if it has one.
    pub(crate) runtime: Option<RuntimeInfo>,
    pub(crate) life: Life,
    /// The worker's counters, as far as they are plausible.
    pub(crate) trusted: TrustedCounters,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) app_watch: AppWatch,
    pub(super) channel_state: ChannelState,
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Starting,
    /// The worker serves, or could.
    Serving,
    /// The master is killing the worker.
    Killed {
        why: KillReason,
        has_served: bool,
    },
}

impl Life {
    pub(crate) fn has_served(self) -> bool {
        matches!(
            self,
            Life::Serving
                | Life::Killed {
                    has_served: true,
                    ..
                }
        )
    }

    /// Returns the reason for which the master is killing the worker, if it is.
    pub(crate) fn kill_reason(self) -> Option<KillReason> {
        match self {
            Life::Killed { why, .. } => Some(why),
            Life::Starting | Life::Serving => None,
        }
    }
}

/// Reasons why the master kills a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// The worker was not ready, or not gone, in time.
    Late,
    /// The worker is stuck, in no request.
    Stuck,
    /// A request has executed for too long.
    TimedOut,
    /// The worker has broken the protocol of its channel, or the channel cannot be used.
    Broken,
    /// The worker is of no use any more, which is not a failure of its own.
    Unneeded,
}

impl KillReason {
    /// Returns the cause of the death if it is a failure of the worker.
    pub(crate) fn cause(self) -> Option<Cause> {
        match self {
            KillReason::Late => Some(Cause::Late),
            KillReason::Stuck | KillReason::TimedOut => Some(Cause::Timeout),
            KillReason::Broken => Some(Cause::Crash),
            KillReason::Unneeded => None,
        }
    }
}

/// When the loop of a worker was last seen to run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heartbeat {
    /// The number of heartbeats then.
    pub(crate) count: u64,
    /// Since when a ping has been unanswered.
    pub(crate) pinged_at: Option<Instant>,
    /// The CPU time of the worker at the first check that found it in a turn or with an unanswered ping.
    pub(crate) ran: Option<Duration>,
}

/// The earlier values by which the master finds out whether a worker's app or runtime works.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AppWatch {
    /// The app's CPU time when requests were first found waiting for a permit.
    pub(super) ran: Option<Duration>,
    /// The requests that were answered when the worker was found stuck because of its app.
    pub(super) stuck_at: Option<u64>,
}

impl Worker {
    /// Kills the process. Its death is collected like every other.
    pub(crate) fn kill(&self) {
        if let Err(e) = process::kill_child(self.pid) {
            log::error!("cannot kill {}: {e}", self.name());
        }
    }

    /// Kills the process and records the reason, to which its death is attributed.
    pub(crate) fn kill_for(&mut self, why: KillReason) {
        let has_served = self.life.has_served();
        self.life = Life::Killed { why, has_served };
        if why == KillReason::TimedOut {
            self.shm.header().set_timed_out();
        }
        self.kill();
    }

    /// Kills the process because its channel cannot be used. A process that is being killed keeps the first reason.
    pub(crate) fn kill_for_error(&mut self, error: &dyn fmt::Display) {
        log::error!("{}: {error}; killing it", self.name());
        match self.life.kill_reason() {
            None => {
                self.failure = Some(error.to_string());
                self.kill_for(KillReason::Broken);
            }
            Some(_) => self.kill(),
        }
    }

    /// Starts a worker and sends it its settings. Its messages arrive over its channel.
    ///
    /// # Errors
    /// Those of the system calls; [`NOT_NOW`] when the kernel accepts no more descriptors at the moment.
    pub(crate) fn spawn(
        executable: &Executable,
        start: Start,
        queues: Vec<BorrowedFd<'_>>,
        layout: Layout,
        now: Instant,
    ) -> io::Result<Worker> {
        let (mut channel, theirs) = Channel::pair()?;
        let (id, name) = (start.worker, start.name.clone());
        let arguments = ["worker".to_owned(), id.to_string()];
        let seat = (start.seat as usize, start.generation);
        // The message is sent before the process starts, so that the process finds it in the channel.
        let shm = send_start(&mut channel, start, queues, layout)?;
        let pid = executable.spawn(&name, &arguments, theirs, &variables_of(&name))?;
        Ok(Worker::new((id, pid, seat.0, seat.1), channel, shm, now))
    }

    /// Sends a process that a zygote has forked its settings.
    ///
    /// # Errors
    /// As [`Worker::spawn`]. The process exits then, because its channel closes.
    pub(crate) fn begin(
        ForkedWorker { pid, mut channel }: ForkedWorker,
        start: Start,
        queues: Vec<BorrowedFd<'_>>,
        layout: Layout,
        now: Instant,
    ) -> io::Result<Worker> {
        let identity = (start.worker, pid, start.seat as usize, start.generation);
        let shm = send_start(&mut channel, start, queues, layout)?;
        Ok(Worker::new(identity, channel, shm, now))
    }

    fn new(
        identity: (WorkerId, u32, usize, Generation),
        channel: Channel<ToWorker, ToMaster>,
        shm: MasterShm,
        now: Instant,
    ) -> Worker {
        let leases = Leases::new(shm.layout().slots());
        Worker::adopt(identity, channel, shm, leases, Vec::new(), now)
    }

    /// Creates the record of a running worker: one just started, or one from before this process became this program.
    pub(crate) fn adopt(
        (id, pid, seat, generation): (WorkerId, u32, usize, Generation),
        channel: Channel<ToWorker, ToMaster>,
        shm: MasterShm,
        leases: Leases,
        methods: Vec<MethodName>,
        started: Instant,
    ) -> Worker {
        Worker {
            id,
            pid,
            seat,
            generation,
            started,
            channel,
            shm,
            writes: WriteAccount::new(pid),
            leases,
            new_leases: VecDeque::new(),
            methods,
            unhealthy: None,
            failure: None,
            app: WorkerApp::default(),
            runtime: None,
            life: Life::Starting,
            trusted: TrustedCounters::new(started),
            heartbeat: Heartbeat::default(),
            app_watch: AppWatch::default(),
            channel_state: ChannelState::default(),
        }
    }

    /// Returns the record of the worker's shared memory for a handoff queue.
    pub(crate) fn shm_record(&self) -> ShmRecord {
        let worker = (self.id, self.seat as u32, self.generation);
        self.shm.layout().record(worker, self.methods.clone())
    }

    /// Returns the subject of an event about this worker.
    pub(crate) fn about(&self) -> About {
        About {
            worker: Some(self.id),
            pid: Some(self.pid),
            seat: Some(self.seat as u32),
            generation: Some(self.generation),
            ..About::default()
        }
    }

    /// Returns the worker's name for messages.
    pub(crate) fn name(&self) -> String {
        format!(
            "worker {} (pid {}, gen {})",
            self.id, self.pid, self.generation
        )
    }

    /// Returns the worker as dispatch sees it with as little to do as it can have, without looking at shared memory.
    pub(super) fn at_rest(&self) -> Candidate {
        Candidate {
            worker: self.id,
            has_capacity: true,
            is_unhealthy: self.unhealthy.is_some(),
            clients: self.leases.clients() as u64,
            ..Candidate::default()
        }
    }

    /// Returns the worker as dispatch sees it, as a candidate for clients; `now` is ns of CLOCK_MONOTONIC.
    pub(crate) fn candidate(&self, was_leased: bool, now: u64) -> Candidate {
        let header = self.shm.header();
        let picked_up = header.picked_up();
        Candidate {
            has_capacity: match was_leased {
                true => self.accepts(picked_up, LEASED_WINDOW),
                false => self.accepts_new(picked_up),
            },
            executing: header.in_progress(),
            not_picked_up: self.leases.granted().saturating_sub(picked_up),
            busy: (header.busy(now).clamp(0.0, 1.0) * 8.0) as u8,
            ..self.at_rest()
        }
    }

    /// Returns whether the worker may be given one more client, when `window` is the limit of those that are not picked
    /// up.
    fn accepts(&self, picked_up: u64, window: u64) -> bool {
        let accepts = match self.channel_state.send_state {
            SendState::Open => true,
            SendState::Full { .. } | SendState::Refused => false,
            SendState::Throttled { picked_up: then } => picked_up > then,
        };
        let not_picked_up = self.leases.granted().saturating_sub(picked_up);
        accepts && not_picked_up < window && self.leases.has_free_slot()
    }

    /// Returns whether the worker may be given a new client: few new ones wait behind a request that blocks it, and
    /// while others move to it, it still gets some.
    fn accepts_new(&self, picked_up: u64) -> bool {
        let new = self.new_leases.iter().rev();
        let not_picked_up = new.take_while(|number| **number > picked_up).count();
        not_picked_up < NEW_WINDOW && self.accepts(picked_up, LEASED_WINDOW + NEW_WINDOW as u64)
    }

    /// Notes that the lease given last is that of a new client.
    pub(super) fn note_new(&mut self) {
        let picked_up = self.shm.header().picked_up();
        while self
            .new_leases
            .front()
            .is_some_and(|first| *first <= picked_up)
        {
            self.new_leases.pop_front();
        }
        self.new_leases.push_back(self.leases.granted());
    }

    /// Forgets the new leases that were withdrawn.
    pub(super) fn forget_withdrawn(&mut self) {
        let granted = self.leases.granted();
        while self.new_leases.back().is_some_and(|last| *last > granted) {
            self.new_leases.pop_back();
        }
    }

    /// Returns how many clients the worker may be given, when `window` is the limit of those that are not picked up.
    pub(super) fn space(&self, window: u64) -> usize {
        let picked_up = self.shm.header().picked_up();
        if !self.accepts(picked_up, window) {
            return 0;
        }
        let not_picked_up = self.leases.granted().saturating_sub(picked_up);
        let left = usize::try_from(window.saturating_sub(not_picked_up)).unwrap_or(usize::MAX);
        left.min(self.leases.free_slots())
    }

    /// Returns whether the worker may be given a new client.
    pub(crate) fn has_capacity(&self) -> bool {
        self.accepts_new(self.shm.header().picked_up())
    }

    /// Asks the worker to report when it picks up more. Returns whether it has capacity already.
    pub(crate) fn want_capacity(&self) -> bool {
        self.accepts_new(self.shm.header().want_capacity())
    }
}

/// Creates the shared memory of a worker and sends it with the settings.
fn send_start(
    channel: &mut Channel<ToWorker, ToMaster>,
    start: Start,
    queues: Vec<BorrowedFd<'_>>,
    layout: Layout,
) -> io::Result<MasterShm> {
    let shm = MasterShm::new(layout)?;
    let descriptors: Vec<BorrowedFd<'_>> =
        std::iter::once(shm.file().as_fd()).chain(queues).collect();
    match channel.send(&ToWorker::Start(Box::new(start)), &descriptors)? {
        // The other end is closed if the process has ended already. Its death is collected.
        Sent::Queued | Sent::Closed => Ok(shm),
        // The new queue is empty, so the limit of descriptors in flight is reached.
        Sent::Full | Sent::Shortage => Err(io::Error::new(
            NOT_NOW,
            "too many descriptors are under way",
        )),
    }
}
