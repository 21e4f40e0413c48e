//! The master's record of a worker: its process, its channel, its shared memory, and its candidacy in dispatch.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use std::{fmt, io};

use crate::channel::{Channel, Sent};
use crate::master::Token;
use crate::master::clients::leases::{Leases, Recovered};
use crate::master::telemetry::counters::Cause;
use crate::master::workers::app::WorkerApp;
use crate::master::workers::heartbeat::AppWatch;
use crate::master::workers::trust::Believed;
use crate::pool::dispatch::Candidate;
use crate::proto::channel::{MAX_LEASES, MethodName, RuntimeInfo, Start, ToMaster, ToWorker};
use crate::proto::control::About;
use crate::proto::names::{Generation, WorkerId};
use crate::shm::{Layout, MasterShm};
use crate::sys::byte_counts::ProcessWrites;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable};

/// Most fresh leases that a worker may have without having picked them up: at most this many clients can wait behind a
/// request that blocks it.
const WINDOW: u64 = 16;

/// The same limit for clients that were leased before: they exist anyway, and few messages are better than many.
const RESCUE_WINDOW: u64 = 4 * MAX_LEASES as u64;

/// Kind of the error when a worker cannot be started because of what is in flight elsewhere. The start is retried soon.
pub(crate) const NOT_NOW: io::ErrorKind = io::ErrorKind::ResourceBusy;

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
    /// Bytes and calls written by the process, if the kernel counts them.
    pub(crate) writes: Option<ProcessWrites>,
    pub(crate) leases: Leases,
    pub(crate) methods: Vec<MethodName>,
    /// Why the worker is unhealthy, in the words of the daemon's own health function.
    pub(crate) unhealthy: Option<String>,
    /// Why the worker will not become ready, in its own words.
    pub(crate) failure: Option<String>,
    pub(crate) app: WorkerApp,
    /// The runtime of its asynchronous methods, if it has one.
    pub(crate) runtime: Option<RuntimeInfo>,
    pub(crate) life: Life,
    /// The worker's counters, as far as they are plausible.
    pub(crate) believed: Believed,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) app_watch: AppWatch,
    intake: Intake,
    /// Messages that wait for the channel.
    unsent: VecDeque<ToWorker>,
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Starting,
    /// The worker serves, or could.
    Serving,
    /// The master is killing the worker.
    Killed {
        why: Doom,
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
    pub(crate) fn doom(self) -> Option<Doom> {
        match self {
            Life::Killed { why, .. } => Some(why),
            Life::Starting | Life::Serving => None,
        }
    }
}

/// Reasons why the master kills a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doom {
    /// The worker was not ready, or not gone, in time.
    Late,
    /// The worker is stuck, in no request.
    Stuck,
    /// A request has executed for too long.
    TimedOut,
    /// The worker is of no use any more, which is no failure of its own.
    Unneeded,
}

impl Doom {
    /// Returns the cause of the death if it is a failure of the worker.
    pub(crate) fn cause(self) -> Option<Cause> {
        match self {
            Doom::Late => Some(Cause::Late),
            Doom::Stuck | Doom::TimedOut => Some(Cause::Timeout),
            Doom::Unneeded => None,
        }
    }
}

/// Whether a worker may be given leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    Open,
    /// The channel accepts no message; `is_watched` if the poller reports when it does again.
    Full {
        is_watched: bool,
    },
    /// No lease could be sent when this number was picked up: there is space when it is higher.
    Throttled {
        picked_up: u64,
    },
}

/// When the loop of a worker was last seen to run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heartbeat {
    /// The number of heartbeats then.
    pub(crate) heartbeats: u64,
    /// Since when a ping has been unanswered.
    pub(crate) asked: Option<Instant>,
    /// How long the worker had run when it was first found silent.
    pub(crate) ran: Option<Duration>,
}

impl Worker {
    /// Kills the process. Its death is collected like every other.
    pub(crate) fn kill(&self) {
        if let Err(e) = process::kill_child(self.pid) {
            log::error!("cannot kill {}: {e}", self.name());
        }
    }

    /// Kills the process for a reason that its death will have.
    pub(crate) fn kill_for(&mut self, why: Doom) {
        let has_served = self.life.has_served();
        self.life = Life::Killed { why, has_served };
        self.kill();
    }

