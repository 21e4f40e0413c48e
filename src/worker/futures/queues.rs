//! The queues between a worker's loop and the thread of its runtime.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{MethodJob, MethodResult};
use crate::proto::names::ClientId;
use crate::sys::latch::ExecutionLatch;
use crate::sys::wakeup::Wakeup;

/// A command to the thread.
pub(super) enum Command {
    /// Executes a request.
    Begin {
        id: u64,
        method: usize,
        client: ClientId,
        job: MethodJob,
    },
    /// Drops the future of a request.
    Cancel(u64),
    /// Asks for [`Report::Alive`].
    Probe,
    /// Drops all futures and ends the thread; blocking tasks may take this long.
    Stop(Duration),
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Begin { .. } => "Begin",
            Command::Cancel(_) => "Cancel",
            Command::Probe => "Probe",
            Command::Stop(_) => "Stop",
        })
    }
}

/// A report of the thread.
#[derive(Debug)]
pub(super) enum Report {
    /// A future has ended: nothing of it executes any more.
    Ended {
        id: u64,
        /// The result; `None` if the future was dropped before it had one.
        result: Option<MethodResult>,
        is_panic: bool,
    },
    /// The answer to a probe.
    Alive,
}

/// Commands for the thread, and its waker while it waits for some.
#[derive(Debug, Default)]
struct Commands {
    queue: Vec<Command>,
    waker: Option<Waker>,
}

/// Both queues.
#[derive(Debug)]
pub(super) struct Queues {
    commands: Mutex<Commands>,
    reports: Mutex<Vec<Report>>,
    wakeup: Wakeup,
    /// The latch that guards all code of methods.
    pub(super) latch: Arc<ExecutionLatch>,
    /// The thread has ended.
    has_ended: AtomicBool,
}

impl Queues {
    /// Creates empty queues.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(super) fn new() -> io::Result<Queues> {
        Ok(Queues {
            commands: Mutex::default(),
            reports: Mutex::default(),
            wakeup: Wakeup::new()?,
            latch: Arc::default(),
            has_ended: AtomicBool::new(false),
        })
    }

    /// Sends commands to the thread.
    pub(super) fn send(&self, commands: &mut Vec<Command>) {
        let waker = {
            let mut shared = lock(&self.commands);
            shared.queue.append(commands);
            shared.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits for commands, in the thread.
    pub(super) async fn commands(&self) -> Vec<Command> {
        poll_fn(|context| {
            let mut shared = lock(&self.commands);
            if shared.queue.is_empty() {
                shared.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(mem::take(&mut shared.queue))
        })
        .await
    }

    /// Reports to the loop, and wakes it unless reports wait for it already.
    pub(super) fn report(&self, report: Report) {
        let is_first = {
            let mut reports = lock(&self.reports);
            reports.push(report);
            reports.len() == 1
        };
        if is_first {
            self.wakeup.notify();
        }
    }

    /// Records that the thread has ended, and wakes the loop.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.wakeup.notify();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Takes the reports. Returns `None` if there are none and the thread has ended.
    pub(super) fn take_reports(&self) -> Option<Vec<Report>> {
        let has_ended = self.has_ended();
        // Cleared before the reports are taken, so that one that comes later wakes the loop.
        self.clear_wakeup();
        let reports = mem::take(&mut *lock(&self.reports));
        (!has_ended || !reports.is_empty()).then_some(reports)
    }

    pub(super) fn clear_wakeup(&self) {
        self.wakeup.clear();
    }
}

impl AsFd for Queues {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }
}

/// Locks a queue. No code that may panic runs while one is locked.
fn lock<T>(queue: &Mutex<T>) -> MutexGuard<'_, T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
