//! The load: one thread, one epoll, many connections, every reply checked.
//!
//! A [`Load`] keeps its connections from one [`run`](Load::run) to the next, so that a warm-up and a
//! measured window use the same ones. A run ends when every request made has its reply: between two
//! runs nothing is under way, and the server's CPU time divides by whole requests.

mod connection;
mod histogram;
mod pace;
mod payload;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::common::failure::{Context, Result};
use crate::common::interrupt;
use connection::Connection;
pub(crate) use histogram::Histogram;
pub(crate) use pace::Pace;
use pace::Source;
use payload::Message;
pub(crate) use payload::{Check, Order, Payload};

/// A run without a reply for this long has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A run with more failed connections than this is ended.
const FAILURES: u64 = 100;

/// The target of a load, and its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// A loopback address: loads are for one's own machine.
    pub(crate) to: SocketAddrV4,
    /// Connections at the same time.
    pub(crate) connections: usize,
    /// Requests on the way at the same time on each connection.
    pub(crate) depth: usize,
    /// Requests after which a connection is closed and another opened; `None` keeps it.
    pub(crate) per_connection: Option<u64>,
    pub(crate) payload: Payload,
    /// The method that is called; its replies are named `pong`.
    pub(crate) method: &'static str,
    pub(crate) order: Order,
    pub(crate) check: Check,
}

impl Plan {
    /// Returns the frames of the first request and its reply, for callers without a load.
    pub(crate) fn first_exchange(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        Ok(Message::new(self.payload, self.method, self.order, self.check)?.into_frames())
    }
}

/// The result of a run.
pub(crate) struct Report {
    /// Requests with the expected reply.
    pub(crate) requests: u64,
    /// Connections that were opened and closed again after their last reply.
    pub(crate) connections: u64,
    /// Connections that failed: refused, closed early, or answered wrongly.
    pub(crate) errors: u64,
    /// The first failure, as text.
    pub(crate) first_error: Option<String>,
    /// Since a request was due (closed loop: sent; the first of a short connection: connecting).
    pub(crate) latency: Histogram,
    pub(crate) elapsed: Duration,
}

/// A place for a connection, and for requests that wait for one.
#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    /// Open loop: due times of requests not yet issued.
    due: VecDeque<Instant>,
}

/// A load that can be run again and again.
pub(crate) struct Load {
    plan: Plan,
    message: Message,
    epoll: Epoll,
    slots: Vec<Slot>,
    scratch: Vec<u8>,
    opened: u64,
    next_number: u64,
}

/// One run.
struct Run {
    source: Source,
    /// Requests due or on the way.
    pending: u64,
    /// Slots whose connection failed.
    retry: Vec<usize>,
    report: Report,
}

impl Load {
    pub(crate) fn new(plan: Plan) -> Result<Self> {
        if !plan.to.ip().is_loopback() {
            return Err(format!("{} is not a loopback address", plan.to).into());
        }
        if plan.connections == 0 || plan.depth == 0 || plan.per_connection == Some(0) {
            return Err("a load needs at least one connection and one request".into());
        }
        Ok(Load {
            plan,
            message: Message::new(plan.payload, plan.method, plan.order, plan.check)?,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?,
            slots: (0..plan.connections).map(|_| Slot::default()).collect(),
            scratch: vec![0; 256 << 10],
            opened: 0,
            next_number: payload::FIRST,
        })
    }

    /// Sends requests at this pace, and waits for all replies.
    pub(crate) fn run(&mut self, pace: Pace) -> Result<Report> {
        let begin = Instant::now();
        let report = Report {
            requests: 0,
            connections: 0,
            errors: 0,
            first_error: None,
            latency: Histogram::new(),
            elapsed: Duration::ZERO,
        };
        let mut run = Run {
            source: Source::new(pace, begin),
            pending: 0,
            retry: Vec::new(),
            report,
        };
        let mut events = vec![EpollEvent::empty(); 256];
        let mut progress = (0, begin);
        for slot in 0..self.slots.len() {
            self.feed(slot, &mut run);
        }
        loop {
            while let Some((index, due)) = run.source.take_due(Instant::now()) {
                let slot = (index % self.slots.len() as u64) as usize;
                self.slots[slot].due.push_back(due);
                run.pending += 1;
                self.feed(slot, &mut run);
            }
            if run.report.errors > FAILURES {
                let first = run.report.first_error.unwrap_or_default();
                return Err(
                    format!("more than {FAILURES} connections failed, the first: {first}").into(),
                );
            }
            for slot in std::mem::take(&mut run.retry) {
                self.feed(slot, &mut run);
            }
            if run.pending == 0 && run.retry.is_empty() && run.source.next_due().is_none() {
                break;
            }
            let ready = self.wait(&mut events, run.source.next_due())?;
            for event in &events[..ready] {
                self.turn(event.data() as usize, &mut run);
            }
            interrupt::check()?;
            let now = Instant::now();
            if run.report.requests > progress.0 || run.pending == 0 {
                progress = (run.report.requests, now);
            }
            if now > progress.1 + TIMEOUT {
                return Err(format!("no reply for {TIMEOUT:?}, {} awaited", run.pending).into());
            }
        }
        run.report.elapsed = begin.elapsed();
        Ok(run.report)
    }

