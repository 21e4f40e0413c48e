//! The turns of clients, as the loop gives them: after an event, a lease, a deadline or an answer.

use std::io;

use super::away::Executor;
use super::connection::WaitingFor;
use super::methods::Service;
use super::reply::Fault;
use super::turn::{FOREIGN, Purpose, TurnContext, TurnEnd, turn};
use super::{Ending, WorkerLoop};
use crate::proto::rpc::Code;
use crate::sys::poll::{self, PollEvent};

impl WorkerLoop<'_> {
    /// Serves a client after an event. An old event has another lease number, or no client.
    pub(super) fn serve_client(&mut self, event: PollEvent, service: &mut dyn Service) {
        let (slot, lease_number) = (event.token as u32, (event.token >> 32) as u32);
        let current = self.connections.get(slot);
        let is_due = current.is_some_and(|connection| {
            // A client that waits for its next turn is in `again` and is served after the events of this iteration.
            // With another turn for each event, it would be in `again` once more in each iteration.
            connection.lease_number == lease_number
                && connection.shortage_until().is_none()
                && connection.waits != WaitingFor::Turn
        });
        if is_due && !self.handle_away_event(slot, event) {
            self.run_turn(slot, &Purpose::Serve, service);
        }
    }

    /// Runs a turn of a client, and rejects others while too much is buffered.
    pub(super) fn run_turn(&mut self, slot: u32, purpose: &Purpose<'_>, service: &mut dyn Service) {
        self.run_one_turn(slot, purpose, service);
        if self.ending.stop_by.is_some() {
            if purpose.is_of_away() {
                // Nothing was read from the client while its request was away.
                self.run_one_turn(slot, &Purpose::Serve, service);
            }
            self.stop_client(slot, service);
        }
        while let Some(oldest) = self.parking.overloads().filter(|_| self.may_serve()) {
            let connection = self.connections.get(oldest);
            let is_partial = connection.is_some_and(|c| c.waits == WaitingFor::Bytes);
            let message = match is_partial {
                true => "too much is buffered here; your unfinished frame was the oldest",
                false => "too much is buffered here; your request has waited longest",
            };
            let fault = Fault::from_code(Code::Overloaded, message);
            log::debug!(
                "buffers are full: closing the client in slot {oldest}, which has waited longest"
            );
            self.run_one_turn(oldest, &Purpose::Reject(&fault), service);
        }
    }

    /// Returns whether requests may begin.
    pub(super) fn may_serve(&self) -> bool {
        let Ending {
            is_retiring,
            is_packing,
            is_orphaned,
            broken,
            ..
        } = &self.ending;
        !is_retiring && !is_packing && !is_orphaned && broken.is_none()
    }

    pub(super) fn run_one_turn(
        &mut self,
        slot: u32,
        purpose: &Purpose<'_>,
        service: &mut dyn Service,
    ) {
        let may_serve = self.may_serve();
        let may_run = may_serve || purpose.is_of_away();
        let Some(connection) = self.connections.get_mut(slot).filter(|_| may_run) else {
            return;
        };
        let executor = self.executor.as_deref_mut();
        let is_called = |executor: &Executor| executor.requests.is_called(slot);
        match connection.waits {
            WaitingFor::Answer if !purpose.is_of_away() => return,
            // It is its turn only when there is a permit; but it may be closed.
            WaitingFor::Permit
                if matches!(purpose, Purpose::Serve)
                    && !executor.as_deref().is_some_and(is_called) =>
            {
                return;
            }
            _ => {}
        }
        let mut context = TurnContext {
            shm: &mut self.shm,
            runs_other_code: self.runs_other_code,
            service,
            executor,
            may_continue: may_serve,
            settings: &self.settings,
            stop_by: self.ending.stop_by,
            epoch: self.time.epoch,
            quarantined: &self.quarantined,
            served: self.served,
            writes: self.writes.as_deref(),
            broken: &mut self.ending.broken,
            proxied: &mut self.master.proxied,
            now: self.time.now,
            deadline: None,
        };
        let ended = turn(connection, slot, purpose, &mut context);
        let is_tcp = connection.is_tcp();
        (self.time.now, self.served) = (context.now, context.served);
        let (begun, has_reached_limit) = (context.begun(), context.has_reached_limit());
        self.note_requests(begun, has_reached_limit);
        match ended {
            TurnEnd::Waits(waits) => self.schedule(slot, waits),
            TurnEnd::MustClose => self.close(slot),
            TurnEnd::Lost => self.release(slot),
            TurnEnd::Foreign => return,
        }
        if !is_tcp {
            // Later writes belong to another client. The note must stay until the lease word shows the end of the turn.
            self.shm.header().end_write();
        }
    }

    /// Reports that this worker is near its limit of requests, once, and retires when it has reached the limit.
    fn note_requests(&mut self, begun: u64, has_reached_limit: bool) {
        let near_limit_at = &mut self.settings.near_limit_at;
        self.master.is_near_limit |= near_limit_at.take_if(|at| begun >= *at).is_some();
        if has_reached_limit {
            self.retire();
        }
    }

    /// Schedules a client's next turn.
    pub(super) fn schedule(&mut self, index: u32, waits: WaitingFor) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let before = std::mem::replace(&mut connection.waits, waits);
        let awaits_count = connection.awaits_count;
        if waits == WaitingFor::Turn {
            self.again.push(index);
        }
        connection.note_shortage(self.time.now);
        let watch = connection.watch(&self.poller, index);
        let slot = self.shm.slot(index).expect("the client has a slot");
        let deadline = connection.deadline(slot, &self.settings, &self.time.clock);
        self.timers.arm(index, &mut connection.armed, deadline);
        if waits == WaitingFor::Request {
            if before != WaitingFor::Request {
                self.unpark(index);
            }
        } else {
            let (bytes, large) = slot.cursors().parked();
            let may_be_closed = waits != WaitingFor::Answer;
            self.parking.park(index, bytes, slot.since(), may_be_closed);
            if large > 0 {
                self.parking.use_large(index, large);
            }
            self.shm.header().set_parked(self.parking.total());
        }
        if before == WaitingFor::Permit && waits != WaitingFor::Permit {
            self.leave_queue(index);
        }
        if watch.is_err() {
            self.check_watch(index, watch);
        }
        if awaits_count {
            self.give_up_uncounted(index);
        }
    }

    /// Handles the result of watching a client.
    #[cold]
    pub(super) fn check_watch(&mut self, index: u32, watch: io::Result<()>) {
        if let Err(e) = watch {
            if !poll::is_shortage(&e) {
                return self.break_off(FOREIGN);
            }
            let Some(connection) = self.connections.get_mut(index) else {
                return;
            };
            if connection.refusals() == 0 {
                log::warn!("cannot watch a client: {e}; trying again");
            }
            connection.begin_shortage(self.time.now);
            let slot = self.shm.slot(index).expect("the client has a slot");
            let deadline = connection.deadline(slot, &self.settings, &self.time.clock);
            self.timers.arm(index, &mut connection.armed, deadline);
        }
    }

    /// Records that the shared memory contains no bytes of the slot's client any more.
    pub(super) fn unpark(&mut self, index: u32) {
        for cold in self.parking.clear(index) {
            self.shm.free_large(cold);
        }
        self.shm.header().set_parked(self.parking.total());
    }
}
