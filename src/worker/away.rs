//! The requests that are away, as the loop sees them: answers, clients that wait for a permit, time, and the app's end.

use std::io;
use std::time::{Duration, Instant};

use super::apps::{self, App, IncomingFrames, ReadEnd, Waiting};
use super::connection::WaitingFor;
use super::death::{self, Point};
use super::methods::Service;
use super::turn::{AppAnswer, Purpose};
use super::{WorkerLoop, deadlines};
use crate::proto::app::{CancelReason, FromApp};
use crate::proto::channel::{AppEnd, AppGone};
use crate::proto::text::Escaped;
use crate::sys::clock;
use crate::sys::poll::{self, Interest, PollEvent};

impl WorkerLoop<'_> {
    /// Processes an event of the app.
    pub(super) fn attend_app(&mut self, token: u64, service: &mut dyn Service) -> io::Result<()> {
        match token {
            apps::WIRE => self.receive_answers(service),
            apps::END => self.check_end_of_app(service),
            _ => {
                if let Some(app) = &mut self.app {
                    app.read_output(token, &self.poller);
                }
                Ok(())
            }
        }
    }

    /// Reads what the app has sent, and completes the requests that it has answered.
    fn receive_answers(&mut self, service: &mut dyn Service) -> io::Result<()> {
        let Some(app) = &mut self.app else {
            return Ok(());
        };
        let read = app.wire.read()?;
        let mut incoming = app.wire.take_incoming();
        death::pass(Point::AfterAppRead);
        let processed = self.process_frames(&mut incoming, service);
        let Some(app) = &mut self.app else {
            return Ok(());
        };
        app.wire.give_back(incoming);
        app.pulse.heard = self.time.now;
        if let Err(wrong) = processed {
            let reason = format!("has broken the protocol: {}", Escaped(wrong));
            self.end_with_app(AppEnd::BrokeProtocol, reason);
        } else if read == ReadEnd::Closed && self.ending.broken.is_none() {
            // Its exit is an event of its own, and the better reason, if it exits.
            if poll::wait_for(&self.app_process()?, Interest::Read, CLOSE_WAIT)? {
                return self.check_end_of_app(service);
            }
            let reason = "has closed descriptor 3".to_owned();
            self.end_with_app(AppEnd::BrokeProtocol, reason);
        }
        Ok(())
    }

    fn app_process(&self) -> io::Result<std::os::fd::OwnedFd> {
        let app = self.app.as_ref().ok_or(io::ErrorKind::NotFound)?;
        app.process().1.try_clone()
    }

    /// Processes all whole frames that have been received.
    ///
    /// # Errors
    /// The mistake of the app, for the operator.
    fn process_frames(
        &mut self,
        incoming: &mut IncomingFrames,
        service: &mut dyn Service,
    ) -> Result<(), String> {
        while let Some(body) = incoming.next()? {
            match FromApp::parse(body)? {
                FromApp::Answer { id, outcome } => {
                    let app = self.app.as_mut().ok_or("there is no app")?;
                    let Some(request) = app.requests.remove(id) else {
                        return Err(format!("an answer to request {id}, which is not away"));
                    };
                    app.pulse.answered = self.time.now;
                    let away = app.requests.count() as u64;
                    self.shm.header().set_away(away);
                    if let Some(slot) = request.slot {
                        let answer = AppAnswer { request, outcome };
                        self.run_turn(slot, &Purpose::Complete(&answer), service);
                    }
                }
                FromApp::Hello(_) => return Err("a second hello".to_owned()),
                FromApp::Failed(reason) => return Err(format!("failed after hello: {reason}")),
                FromApp::Alive(_) => {
                    let app = self.app.as_mut().ok_or("there is no app")?;
                    app.pulse.probed = None;
                    app.pulse.is_blocked = false;
                }
                FromApp::Health(unhealthy) => self.report_health(unhealthy),
                FromApp::Metrics(samples) => {
                    let app = self.app.as_ref().ok_or("there is no app")?;
                    app.count(&samples);
                }
                FromApp::Nothing => {}
            }
        }
        Ok(())
    }

    /// Gives the permits that are free to the clients that wait for one.
    pub(super) fn call_waiting(&mut self, service: &mut dyn Service) {
        while let Some(slot) = self.next_waiting() {
            self.run_turn(slot, &Purpose::Serve, service);
        }
    }

    /// Returns the next client whose request may be handed over.
    fn next_waiting(&mut self) -> Option<u32> {
        let left = self.requests_left();
        loop {
            let app = self.app.as_mut()?;
            if !app.takes_requests() {
                return None;
            }
            let Waiting {
                slot, lease_number, ..
            } = app.requests.call_next(left)?;
            // It may have left, or been moved, since.
            let is_here = self.connections.get(slot).is_some_and(|connection| {
                connection.lease_number == lease_number && connection.waits == WaitingFor::Permit
            });
            if is_here {
                return Some(slot);
            }
        }
    }

    fn requests_left(&self) -> Option<u64> {
        let most = self.settings.max_requests?;
        Some(most.saturating_sub(self.served))
    }

    /// Writes what is queued for the app, and records how it fares. Called once an iteration of the loop.
    pub(super) fn flush_app(&mut self) -> io::Result<()> {
        let Some(app) = &mut self.app else {
            return Ok(());
        };
        if app.wire.has_unwritten() {
            death::pass(Point::BeforeAppWrite);
            // If the app has closed its end, the event of its end follows.
            app.flush(&self.poller)?;
            death::pass(Point::AfterAppWrite);
        }
        let stall = nanoseconds(self.settings.stall_timeout);
        if app.update_full_since(self.time.now, stall) {
            self.shm.header().set_full_since(app.pulse.full_since);
        }
        if app.is_too_large(self.time.now) {
            self.master.is_near_limit = true;
        }
        Ok(())
    }

    /// Handles an event of a client that waits for the app. Returns false if it does not wait for it.
    pub(super) fn is_with_app(&mut self, slot: u32, event: PollEvent) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else {
            return false;
        };
        match connection.waits {
            WaitingFor::Permit | WaitingFor::Answer if !event.has_ended => {
                if connection.await_app(&self.poller, slot).is_err() {
                    self.break_off(super::turn::FOREIGN);
                }
                true
            }
            WaitingFor::Answer => {
                self.abandon(slot);
                true
            }
            // In its turn the end is found.
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
        if let Some(app) = &mut self.app
            && let Some(id) = app.requests.abandon(slot)
        {
            app.cancel(id, CancelReason::Gone);
        }
        self.close(slot);
    }

    /// Returns when the app must be looked at again: ns of CLOCK_MONOTONIC.
    pub(super) fn app_deadline(&mut self) -> Option<u64> {
        let stall = nanoseconds(self.settings.stall_timeout);
        let timeout = self.settings.request_timeout.map(nanoseconds);
        let app = self.app.as_mut()?;
        if app.requests.count() == 0 && app.pulse.sick.is_none() {
            return None;
        }
        let overdue = timeout.zip(app.requests.oldest());
        let overdue = overdue.map(|(timeout, (began, _))| began.saturating_add(timeout));
        let late = app.requests.late_since();
        let sick = late
            .or(app.pulse.sick)
            .map(|since| since.saturating_add(stall));
        let probe = app.next_probe(stall).or(app.blocked_from(stall));
        let probe = probe.filter(|_| app.pulse.full_since.is_none());
        [overdue, sick, probe].into_iter().flatten().min()
    }

    /// Checks the time of the requests that are away, at `by`: ns of CLOCK_MONOTONIC. All that the app had sent by then
    /// must have been processed.
    pub(super) fn check_app(&mut self, by: u64) {
        let stall = nanoseconds(self.settings.stall_timeout);
        let timeout = self.settings.request_timeout.map(nanoseconds);
        let Some(app) = self.app.as_mut() else {
            return;
        };
        while let Some((began, id)) = app.requests.oldest()
            && let Some(timeout) = timeout
        {
            let gaps = self.time.clock.gaps_since(began);
            if began.saturating_add(timeout).saturating_add(gaps) > by {
                break;
            }
            app.requests.set_late(id, by);
            app.cancel(id, CancelReason::Timeout);
            log::warn!("a request exceeded request-timeout; the app is asked to cancel it");
        }
        if app.next_probe(stall).is_some_and(|at| at <= by) {
            app.probe(by);
        }
        let Some(late) = app.requests.late_since() else {
            // All late ones are answered.
            return;
        };
        let gaps = self.time.clock.gaps_since(late);
        let is_ignored = late.saturating_add(stall).saturating_add(gaps) <= by;
        if !app.requests.is_serial() && !is_ignored {
            return;
        }
        let sick = *app.pulse.sick.get_or_insert(by);
        // Its other clients are served elsewhere, and its other requests have some time.
        self.ending.is_retiring = true;
        let has_others = app.requests.all().any(|(_, away)| away.late_at.is_none());
        if !has_others || sick.saturating_add(stall) <= by {
            let reason = "did not answer within request-timeout and stall-timeout".to_owned();
            self.end_with_app(AppEnd::Unresponsive, reason);
        }
    }

    /// Ends this worker if its app has ended, after the answers that it has sent.
    fn check_end_of_app(&mut self, service: &mut dyn Service) -> io::Result<()> {
        for _ in 0..MAX_LAST_READS {
            let Some(app) = &mut self.app else {
                return Ok(());
            };
            let read = app.wire.read()?;
            let mut incoming = app.wire.take_incoming();
            // A last frame that is broken does not matter any more.
            let _ = self.process_frames(&mut incoming, service);
            if let Some(app) = &mut self.app {
                app.wire.give_back(incoming);
            }
            if read != ReadEnd::More {
                break;
            }
        }
        if let Some(AppGone { end, reason }) = self.app.as_mut().and_then(|app| app.end("")) {
            self.take_back_unwritten(service);
            self.end_with_app(end, reason);
        }
        Ok(())
    }

    /// Takes back the requests of which no byte was written to the app: it cannot have begun them.
    fn take_back_unwritten(&mut self, service: &mut dyn Service) {
        let Some(app) = &mut self.app else {
            return;
        };
        let unwritten: Vec<(u64, Option<u32>)> = app
            .requests
            .all()
            .filter(|(_, away)| app.wire.is_unwritten(away.position))
            .map(|(id, away)| (id, away.slot))
            .collect();
        for (id, slot) in unwritten {
            if let Some(app) = &mut self.app {
                app.requests.remove(id);
            }
            if let Some(slot) = slot {
                self.run_one_turn(slot, &Purpose::TakeBack, service);
            }
        }
    }

    /// Ends this worker because of its app. The requests that are away are recovered by the master.
    fn end_with_app(&mut self, end: AppEnd, reason: String) {
        if let Some(app) = &self.app {
            for (_, away) in app
                .requests
                .all()
                .filter(|(_, away)| away.late_at.is_some())
            {
                if let Some(slot) = away.slot.and_then(|slot| self.shm.slot(slot)) {
                    let mut flags = slot.flags();
                    flags.timed_out = true;
                    slot.set_flags(flags);
                }
            }
        }
        self.break_off(&format!("its app {reason}"));
        self.master.app_gone.get_or_insert(AppGone { end, reason });
    }

    /// Waits for the answers that the app still owes, at most for `restart-grace`, when the master is gone.
    pub(super) fn await_answers(&mut self, service: &mut dyn Service) -> io::Result<()> {
        let Some(process) = self.app_process().ok() else {
            return Ok(());
        };
        self.ending.is_packing = true;
        self.flush_app()?;
        let until = Instant::now() + self.settings.restart_grace;
        while self
            .app
            .as_ref()
            .is_some_and(|app| app.requests.count() > 0)
        {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || poll::wait_for(&process, Interest::Read, Duration::ZERO)? {
                break;
            }
            let app = self.app.as_ref().expect("there is one");
            if poll::wait_for(app, Interest::Read, left.min(WAIT_STEP))? {
                self.time.now = clock::monotonic();
                self.receive_answers(service)?;
            }
            if self.ending.broken.is_some() {
                break;
            }
        }
        Ok(())
    }
}

