//! The executor of the requests that are away: the app's process, or the runtime of asynchronous methods.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(feature = "tokio")]
use std::sync::Arc;
use std::time::Duration;

use super::{Pulse, QueuedClient, Requests};
use crate::proto::app::CancelReason;
use crate::proto::channel::{RuntimeInfo, SpentReason};
use crate::proto::names::ClientId;
#[cfg(feature = "tokio")]
use crate::sys::latch::ExecutionLatch;
use crate::sys::poll::{self, Interest, Poller};
use crate::worker::apps::App;
#[cfg(feature = "tokio")]
use crate::worker::futures::Runtime;

/// The executor of requests that are away, with these requests.
#[derive(Debug)]
pub(in crate::worker) struct Executor {
    pub(in crate::worker) kind: ExecutorKind,
    pub(in crate::worker) requests: Requests,
    pub(in crate::worker) pulse: Pulse,
    /// Whether the executor accepts requests again since the last flush. No event reports that, so another iteration of
    /// the loop calls the clients that wait.
    pub(in crate::worker) is_free_again: bool,
}

/// The kinds of executors.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // There is one in a process.
pub(in crate::worker) enum ExecutorKind {
    /// A process of any language.
    App(App),
    /// A thread with futures.
    #[cfg(feature = "tokio")]
    Runtime(Runtime),
}

impl Executor {
    /// Returns an executor with at most this many requests at a time.
    pub(in crate::worker) fn new(kind: ExecutorKind, permits: u32) -> Executor {
        Executor {
            kind,
            requests: Requests::new(permits),
            pulse: Pulse::default(),
            is_free_again: false,
        }
    }

