//! A load: one thread, one epoll, many connections, every reply checked. `fdpassctl bench` and the benchmarks use it.
//!
//! A [`Load`] keeps its connections from one [`run`](Load::run) to the next, so that a warm-up and a measured window use
//! the same ones. A run ends when each request that was made has its reply: between two runs nothing is under way, and
//! the CPU time of the server divides by whole requests.

mod connection;
mod latencies;
mod message;
mod pace;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use crate::proto::names::Address;
use crate::sys::poll::{Interest, PollEvent, Poller};
use connection::LoadConnection;
pub use latencies::Latencies;
pub use message::{Framing, LoadMessage, MIN_PARAMS, NumberedParams, ReplyCheck};
pub use pace::Pace;
use pace::RequestSource;

/// The longest wait before the flag of [`Load::run`] is read again: a signal may have come just before it.
const MOMENT: Duration = Duration::from_millis(100);

/// A run with more failed connections than this is ended.
const MAX_FAILURES: u64 = 100;

/// Why a load cannot run or continue, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError(pub(crate) String);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadError {}

/// The target of a load, and its requests.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// The listener.
    pub to: Address,
    /// Connections at the same time.
    pub connections: usize,
    /// The most unanswered requests of each connection.
    pub depth: usize,
    /// Requests after which a connection is closed and another opened; `None` keeps it.
    pub per_connection: Option<u64>,
    /// The requests, and their expected replies.
    pub message: LoadMessage,
    /// A run is ended, with an error, if there is no reply for this long.
    pub silence: Duration,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// Requests with the expected reply.
    pub requests: u64,
    /// Connections that were opened and closed again after their last reply.
    pub connections: u64,
    /// Connections that failed: refused, closed early, or answered wrongly.
    pub errors: u64,
    /// The first failure.
    pub first_error: Option<String>,
    /// The times since a request was due. In a closed loop it is due when it is sent; the first requests of a
    /// connection are due when that begins to connect.
    pub latencies: Latencies,
    /// The time of the run.
    pub elapsed: Duration,
}

/// A place for a connection, and for requests that wait for one.
#[derive(Debug, Default)]
struct LoadPlace {
    connection: Option<LoadConnection>,
    /// Open loop: due times of requests not yet issued.
    due: VecDeque<Instant>,
}

/// A load that can be run again and again.
#[derive(Debug)]
pub struct Load {
    plan: LoadPlan,
    poller: Poller,
    places: Vec<LoadPlace>,
    scratch: Vec<u8>,
    opened: u64,
    next_number: u64,
}

/// One run.
struct LoadRun {
    source: RequestSource,
    /// Requests due or on the way.
    pending: u64,
    /// Places whose connection failed.
    retry: Vec<usize>,
    report: LoadReport,
}

impl Load {
    /// Prepares a load. Nothing is connected yet.
    ///
    /// # Errors
    /// If the plan has no connections or no requests; those of epoll_create1(2).
    pub fn new(plan: LoadPlan) -> Result<Load, LoadError> {
        if plan.connections == 0 || plan.depth == 0 || plan.per_connection == Some(0) {
            let why = "a load needs at least one connection and one request";
            return Err(LoadError(why.to_owned()));
        }
        let poller = Poller::new(256).map_err(|e| LoadError(format!("cannot wait: {e}")))?;
        Ok(Load {
            poller,
            places: (0..plan.connections)
                .map(|_| LoadPlace::default())
                .collect(),
            scratch: vec![0; 256 << 10],
            opened: 0,
            next_number: message::FIRST,
            plan,
        })
    }

    /// Sends requests at this pace, and waits for all replies. Once `stop` is set, no further request is made.
    ///
    /// # Errors
    /// If more than a hundred connections fail, or no reply has come for the time of the plan.
    pub fn run(&mut self, pace: Pace, stop: &AtomicBool) -> Result<LoadReport, LoadError> {
        let begin = Instant::now();
        let mut run = LoadRun::new(pace, begin);
        let mut events = Vec::new();
        let mut progress = (0, begin);
        for place in 0..self.places.len() {
            self.feed(place, &mut run);
        }
        loop {
            if stop.load(Ordering::Relaxed) {
                run.source.end();
            }
            while let Some((index, due)) = run.source.take_due(Instant::now()) {
                let place = (index % self.places.len() as u64) as usize;
                self.places[place].due.push_back(due);
                run.pending += 1;
                self.feed(place, &mut run);
            }
            run.check_failures()?;
            for place in std::mem::take(&mut run.retry) {
                self.feed(place, &mut run);
            }
            if run.pending == 0 && run.retry.is_empty() && run.source.next_due().is_none() {
                break;
            }
            self.wait(&mut events, run.source.next_due())?;
            for event in &events {
                self.turn(event.token as usize, &mut run);
            }
            let now = Instant::now();
            if run.report.requests > progress.0 || run.pending == 0 {
                progress = (run.report.requests, now);
            }
            if now.duration_since(progress.1) > self.plan.silence {
                return Err(LoadError(format!(
                    "no reply for {}, {} awaited",
                    humantime::format_duration(self.plan.silence),
                    run.pending
                )));
            }
        }
        run.report.elapsed = begin.elapsed();
        Ok(run.report)
    }

