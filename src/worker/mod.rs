//! THE WORKER: serves the clients that it has leases of. One thread, one loop: wait, hear the master, give every client
//! that is ready its turn, look at deadlines, tell the master who left.
//!
//! It owns no client: its sockets are copies, its bytes lie in the shared memory, and it ends when its master does.

mod builtin;
mod connection;
mod death;
mod handoff;
mod leaving;
mod methods;
mod parking;
mod reply;
mod start;
#[cfg(test)]
mod tests;
mod timers;
mod turn;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use connection::{Connection, WaitingFor};
use parking::Parking;
use timers::{NEVER, Timers};
use turn::{Ended, FOREIGN, Purpose, Tools, turn};

use crate::channel::{Channel, Incoming, Scratch, Sent};
use crate::logging;
use crate::loop_clock::LoopClock;
use crate::proto::channel::{MAX_SLOTS, Settings, ToMaster, ToWorker};
use crate::proto::lease::Lease;
use crate::proto::rpc::Code;
use crate::shm::WorkerShm;
use crate::sys::byte_counts::OwnWrites;
use crate::sys::handoff::EmergencyHandoff;
use crate::sys::poll::{self, Interest, PollEvent, Poller, Woken};
use crate::sys::{clock, fork, signal, socket};
use crate::table::Table;

pub(crate) use builtin::pi_method;
pub use methods::WorkerInfo;
pub(crate) use methods::{Methods, RunningService, Service};
pub use reply::{Call, Fault, Reply};
pub(crate) use start::{Error, run};

/// The poller's token of the channel; a client's is its slot and the number of its lease.
const CHANNEL: u64 = u64::MAX;

/// Events a wait.
const BATCH: usize = 256;

/// A worker that serves.
struct WorkerLoop<'c> {
    channel: &'c mut Channel<ToMaster, ToWorker>,
    /// Whether the poller reports when the channel takes messages again.
    channel_is_full: bool,
    poller: Poller,
    shm: WorkerShm,
    settings: Settings,
    /// By slot.
    connections: Table<Connection>,
    /// Numbers of descriptors that are in use, as far as it is known for what.
    numbers: Table<()>,
    leased: usize,
    /// Slots whose clients have whole frames left: no event will come for them.
    again: Vec<u32>,
    timers: Timers,
    clock: LoopClock,
    /// Turns of the loop in a row in which deadlines were not looked at, as there was more to be looked at first.
    deferred: usize,
    parking: Parking,
    writes: Option<OwnWrites>,
    /// Whether a method is quarantined, by its index; empty if none is.
    quarantined: Vec<bool>,
    /// Requests answered since the start.
    served: u64,
    /// It serves nobody any more: it was drained, or has answered as many requests as it may.
    leaving: bool,
    /// Reports that the master has yet to receive.
    closed: Vec<u32>,
    released: Vec<u32>,
    has_capacity: bool,
    is_near_limit: bool,
    /// When this process is killed, once it has received `Stop`.
    stop_by: Option<Instant>,
    /// What clients are packed with when the master is gone, if another one will come.
    handoff: Option<&'static EmergencyHandoff>,
    /// The master is gone.
    orphaned: bool,
    /// Why this process cannot continue.
    broken: Option<String>,
    /// ns of CLOCK_MONOTONIC.
    now: u64,
    /// One instant by both clocks.
    epoch: (Instant, u64),
}