    /// Waits for the sockets, at most until the next request is due; the number of events.
    fn wait(&self, events: &mut [EpollEvent], due: Option<Instant>) -> Result<usize> {
        let mut timeout = EpollTimeout::from(100u8);
        if let Some(due) = due {
            // epoll_wait counts milliseconds, which is too coarse for an open loop.
            let rest = due
                .saturating_duration_since(Instant::now())
                .min(Duration::from_millis(100));
            let mut polled = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut polled, Some(rest.into()), None) {
                Ok(_) | Err(Errno::EINTR) => timeout = EpollTimeout::ZERO,
                Err(errno) => return Err(errno).context("cannot wait"),
            }
        }
        match self.epoll.wait(events, timeout) {
            Ok(n) => Ok(n),
            Err(Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno).context("cannot wait"),
        }
    }

    /// Issues what this slot may issue now, opening a connection if it needs one.
    fn feed(&mut self, index: usize, run: &mut Run) {
        let now = Instant::now();
        if self.slots[index].connection.is_none() && !self.open(index, now, run) {
            return;
        }
        let Slot {
            connection: Some(connection),
            due,
        } = &mut self.slots[index]
        else {
            return;
        };
        while connection.in_flight() < self.plan.depth && connection.issued < connection.quota {
            let due = if let Some(due) = due.pop_front() {
                due
            } else {
                if connection.reserved == 0 && self.plan.per_connection.is_none() {
                    connection.reserved = run.source.take(1, now);
                    run.pending += connection.reserved;
                }
                if connection.reserved == 0 {
                    break;
                }
                connection.reserved -= 1;
                now
            };
            connection.issue(self.next_number, due, &mut self.message);
            self.next_number += 1;
        }
        if let Err(e) = connection.flush() {
            self.fail(index, format!("cannot write: {e}"), run);
        }
    }

    /// Opens a connection if there is something to ask on it.
    fn open(&mut self, index: usize, now: Instant, run: &mut Run) -> bool {
        let reserved = run.source.take(self.plan.per_connection.unwrap_or(1), now);
        run.pending += reserved;
        if reserved == 0 && self.slots[index].due.is_empty() {
            return false;
        }
        self.opened += 1;
        match Connection::open(
            self.plan.to,
            source_address(self.opened),
            &self.epoll,
            index as u64,
        ) {
            Ok(mut connection) => {
                connection.reserved = reserved;
                connection.quota = match self.plan.per_connection {
                    None => u64::MAX,
                    Some(requests) if reserved == 0 => requests,
                    Some(_) => reserved,
                };
                self.slots[index].connection = Some(connection);
                true
            }
            Err(e) => {
                run.fail(index, reserved, format!("cannot connect: {e}"));
                false
            }
        }
    }

    /// Continues with a slot whose socket has become readable or writable.
    fn turn(&mut self, index: usize, run: &mut Run) {
        // An event of a connection that was closed in this very batch finds none, or its successor.
        let Some(connection) = self.slots[index].connection.as_mut() else {
            return;
        };
        let Run {
            report, pending, ..
        } = run;
        let received = match connection.flush() {
            Err(e) => Err(format!("cannot write: {e}")),
            Ok(()) => {
                let now = Instant::now();
                connection.receive(
                    &mut self.scratch,
                    self.plan.order,
                    &mut self.message,
                    |due| {
                        report.requests += 1;
                        *pending -= 1;
                        report.latency.record(now.saturating_duration_since(due));
                    },
                )
            }
        };
        let done = connection.issued == connection.quota && connection.in_flight() == 0;
        match received {
            Err(why) => return self.fail(index, why, run),
            Ok(()) if done => {
                run.report.connections += 1;
                self.slots[index].connection = None;
            }
            Ok(()) => {}
        }
        self.feed(index, run);
    }

    /// Gives up a connection and what was asked on it.
    fn fail(&mut self, index: usize, why: String, run: &mut Run) {
        let lost = self.slots[index]
            .connection
            .take()
            .map_or(0, |c| c.in_flight() as u64 + c.reserved);
        run.fail(index, lost, why);
    }
}

impl Run {
    fn fail(&mut self, slot: usize, lost: u64, why: String) {
        self.pending -= lost;
        self.retry.push(slot);
        self.report.errors += 1;
        self.report.first_error.get_or_insert(why);
    }
}

/// One of 127.0.1.1 to 127.0.1.250, in turns.
fn source_address(turn: u64) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, (turn % 250) as u8 + 1)
}