    /// Kills the process because its channel cannot be used.
    pub(crate) fn kill_for_error(&self, error: &dyn fmt::Display) {
        log::error!("{}: {error}; killing it", self.name());
        self.kill();
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
        let shm = MasterShm::new(layout)?;
        let (mut channel, theirs) = Channel::pair()?;
        let (id, seat, generation) = (start.worker, start.seat as usize, start.generation);
        let arguments = ["worker".to_owned(), id.to_string()];
        let name = start.name.clone();
        // This is sent first, so that a running worker finds it there.
        let descriptors: Vec<BorrowedFd<'_>> =
            std::iter::once(shm.file().as_fd()).chain(queues).collect();
        match channel.send(&ToWorker::Start(Box::new(start)), &descriptors)? {
            Sent::Queued => {}
            // The new queue is empty, so the limit of descriptors in flight is reached.
            Sent::Full | Sent::Closed => {
                return Err(io::Error::new(
                    NOT_NOW,
                    "too many descriptors are under way",
                ));
            }
        }
        let pid = executable.spawn(&name, &arguments, theirs)?;
        let leases = Leases::new(layout.slots());
        Ok(Worker::adopt(
            (id, pid, seat, generation),
            channel,
            shm,
            leases,
            Vec::new(),
            now,
        ))
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
            writes: ProcessWrites::open(pid).ok(),
            leases,
            methods,
            unhealthy: None,
            failure: None,
            app: WorkerApp::default(),
            runtime: None,
            life: Life::Starting,
            believed: Believed::new(started),
            heartbeat: Heartbeat::default(),
            app_watch: AppWatch::default(),
            intake: Intake::Open,
            unsent: VecDeque::new(),
        }
    }

    /// Returns whether all messages for the worker are sent.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.unsent.is_empty()
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

    /// Returns the worker as dispatch sees it, as a candidate for clients; `now` is ns of CLOCK_MONOTONIC.
    pub(crate) fn candidate(&self, is_rescue: bool, now: u64) -> Candidate {
        let header = self.shm.header();
        let waiting = self.leases.given().saturating_sub(header.picked_up());
        let window = if is_rescue { RESCUE_WINDOW } else { WINDOW };
        Candidate {
            worker: self.id,
            has_capacity: self.accepts(waiting, window),
            is_unhealthy: self.unhealthy.is_some(),
            executing: header.in_progress(),
            waiting,
            busy: header.busy(now),
            clients: self.leases.clients() as u64,
        }
    }

    /// Returns whether the worker may be given one more client, when `waiting` clients are not picked up and `window`
    /// is their limit.
    fn accepts(&self, waiting: u64, window: u64) -> bool {
        let accepts = match self.intake {
            Intake::Open => true,
            Intake::Full { .. } => false,
            Intake::Throttled { picked_up } => self.shm.header().picked_up() > picked_up,
        };
        accepts && waiting < window && self.leases.has_free_slot()
    }

    /// Returns whether the worker may be given a fresh client.
    pub(crate) fn has_capacity(&self) -> bool {
        self.accepts(
            self.leases
                .given()
                .saturating_sub(self.shm.header().picked_up()),
            WINDOW,
        )
    }

    /// Asks the worker to report when it picks up more. Returns whether it has capacity already.
    pub(crate) fn want_capacity(&self) -> bool {
        let picked_up = self.shm.header().want_capacity();
        self.accepts(self.leases.given().saturating_sub(picked_up), WINDOW)
    }

    /// Sends a message that must not be lost: if the channel is full, the message is sent later.
    pub(crate) fn send(&mut self, message: ToWorker) -> io::Result<()> {
        self.unsent.push_back(message);
        self.send_unsent()
    }

    /// Sends the messages that wait for the channel.
    fn send_unsent(&mut self) -> io::Result<()> {
        while let Some(message) = self.unsent.front() {
            match self.channel.send(message, &[])? {
                Sent::Full => {
                    self.set_full();
                    return Ok(());
                }
                Sent::Queued | Sent::Closed => drop(self.unsent.pop_front()),
            }
        }
        Ok(())
    }

    /// Sends a message that is useless later. It is dropped if the channel is full, as the worker then has enough to
    /// read.
    pub(crate) fn try_send(&mut self, message: &ToWorker) {
        if self.unsent.is_empty() {
            let _ = self.channel.send(message, &[]);
        }
    }

    /// Has the poller report when a full channel accepts messages again.
    pub(crate) fn watch_channel(&mut self, poller: &Poller) {
        if self.intake == (Intake::Full { is_watched: false }) {
            let watched =
                poller.modify(&self.channel, Token::Worker(self.id).into(), Interest::Both);
            self.intake = Intake::Full {
                is_watched: watched.is_ok(),
            };
        }
    }

    fn set_full(&mut self) {
        if !matches!(self.intake, Intake::Full { .. }) {
            self.intake = Intake::Full { is_watched: false };
        }
    }

    /// Handles the poller's report that the channel accepts messages again.
    pub(crate) fn resume_channel(&mut self, poller: &Poller) -> io::Result<()> {
        if self.intake == (Intake::Full { is_watched: true }) {
            self.intake = Intake::Open;
            poller.modify(&self.channel, Token::Worker(self.id).into(), Interest::Read)?;
        }
        self.send_unsent()
    }

    /// Sends the waiting leases in as few messages as possible. Returns the clients that were withdrawn because the
    /// channel is full.
    pub(crate) fn flush(&mut self) -> io::Result<Vec<Recovered>> {
        let result = self.send_leases();
        self.leases.close_left_places();
        result
    }

    fn send_leases(&mut self) -> io::Result<Vec<Recovered>> {
        while let Some(batch) = self.leases.next_batch() {
            let (leases, sockets): (Vec<_>, Vec<BorrowedFd<'_>>) =
                self.leases.records(&batch).unzip();
            match self.channel.send(&ToWorker::Lease(leases), &sockets)? {
                Sent::Queued => {}
                Sent::Full => {
                    let back = self.leases.withdraw(batch, &self.shm);
                    // Too many descriptors may be in flight. No poller reports the end of that, but a pick-up does. If
                    // nothing is left to pick up, the channel is full.
                    let picked_up = self.shm.header().want_capacity();
                    if picked_up >= self.leases.given() {
                        self.set_full();
                    } else if !matches!(self.intake, Intake::Full { .. }) {
                        self.intake = Intake::Throttled { picked_up };
                    }
                    return Ok(back);
                }
                // The worker is dead. Its collection finds these clients in its shared memory like all others.
                Sent::Closed => {}
            }
        }
        Ok(Vec::new())
    }
}
