//! One frame, one reply: what happens between its last byte and the commit.

use serde_json::value::RawValue;

use super::Turn;
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::rpc::{Code, NULL, Request};
use crate::shm::{Flags, Header, Note, Open, Region, Slot};
use crate::sys::clock;
use crate::worker::death::{self, Point};
use crate::worker::methods::{Failure, Service};
use crate::worker::reply::{Call, Fault, write_fault};

impl Turn<'_, '_> {
    /// Answers the next frame; whether that took no time worth measuring.
    pub(super) fn answer(&mut self, total: usize, order: ByteOrder) -> bool {
        let call = Call {
            client: self.connection.client,
            peer: self.connection.peer,
            attempt: u32::from(self.flags.crash_count) + 1,
            deadline: self.tools.deadline(),
        };
        let begin = self.cursors.rx.1 as usize + self.cursors.answered as usize;
        let (answered, replied) = (self.cursors.answered, self.cursors.replied as usize);
        let reply_max = self.tools.shm.layout().max_reply();
        let Open {
            header,
            slot,
            rx,
            tx,
        } = self
            .tools
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let out = &mut tx[replied..replied + reply_max];

        let (flags, quarantined, now) = (self.flags, self.tools.quarantined, self.tools.now);
        let (mut is_inline, mut number) = (true, 0);
        let service = &mut *self.tools.service;
        let mut run = |out: &mut [u8]| -> Result<usize, Failure> {
            let request = Request::parse(&rx[begin + PREFIX..begin + total])
                .map_err(|reason| Failure::Fault(Fault::from_code(Code::BadRequest, reason)))?;
            let method = service.find(&request.method).ok_or_else(|| {
                Failure::Fault(Fault::from_code(
                    Code::UnknownMethod,
                    format!("unknown method {:?}", request.method),
                ))
            })?;
            number = method as u32 + 1;
            if let Some(fault) = refusal(&*service, method, &request.method, flags, quarantined) {
                return Err(Failure::Fault(fault));
            }
            death::pass(Point::BeforeHandler);
            is_inline = service.is_inline(method);
            slot.execute(number, answered);
            if !is_inline {
                header.begin_method(number, now);
            }
            death::pass(Point::AfterExec);
            match request.params {
                Some(params) => service.call(method, params, call, out, order),
                None => service.call(method, null_params(), call, out, order),
            }
        };
        let answer = run(out);
        let is_error = answer.is_err();
        let length = answer.unwrap_or_else(|failure| {
            match &failure {
                Failure::Panicked => header.add_panic(),
                Failure::Broken(why) => *self.tools.broken = Some(why.clone()),
                Failure::Fault(_) => {}
            }
            write_fault(out, order, &Fault::from(failure))
        });
        death::pass(Point::AfterHandler);
        commit(
            (header, slot),
            (number, is_error),
            answered + total as u32,
            (replied + length) as u32,
        );
        if !is_inline {
            self.tools.now = clock::monotonic();
            header.end_method(self.tools.now);
        }
        self.count(answered + total as u32, length);
        death::pass(Point::AfterAnswered);
        is_inline
    }

    /// Makes the reply after which the client is closed, and forgets what it sent beyond.
    pub(super) fn reply_last(&mut self, fault: &Fault) {
        let order = self.flags.order.unwrap_or(ByteOrder::Little);
        let (replied, skipped) = (self.cursors.replied as usize, self.have as u32);
        let now = self.tools.now;
        let Open {
            header, slot, tx, ..
        } = self
            .tools
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let length = write_fault(&mut tx[replied..], order, fault);
        self.flags.closing = true;
        // Whoever takes over from here gives it the whole time to read, and not what its frame has left.
        slot.set_since(now);
        // Before the reply counts: who finds it made finds that nothing comes after it.
        slot.set_flags(self.flags);
        commit(
            (header, slot),
            (0, true),
            skipped,
            (replied + length) as u32,
        );
        self.count(skipped, length);
    }

    /// What was committed, here: frames are answered up to this byte, by a reply of this length.
    fn count(&mut self, answered: u32, length: usize) {
        forgive(&mut self.flags);
        self.cursors.answered = answered;
        self.cursors.replied += length as u32;
        self.answered += 1;
        self.unrecorded += 1;
        self.tools.served += 1;
    }
}

/// Commits a reply and counts it: frames are answered up to this byte, and replies made up to that one. Each request is
/// counted once, by its method and by whether it is answered with an error, wherever the process ends in here.
fn commit(
    (header, slot): (Header<'_>, Slot<'_>),
    counted: (u32, bool),
    answered: u32,
    replied: u32,
) {
    let note = Note::new(header, slot, counted, replied);
    death::pass(Point::BeforeCommit);
    slot.commit(answered, replied);
    death::pass(Point::AfterCommit);
    note.count(header, slot);
}

/// Forgets what is known of a first unread frame, because another one is that now, or none.
pub(super) fn forgive(flags: &mut Flags) {
    (flags.timed_out, flags.crash_count) = (false, 0);
}

/// Why a request is not to be run, if it is not. One that was executing at a death is run once more, if that does no harm;
/// one that was executing for as long as it may is not, as it would take as long again.
fn refusal(
    service: &dyn Service,
    method: usize,
    name: &str,
    flags: Flags,
    quarantined: &[bool],
) -> Option<Fault> {
    if flags.timed_out {
        return Some(Fault::from_code(
            Code::Timeout,
            "the request took longer than request-timeout",
        ));
    }
    if flags.crash_count > 1 || (flags.crash_count == 1 && !service.is_idempotent(method)) {
        let sentence = format!("the worker that ran this request died in method {name:?}");
        return Some(Fault::from_code(Code::Crashed, sentence));
    }
    if quarantined.get(method).is_some_and(|is| *is) {
        let sentence =
            format!("method {name:?} is quarantined: it has crashed its workers too often");
        return Some(Fault::from_code(Code::Crashed, sentence));
    }
    None
}

fn null_params() -> &'static RawValue {
    serde_json::from_str(NULL).expect("null is JSON")
}
