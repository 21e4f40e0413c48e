//! A request that an app or a runtime executes: the turn in which it leaves, and the turn in which its answer returns.
//!
//! ```text
//! send      the replies before it; if some stay unsent, the request waits, as a client that does not read is not served
//! permit    if there is none, the client is parked, waits in the queue, and may be moved
//! park      the frame, and what follows it, to the slot's own regions
//! exec      set before the request is queued for its executor
//! end       the lease word: the request is away
//! ─────────────────────────────────────────────
//! claim     the lease word, which only this worker changes
//! commit    the answer, by one store on the cursors that are active since the park
//! frames    the next ones, where they are; then as in any turn
//! ```
//!
//! Nothing of the client is read or written while its request is away, so after a death the cursors alone are right.

use std::time::Instant;

use serde_json::value::RawValue;

use super::Turn;
use super::answer::{Departure, commit};
use crate::proto::app::AppRequest;
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::rpc::Code;
use crate::shm::{Open, REPLY_SOFT, Region};
use crate::sys::clock;
use crate::worker::away::executor::ExecutorKind;
use crate::worker::away::requests::{AwayRequest, QueuedClient};
use crate::worker::connection::WaitingFor;
#[cfg(feature = "tokio")]
use crate::worker::futures::AsyncCall;
use crate::worker::kill_points::{self, Point};
use crate::worker::reply::{Call, Fault, Reply, write_fault};

fn milliseconds_until(deadline: Instant, now: Instant) -> u64 {
    let left = deadline.saturating_duration_since(now);
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}

/// The answer of an app or a runtime.
#[derive(Debug)]
pub(in crate::worker) struct AwayAnswer<'a> {
    /// The request.
    pub(in crate::worker) request: AwayRequest,
    /// The result, or why there is none.
    pub(in crate::worker) outcome: Result<&'a RawValue, Fault>,
}

impl Turn<'_, '_> {
    /// Hands over a request whose frame was parked, or has its client wait for a permit.
    #[cold]
    #[inline(never)]
    pub(super) fn depart(&mut self, departure: Departure) -> WaitingFor {
        let (index, lease_number) = (self.index, self.connection.lease_number);
        let next = QueuedClient {
            slot: index,
            lease_number,
            is_alone: self.flags.is_suspect && self.flags.crash_count > 0,
        };
        let left = self.context.settings.requests_left(self.context.served);
        let deadline = self.context.deadline();
        let Some(executor) = self.context.executor.as_deref_mut() else {
            return WaitingFor::Turn;
        };
        if !executor.has_permit(next, left) {
            executor.requests.wait(next);
            return WaitingFor::Permit;
        }
        self.hand_over(&departure, deadline, next.is_alone);
        WaitingFor::Answer
    }

    /// Stores which method executes, and then queues the request for its executor. `deadline` is when its caller gets
    /// `timeout`.
    fn hand_over(&mut self, departure: &Departure, deadline: Option<Instant>, is_alone: bool) {
        let index = self.index;
        let number = departure.method as u32 + 1;
        kill_points::pass(Point::BeforeAway);
        self.slot().execute(number, 0);
        kill_points::pass(Point::AfterAwayExec);
        let frame = self.cursors.rx.1 as usize + PREFIX;
        let received = self.context.shm.received(index, self.cursors.rx.0);
        let params = departure.params.as_ref();
        let params = params.map(|params| &received[frame + params.start..frame + params.end]);
        let began = self.context.now;
        let now = self.context.instant(began);
        let executor = self.context.executor.as_deref_mut();
        let executor = executor.expect("a request that leaves has an executor");
        let id = executor.requests.next_id();
        let (client, peer, via) = self.connection.caller();
        let attempt = u32::from(self.flags.crash_count) + 1;
        let position = match &mut executor.kind {
            ExecutorKind::App(app) => {
                let (method, _) = self
                    .context
                    .service
                    .away_method(departure.method)
                    .expect("the request's method is one of the app");
                let timeout = deadline.map(|deadline| milliseconds_until(deadline, now));
                let request = AppRequest {
                    id,
                    method,
                    client,
                    peer,
                    via,
                    attempt,
                    timeout,
                };
                app.wire.queue_request(&request, params)
            }
            #[cfg(feature = "tokio")]
            ExecutorKind::Runtime(runtime) => {
                let call = AsyncCall::new(client, (peer, via), attempt, deadline);
                let job = self.context.service.begin(departure.method, params, &call);
                runtime.begin(id, departure.method, call, job);
                0
            }
        };
        if executor.requests.count() == 0 {
            executor.pulse.active_at = began;
        }
        let away = AwayRequest {
            slot: Some(index),
            method: number,
            began,
            position,
            late_at: None,
        };
        executor.requests.add(away, is_alone);
        let count = executor.requests.count() as u64;
        self.connection.has_used_executor = true;
        self.context.shm.header().set_away(count);
    }