    /// Waits for the sockets, at most until the next request is due, and a moment for the flag.
    fn wait(&mut self, events: &mut Vec<PollEvent>, due: Option<Instant>) -> Result<(), LoadError> {
        let waited = match due {
            None => self.poller.wait(events, Some(MOMENT)),
            Some(due) => {
                let rest = due.saturating_duration_since(Instant::now());
                self.poller.wait_precisely(events, rest.min(MOMENT))
            }
        };
        match waited {
            Ok(_) => Ok(()),
            Err(e) => Err(LoadError(format!("cannot wait: {e}"))),
        }
    }

    /// Issues what this place may issue now, and opens a connection if it needs one.
    fn feed(&mut self, index: usize, run: &mut LoadRun) {
        let now = Instant::now();
        if self.places[index].connection.is_none() && !self.open(index, now, run) {
            return;
        }
        let LoadPlace {
            connection: Some(connection),
            due,
        } = &mut self.places[index]
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
            connection.issue(self.next_number, due, &mut self.plan.message);
            self.next_number += 1;
        }
        if let Err(e) = connection.flush() {
            let why = connection.cannot_write(&e);
            self.fail(index, why, run);
        }
    }

    /// Opens a connection if there is a request for it.
    fn open(&mut self, index: usize, now: Instant, run: &mut LoadRun) -> bool {
        let reserved = run.source.take(self.plan.per_connection.unwrap_or(1), now);
        run.pending += reserved;
        if reserved == 0 && self.places[index].due.is_empty() {
            return false;
        }
        self.opened += 1;
        match self.connect(index) {
            Ok(mut connection) => {
                connection.reserved = reserved;
                connection.quota = match self.plan.per_connection {
                    None => u64::MAX,
                    Some(requests) if reserved == 0 => requests,
                    Some(_) => reserved,
                };
                self.places[index].connection = Some(connection);
                true
            }
            Err(e) => {
                run.fail(index, reserved, format!("cannot connect: {e}"));
                false
            }
        }
    }

    fn connect(&self, index: usize) -> io::Result<LoadConnection> {
        let connection = LoadConnection::open(&self.plan.to, self.opened)?;
        self.poller
            .add(&connection, index as u64, Interest::Edges)?;
        Ok(connection)
    }

    /// Continues with a place whose socket has become readable or writable.
    fn turn(&mut self, index: usize, run: &mut LoadRun) {
        // An event of a connection that was closed in this very batch finds none, or its successor.
        let Some(connection) = self.places[index].connection.as_mut() else {
            return;
        };
        let LoadRun {
            report, pending, ..
        } = run;
        let received = match connection.flush() {
            Err(e) => Err(connection.cannot_write(&e)),
            Ok(()) => {
                let now = Instant::now();
                connection.receive(&mut self.scratch, &mut self.plan.message, |due| {
                    report.requests += 1;
                    *pending -= 1;
                    report.latencies.record(now.saturating_duration_since(due));
                })
            }
        };
        let done = connection.issued == connection.quota && connection.in_flight() == 0;
        match received {
            Err(why) => return self.fail(index, why, run),
            Ok(()) if done => {
                run.report.connections += 1;
                self.places[index].connection = None;
            }
            Ok(()) => {}
        }
        self.feed(index, run);
    }

    /// Gives up a connection and what was asked on it.
    fn fail(&mut self, index: usize, why: String, run: &mut LoadRun) {
        let lost = self.places[index]
            .connection
            .take()
            .map_or(0, |c| c.in_flight() as u64 + c.reserved);
        run.fail(index, lost, why);
    }
}

impl LoadRun {
    fn new(pace: Pace, begin: Instant) -> LoadRun {
        LoadRun {
            source: RequestSource::new(pace, begin),
            pending: 0,
            retry: Vec::new(),
            report: LoadReport {
                requests: 0,
                connections: 0,
                errors: 0,
                first_error: None,
                latencies: Latencies::new(),
                elapsed: Duration::ZERO,
            },
        }
    }

    fn fail(&mut self, place: usize, lost: u64, why: String) {
        self.pending -= lost;
        self.retry.push(place);
        self.report.errors += 1;
        self.report.first_error.get_or_insert(why);
    }

    fn check_failures(&self) -> Result<(), LoadError> {
        match &self.report.first_error {
            Some(first) if self.report.errors > MAX_FAILURES => Err(LoadError(format!(
                "more than {MAX_FAILURES} connections failed, the first: {first}"
            ))),
            _ => Ok(()),
        }
    }
}
