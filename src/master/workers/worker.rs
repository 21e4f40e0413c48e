//! The master's record of a worker: its process, its channel, its shared memory, and how dispatch sees it.

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

/// Fresh leases that a worker may have that it has not picked up: so many clients can come to wait behind a request
/// that it is stuck in.
const WINDOW: u64 = 16;

/// The same for clients that were leased before: they are there anyway, and few messages are better than many.
const RESCUE_WINDOW: u64 = 4 * MAX_LEASES as u64;

/// The kind of error of a worker that cannot be started for what others have under way, and is to be tried again soon.
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
    /// Why it will not be ready, in its own words.
    pub(crate) failure: Option<String>,
    /// It has served, or could have.
    pub(crate) has_been_ready: bool,
    /// What it has counted, as far as that is believed.
    pub(crate) believed: Believed,
    pub(crate) heartbeat: Heartbeat,
    /// Why we are killing it, if that is for something that it did.
    pub(crate) killed_for: Option<Cause>,
    /// It is being killed because a request executed for too long.
    pub(crate) is_timed_out: bool,
    /// It is being killed because it was still starting when nobody needed it any more.
    pub(crate) is_unneeded: bool,
    /// Its channel takes nothing at the moment.
    is_full: bool,
    /// The poller tells when it does.
    is_watched: bool,
    /// Leases that it had picked up when no more could be sent: there is room once there are more.
    full_at: Option<u64>,
    /// What waits until it does.
    unsaid: VecDeque<ToWorker>,
}

/// When a worker was last seen to turn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heartbeat {
    /// Its beats then.
    pub(crate) heartbeats: u64,
    /// Since when it has been asked to show that it does.
    pub(crate) asked: Option<Instant>,
    /// How long it had run when it was first found silent.
    pub(crate) ran: Option<Duration>,
}

impl Worker {
    /// Kills the process. Its death is collected as any other.
    pub(crate) fn kill(&self) {
        if let Err(e) = process::kill_child(self.pid) {
            log::error!("cannot kill {}: {e}", self.name());
        }
    }

    /// Runs a worker and tells it who it is. What it says comes by its channel.
    ///
    /// # Errors
    /// Those of the system calls; [`NOT_NOW`] when the kernel takes no more descriptors at the moment.
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
        // First of all, so that a worker that runs finds it there.
        let descriptors: Vec<BorrowedFd<'_>> =
            std::iter::once(shm.file().as_fd()).chain(queues).collect();
        match channel.send(&ToWorker::Start(Box::new(start)), &descriptors)? {
            Sent::Queued => {}
            // Its queue is empty, so there is no room for descriptors anywhere.
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

    /// One that runs: just now, or since before this process became this program.
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

    /// Whether it has been told all that it is to hear.
    pub(crate) fn is_told_all(&self) -> bool {
        self.unsaid.is_empty()
    }

    /// An event of it.
    pub(crate) fn about(&self) -> About {
        About {
            worker: Some(self.id),
            pid: Some(self.pid),
            seat: Some(self.seat as u32),
            generation: Some(self.generation),
            ..About::default()
        }
    }

    /// How people call it.
    pub(crate) fn name(&self) -> String {
        format!(
            "worker {} (pid {}, gen {})",
            self.id, self.pid, self.generation
        )
    }

    /// How dispatch sees it, as a worker that may be given clients; `now` is ns of CLOCK_MONOTONIC.
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

    /// Whether it may be given one client more, with so many not picked up of which so many may be.
    fn takes(&self, waiting: u64, window: u64) -> bool {
        let has_picked_up = self
            .full_at
            .is_none_or(|full_at| self.shm.header().picked_up() > full_at);
        !self.is_full && has_picked_up && waiting < window && self.leases.has_free_slot()
    }

    /// Whether it may be given a fresh client.
    pub(crate) fn has_capacity(&self) -> bool {
        self.takes(
            self.leases
                .given()
                .saturating_sub(self.shm.header().picked_up()),
            WINDOW,
        )
    }

    /// Asks to be told when it picks up more; whether it has room already.
    pub(crate) fn want_capacity(&self) -> bool {
        let picked_up = self.shm.header().want_capacity();
        self.takes(self.leases.given().saturating_sub(picked_up), WINDOW)
    }

    /// Says something that must not be lost: what the channel does not take now is said when it does.
    pub(crate) fn say(&mut self, message: ToWorker) -> io::Result<()> {
        self.unsaid.push_back(message);
        self.say_unsaid()
    }

    /// Says what has waited for the channel.
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

    /// Says something that is of no use later. A channel that is full has enough to be heard.
    pub(crate) fn mention(&mut self, message: &ToWorker) {
        if self.unsaid.is_empty() {
            let _ = self.channel.send(message, &[]);
        }
    }

    /// Has the poller tell when a channel that is full takes messages again.
    pub(crate) fn watch_channel(&mut self, poller: &Poller) {
        if self.is_full && !self.is_watched {
            self.is_watched = poller
                .modify(&self.channel, Token::Worker(self.id).into(), Interest::Both)
                .is_ok();
        }
    }

    /// The poller has told that the channel takes messages again.
    pub(crate) fn channel_takes_again(&mut self, poller: &Poller) -> io::Result<()> {
        if self.is_watched {
            (self.is_full, self.is_watched) = (false, false);
            poller.modify(&self.channel, Token::Worker(self.id).into(), Interest::Read)?;
        }
        self.say_unsaid()
    }

    /// Sends the leases that are waiting to be sent, in as few messages as it takes. Returns the clients that it had to
    /// take back because the channel is full.
    pub(crate) fn flush(&mut self) -> io::Result<Vec<Recovered>> {
        while let Some(batch) = self.leases.next_batch() {
            let (leases, sockets): (Vec<_>, Vec<BorrowedFd<'_>>) =
                self.leases.records(&batch).unzip();
            match self.channel.send(&ToWorker::Lease(leases), &sockets)? {
                Sent::Queued => {}
                Sent::Full => {
                    let back = self.leases.withdraw(batch, &self.shm);
                    // Too many descriptors may be under way, which no poller tells the end of: a pick-up does. Where nothing
                    // is to be picked up, it is the channel.
                    let picked_up = self.shm.header().want_capacity();
                    if picked_up < self.leases.given() {
                        self.full_at = Some(picked_up);
                    } else {
                        self.is_full = true;
                    }
                    return Ok(back);
                }
                // It is dead. Its reaping finds them in its shared memory like all others.
                Sent::Closed => {}
            }
        }
        Ok(Vec::new())
    }
}