    /// Returns the name of the kind, for messages.
    pub(in crate::worker) fn name(&self) -> &'static str {
        match &self.kind {
            ExecutorKind::App(_) => "app",
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(_) => "runtime",
        }
    }

    /// Returns the app, or `None` for a runtime.
    pub(in crate::worker) fn app(&self) -> Option<&App> {
        match &self.kind {
            ExecutorKind::App(app) => Some(app),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(_) => None,
        }
    }

    /// Returns the app, to be changed, or `None` for a runtime.
    pub(in crate::worker) fn app_mut(&mut self) -> Option<&mut App> {
        match &mut self.kind {
            ExecutorKind::App(app) => Some(app),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(_) => None,
        }
    }

    /// Returns what the worker reports on the runtime, or `None` for an app.
    pub(in crate::worker) fn runtime_info(&self) -> Option<RuntimeInfo> {
        match &self.kind {
            ExecutorKind::App(_) => None,
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => Some(RuntimeInfo {
                thread: runtime.thread(),
                concurrency: self.requests.permits(),
            }),
        }
    }

    /// Returns the handle by which other threads enter the runtime, or `None` for an app.
    #[cfg(feature = "tokio")]
    pub(in crate::worker) fn handle(&self) -> Option<tokio::runtime::Handle> {
        match &self.kind {
            ExecutorKind::App(_) => None,
            ExecutorKind::Runtime(runtime) => Some(runtime.handle()),
        }
    }

    /// Returns the latch of the futures, or `None` for an app.
    #[cfg(feature = "tokio")]
    pub(in crate::worker) fn latch(&self) -> Option<Arc<ExecutionLatch>> {
        match &self.kind {
            ExecutorKind::App(_) => None,
            ExecutorKind::Runtime(runtime) => Some(runtime.latch()),
        }
    }

    /// Adds every descriptor of the executor to the poller.
    pub(in crate::worker) fn watch(&self, poller: &Poller) -> io::Result<()> {
        match &self.kind {
            ExecutorKind::App(app) => app.watch(poller),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => runtime.watch(poller),
        }
    }

    /// Returns whether this request may be handed over now. `left` is how many requests the worker may still answer.
    pub(in crate::worker) fn has_permit(&self, next: QueuedClient, left: Option<u64>) -> bool {
        self.takes_requests() && self.requests.has_permit(next, left)
    }

    /// Returns whether the executor may receive requests: it reads them, and answers in time.
    pub(in crate::worker) fn takes_requests(&self) -> bool {
        let accepts = match &self.kind {
            ExecutorKind::App(app) => app.wire.accepts(),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(_) => true,
        };
        accepts && self.pulse.is_good()
    }

    /// Returns whether the executor can cancel a request, or answer a probe, while it executes requests.
    pub(in crate::worker) fn is_responsive(&self) -> bool {
        match &self.kind {
            ExecutorKind::App(_) => !self.requests.is_serial(),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(_) => true,
        }
    }

    /// Asks the executor to cancel a request.
    pub(in crate::worker) fn cancel(&mut self, id: u64, why: CancelReason) {
        match &mut self.kind {
            ExecutorKind::App(app) => app.cancel(id, why),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => runtime.cancel(id, why),
        }
    }

    /// Asks for a sign of life.
    pub(in crate::worker) fn probe(&mut self, now: u64) {
        self.pulse.probed = Some(now);
        match &mut self.kind {
            ExecutorKind::App(app) => app.probe(),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => runtime.probe(),
        }
    }

    /// Returns when a probe is due, if requests are away and no probe is unanswered.
    pub(in crate::worker) fn next_probe(&self, stall: u64) -> Option<u64> {
        let is_wanted =
            self.requests.count() > 0 && self.is_responsive() && self.pulse.probed.is_none();
        is_wanted.then(|| self.pulse.active_at.saturating_add(stall / 2))
    }

    /// Returns whether requests or other frames are queued for the executor.
    pub(in crate::worker) fn has_unwritten(&self) -> bool {
        match &self.kind {
            ExecutorKind::App(app) => app.wire.has_unwritten(),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => runtime.has_unsent(),
        }
    }

    /// Writes what is queued. `now` is ns of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// Those of send(2) and epoll_ctl(2).
    pub(in crate::worker) fn flush(&mut self, poller: &Poller, now: u64) -> io::Result<()> {
        match &mut self.kind {
            // If the app has closed its end, the event of its end follows.
            ExecutorKind::App(app) => app.flush(poller, now),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => {
                runtime.flush();
                Ok(())
            }
        }
    }

    /// Informs an app that a client has left this worker.
    pub(in crate::worker) fn client_left(&mut self, client: ClientId) {
        if let Some(app) = self.app_mut() {
            app.client_left(client);
        }
    }

    /// Returns why the worker should be replaced: the app is too large, or a panic may have broken the state.
    pub(in crate::worker) fn spent(&mut self, now: u64) -> Option<SpentReason> {
        match &mut self.kind {
            ExecutorKind::App(app) => app.is_too_large(now).then_some(SpentReason::Memory),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => runtime.take_panic().then_some(SpentReason::Panic),
        }
    }

    /// Returns when to try again what the kernel has had no memory for: ns of CLOCK_MONOTONIC.
    pub(in crate::worker) fn retry_at(&self) -> Option<u64> {
        self.app().and_then(App::retry_at)
    }

    /// Tries again what the kernel has had no memory for, if it is time. `now` is ns of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(in crate::worker) fn retry(&mut self, poller: &Poller, now: u64) -> io::Result<()> {
        match self.app_mut() {
            Some(app) => app.retry(poller, now),
            None => Ok(()),
        }
    }

    /// Returns when the memory of an app is checked next, if it has a limit: ns of CLOCK_MONOTONIC.
    pub(in crate::worker) fn memory_check_at(&self) -> Option<u64> {
        self.app().and_then(App::memory_check_at)
    }

    /// Returns whether the app has ended, so that no answer follows.
    ///
    /// # Errors
    /// Those of poll(2).
    pub(in crate::worker) fn has_ended(&self) -> io::Result<bool> {
        match &self.kind {
            ExecutorKind::App(app) => {
                poll::wait_for(app.process().1, Interest::Read, Duration::ZERO)
            }
            // The worker's loop ends as soon as the runtime's thread has ended.
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(_) => Ok(false),
        }
    }

    /// Ends the executor, which must have no requests.
    pub(in crate::worker) fn finish(&mut self, within: Duration) {
        match &mut self.kind {
            ExecutorKind::App(app) => app.finish(within),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => {
                if !runtime.finish(within) {
                    log::warn!("the runtime did not end within {within:?}");
                }
            }
        }
    }
}

impl AsFd for Executor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            ExecutorKind::App(app) => app.as_fd(),
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => runtime.as_fd(),
        }
    }
}
