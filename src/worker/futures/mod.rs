//! The runtime of asynchronous methods: one thread with the futures of all requests that are away.
//!
//! The loop and the thread share two queues. Commands are queued for the thread and sent together, once an iteration of
//! the loop; reports of the thread wake the loop by an eventfd, once until it has taken them. The thread blocks all
//! signals, so that their handlers run in the loop's thread, and the kernel has its own account of what it writes.
//!
//! A request is away until its future has ended or is dropped, also if its client leaves: only then its permit is free
//! and a `timeout` is sent, so nothing of the request executes any more.

mod call;
mod execution;
mod of_loop;
mod queues;
mod thread;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::runtime::Handle;

pub use call::AsyncCall;

use self::queues::{Command, Queues, Report};
use self::thread::Started;
use super::reply::Fault;
use crate::proto::app::CancelReason;
use crate::proto::names::ClientId;
use crate::sys::latch::ExecutionLatch;
use crate::sys::poll::{self, Interest, Poller};

/// The poller's token of the runtime: that of an app's wire, as a worker has only one of the two.
const REPORTS: u64 = super::apps::WIRE;

/// The future of one request. It stays in the runtime's thread.
pub(in crate::worker) type MethodFuture = Pin<Box<dyn Future<Output = MethodResult>>>;

/// Makes the future of one request, in the runtime's thread.
pub(in crate::worker) type MethodJob = Box<dyn FnOnce() -> MethodFuture + Send>;

pub(in crate::worker) type MethodResult = Result<Box<RawValue>, Fault>;

/// The loop's end of the runtime.
#[derive(Debug)]
pub(in crate::worker) struct Runtime {
    queues: Arc<Queues>,
    started: Started,
    /// Commands that are not sent yet.
    unsent: Vec<Command>,
    /// By request: whether its client is connected.
    connected: HashMap<u64, Arc<AtomicBool>>,
    /// A future has panicked since the last [`Runtime::take_panic`].
    has_panicked: bool,
}

impl Runtime {
    /// Starts the thread.
    ///
    /// # Errors
    /// Those of eventfd(2), of pthread_create(3), and of what the runtime opens.
    pub(in crate::worker) fn start() -> io::Result<Runtime> {
        let queues = Arc::new(Queues::new()?);
        let started = thread::start(&queues)?;
        Ok(Runtime {
            queues,
            started,
            unsent: Vec::new(),
            connected: HashMap::new(),
            has_panicked: false,
        })
    }

    /// Returns the handle by which other threads enter the runtime.
    pub(in crate::worker) fn handle(&self) -> Handle {
        self.started.handle.clone()
    }

    /// Returns the number of its thread.
    pub(in crate::worker) fn thread(&self) -> u32 {
        self.started.thread
    }

    /// Returns the latch that guards all futures.
    pub(in crate::worker) fn latch(&self) -> Arc<ExecutionLatch> {
        Arc::clone(&self.queues.latch)
    }

    pub(in crate::worker) fn watch(&self, poller: &Poller) -> io::Result<()> {
        poller.add(self, REPORTS, Interest::Read)
    }

    /// Queues a request. `method` is the index of its method.
    pub(in crate::worker) fn begin(
        &mut self,
        id: u64,
        method: usize,
        call: AsyncCall,
        job: MethodJob,
    ) {
        let client: ClientId = call.client;
        self.connected.insert(id, call.into_connected());
        self.unsent.push(Command::Begin {
            id,
            method,
            client,
            job,
        });
    }

    /// Queues that the future of a request must be dropped.
    pub(in crate::worker) fn cancel(&mut self, id: u64, why: CancelReason) {
        if why == CancelReason::Gone
            && let Some(connected) = self.connected.get(&id)
        {
            connected.store(false, Ordering::Relaxed);
        }
        self.unsent.push(Command::Cancel(id));
    }

    /// Queues a question that the thread answers when it runs no future.
    pub(in crate::worker) fn probe(&mut self) {
        self.unsent.push(Command::Probe);
    }

    pub(in crate::worker) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends the commands that are queued.
    pub(in crate::worker) fn flush(&mut self) {
        self.queues.send(&mut self.unsent);
    }

    /// Takes the reports of the thread. Returns `None` if the thread has ended.
    fn take_reports(&mut self) -> Option<Vec<Report>> {
        let reports = self.queues.take_reports()?;
        for report in &reports {
            if let Report::Ended { id, is_panic, .. } = report {
                self.connected.remove(id);
                self.has_panicked |= is_panic;
            }
        }
        Some(reports)
    }

    /// Returns whether a future has panicked since the last call: what it shares with others may be inconsistent.
    pub(in crate::worker) fn take_panic(&mut self) -> bool {
        std::mem::take(&mut self.has_panicked)
    }

    /// Ends the thread: all futures are dropped. Returns whether it has ended within this time.
    pub(in crate::worker) fn finish(&mut self, within: Duration) -> bool {
        self.unsent.push(Command::Stop(within));
        self.flush();
        let begin = std::time::Instant::now();
        loop {
            let left = within.saturating_sub(begin.elapsed());
            if self.queues.has_ended() {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            // It is readable at once if there are reports.
            let step = left.min(Duration::from_millis(20));
            if poll::wait_for(&*self, Interest::Read, step).unwrap_or(true) {
                self.queues.clear_wakeup();
            }
        }
    }
}

impl AsFd for Runtime {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queues.as_fd()
    }
}
