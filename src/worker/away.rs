//! Requests that are away: their answers, permits and timeouts in the worker's loop. An app or a runtime executes them.

pub(super) mod executor;
mod of_app;
mod pulse;
pub(super) mod requests;

use std::io;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

pub(super) use executor::{Executor, ExecutorKind};
pub(super) use pulse::Pulse;
pub(super) use requests::{QueuedClient, Requests};

use super::WorkerLoop;
use super::connection::{Connection, WaitingFor};
use super::kill_points::{self, Point};
use super::methods::Service;
use super::reply::Fault;
use super::turn::{AwayAnswer, Purpose};
use crate::proto::app::CancelReason;
use crate::proto::channel::{AppEnd, AppGone, SpentReason};
use crate::proto::text::shortened;
use crate::sys::clock;
use crate::sys::poll::{self, Interest, PollEvent};
use crate::table::Table;

/// Returns the words for a request of this slot and method number.
fn describe(
    request: Option<(Option<u32>, u32)>,
    connections: &Table<Connection>,
    service: &dyn Service,
) -> String {
    let method = request.and_then(|(_, number)| service.away_method(number as usize - 1));
    let (method, _) = method.unwrap_or_default();
    match request.and_then(|(slot, _)| connections.get(slot?)) {
        Some(connection) => format!("client {}: method {method:?}", connection.client),
        None => format!("a client that has left: method {method:?}"),
    }
}

