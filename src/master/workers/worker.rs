//! The master's record of a worker: its process, its channel, its shared memory, and its candidacy
//! in dispatch.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::channel::{Channel, Sent};
use crate::master::Token;
use crate::master::clients::leases::{Leases, Recovered};
use crate::master::telemetry::counters::Cause;
use crate::master::workers::trust::Believed;
use crate::pool::dispatch::Candidate;
use crate::proto::channel::{MAX_LEASES, MethodName, Start, ToMaster, ToWorker};
use crate::proto::control::About;
use crate::proto::names::{Generation, WorkerId};
use crate::shm::{Layout, MasterShm};
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable};

/// Most fresh leases that a worker may have without having picked them up: at most this many
/// clients can wait behind a request that blocks it.
const WINDOW: u64 = 16;

/// The same limit for clients that were leased before: they exist anyway, and few messages are
/// better than many.
const RESCUE_WINDOW: u64 = 4 * MAX_LEASES as u64;

/// Kind of the error when a worker cannot be started because of what is in flight elsewhere. The
/// start is retried soon.
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
    pub(crate) leases: Leases,
    pub(crate) methods: Vec<MethodName>,
    /// Why the worker will not become ready, in its own words.
    pub(crate) failure: Option<String>,
    /// The worker has served, or could have.
    pub(crate) has_been_ready: bool,
    /// The worker's counters, as far as they are plausible.
    pub(crate) believed: Believed,
    pub(crate) heartbeat: Heartbeat,
    /// Why the master is killing the worker, if that is for something that it did.
    pub(crate) killed_for: Option<Cause>,
    /// The worker is being killed because a request executed for too long.
    pub(crate) is_timed_out: bool,
    /// The worker is being killed because it was still starting when it was no longer needed.
    pub(crate) is_unneeded: bool,
    /// The channel accepts no message at the moment.
    is_full: bool,
    /// The poller reports when the channel accepts messages again.
    is_watched: bool,
    /// Number of leases picked up when no more could be sent: there is space when it has grown.
    full_at: Option<u64>,
    /// Messages that wait for the channel.
    unsaid: VecDeque<ToWorker>,
}

/// When the loop of a worker was last seen to turn.
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

    /// Starts a worker and sends it its settings. Its messages arrive over its channel.
    ///
    /// # Errors
    /// Those of the system calls; [`NOT_NOW`] when the kernel accepts no more descriptors at the
    /// moment.
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

    /// Creates the record of a running worker: one just started, or one from before this process
    /// became this program.
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
            leases,
            methods,
            failure: None,
            has_been_ready: false,
            believed: Believed::new(started),
            heartbeat: Heartbeat::default(),
            killed_for: None,
            is_timed_out: false,
            is_unneeded: false,
            is_full: false,
            full_at: None,
            is_watched: false,
            unsaid: VecDeque::new(),
        }
    }

    /// Returns whether all messages for the worker are sent.
    pub(crate) fn is_told_all(&self) -> bool {
        self.unsaid.is_empty()
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

    /// Returns the worker as dispatch sees it, as a candidate for clients; `now` is ns of
    /// CLOCK_MONOTONIC.
    pub(crate) fn candidate(&self, is_rescue: bool, now: u64) -> Candidate {
        let header = self.shm.header();
        let waiting = self.leases.given().saturating_sub(header.picked_up());
        let window = if is_rescue { RESCUE_WINDOW } else { WINDOW };
        Candidate {
            worker: self.id,
            has_capacity: self.takes(waiting, window),
            executing: u64::from(header.executing().is_some()),
            waiting,
            busy: header.busy(now),
            clients: self.leases.clients() as u64,
        }
    }

    /// Returns whether the worker may be given one more client, when `waiting` clients are not
    /// picked up and `window` is their limit.
    fn takes(&self, waiting: u64, window: u64) -> bool {
        let has_picked_up = self
            .full_at
            .is_none_or(|full_at| self.shm.header().picked_up() > full_at);
        !self.is_full && has_picked_up && waiting < window && self.leases.has_free_slot()
    }

    /// Returns whether the worker may be given a fresh client.
    pub(crate) fn has_capacity(&self) -> bool {
        self.takes(
            self.leases
                .given()
                .saturating_sub(self.shm.header().picked_up()),
            WINDOW,
        )
    }

    /// Asks the worker to report when it picks up more. Returns whether it has capacity already.
    pub(crate) fn want_capacity(&self) -> bool {
        let picked_up = self.shm.header().want_capacity();
        self.takes(self.leases.given().saturating_sub(picked_up), WINDOW)
    }

    /// Sends a message that must not be lost: if the channel is full, the message is sent later.
    pub(crate) fn say(&mut self, message: ToWorker) -> io::Result<()> {
        self.unsaid.push_back(message);
        self.say_unsaid()
    }

    /// Sends the messages that wait for the channel.
    pub(crate) fn say_unsaid(&mut self) -> io::Result<()> {
        while let Some(message) = self.unsaid.front() {
            match self.channel.send(message, &[])? {
                Sent::Full => {
                    self.is_full = true;
                    return Ok(());
                }
                Sent::Queued | Sent::Closed => drop(self.unsaid.pop_front()),
            }
        }
        Ok(())
    }

    /// Sends a message that is useless later. It is dropped if the channel is full, as the worker
    /// then has enough to read.
    pub(crate) fn mention(&mut self, message: &ToWorker) {
        if self.unsaid.is_empty() {
            let _ = self.channel.send(message, &[]);
        }
    }

    /// Has the poller report when a full channel accepts messages again.
    pub(crate) fn watch_channel(&mut self, poller: &Poller) {
        if self.is_full && !self.is_watched {
            self.is_watched = poller
                .modify(&self.channel, Token::Worker(self.id).into(), Interest::Both)
                .is_ok();
        }
    }

    /// Handles the poller's report that the channel accepts messages again.
    pub(crate) fn channel_takes_again(&mut self, poller: &Poller) -> io::Result<()> {
        if self.is_watched {
            (self.is_full, self.is_watched) = (false, false);
            poller.modify(&self.channel, Token::Worker(self.id).into(), Interest::Read)?;
        }
        self.say_unsaid()
    }

    /// Sends the waiting leases in as few messages as possible. Returns the clients that were
    /// withdrawn because the channel is full.
    pub(crate) fn flush(&mut self) -> io::Result<Vec<Recovered>> {
        while let Some(batch) = self.leases.next_batch() {
            let (leases, sockets): (Vec<_>, Vec<BorrowedFd<'_>>) =
                self.leases.records(&batch).unzip();
            match self.channel.send(&ToWorker::Lease(leases), &sockets)? {
                Sent::Queued => {}
                Sent::Full => {
                    let back = self.leases.withdraw(batch, &self.shm);
                    // Too many descriptors may be in flight. No poller reports the end of that, but
                    // a pick-up does. If nothing is left to pick up, the channel is full.
                    let picked_up = self.shm.header().want_capacity();
                    if picked_up < self.leases.given() {
                        self.full_at = Some(picked_up);
                    } else {
                        self.is_full = true;
                    }
                    return Ok(back);
                }
                // The worker is dead. Its collection finds these clients in its shared memory like
                // all others.
                Sent::Closed => {}
            }
        }
        Ok(Vec::new())
    }
}
