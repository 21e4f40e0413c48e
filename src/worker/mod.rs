//! The worker: serves the clients whose leases it has. One thread, one loop: it waits, receives messages of the master,
//! gives every ready client a turn, checks deadlines, and reports closed and released clients to the master.
//!
//! A worker owns no client: the sockets are copies, the bytes are in the shared memory, and the worker exits when its
//! master does.

mod apps;
mod away;
mod builtin;
mod connection;
mod deadlines;
#[cfg(feature = "tokio")]
mod futures;
mod goaway;
mod handoff;
mod hook_calls;
mod hooks;
mod kill_points;
mod leases;
mod master_link;
mod method;
mod methods;
mod metrics;
mod panics;
mod parking;
mod preload;
mod reply;
mod revoked;
mod running;
mod start;
#[cfg(test)]
mod tests;
mod turn;
mod turns;
mod zygote;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use away::Executor;
use connection::Connection;
use deadlines::Timers;
use hook_calls::HookState;
use master_link::MasterLink;
use panics::EndOnPanic;
use parking::Parking;
use revoked::RevokedClients;
use turn::Purpose;

use crate::channel::{Channel, Incoming, Scratch};
use crate::logging;
use crate::loop_clock::LoopClock;
use crate::proto::channel::{Settings, ToMaster, ToWorker};
use crate::shm::WorkerShm;
use crate::sys::byte_counts::OwnWrites;
use crate::sys::handoff::EmergencyHandoff;
use crate::sys::poll::{PollEvent, Poller, Woken};
use crate::sys::{clock, fork, signal};
use crate::table::Table;

#[cfg(any(test, fuzzing))]
pub(crate) use apps::service::fuzz_hello;
pub(crate) use builtin::pi_method;
#[cfg(feature = "tokio")]
pub use futures::AsyncCall;
pub(crate) use hooks::Hooks;
pub use method::Method;
pub use methods::WorkerInfo;
pub(crate) use methods::{Constructor, Methods, Service};
pub use metrics::{Counter, Histogram, MetricError, WorkerMetrics};
pub(crate) use preload::Preloaded;
pub use reply::{Call, Fault, Reply};
pub(crate) use running::RunningService;
pub(crate) use start::{Error, WorkerRole, run, take_channel};
pub(crate) use zygote::run as run_zygote;

pub(crate) use crate::sys::process::exit_without_destructors;

/// The poller's token of the channel; a client's is its slot and the number of its lease.
const CHANNEL: u64 = u64::MAX;

/// The most events that one wait returns.
const BATCH: usize = 256;

/// A worker that serves.
struct WorkerLoop<'c> {
    master: MasterLink<'c>,
    poller: Poller,
    shm: WorkerShm,
    settings: Settings,
    /// By slot.
    connections: Table<Connection>,
    /// The descriptors known to be in use, by number.
    numbers: Table<()>,
    leased: usize,
    revoked: RevokedClients,
    /// Slots whose clients have complete frames left: the poller will not report them.
    again: Vec<u32>,
    timers: Timers,
    time: Time,
    parking: Parking,
    writes: Option<Arc<OwnWrites>>,
    /// Whether a method is quarantined, by its index; empty if none is.
    quarantined: Vec<bool>,
    /// Requests answered since the start.
    served: u64,
    ending: Ending,
    /// The executor of requests that are away, if the worker has one.
    executor: Option<Box<Executor>>,
    /// The means to pack clients when the master is gone, if there will be another master.
    handoff: Option<&'static EmergencyHandoff>,
    hooks: HookState,
    /// See [`Service::runs_other_code`].
    runs_other_code: bool,
}

/// The time of the loop.
struct Time {
    clock: LoopClock,
    /// ns of CLOCK_MONOTONIC.
    now: u64,
    /// One instant by both clocks.
    epoch: (Instant, u64),
    /// Iterations of the loop in a row in which deadlines were not checked, because more events had to be processed
    /// first.
    deferred: usize,
}

/// The reasons why a worker ends.
#[derive(Default)]
struct Ending {
    /// The worker serves no more clients: the master has requested it, or it has reached its limit of requests.
    is_retiring: bool,
    /// When this process is killed, once it has received `Stop`.
    stop_by: Option<Instant>,
    /// The master is gone, and the worker waits for the last answers: no other request begins.
    is_packing: bool,
    /// The master is gone, and the clients are packed or closed.
    is_orphaned: bool,
    /// Why this process cannot continue.
    broken: Option<String>,
}

