//! The app of a worker: a process of any language that executes methods. `proto/app.rs` has its protocol.
//!
//! Worker and app live and die together: the app has sent its hello before the worker is ready, and when either ends,
//! so does the other. So a death of an app is a death of its worker, and everything that follows it is the same.
//!
//! A request that the app executes is *away*: its bytes lie in its slot's own regions, `exec` is set, the lease word is
//! `AWAY`, and the worker serves other clients. Its answer is committed by one store on the same cursors, then sent.

pub(super) mod birth;
mod end;
mod fault;
mod forked;
mod metrics;
mod output;
pub(super) mod service;
mod start;
mod wire;
mod zygote;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

pub(super) use fault::fault_of;
pub(super) use service::AppService;
pub(super) use start::StartingApp;
use wire::WriteEnd;
pub(super) use wire::{IncomingFrames, ReadEnd, Wire};
pub(super) use zygote::AppZygote;

use self::forked::ZygoteLine;
use self::metrics::AppMetrics;
use self::output::{LastLines, OutputStream};
use crate::proto::app::{AppInfo, CancelReason, Samples};
use crate::proto::names::ClientId;
use crate::sys::cgroup::{AppCgroup, AppCgroupGuard};
use crate::sys::clock;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, AppProcess};

/// The poller's tokens of an app, below that of the channel.
pub(super) const WIRE: u64 = u64::MAX - 1;
pub(super) const OUTPUT: [u64; 2] = [u64::MAX - 2, u64::MAX - 3];
pub(super) const END: u64 = u64::MAX - 4;

/// Returns whether a token is one of an app.
pub(super) fn is_token(token: u64) -> bool {
    (END..=WIRE).contains(&token)
}

/// How long an app may take to end after it has no more requests.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The time between two checks of the app's memory, in ns.
const MEMORY_INTERVAL: u64 = 1_000_000_000;

/// The maximum number of attempts to read the last answers of an app that has ended. They take about 5 s.
const MAX_REFUSALS: u32 = 56;

/// The running app of a worker.
#[derive(Debug)]
pub(super) struct App {
    process: AppProcess,
    /// The line to the zygote that has forked it, and collects it when the line ends.
    line: Option<ZygoteLine>,
    /// The app's cgroup. Dropping the guard kills everything in it.
    cgroup: Option<AppCgroupGuard>,
    pub(super) wire: Wire,
    output: Option<[OutputStream; 2]>,
    last_lines: LastLines,
    info: AppInfo,
    metrics: AppMetrics,
    /// Whether the app receives a message for each client that has left.
    wants_closes: bool,
    max_memory: Option<u64>,
    /// When its memory was last looked at: ns of CLOCK_MONOTONIC.
    memory_checked: u64,
    probes: u64,
    /// The event that the poller watches the wire for, and the one that it watches the end of the app for.
    watched: [Interest; 2],
}

impl App {
    /// Returns the app's report of itself.
    pub(super) fn info(&self) -> &AppInfo {
        &self.info
    }

    /// Counts samples of the app's metrics.
    pub(super) fn count(&self, samples: &BTreeMap<String, Samples>) {
        self.metrics.count(samples);
    }

