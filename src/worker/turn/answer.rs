//! One frame and its reply: from its last byte to the commit.

use std::ops::Range;
use std::time::Duration;

use serde_json::value::RawValue;

use super::Turn;
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::rpc::{Code, NULL, Request};
use crate::shm::{CloseReason, Cursors, Flags, Header, Note, Open, Region, Slot};
use crate::sys::clock;
use crate::worker::kill_points::{self, Point};
use crate::worker::methods::{Failure, FoundMethod, Service};
use crate::worker::reply::{Call, Fault, write_fault};

impl Turn<'_, '_> {
    /// Answers the next frame, unless an app or a runtime executes its request.
    pub(super) fn answer(&mut self, total: usize, order: ByteOrder) -> FrameOutcome {
        let attempt = u32::from(self.flags.crash_count) + 1;
        let deadline = self.context.deadline();
        let call = self.connection.call(attempt, deadline);
        let (answered, replied) = (self.cursors.answered, self.cursors.replied as usize);
        let begin = self.cursors.rx.1 as usize + answered as usize;
        let shm = &mut *self.context.shm;
        let reply_max = shm.layout().max_reply();
        let Open {
            header,
            slot,
            rx,
            tx,
        } = shm.open(self.index, self.cursors.rx.0, Region::Shared);
        let out = &mut tx[replied..replied + reply_max];
        let mut execution = Execution {
            service: &mut *self.context.service,
            header,
            slot,
            flags: self.flags,
            quarantined: self.context.quarantined,
            now: self.context.now,
            answered,
            number: 0,
            is_inline: true,
        };
        let body = &rx[begin + PREFIX..begin + total];
        let prepared = execution.prepare(body);
        self.flags.wants_goaway = execution.flags.wants_goaway;
        let result = match prepared {
            Ok((request, method)) if method.is_away => {
                return FrameOutcome::Departs(departure(body, &request, method.index));
            }
            Ok((request, method)) => execution.run(&request, method, call, out, order),
            Err(failure) => Err(failure),
        };
        let (number, is_inline) = (execution.number, execution.is_inline);
        let is_error = result.is_err();
        let length = result.unwrap_or_else(|failure| {
            note_failure(&failure, header, self.context.broken);
            write_fault(out, order, &Fault::from(failure))
        });
        kill_points::pass(Point::AfterHandler);
        let (answered, replied) = (answered + total as u32, (replied + length) as u32);
        commit((header, slot), (number, is_error), answered, replied);
        if !is_inline {
            let began = std::mem::replace(&mut self.context.now, clock::monotonic());
            header.end_method(self.context.now);
            self.log_if_slow(number, began);
        }
        self.note_commit(answered, length);
        kill_points::pass(Point::AfterAnswered);
        FrameOutcome::Answered { is_inline }
    }

    /// Returns whether the client must be rejected, because its unread bytes were dropped for lack of memory.
    pub(super) fn must_be_rejected(&self) -> bool {
        self.flags.overloaded && !self.flags.closing
    }

    /// Writes the client's last reply, and discards the bytes that it has sent after its answered requests.
    pub(super) fn reply_last(&mut self, fault: &Fault) {
        self.reply_last_because(fault, fault.close_reason());
    }

    /// Does the same as [`Turn::reply_last`], but with this close reason instead of that of the fault.
    pub(super) fn reply_last_because(&mut self, fault: &Fault, reason: CloseReason) {
        let order = self.flags.order.unwrap_or(ByteOrder::Little);
        let (replied, skipped) = (self.cursors.replied as usize, self.have as u32);
        let now = self.context.now;
        let Open {
            header, slot, tx, ..
        } = self
            .context
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let length = write_fault(&mut tx[replied..], order, fault);
        self.flags.closing = true;
        self.flags.close_reason = reason;
        // If this worker dies now, the next one must give the client the whole time to read the reply, not what is left
        // of the time for its frame.
        slot.set_since(now);
        let replied = (replied + length) as u32;
        let cursors = Cursors {
            answered: skipped,
            replied,
            ..self.cursors
        };
        let note = Note::new(header, slot, (0, true), replied);
        kill_points::pass(Point::BeforeCommit);
        // One store: this reply is the last one from the moment it is committed, and not before.
        slot.activate(&cursors, self.flags);
        kill_points::pass(Point::AfterCommit);
        note.count(header, slot);
        self.note_commit(skipped, length);
    }

    /// Records a commit in the turn: frames are answered up to this byte, by a reply of this length.
    pub(super) fn note_commit(&mut self, answered: u32, length: usize) {
        clear_crash_flags(&mut self.flags);
        self.cursors.answered = answered;
        self.cursors.replied += length as u32;
        self.answered += 1;
        self.unrecorded += 1;
        self.context.served += 1;
    }
}

