//! Signs of life of a worker and of its app, in the shared memory and in /proc.

use std::time::{Duration, Instant};

use crate::loop_clock::LoopClock;
use crate::master::workers::worker::{Heartbeat, Worker};
use crate::proto::channel::ToWorker;
use crate::sys::clock;
use crate::sys::process::{self, Scheduling};

impl Worker {
    /// Returns how long requests have waited for a permit while the app answers nothing.
    pub(super) fn check_app(&mut self, clock: &LoopClock) -> Duration {
        let full_since = self.shm.header().full_since();
        let waited = full_since.map_or(Duration::ZERO, |since| ago(since, clock));
        if waited.is_zero() {
            self.app_watch.ran = None;
        } else if self.app_watch.ran.is_none() {
            self.app_watch.ran = self.app_scheduling().map(|scheduling| scheduling.ran);
        }
        waited
    }

    /// Returns whether the worker was stuck because of its app and may still be. The requests that waited were moved,
    /// so only an answer shows that the app works.
    pub(super) fn is_app_silent(&mut self) -> bool {
        let answered = self.trusted.counters().requests();
        let is_silent = self.app_watch.stuck_at == Some(answered) && self.shm.header().away() > 0;
        if !is_silent {
            self.app_watch.stuck_at = None;
        }
        is_silent
    }

    /// Returns whether the app answers nothing for lack of a CPU.
    pub(super) fn is_app_starved(&self, limit: Duration) -> bool {
        has_starved(self.app_scheduling(), self.app_watch.ran, limit)
    }

    /// Returns the CPU time of the app's first thread, or of the runtime's thread, which is one of the worker's own.
    fn app_scheduling(&self) -> Option<Scheduling> {
        match self.runtime {
            Some(runtime) => process::thread_scheduling(self.pid, runtime.thread),
            None => process::scheduling(self.app.pid?),
        }
    }

    /// Returns when the current turn began: ns of CLOCK_MONOTONIC.
    fn turn_since(&self) -> Option<u64> {
        self.shm.header().turn().map(|turn| turn.since)
    }

    /// Returns whether the worker is executing a request.
    pub(crate) fn is_executing(&self) -> bool {
        let turn = self.shm.header().turn();
        turn.and_then(|turn| self.shm.slot(turn.slot)?.executing())
            .is_some()
    }

    /// Returns the method that the worker executes, unless that is an inline one.
    pub(crate) fn method_in_turn(&self) -> Option<&str> {
        self.method_of(self.shm.header().executing()?)
    }

    /// Returns the name of the method with this number.
    pub(crate) fn method_of(&self, number: u32) -> Option<&str> {
        let method = self.methods.get((number as usize).checked_sub(1)?)?;
        Some(&method.name)
    }

    /// Returns the name of the worker with the request that it executes, if there is one.
    pub(super) fn name_with_request(&self) -> String {
        let turn = self.shm.header().turn();
        let client = turn.and_then(|turn| self.leases.shown_in_turn(turn.slot, &self.shm));
        // The slot names inline methods, too; the header does not.
        let number = turn.and_then(|turn| self.shm.slot(turn.slot)?.executing());
        let name = self.name();
        match (client, number.and_then(|number| self.method_of(number))) {
            (Some((client, shown)), Some(method)) => {
                format!("{name} in method {method:?} of client {client} ({shown})")
            }
            _ => name,
        }
    }

    /// Checks for a heartbeat, and sends a ping if there is none. Returns how long the worker may have been stuck, and
    /// when that reaches `limit`.
    pub(super) fn check_heartbeat(
        &mut self,
        limit: Duration,
        clock: &LoopClock,
        now: Instant,
    ) -> (Duration, Option<Instant>) {
        let beats = self.shm.header().heartbeats();
        let has_beaten = beats != self.heartbeat.count;
        if has_beaten {
            self.heartbeat = Heartbeat {
                count: beats,
                ..Heartbeat::default()
            };
        }
        let stuck_for = match (self.turn_since(), self.heartbeat.pinged_at) {
            (Some(since), _) => ago(since, clock),
            (None, Some(pinged_at)) => now.duration_since(pinged_at),
            (None, None) if has_beaten => Duration::ZERO,
            (None, None) => {
                // A ping that is not sent cannot be answered. The next check sends another one.
                self.heartbeat.pinged_at = self.try_send(&ToWorker::Ping).then_some(now);
                Duration::ZERO
            }
        };
        if !stuck_for.is_zero() && self.heartbeat.ran.is_none() {
            self.heartbeat.ran = process::scheduling(self.pid).map(|scheduling| scheduling.ran);
        }
        (
            stuck_for,
            now.checked_add(limit.saturating_sub(stuck_for))
                .filter(|_| stuck_for < limit),
        )
    }

    /// Returns whether the worker was stuck for lack of a CPU: it is runnable, and has hardly run since.
    pub(super) fn is_starved(&self, limit: Duration) -> bool {
        has_starved(process::scheduling(self.pid), self.heartbeat.ran, limit)
    }
}

/// Returns whether a thread is runnable and has hardly run since it had run for `then`.
fn has_starved(now: Option<Scheduling>, then: Option<Duration>, limit: Duration) -> bool {
    let (Some(then), Some(now)) = (then, now) else {
        return false;
    };
    now.is_runnable && now.ran.saturating_sub(then) < (limit / 4).min(LONG_RUN)
}

/// Returns the time since `since`, by the same clock, without the time in which this process could not run.
fn ago(since: u64, clock: &LoopClock) -> Duration {
    Duration::from_nanos(
        clock::monotonic()
            .saturating_sub(since)
            .saturating_sub(clock.gaps_since(since)),
    )
}

/// A worker that has run for longer without a heartbeat is in no ordinary turn.
const LONG_RUN: Duration = Duration::from_millis(10);