impl<'c> WorkerLoop<'c> {
    fn new(
        channel: &'c mut Channel<ToMaster, ToWorker>,
        shm: WorkerShm,
        settings: Settings,
        handoff: Option<&'static EmergencyHandoff>,
        executor: Option<Executor>,
    ) -> io::Result<WorkerLoop<'c>> {
        let poller = Poller::new(BATCH)?;
        let master = MasterLink::new(channel, &poller)?;
        if let Some(executor) = &executor {
            executor.watch(&poller)?;
        }
        let parking = Parking::new(settings.buffers);
        let writes = match handoff {
            Some(handoff) => handoff.writes(),
            None => OwnWrites::open().ok().map(Arc::new),
        };
        shm.header().set_writer(fork::thread_id());
        let mut numbers = Table::new();
        let account = writes.as_deref().map(number);
        let own = [Some(master.descriptor()), Some(number(&poller)), account];
        for number in own.into_iter().flatten() {
            numbers.insert(number, ());
        }
        let clock = LoopClock::new();
        // In a row, so that this process is hardly taken off its CPU between them.
        let epoch = (Instant::now(), clock::monotonic());
        Ok(WorkerLoop {
            master,
            poller,
            shm,
            settings,
            connections: Table::new(),
            numbers,
            leased: 0,
            revoked: RevokedClients::default(),
            again: Vec::new(),
            timers: Timers::default(),
            time: Time {
                clock,
                now: epoch.1,
                epoch,
                deferred: 0,
            },
            parking,
            writes,
            quarantined: Vec::new(),
            served: 0,
            ending: Ending::default(),
            executor: executor.map(Box::new),
            handoff,
            hooks: HookState::default(),
            runs_other_code: true,
        })
    }

    /// Serves until the worker retires, is stopped, or its master is gone; returns whether the master is gone.
    fn serve(mut self, service: &mut dyn Service) -> io::Result<bool> {
        let _guard = EndOnPanic;
        let served = self.serve_to_end(service);
        if self.ending.broken.is_some() && !self.ending.is_orphaned {
            self.take_back_unwritten(service);
        }
        let has_reported = self.master.send_app_gone();
        let handoff = self.handoff.filter(|_| has_reported);
        let late_sockets = handoff.map(|handoff| self.master.await_stop(handoff));
        let served = match self.ending.broken.take() {
            Some(reason) => Err(io::Error::other(reason)),
            None => served,
        };
        // The master recovers the clients of a worker that breaks off. If it is gone as well, only the next one can.
        if served.is_err() && !self.ending.is_orphaned && self.master.is_gone() {
            self.pack_clients();
        }
        drop(late_sockets);
        served?;
        if let Some(executor) = self.executor.as_mut().filter(|_| !self.ending.is_orphaned) {
            executor.finish(apps::END_TIMEOUT);
        }
        Ok(self.ending.is_orphaned)
    }

    fn serve_to_end(&mut self, service: &mut dyn Service) -> io::Result<()> {
        self.runs_other_code = service.runs_other_code();
        self.hooks = HookState::new(service, self.time.now);
        let mut ready: Vec<PollEvent> = Vec::new();
        let mut scratch = Scratch::default();
        self.receive_first_frames(service)?;
        while !self.is_finished() {
            let timeout = self.timeout();
            // A signal that arrived since the last wait does not interrupt this one.
            signal::forget_arrived();
            self.time.clock.begin_wait(self.time.now, timeout);
            let woken_by = self.poller.wait(&mut ready, timeout)?;
            let was_stopped = woken_by == Woken::Interrupted && signal::was_stopped();
            let had_gap = self.time.clock.end_wait(was_stopped);
            let woken = self.time.clock.woken();
            self.time.now = woken;
            for event in &ready {
                match event.token {
                    CHANNEL => self.receive(&mut scratch, service)?,
                    token if apps::is_token(token) => self.attend_executor(token, service)?,
                    _ => self.serve_client(*event, service),
                }
                if self.ending.is_orphaned {
                    // The clients are packed as they were: the next master counts on that.
                    return Ok(());
                }
            }
            if self.executor.is_some() {
                self.call_queued(service);
            }
            for slot in std::mem::take(&mut self.again) {
                self.run_turn(slot, &Purpose::Serve, service);
            }
            if self.ending.is_retiring {
                self.give_up_leases();
            }
            if self.has_processed_all(had_gap || ready.len() == BATCH) {
                self.check_deadlines(woken, service);
                if self.executor.is_some() {
                    self.check_executor(woken, service);
                }
            }
            if self.executor.is_some() {
                self.flush_executor(service)?;
            }
            self.forget_timers();
            self.master.retry(&self.poller, self.time.now)?;
            self.check_health(service);
            self.close_moved();
            if self.send_reports()? {
                // Before the worker may end for lack of clients, so that the next master gets its counters.
                self.hand_off_clients(service)?;
            }
            self.notify_of_left_clients(service);
            self.shm.header().set_log_errors(logging::errors());
            let now = self.time.now;
            self.shm.header().record_busy(now, now - woken);
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        let is_ending = self.ending.stop_by.is_some() || self.ending.is_retiring;
        let has_clients = self.leased > 0 || !self.revoked.is_empty();
        let is_done = is_ending && !has_clients && !self.master.has_reports();
        self.ending.is_orphaned || self.ending.broken.is_some() || is_done
    }

    /// Returns whether every client that has sent bytes so far has had its turn. `may_have_more` if there may be events
    /// that the last wait did not return; the number of iterations that wait for those is limited.
    fn has_processed_all(&mut self, may_have_more: bool) -> bool {
        let most = 1 + self.leased / BATCH;
        self.time.deferred = if may_have_more && self.time.deferred < most {
            self.time.deferred + 1
        } else {
            0
        };
        self.time.deferred == 0
    }

    fn timeout(&mut self) -> Option<Duration> {
        let is_free_again = self.executor.as_ref().is_some_and(|it| it.is_free_again);
        if is_free_again || !self.again.is_empty() || self.time.deferred > 0 {
            return Some(Duration::ZERO);
        }
        let executor = match self.executor {
            Some(_) => self.executor_deadline(),
            None => None,
        };
        let deadlines = [
            self.timers.next(),
            self.hooks.health.next(),
            executor,
            self.master.retry_at(),
            self.revoked.next_look(),
        ];
        let deadline = deadlines.into_iter().flatten().min()?;
        Some(Duration::from_nanos(deadline.saturating_sub(self.time.now)))
    }

    /// Receives one message of the master. The next wait reports further messages.
    fn receive(&mut self, scratch: &mut Scratch, service: &mut dyn Service) -> io::Result<()> {
        let held_off = self.handoff.map(EmergencyHandoff::hold_off);
        let incoming = self.master.receive(scratch, &self.poller, self.time.now)?;
        let is_lease = matches!(incoming, Incoming::Message(ToWorker::Lease(_), _));
        // Other messages may have methods run.
        let held_off = held_off.filter(|_| is_lease);
        match incoming {
            Incoming::Message(ToWorker::Lease(leases), sockets) => {
                self.pick_up(&leases, sockets, held_off, service)?;
            }
            Incoming::Message(ToWorker::Reopen, _) => reopen_log(),
            Incoming::Message(ToWorker::Stop(stop), _) => self.stop(stop, service),
            Incoming::Message(ToWorker::LeasesRevoked, _) => self.release_revoked(),
            Incoming::Message(ToWorker::Retire, _) => self.ending.is_retiring = true,
            Incoming::Message(ToWorker::Quarantine(names), _) => self.quarantine(&names, service),
            Incoming::Message(ToWorker::LogLevel(level), _) => logging::set_level(level),
            Incoming::Message(ToWorker::Goaway(goaway), _) => self.begin_goaways(&goaway, service),
            Incoming::Message(ToWorker::Ping, _) => self.shm.header().heartbeat(),
            Incoming::Message(ToWorker::Start(_), _) => {
                return Err(io::Error::other("the master sent Start twice"));
            }
            Incoming::Garbage(malformed) => return Err(io::Error::other(malformed)),
            Incoming::Nothing | Incoming::Shortage => {}
            Incoming::Closed => self.hand_off_clients(service)?,
        }
        Ok(())
    }

    /// Sends all reports. Returns whether the master is gone, and its clients have not been packed yet.
    fn send_reports(&mut self) -> io::Result<bool> {
        let is_master_gone = self.master.send_reports(&self.poller, self.time.now)?;
        Ok(is_master_gone && !self.ending.is_orphaned)
    }

    /// Replaces the list of quarantined methods.
    fn quarantine(&mut self, names: &[String], service: &dyn Service) {
        let methods = if names.is_empty() {
            Vec::new()
        } else {
            service.names()
        };
        self.quarantined = methods
            .iter()
            .map(|method| names.contains(&method.name))
            .collect();
    }
}

fn reopen_log() {
    if let Err(e) = logging::reopen() {
        log::warn!("{e}; still writing to the previous log file");
    }
}

/// Returns the number of a descriptor, as an index.
fn number(descriptor: &impl AsRawFd) -> u32 {
    descriptor.as_raw_fd().unsigned_abs()
}