    /// Commits the answer, and continues with the frames after it.
    #[cold]
    #[inline(never)]
    pub(super) fn complete(&mut self, answer: &AwayAnswer<'_>) -> Option<WaitingFor> {
        let order = self.flags.order.unwrap_or(ByteOrder::Little);
        let Next::Complete { total } = frame::next(self.unread(), order, u32::MAX) else {
            self.note_lost();
            return None;
        };
        // Other code of this process may have closed the descriptor while the request was away.
        self.is_doubtful = self.context.runs_other_code;
        self.commit_answer(answer, total, order);
        if self.context.may_continue
            && !self.context.has_reached_limit()
            && self.has_space_for_replies(answer.request.began)?
        {
            self.serve_frames(self.context.now).ok()?;
        }
        self.end(answer.request.began, false)
    }

    /// Sends a long answer at once. Returns whether there is space for another reply; `None` if the client must be
    /// closed.
    fn has_space_for_replies(&mut self, began: u64) -> Option<bool> {
        if self.cursors.replied as usize <= REPLY_SOFT {
            return Some(true);
        }
        self.send_midway(began).ok()
    }

    fn commit_answer(&mut self, answer: &AwayAnswer<'_>, total: usize, order: ByteOrder) {
        let call = Call {
            socket: None,
            ..self.connection.call(1, None)
        };
        let method = answer.request.method;
        let reply_max = self.context.shm.layout().max_reply();
        let Open {
            header, slot, tx, ..
        } = self
            .context
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let out = &mut tx[..reply_max];
        let made = match (&answer.outcome, answer.request.late_at) {
            (_, Some(_)) => {
                let message = "the request took longer than request-timeout";
                Err(Fault::from_code(Code::Timeout, message))
            }
            (Ok(result), None) => {
                let index = method as usize - 1;
                let (_, reply_name) = self
                    .context
                    .service
                    .away_method(index)
                    .expect("the request's method is executed elsewhere");
                let mut reply = Reply::new(out, reply_name, call);
                reply.raw(result).and_then(|()| reply.seal(order))
            }
            (Err(fault), None) => Err(fault.clone()),
        };
        if let Err(fault) = &made
            && fault.code() == Code::Crashed.as_str()
        {
            header.add_panic();
        }
        let is_error = made.is_err();
        let length = made.unwrap_or_else(|fault| write_fault(out, order, &fault));
        kill_points::pass(Point::AfterHandler);
        let (answered, replied) = (total as u32, length as u32);
        commit((header, slot), (method, is_error), answered, replied);
        self.context.now = clock::monotonic();
        self.log_if_slow(method, answer.request.began);
        self.note_commit(answered, length);
        kill_points::pass(Point::AfterAnswered);
    }

    /// Takes back a request that was not handed over after all: its client is parked again.
    pub(super) fn take_back(&mut self) -> WaitingFor {
        // No request is executing any more.
        self.activate_cursors();
        WaitingFor::Turn
    }
}