impl<'c> WorkerLoop<'c> {
    fn new(
        channel: &'c mut Channel<ToMaster, ToWorker>,
        shm: WorkerShm,
        settings: Settings,
        handoff: Option<&'static EmergencyHandoff>,
    ) -> io::Result<WorkerLoop<'c>> {
        let poller = Poller::new(BATCH)?;
        poller.add(&*channel, CHANNEL, Interest::Read)?;
        let parking = Parking::new(settings.buffers);
        let writes = OwnWrites::open().ok();
        shm.header().set_writer(fork::thread_id());
        let mut numbers = Table::new();
        let own = [
            Some(channel.as_fd().as_raw_fd()),
            Some(poller.as_raw_fd()),
            writes.as_ref().map(AsRawFd::as_raw_fd),
        ];
        for fd in own.into_iter().flatten() {
            numbers.insert(fd.unsigned_abs(), ());
        }
        let clock = LoopClock::new();
        // With nothing between them for which this process could be taken off its CPU.
        let epoch = (Instant::now(), clock::monotonic());
        Ok(WorkerLoop {
            channel,
            channel_is_full: false,
            poller,
            shm,
            settings,
            connections: Table::new(),
            numbers,
            leased: 0,
            again: Vec::new(),
            timers: Timers::default(),
            clock,
            deferred: 0,
            parking,
            writes,
            quarantined: Vec::new(),
            served: 0,
            leaving: false,
            closed: Vec::new(),
            released: Vec::new(),
            has_capacity: false,
            is_near_limit: false,
            stop_by: None,
            handoff,
            orphaned: false,
            broken: None,
            now: epoch.1,
            epoch,
        })
    }

    /// The loop, until the master wants no more of it or is gone; whether it is gone.
    fn serve(mut self, service: &mut dyn Service) -> io::Result<bool> {
        let mut ready: Vec<PollEvent> = Vec::new();
        let mut scratch = Scratch::default();
        while !self.is_finished() {
            let timeout = self.timeout();
            self.clock.begin_wait(self.now, timeout);
            let woken_by = self.poller.wait(&mut ready, timeout)?;
            let had_gap = self
                .clock
                .end_wait(woken_by == Woken::Interrupted && !signal::take_ignored());
            let woken = self.clock.woken();
            self.now = woken;
            for event in &ready {
                match event.token {
                    CHANNEL => self.receive(&mut scratch, service)?,
                    token => self.serve_client(token, service),
                }
            }
            for slot in std::mem::take(&mut self.again) {
                self.give_turn(slot, &Purpose::Serve, service);
            }
            if self.leaving {
                self.give_up_leases();
            }
            if self.has_looked_at_all(had_gap || ready.len() == BATCH) {
                self.check_deadlines(woken, service);
            }
            self.send_reports()?;
            self.shm.header().set_log_errors(logging::errors());
            self.shm.header().record_busy(self.now, self.now - woken);
        }
        match self.broken {
            Some(reason) => Err(io::Error::other(reason)),
            None => Ok(self.orphaned),
        }
    }

    fn is_finished(&self) -> bool {
        let is_told = self.closed.is_empty() && self.released.is_empty() && !self.is_near_limit;
        let is_done = (self.stop_by.is_some() || self.leaving) && self.leased == 0 && is_told;
        self.orphaned || self.broken.is_some() || is_done
    }

    /// Whether every client has had its turn that has sent something by now. `is_more_to_come` if there may be events that
    /// the last wait did not tell; but those are not waited for without end.
    fn has_looked_at_all(&mut self, is_more_to_come: bool) -> bool {
        let most = 1 + self.leased / BATCH;
        self.deferred = if is_more_to_come && self.deferred < most {
            self.deferred + 1
        } else {
            0
        };
        self.deferred == 0
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.again.is_empty() || self.deferred > 0 {
            return Some(Duration::ZERO);
        }
        self.timers
            .next()
            .map(|deadline| Duration::from_nanos(deadline.saturating_sub(self.now)))
    }

    /// Takes in what the master says: one message, as more of them are told by the next wait.
    fn receive(&mut self, scratch: &mut Scratch, service: &mut dyn Service) -> io::Result<()> {
        match self.channel.receive(scratch)? {
            Incoming::Message(ToWorker::Lease(leases), sockets) => {
                self.pick_up(&leases, sockets, service)?
            }
            Incoming::Message(ToWorker::Reopen, _) => reopen_log(),
            Incoming::Message(ToWorker::Stop(stop), _) => self.stop(stop, service),
            Incoming::Message(ToWorker::LeasesRevoked, _) => self.drop_revoked(),
            Incoming::Message(ToWorker::Retire, _) => self.leaving = true,
            Incoming::Message(ToWorker::Quarantine(names), _) => self.quarantine(&names, service),
            Incoming::Message(ToWorker::LogLevel(level), _) => logging::set_level(level),
            Incoming::Message(ToWorker::Ping, _) => self.shm.header().heartbeat(),
            Incoming::Message(ToWorker::Start(_), _) => {
                return Err(io::Error::other("the master sent Start twice"));
            }
            Incoming::Garbage(malformed) => return Err(io::Error::other(malformed)),
            Incoming::Nothing => {}
            Incoming::Closed => self.hand_off_clients(),
        }
        Ok(())
    }

    /// Takes over clients. Their requests may be there already, so each gets a turn at once.
    fn pick_up(
        &mut self,
        leases: &[Lease],
        sockets: Vec<OwnedFd>,
        service: &mut dyn Service,
    ) -> io::Result<()> {
        self.has_capacity |= self.shm.header().pick_up(leases.len() as u64);
        self.check_numbers(&sockets)?;
        for (lease, socket) in leases.iter().zip(sockets) {
            if lease.record.slot >= self.shm.layout().slots() {
                return Err(io::Error::other("a lease for a slot that there is not"));
            }
            let cookie = socket::cookie(&socket).ok().flatten();
            self.register(lease, &socket, cookie);
            let slot = self
                .shm
                .slot(lease.record.slot)
                .expect("the index was checked");
            let connection = Connection::new(lease, socket, cookie, slot);
            if connection.waits != WaitingFor::Request && slot.cursors().parked().1 > 0 {
                self.parking
                    .use_large(lease.record.slot, slot.cursors().parked().1);
            }
            if self
                .connections
                .insert(lease.record.slot, connection)
                .is_some()
            {
                return Err(io::Error::other("a lease for a slot that is taken"));
            }
            self.leased += 1;
        }
        for lease in leases {
            self.give_turn(lease.record.slot, &Purpose::Serve, service);
            // Not only at the end: who answers its last request before that looks at no deadline any more, nor may the next.
            self.check_deadline(lease.record.slot, service);
        }
        Ok(())
    }

    /// Finds out whether the numbers of new descriptors were free: the kernel gives no number twice, so another descriptor of
    /// that number was closed by other code of this process, and what is meant for the one client would reach another.
    fn check_numbers(&mut self, sockets: &[OwnedFd]) -> io::Result<()> {
        let log = logging::descriptor();
        for socket in sockets {
            if self.numbers.insert(number(socket), ()).is_some() || log == Some(socket.as_raw_fd())
            {
                return Err(io::Error::other(FOREIGN));
            }
        }
        Ok(())
    }

    /// Something happened on a client's socket. An old event finds another lease number, or nobody.
    fn serve_client(&mut self, token: u64, service: &mut dyn Service) {
        let (slot, lease_number) = (token as u32, (token >> 32) as u32);
        let current = self.connections.get(slot);
        if current.is_some_and(|connection| connection.lease_number == lease_number) {
            self.give_turn(slot, &Purpose::Serve, service);
        }
    }

    fn give_turn(&mut self, slot: u32, purpose: &Purpose<'_>, service: &mut dyn Service) {
        self.give_one_turn(slot, purpose, service);
        if self.stop_by.is_some() {
            self.stop_client(slot, service);
        }
        while let Some(hog) = self
            .parking
            .overloads()
            .filter(|_| !self.leaving && self.broken.is_none())
        {
            let fault = Fault::from_code(
                Code::Overloaded,
                "too much is buffered here; your unfinished frame was the oldest",
            );
            log::debug!(
                "buffers are full: closing the client in slot {hog}, whose frame is the oldest"
            );
            self.give_one_turn(hog, &Purpose::Reject(&fault), service);
        }
    }

    fn give_one_turn(&mut self, slot: u32, purpose: &Purpose<'_>, service: &mut dyn Service) {
        let may_serve = !self.leaving && self.broken.is_none();
        let Some(connection) = self.connections.get_mut(slot).filter(|_| may_serve) else {
            return;
        };
        let mut tools = Tools {
            shm: &mut self.shm,
            service,
            settings: &self.settings,
            stop_by: self.stop_by,
            epoch: self.epoch,
            quarantined: &self.quarantined,
            served: self.served,
            writes: self.writes.as_ref(),
            broken: &mut self.broken,
            now: self.now,
        };
        let ended = turn(connection, slot, purpose, &mut tools);
        let is_tcp = connection.is_tcp();
        (self.now, self.served) = (tools.now, tools.served);
        self.leaving = tools.has_reached_limit();
        if self
            .settings
            .near_limit_at
            .is_some_and(|requests| self.served >= requests)
        {
            // Said once.
            (self.settings.near_limit_at, self.is_near_limit) = (None, true);
        }
        match ended {
            Ended::Waits(waits) => self.wait_for(slot, waits),
            Ended::Over => self.close(slot),
            Ended::Lost => self.let_go(slot),
            Ended::Foreign => return,
        }
        if !is_tcp {
            // Whatever is written from now on is for somebody else. Not before the lease word says that the turn is over.
            self.shm.header().end_write();
        }
    }

    /// Sees to it that a client's next turn comes.
    fn wait_for(&mut self, index: u32, waits: WaitingFor) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let was_idle = connection.waits == WaitingFor::Request;
        connection.waits = waits;
        let wanted = match waits {
            WaitingFor::Request | WaitingFor::Bytes | WaitingFor::End => Some(Interest::Read),
            WaitingFor::Writable => Some(Interest::Write),
            WaitingFor::Turn => {
                self.again.push(index);
                connection.watched
            }
        };
        let watch = match (connection.watched, wanted) {
            (None, Some(interest)) => self.poller.add(
                &connection.socket,
                token(index, connection.lease_number),
                interest,
            ),
            (Some(before), Some(now)) if before != now => self.poller.modify(
                &connection.socket,
                token(index, connection.lease_number),
                now,
            ),
            _ => Ok(()),
        };
        if watch.is_ok() {
            connection.watched = wanted;
        }
        let slot = self.shm.slot(index).expect("the client has a slot");
        let deadline = connection.deadline(slot, &self.settings, &self.clock);
        self.timers.arm(index, &mut connection.armed, deadline);
        if waits == WaitingFor::Request {
            if !was_idle {
                self.unpark(index);
            }
        } else {
            let cursors = slot.cursors();
            let (bytes, large) = cursors.parked();
            self.parking.park(index, bytes, slot.since());
            if large > 0 {
                self.parking.use_large(index, large);
            }
            self.shm.header().set_parked(self.parking.total());
        }
        if let Err(e) = watch {
            if !poll::is_shortage(&e) {
                return self.break_off(FOREIGN);
            }
            log::warn!("cannot watch a client: {e}; closing it");
            self.shm.header().add_lost();
            self.end(index);
        }
    }

    /// From now on these methods are not run, and all others are.
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

    /// Nothing of the slot's client is in the shared memory any more.
    fn unpark(&mut self, index: u32) {
        for cold in self.parking.clear(index) {
            self.shm.free_large(cold);
        }
        self.shm.header().set_parked(self.parking.total());
    }

    /// Looks at the deadlines that were over by then: ns of CLOCK_MONOTONIC, of a moment of which all that had arrived by
    /// then was looked at.
    fn check_deadlines(&mut self, by: u64, service: &mut dyn Service) {
        while let Some((deadline, index)) = self.timers.due(by) {
            let Some(connection) = self.connections.get_mut(index) else {
                continue;
            };
            if connection.armed != deadline {
                continue;
            }
            connection.armed = NEVER;
            if !self.is_overdue(index, by) {
                continue;
            }
            self.give_up_on(index, service);
        }
    }

    /// Looks at the deadline of a client that has had its turn just now.
    fn check_deadline(&mut self, index: u32, service: &mut dyn Service) {
        let by = self.now;
        if self.is_overdue(index, by) {
            self.give_up_on(index, service);
        }
    }

    /// Whether a client was waited for long enough by then. If not, the timers see to it.
    fn is_overdue(&mut self, index: u32, by: u64) -> bool {
        let Some(connection) = self.connections.get_mut(index) else {
            return false;
        };
        let slot = self.shm.slot(index).expect("the client has a slot");
        let deadline = connection.deadline(slot, &self.settings, &self.clock);
        if deadline > by {
            self.timers.arm(index, &mut connection.armed, deadline);
        }
        deadline <= by
    }

    /// A client was waited for long enough.
    fn give_up_on(&mut self, index: u32, service: &mut dyn Service) {
        let Some(connection) = self.connections.get(index) else {
            return;
        };
        let (client, peer, waits) = (connection.client, connection.peer, connection.waits);
        log::debug!("client {client} ({peer}) exceeded its timeout ({waits:?}); closing it");
        let late = Fault::from_code(
            Code::Timeout,
            "the frame was not complete within frame-timeout",
        );
        let purpose = if waits == WaitingFor::Bytes {
            Purpose::Reject(&late)
        } else {
            Purpose::Cut
        };
        self.give_turn(index, &purpose, service);
    }

    /// Tells who left, in as few messages as it takes. What the channel does not take now waits until it does.
    ///
    /// At once: letting it wait for others, even a millisecond, made short connections dearer by a tenth, because the
    /// kernel's memory of a connection that is gone was cold by the time it was used again.
    fn send_reports(&mut self) -> io::Result<()> {
        let mut sent = Sent::Queued;
        if self.is_near_limit {
            sent = self.channel.send(&ToMaster::NearRequestLimit, &[])?;
            self.is_near_limit = sent == Sent::Full;
        }
        while sent == Sent::Queued && !self.closed.is_empty() {
            sent = send_slots(self.channel, &mut self.closed, ToMaster::Closed)?;
        }
        while sent == Sent::Queued && !self.released.is_empty() {
            sent = send_slots(self.channel, &mut self.released, ToMaster::Released)?;
        }
        if sent == Sent::Queued && self.has_capacity {
            sent = self.channel.send(&ToMaster::HasCapacity, &[])?;
            self.has_capacity = sent == Sent::Full;
        }
        if sent == Sent::Closed && !self.orphaned {
            // Before this worker ends because it has nothing left to do: what it has counted is to be kept.
            self.hand_off_clients();
            return Ok(());
        }
        let is_full = sent == Sent::Full;
        if is_full != self.channel_is_full {
            let interest = if is_full {
                Interest::Both
            } else {
                Interest::Read
            };
            self.poller.modify(&*self.channel, CHANNEL, interest)?;
            self.channel_is_full = is_full;
        }
        Ok(())
    }
}

fn reopen_log() {
    if let Err(e) = logging::reopen() {
        log::warn!("{e}; still writing to the previous log file");
    }
}

/// Sends as many slots as one message takes, and forgets those that are sent.
fn send_slots(
    channel: &mut Channel<ToMaster, ToWorker>,
    slots: &mut Vec<u32>,
    message: fn(Vec<u32>) -> ToMaster,
) -> io::Result<Sent> {
    let count = slots.len().min(MAX_SLOTS);
    let sent = channel.send(&message(slots[..count].to_vec()), &[])?;
    // Nobody will want to know any more when the other end is closed.
    if sent != Sent::Full {
        slots.drain(..count);
    }
    Ok(sent)
}

/// The number of a descriptor.
fn number(descriptor: &OwnedFd) -> u32 {
    descriptor.as_raw_fd().unsigned_abs()
}

fn token(slot: u32, lease_number: u32) -> u64 {
    u64::from(lease_number) << 32 | u64::from(slot)
}
