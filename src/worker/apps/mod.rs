//! The app of a worker: a process of any language that executes methods. `proto/app.rs` has its protocol.
//!
//! Worker and app live and die together: the app has sent its hello before the worker is ready, and when either ends,
//! so does the other. So a death of an app is a death of its worker, and everything that follows it is the same.
//!
//! A request that the app executes is *away*: its bytes lie in its slot's own regions, `exec` is set, the lease word is
//! `AWAY`, and the worker serves other clients. Its answer is committed by one store on the same cursors, then sent.

mod fault;
mod metrics;
mod output;
mod service;
mod start;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

pub(super) use fault::fault_of;
pub(super) use service::AppService;
pub(super) use start::StartingApp;
pub(super) use wire::{IncomingFrames, ReadEnd, Wire};

use self::metrics::AppMetrics;
use self::output::{LastLines, OutputStream};
use crate::proto::app::{AppInfo, CancelReason, Samples};
use crate::proto::channel::{AppEnd, AppGone};
use crate::proto::names::ClientId;
use crate::proto::text::Escaped;
use crate::sys::cgroup::{AppCgroup, AppCgroupGuard};
use crate::sys::poll::{self, Interest, Poller};
use crate::sys::process::{self, AppProcess, Exit};

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

/// The most reads of what an app has written before its end.
const MAX_LAST_READS: usize = 64;

/// The running app of a worker.
#[derive(Debug)]
pub(super) struct App {
    process: AppProcess,
    /// Ends all that the app has started.
    cgroup: Option<AppCgroupGuard>,
    pub(super) wire: Wire,
    output: Option<[OutputStream; 2]>,
    last_lines: LastLines,
    info: AppInfo,
    metrics: AppMetrics,
    /// The app wants to know which clients have left.
    wants_closes: bool,
    max_memory: Option<u64>,
    /// When its memory was last looked at: ns of CLOCK_MONOTONIC.
    memory_checked: u64,
    probes: u64,
    /// The poller reports when the wire accepts bytes again.
    is_full: bool,
}

impl App {
    /// Returns what it has reported of itself.
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

    /// Writes the queued frames. Returns false if the app has closed its end.
    ///
    /// # Errors
    /// Those of write(2) and epoll_ctl(2).
    pub(super) fn flush(&mut self, poller: &Poller) -> io::Result<bool> {
        if !self.wire.has_unwritten() {
            return Ok(true);
        }
        let is_open = self.wire.flush()?;
        let is_full = self.wire.has_unwritten() && is_open;
        if is_full != self.is_full {
            let interest = if is_full {
                Interest::Both
            } else {
                Interest::Read
            };
            poller.modify(&self.wire, WIRE, interest)?;
            self.is_full = is_full;
        }
        Ok(is_open)
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

    /// Asks the app whether its loop turns.
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

    /// Returns whether the app's memory, checked once a second, is above its limit.
    pub(super) fn is_too_large(&mut self, now: u64) -> bool {
        const INTERVAL: u64 = 1_000_000_000;
        let Some(most) = self.max_memory else {
            return false;
        };
        if now.saturating_sub(self.memory_checked) < INTERVAL {
            return false;
        }
        self.memory_checked = now;
        process::resident_memory(self.process.pid).is_some_and(|bytes| bytes > most)
    }

    /// Returns how the app has ended, with the last line that it has written; `None` if it runs. `when` follows the
    /// exit in the reason.
    pub(super) fn end(&mut self, when: &str) -> Option<AppGone> {
        let exit = match process::end_of(&self.process.pidfd) {
            Ok(None) => return None,
            Ok(Some(exit)) => exit,
            Err(e) => {
                let reason = format!("cannot be waited for: {e}");
                let end = AppEnd::BrokeProtocol;
                return Some(app_gone(end, reason));
            }
        };
        let end = match exit {
            Exit::Status(status) => AppEnd::Exited(status),
            Exit::Signal { number, .. } => AppEnd::Killed(number),
        };
        let was = match exit {
            Exit::Status(_) => "",
            Exit::Signal { .. } => "was ",
        };
        let reason = self.with_last_line(format!("{was}{exit}{when}"));
        Some(app_gone(end, reason))
    }

    /// Adds the last line that the app has written to the reason of its end.
    fn with_last_line(&mut self, reason: String) -> String {
        for stream in self.output.iter_mut().flatten() {
            for _ in 0..MAX_LAST_READS {
                if !stream.read(&mut self.last_lines) {
                    break;
                }
            }
        }
        match self.last_lines.last() {
            Some(line) => format!("{reason}: {}", Escaped(line)),
            None => reason,
        }
    }

    /// Ends the app, which has no requests: it is asked to stop, the wire ends, and it is killed if it does not exit in
    /// time.
    pub(super) fn finish(&mut self, within: Duration) {
        #[derive(serde::Serialize)]
        struct Stop {
            stop: u64,
        }
        let stop = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.wire.queue_json(&Stop { stop });
        // The app may have ended already.
        let _ = self.wire.flush();
        self.wire.end();
        let mut streams = self.output.take();
        let begin = std::time::Instant::now();
        loop {
            let left = within.saturating_sub(begin.elapsed());
            let step = left.min(Duration::from_millis(20));
            let has_ended = poll::wait_for(&self.process.pidfd, Interest::Read, step);
            for stream in streams.iter_mut().flatten() {
                stream.read(&mut self.last_lines);
            }
            match has_ended {
                Ok(false) if !left.is_zero() => {}
                Ok(false) => {
                    let pid = self.process.pid;
                    log::warn!("app {pid} did not exit within {within:?}; killing it");
                    return;
                }
                _ => break,
            }
        }
        self.output = streams;
        self.with_last_line(String::new());
    }
}

fn app_gone(end: AppEnd, reason: String) -> AppGone {
    let subject = "app".to_owned();
    AppGone {
        end,
        subject,
        reason,
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Also the processes of its group, in case the app itself has ended.
        process::kill_app(self.process.pid);
    }
}

impl AsFd for App {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.wire.as_fd()
    }
}