impl App {
    /// Returns when a probe is due: an app with several permits and no sign of life is asked for one.
    fn next_probe(&self, stall: u64) -> Option<u64> {
        let is_wanted =
            self.requests.count() > 0 && !self.requests.is_serial() && self.pulse.probed.is_none();
        is_wanted.then(|| self.pulse.heard.saturating_add(stall / 2))
    }

    /// Returns from when on the app is blocked, unless it answers the probe.
    fn blocked_from(&self, stall: u64) -> Option<u64> {
        self.pulse.probed.map(|probed| probed.saturating_add(stall))
    }

    /// Determines since when requests wait although nothing moves: no permit is free and no answer has come, or the
    /// app's loop does not turn. Returns whether that has changed.
    fn update_full_since(&mut self, now: u64, stall: u64) -> bool {
        let before = self.pulse.full_since;
        self.pulse.full_since = self.full_since(now, stall);
        self.pulse.full_since != before
    }

    fn full_since(&mut self, now: u64, stall: u64) -> Option<u64> {
        self.pulse.is_blocked = self.blocked_from(stall).is_some_and(|from| from <= now);
        if self.pulse.is_blocked {
            return self.pulse.probed;
        }
        if !self.requests.has_waiting() {
            self.pulse.waits_since = None;
            return None;
        }
        let waits_since = *self.pulse.waits_since.get_or_insert(now);
        Some(waits_since.max(self.pulse.answered))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(deadlines::NEVER)
}

/// How long an app that has closed its end may take to exit.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// How long a wait for answers lasts until it is checked whether the app still runs.
const WAIT_STEP: Duration = Duration::from_millis(20);

/// The most reads of what an app has sent before its end.
const MAX_LAST_READS: usize = 64;