impl WorkerLoop<'_> {
    /// Processes an event of the executor.
    pub(super) fn attend_executor(
        &mut self,
        token: u64,
        service: &mut dyn Service,
    ) -> io::Result<()> {
        match self.executor.as_ref().map(|executor| &executor.kind) {
            Some(ExecutorKind::App(_)) => self.attend_app(token, service),
            #[cfg(feature = "tokio")]
            Some(ExecutorKind::Runtime(_)) => {
                self.take_outcomes(service);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Completes a request that its executor has answered.
    ///
    /// # Errors
    /// The request is not away.
    pub(super) fn complete_request(
        &mut self,
        id: u64,
        outcome: Result<&RawValue, Fault>,
        service: &mut dyn Service,
    ) -> Result<(), NotAway> {
        let executor = self.executor.as_mut().ok_or(NotAway)?;
        let request = executor.requests.remove(id).ok_or(NotAway)?;
        executor.pulse.answered = self.time.now;
        let away = executor.requests.count() as u64;
        self.shm.header().set_away(away);
        if let Some(slot) = request.slot {
            let answer = AwayAnswer { request, outcome };
            self.run_turn(slot, &Purpose::Complete(&answer), service);
        }
        Ok(())
    }

    /// Gives free permits to the clients that wait for one.
    pub(super) fn call_queued(&mut self, service: &mut dyn Service) {
        if let Some(executor) = &mut self.executor {
            executor.is_free_again = false;
        }
        while let Some(slot) = self.next_queued() {
            self.run_turn(slot, &Purpose::Serve, service);
        }
    }

    /// Returns the next client whose request may be handed over.
    fn next_queued(&mut self) -> Option<u32> {
        let left = self.settings.requests_left(self.served);
        let executor = self.executor.as_mut()?;
        if !executor.takes_requests() {
            executor.requests.end_call();
            return None;
        }
        let connections = &self.connections;
        let waits = |next: QueuedClient| is_queued(connections, next);
        let next = executor.requests.call_next(left, waits)?;
        Some(next.slot)
    }

    /// Removes a client that no longer waits for a permit from the queue.
    pub(super) fn leave_queue(&mut self, slot: u32) {
        let connections = &self.connections;
        if let Some(executor) = &mut self.executor {
            let waits = |next: QueuedClient| is_queued(connections, next);
            executor.requests.leave(slot, waits);
        }
    }

    /// Writes what is queued for the executor, and updates its signs of life. Called at the end of each iteration of
    /// the loop, and while the last answers are awaited.
    pub(super) fn flush_executor(&mut self, service: &mut dyn Service) -> io::Result<()> {
        let Some(executor) = &mut self.executor else {
            return Ok(());
        };
        executor.retry(&self.poller, self.time.now)?;
        // The requests that a worker takes back when it breaks off are executed by another one: no byte of them may
        // reach the app, which lives until this process exits.
        if executor.has_unwritten() && self.ending.broken.is_none() {
            let took_requests = executor.takes_requests();
            kill_points::pass(Point::BeforeAppWrite);
            executor.flush(&self.poller, self.time.now)?;
            kill_points::pass(Point::AfterAppWrite);
            executor.is_free_again = !took_requests && executor.takes_requests();
        }
        let stall = clock::nanoseconds(self.settings.stall_timeout);
        let Executor {
            pulse, requests, ..
        } = &mut **executor;
        if pulse.update_full_since(requests, self.time.now, stall) {
            self.shm.header().set_full_since(pulse.full_since);
        }
        self.shm.header().set_queued(requests.queued() as u64);
        let panicked = service.take_spent().then_some(SpentReason::Panic);
        if let Some(reason) = executor.spent(self.time.now).or(panicked) {
            self.master.spent = Some(reason);
        }
        Ok(())
    }

    /// Handles an event of a client that waits for a permit or an answer. Returns whether the client is such a one; if
    /// not, nothing is done.
    pub(super) fn handle_away_event(&mut self, slot: u32, event: PollEvent) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else {
            return false;
        };
        match connection.waits {
            WaitingFor::Permit | WaitingFor::Answer if !event.has_ended => {
                if connection.watch_end_only(&self.poller, slot).is_err() {
                    self.break_off(super::turn::FOREIGN);
                }
                true
            }
            WaitingFor::Answer => {
                self.abandon(slot);
                true
            }
            // The turn detects the end of the connection.
            WaitingFor::Permit => {
                self.claim_and_close(slot);
                true
            }
            _ => false,
        }
    }

    /// Closes a client that has left while its request is away.
    fn abandon(&mut self, slot: u32) {
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        let shared_slot = self.shm.slot(slot).expect("the client has a slot");
        if !shared_slot.claim_away(connection.lease_number) {
            return;
        }
        if let Some(executor) = &mut self.executor
            && let Some(id) = executor.requests.abandon(slot)
        {
            executor.cancel(id, CancelReason::Gone);
        }
        self.close(slot);
    }

    /// Returns when [`WorkerLoop::check_executor`] is due: ns of CLOCK_MONOTONIC.
    pub(super) fn executor_deadline(&mut self) -> Option<u64> {
        let stall = clock::nanoseconds(self.settings.stall_timeout);
        let timeout = self.settings.request_timeout.map(clock::nanoseconds);
        let executor = self.executor.as_mut()?;
        let waits = [executor.retry_at(), executor.memory_check_at()];
        let retry = waits.into_iter().flatten().min();
        if executor.requests.count() == 0 {
            return retry;
        }
        let clock = &self.time.clock;
        let after = |since: u64, time: u64| {
            let gaps = clock.gaps_since(since);
            since.saturating_add(time).saturating_add(gaps)
        };
        let overdue = timeout.zip(executor.requests.oldest());
        let overdue = overdue.map(|(timeout, (began, _))| after(began, timeout));
        let gave_up_at = executor.pulse.gave_up_at;
        let late = executor.requests.late_since();
        let given_up = late.map(|late| after(gave_up_at.unwrap_or(late), stall));
        let probe = executor
            .next_probe(stall)
            .or(executor.pulse.blocked_from(stall));
        let probe = probe.filter(|_| executor.pulse.full_since.is_none());
        [overdue, given_up, probe, retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// Checks the timeouts of the requests that are away, at `by`: ns of CLOCK_MONOTONIC. Everything that the executor
    /// had sent by then must have been processed.
    pub(super) fn check_executor(&mut self, by: u64, service: &mut dyn Service) {
        let stall = clock::nanoseconds(self.settings.stall_timeout);
        let timeout = self.settings.request_timeout.map(clock::nanoseconds);
        let Some(executor) = self.executor.as_mut() else {
            return;
        };
        while let Some((began, id)) = executor.requests.oldest()
            && let Some(timeout) = timeout
        {
            let gaps = self.time.clock.gaps_since(began);
            if began.saturating_add(timeout).saturating_add(gaps) > by {
                break;
            }
            let late = executor.requests.set_late(id, by);
            // However this worker ends, the request must not run again.
            if let Some(slot) = late.and_then(|(slot, _)| self.shm.slot(slot?)) {
                let mut flags = slot.flags();
                flags.timed_out = true;
                slot.set_flags(flags);
            }
            executor.cancel(id, CancelReason::Timeout);
            let (name, late) = (
                executor.name(),
                describe(late, &self.connections, &*service),
            );
            log::warn!("{late} exceeded request-timeout; the {name} is asked to cancel it");
        }
        if executor.next_probe(stall).is_some_and(|at| at <= by) {
            executor.probe(by);
        }
        let Some(late) = executor.requests.late_since() else {
            // All late requests are answered.
            return;
        };
        let gaps = self.time.clock.gaps_since(late);
        let is_ignored = late.saturating_add(stall).saturating_add(gaps) <= by;
        if executor.is_responsive() && !is_ignored {
            return;
        }
        let gave_up_at = *executor.pulse.gave_up_at.get_or_insert(by);
        let has_others = executor
            .requests
            .all()
            .any(|(_, away)| away.late_at.is_none());
        let gaps = self.time.clock.gaps_since(gave_up_at);
        if !has_others || gave_up_at.saturating_add(stall).saturating_add(gaps) <= by {
            let reason = "did not answer within request-timeout and stall-timeout".to_owned();
            return self.end_with_executor(AppEnd::Unresponsive, reason, service);
        }
        // The worker's other clients move to other workers, and its other requests get `stall-timeout`.
        self.retire();
    }

    /// Ends this worker because of its executor. The master recovers the requests that are away, as from a death,
    /// except those of which the executor has received no byte.
    fn end_with_executor(&mut self, end: AppEnd, reason: String, service: &mut dyn Service) {
        self.take_back_unwritten(service);
        let name = self.executor.as_deref().map_or("app", Executor::name);
        let reason = shortened(reason);
        let subject = name.to_owned();
        self.break_off(&format!("its {name} {reason}"));
        let gone = AppGone {
            end,
            subject,
            reason,
        };
        self.master.app_gone.get_or_insert(gone);
    }

    /// Waits for the answers to all requests that are away, at most for `restart-grace`, when the master is gone.
    pub(super) fn await_answers(&mut self, service: &mut dyn Service) -> io::Result<()> {
        if self.executor.is_none() {
            return Ok(());
        }
        self.ending.is_packing = true;
        let until = clock::instant_after(self.settings.restart_grace);
        loop {
            self.flush_executor(service)?;
            let Some(executor) = self.executor.as_ref() else {
                break;
            };
            if executor.requests.count() == 0 {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || executor.has_ended()? {
                // The answers that have arrived count.
                self.receive_answers(service)?;
                break;
            }
            if executor.retry_at().is_some() {
                // The socket is ready, and the kernel has no memory.
                crate::sys::poll::pause(left.min(WAIT_STEP));
                self.time.now = clock::monotonic();
            } else if poll::wait_for(executor, Interest::Read, left.min(WAIT_STEP))? {
                self.time.now = clock::monotonic();
                self.receive_answers(service)?;
            }
            if self.ending.broken.is_some() {
                break;
            }
        }
        // The app is killed before the clients are packed, and did not execute what was not written to it.
        self.take_back_unwritten(service);
        #[cfg(feature = "tokio")]
        self.halt_futures(service);
        Ok(())
    }

    /// Completes the requests that the executor has answered.
    fn receive_answers(&mut self, service: &mut dyn Service) -> io::Result<()> {
        match self.executor.as_ref().map(|executor| &executor.kind) {
            Some(ExecutorKind::App(_)) => self.receive_frames(service),
            #[cfg(feature = "tokio")]
            Some(ExecutorKind::Runtime(_)) => {
                self.take_outcomes(service);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Returns whether a client still waits for a permit, and has not left or been moved.
fn is_queued(connections: &Table<Connection>, next: QueuedClient) -> bool {
    connections.get(next.slot).is_some_and(|connection| {
        connection.lease_number == next.lease_number && connection.waits == WaitingFor::Permit
    })
}

/// An answer has the id of no request that is away.
#[derive(Debug)]
pub(super) struct NotAway;

/// The interval at which a wait for answers checks whether the app still runs.
const WAIT_STEP: Duration = Duration::from_millis(20);
