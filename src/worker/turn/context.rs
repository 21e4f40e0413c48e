//! The parts of a worker that a turn works with.

use std::time::{Duration, Instant};

use crate::proto::channel::Settings;
use crate::shm::WorkerShm;
use crate::sys::byte_counts::OwnWrites;
use crate::worker::away::executor::Executor;
use crate::worker::methods::Service;

/// The parts of a worker that a turn works with.
pub(in crate::worker) struct TurnContext<'a> {
    pub(in crate::worker) shm: &'a mut WorkerShm,
    pub(in crate::worker) service: &'a mut dyn Service,
    /// The executor of requests that are away, if the worker has one.
    pub(in crate::worker) executor: Option<&'a mut Executor>,
    /// Whether this process runs code besides this crate's, which may close descriptors that it does not own.
    pub(in crate::worker) runs_other_code: bool,
    /// Whether the frames after an answer are served, because the worker does not retire.
    pub(in crate::worker) may_continue: bool,
    pub(in crate::worker) settings: &'a Settings,
    /// When the worker is killed, once it has received `Stop`.
    pub(in crate::worker) stop_by: Option<Instant>,
    /// One instant, by [`Instant`] and in ns of CLOCK_MONOTONIC: it converts between them without a system call.
    pub(in crate::worker) epoch: (Instant, u64),
    /// Whether a method is quarantined, by its index. Methods beyond the end are not.
    pub(in crate::worker) quarantined: &'a [bool],
    /// Requests that this process has answered.
    pub(in crate::worker) served: u64,
    /// The I/O account of this thread, where the kernel keeps one.
    pub(in crate::worker) writes: Option<&'a OwnWrites>,
    /// The reason why this process cannot continue, if there is one.
    pub(in crate::worker) broken: &'a mut Option<String>,
    /// Slots whose PROXY protocol headers the master must look at.
    pub(in crate::worker) proxied: &'a mut Vec<u32>,
    /// ns of CLOCK_MONOTONIC: at the beginning of the turn, and again at its end.
    pub(in crate::worker) now: u64,
    /// The deadline that was computed last, with the `now` for which it was computed.
    pub(in crate::worker) deadline: Option<(u64, Option<Instant>)>,
}

impl TurnContext<'_> {
    /// Returns when the worker is killed, if a method begins now. It is computed once for each reading of the clock:
    /// many requests share one.
    #[inline]
    pub(super) fn deadline(&mut self) -> Option<Instant> {
        match self.deadline {
            Some((now, deadline)) if now == self.now => deadline,
            _ => self.computed_deadline(),
        }
    }

    fn computed_deadline(&mut self) -> Option<Instant> {
        let timeout = self
            .settings
            .request_timeout
            .and_then(|timeout| self.instant(self.now).checked_add(timeout));
        let deadline = [self.stop_by, timeout].into_iter().flatten().min();
        self.deadline = Some((self.now, deadline));
        deadline
    }

    /// Returns the instant of a time in ns of CLOCK_MONOTONIC.
    pub(super) fn instant(&self, ns: u64) -> Instant {
        let (epoch, epoch_ns) = self.epoch;
        epoch + Duration::from_nanos(ns.saturating_sub(epoch_ns))
    }

    /// Returns the requests that this process has answered, and those that are away, whose answers follow.
    pub(in crate::worker) fn begun(&self) -> u64 {
        let away = self.executor.as_deref();
        let away = away.map_or(0, |executor| executor.requests.count() as u64);
        self.served + away
    }

    /// Returns whether this process has reached its limit of requests.
    pub(in crate::worker) fn has_reached_limit(&self) -> bool {
        self.settings.requests_left(self.begun()) == Some(0)
    }
}