impl Turn<'_, '_> {
    /// Logs a request that began at `began` and is answered now, if it took at least `log.slow-request`.
    #[inline]
    pub(super) fn log_if_slow(&self, method: u32, began: u64) {
        if let Some(slow) = self.context.settings.log.slow_request {
            let took = Duration::from_nanos(self.context.now.saturating_sub(began));
            if took >= slow {
                self.log_slow(method, took);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn log_slow(&self, method: u32, took: Duration) {
        let names = self.context.service.names();
        let name = names.get((method as usize).wrapping_sub(1));
        let name = name.map_or("", |method| &method.name);
        let (client, ms) = (self.connection.client, took.as_millis());
        log::warn!("client {client}: slow request: method {name:?} took {ms} ms");
    }
}

/// Counts a panic. Notes the reason if the process cannot continue after the failure.
fn note_failure(failure: &Failure, header: Header<'_>, broken: &mut Option<String>) {
    match failure {
        Failure::Panicked => header.add_panic(),
        Failure::Broken(why) => *broken = Some(why.clone()),
        Failure::Fault(_) => {}
    }
}

/// The outcome of a frame.
pub(super) enum FrameOutcome {
    /// The frame is answered.
    Answered {
        /// The method is inline, so that the clock was not read.
        is_inline: bool,
    },
    /// An app or a runtime executes its request.
    Departs(Departure),
}

/// A request that an app or a runtime executes, found in a turn.
#[derive(Clone, Debug)]
pub(super) struct Departure {
    /// The index of its method.
    pub(super) method: usize,
    /// The range of its params, counted from the beginning of its body.
    pub(super) params: Option<Range<usize>>,
}

/// Returns the departure of a request with this body.
#[cold]
#[inline(never)]
fn departure(body: &[u8], request: &Request<'_>, method: usize) -> Departure {
    let params = request.params.map(|params| range_in(body, params));
    Departure { method, params }
}

/// Returns the place of params in the body that they are borrowed from.
fn range_in(body: &[u8], params: &RawValue) -> Range<usize> {
    let begin = params.get().as_ptr().addr() - body.as_ptr().addr();
    begin..begin + params.get().len()
}

/// The execution of one request.
struct Execution<'a> {
    service: &'a mut dyn Service,
    header: Header<'a>,
    slot: Slot<'a>,
    flags: Flags,
    quarantined: &'a [bool],
    now: u64,
    /// Bytes of the frames answered before.
    answered: u32,
    /// The method's index plus one; 0 while none is found.
    number: u32,
    is_inline: bool,
}

impl Execution<'_> {
    /// Finds the method of a request that may run.
    #[inline]
    fn prepare<'b>(&mut self, body: &'b [u8]) -> Result<(Request<'b>, FoundMethod), Failure> {
        let fault = |code, message| Failure::Fault(Fault::from_code(code, message));
        let request = Request::parse(body).map_err(|reason| fault(Code::BadRequest, reason))?;
        if request.wants_goaway && !self.flags.wants_goaway {
            self.flags.wants_goaway = true;
            self.slot.set_flags(self.flags);
        }
        let method = self.service.find(&request.method).ok_or_else(|| {
            let message = format!("unknown method {:?}", request.method);
            fault(Code::UnknownMethod, message)
        })?;
        self.number = method.index as u32 + 1;
        if let Some(fault) = self.refusal(method.index, &request.method) {
            return Err(Failure::Fault(fault));
        }
        Ok((request, method))
    }

    /// Runs the method. Returns the length of the frame that it has written to `out`.
    #[inline]
    fn run(
        &mut self,
        request: &Request<'_>,
        method: FoundMethod,
        call: Call,
        out: &mut [u8],
        order: ByteOrder,
    ) -> Result<usize, Failure> {
        kill_points::pass(Point::BeforeHandler);
        self.is_inline = method.is_inline;
        self.slot.execute(self.number, self.answered);
        if !self.is_inline {
            self.header.begin_method(self.number, self.now);
        }
        kill_points::pass(Point::AfterExec);
        let params = match request.params {
            Some(params) => params,
            None => null_params(),
        };
        self.service.call(method.index, params, call, out, order)
    }

    /// Returns the error for a request that must not run; `None` if it may. A request that was executing at a death
    /// runs once more if its method is idempotent, but not if its time was over, because it would take as long again.
    fn refusal(&self, method: usize, name: &str) -> Option<Fault> {
        let Flags {
            timed_out,
            crash_count,
            ..
        } = self.flags;
        if timed_out {
            let message = "the request took longer than request-timeout";
            return Some(Fault::from_code(Code::Timeout, message));
        }
        if crash_count > 1 || (crash_count == 1 && !self.service.is_idempotent(method)) {
            let message = format!("the worker that ran this request died in method {name:?}");
            return Some(Fault::from_code(Code::Crashed, message));
        }
        if self.quarantined.get(method).is_some_and(|is| *is) {
            let message =
                format!("method {name:?} is quarantined: it has crashed its workers too often");
            return Some(Fault::from_code(Code::Crashed, message));
        }
        None
    }
}

/// Commits a reply and counts it. After the commit, frames are answered up to the byte `answered`, and replies are
/// written up to the byte `replied`. Each request is counted once, by its method and by whether it failed, even if the
/// process ends within this function.
pub(super) fn commit(
    (header, slot): (Header<'_>, Slot<'_>),
    counted: (u32, bool),
    answered: u32,
    replied: u32,
) {
    let note = Note::new(header, slot, counted, replied);
    kill_points::pass(Point::BeforeCommit);
    slot.commit(answered, replied);
    kill_points::pass(Point::AfterCommit);
    note.count(header, slot);
}

/// Clears the flags about the first unread frame: that frame is answered, and they do not apply to the next one.
pub(super) fn clear_crash_flags(flags: &mut Flags) {
    (flags.timed_out, flags.crash_count, flags.is_suspect) = (false, 0, false);
}

fn null_params() -> &'static RawValue {
    serde_json::from_str(NULL).expect("null is JSON")
}