    /// Watches everything that the app may send.
    pub(super) fn watch(&self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.wire, WIRE, Interest::Read)?;
        poller.add(&self.process.pidfd, END, Interest::Read)?;
        for (stream, token) in self.output.iter().flatten().zip(OUTPUT) {
            poller.add(stream, token, Interest::Read)?;
        }
        Ok(())
    }

    /// Returns its process and its cgroup, for the emergency handoff.
    pub(super) fn process(&self) -> (u32, &OwnedFd, Option<Arc<AppCgroup>>) {
        let cgroup = self.cgroup.as_ref().map(|guard| Arc::clone(&guard.0));
        (self.process.pid, &self.process.pidfd, cgroup)
    }

    /// Logs what it has written to standard output or error.
    pub(super) fn read_output(&mut self, token: u64, poller: &Poller) {
        let Some(index) = OUTPUT.iter().position(|own| *own == token) else {
            return;
        };
        if let Some(stream) = self.output.as_mut().map(|streams| &mut streams[index]) {
            stream.read(&mut self.last_lines);
            if stream.has_ended() {
                let _ = poller.remove(&*stream);
            }
        }
    }

    /// Writes the queued frames. `now` is ns of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// Those of send(2) and epoll_ctl(2).
    pub(super) fn flush(&mut self, poller: &Poller, now: u64) -> io::Result<()> {
        if self.wire.writing.until().is_some() || !self.wire.has_unwritten() {
            return Ok(());
        }
        let end = self.wire.flush()?;
        match end {
            WriteEnd::Shortage => self.wire.writing.begin(|wait| clock::after(now, wait)),
            _ => self.wire.writing.end(),
        }
        let wanted = match end {
            WriteEnd::Full => Interest::Both,
            _ => Interest::Read,
        };
        if self.watched[0] != Interest::Paused {
            self.watch_wire(poller, wanted)?;
        }
        Ok(())
    }

    /// Records how a read from the wire has ended. While the kernel has no memory for it, the poller does not report
    /// the wire. `now` is ns of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn note_read(&mut self, end: ReadEnd, poller: &Poller, now: u64) -> io::Result<()> {
        if end != ReadEnd::Shortage {
            self.wire.reading.end();
            // An event of the same iteration may have had memory although the one before had none.
            return self.watch_again(poller);
        }
        self.wire.reading.begin(|wait| clock::after(now, wait));
        self.watch_wire(poller, Interest::Paused)
    }

    /// Awaits memory of the kernel to read the last answers of an app that has ended. Returns false if it was awaited
    /// for long enough.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn awaits_last_answers(&mut self, poller: &Poller) -> io::Result<bool> {
        if self.wire.reading.refusals() > MAX_REFUSALS {
            return Ok(false);
        }
        self.watch_end(poller, Interest::Paused)?;
        Ok(true)
    }

    /// Returns when to try again what the kernel has had no memory for: ns of CLOCK_MONOTONIC.
    pub(super) fn retry_at(&self) -> Option<u64> {
        let waits = [self.wire.reading.until(), self.wire.writing.until()];
        waits.into_iter().flatten().min()
    }

    /// Has the poller report the wire again if it is time. [`App::flush`] writes again. `now` is ns of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn retry(&mut self, poller: &Poller, now: u64) -> io::Result<()> {
        self.wire.writing.end_if_over(now);
        match self.wire.reading.end_if_over(now) {
            true => self.watch_again(poller),
            false => Ok(()),
        }
    }

    /// Has the poller report again what it did not report for lack of memory.
    fn watch_again(&mut self, poller: &Poller) -> io::Result<()> {
        if self.watched[0] == Interest::Paused {
            // The poller reports at once that a full wire accepts bytes, if it does.
            let wanted = match self.wire.has_unwritten() {
                true => Interest::Both,
                false => Interest::Read,
            };
            self.watch_wire(poller, wanted)?;
        }
        self.watch_end(poller, Interest::Read)
    }

    fn watch_wire(&mut self, poller: &Poller, wanted: Interest) -> io::Result<()> {
        if self.watched[0] != wanted {
            poller.modify(&self.wire, WIRE, wanted)?;
            self.watched[0] = wanted;
        }
        Ok(())
    }

    fn watch_end(&mut self, poller: &Poller, wanted: Interest) -> io::Result<()> {
        if self.watched[1] != wanted {
            poller.modify(&self.process.pidfd, END, wanted)?;
            self.watched[1] = wanted;
        }
        Ok(())
    }

    /// Asks the app to end a request.
    pub(super) fn cancel(&mut self, id: u64, why: CancelReason) {
        #[derive(serde::Serialize)]
        struct Cancel {
            cancel: u64,
            why: CancelReason,
        }
        self.wire.queue_json(&Cancel { cancel: id, why });
    }

    /// Sends a probe, which the app answers if its loop is not blocked.
    pub(super) fn probe(&mut self) {
        #[derive(serde::Serialize)]
        struct Probe {
            probe: u64,
        }
        self.probes += 1;
        let probe = self.probes;
        self.wire.queue_json(&Probe { probe });
    }

    /// Informs the app that a client has left this worker.
    pub(super) fn client_left(&mut self, client: ClientId) {
        #[derive(serde::Serialize)]
        struct Closed {
            closed: ClientId,
        }
        if self.wants_closes {
            self.wire.queue_json(&Closed { closed: client });
        }
    }

    /// Returns when its memory is checked next, if it has a limit: ns of CLOCK_MONOTONIC. An app can also grow while it
    /// has no requests.
    pub(super) fn memory_check_at(&self) -> Option<u64> {
        self.max_memory?;
        Some(self.memory_checked.saturating_add(MEMORY_INTERVAL))
    }

    /// Returns whether the app's memory, checked once a second, is above its limit.
    pub(super) fn is_too_large(&mut self, now: u64) -> bool {
        let Some(most) = self.max_memory else {
            return false;
        };
        if self.memory_check_at().is_none_or(|at| now < at) {
            return false;
        }
        self.memory_checked = now;
        process::resident_memory(self.process.pid).is_some_and(|bytes| bytes > most)
    }
}

impl AsFd for App {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.wire.as_fd()
    }
}
