//! The turn: everything that is done for a client at a time.
//!
//! ```text
//! claim    the lease word, by compare-exchange; who fails has lost the client
//! unsent   replies that were parked: only they are sent, and nothing is read while some are left
//! begin    a view that says where the bytes to come will lie holds before the first of them is read
//! read     once
//! frames   for each whole one: execute on the desk, run the method, commit the reply
//! send     once, when no whole frame is left
//! park     what is unread or unsent goes to the slot's own places, then a view that says so holds
//! end      the lease word
//! ```
//!
//! Between two turns nothing that a client sent or is to be sent is anywhere but on the desk and in the kernel. Nothing
//! is stored after a read or a write. `exec` is stored before the method and the commit after it: a death between the
//! two is a fault of that request, one before or after is none, so a side effect happens at most once.

use std::io;
use std::time::Instant;

use serde_json::value::RawValue;

use super::connection::{Connection, Waits};
use super::methods::{Failure, Service};
use super::reply::{Call, Fault, write_fault};
use crate::desk::{Found, Header, Marks, Open, Place, RECEIVE, REPLY_SOFT, SMALL, Slot, State, View, WorkerDesk};
use crate::proto::channel::Settings;
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::rpc::{Code, NULL, Request};
use crate::sys::clock;
use crate::sys::ledger::OwnWrites;
use crate::sys::socket::{self, Moved};

/// Replies wait for the ones behind them at most this long, in ns.
const REPLY_DELAY: u64 = 1_000_000;

/// A client that has more requests waiting lets others go first after this long, in ns.
const LONGEST: u64 = 10_000_000;

/// What a turn works with besides its client.
pub(super) struct Tools<'a> {
    pub(super) desk: &'a mut WorkerDesk,
    pub(super) service: &'a mut dyn Service,
    pub(super) settings: &'a Settings,
    /// When the worker is killed, once it has been told to stop.
    pub(super) stop_by: Option<Instant>,
    /// The sum of what this process wrote, where the kernel keeps one.
    pub(super) writes: Option<&'a OwnWrites>,
    /// Why this process cannot go on, once it cannot.
    pub(super) broken: &'a mut Option<String>,
    /// The clock: ns of CLOCK_MONOTONIC at the beginning of the turn, and again at its end.
    pub(super) now: u64,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client stays, and is waited for.
    Waits(Waits),
    /// It is over, and the slot still claimed.
    Over,
    /// The lease was not ours any more.
    Lost,
}

/// What a turn is for.
#[derive(Debug)]
pub(super) enum Purpose<'a> {
    /// To serve the client.
    Serve,
    /// To tell it off: this is its last reply, unless replies before it cannot be sent.
    Dismiss(&'a Fault),
    /// To end it without a word.
    Cut,
}

/// One turn of a client, from the claim to the lease word.
pub(super) fn turn(connection: &mut Connection, index: u32, purpose: &Purpose<'_>, tools: &mut Tools<'_>) -> Ended {
    let Some(slot) = tools.desk.slot(index) else { return Ended::Lost };
    let Some(found) = slot.claim(connection.generation) else { return Ended::Lost };
    tools.desk.header().begin_turn(index, tools.now);
    let (view, mut marks) = (slot.view(), slot.marks());
    let parked = found == Found::Parked;
    // Of a client at rest the view tells of bytes that are answered, and the marks of a frame that is.
    let have = if parked { view.have as usize } else { 0 };
    if !parked {
        marks.faults = 0;
    }
    let mut turn = Turn { connection, index, tools, view, marks, have, answered: 0, unrecorded: 0, blocked: false };
    let waits = match purpose {
        Purpose::Cut => None,
        Purpose::Serve if parked && marks.closing && view.replied == 0 => turn.hear_last_words(),
        Purpose::Dismiss(_) if marks.closing => None,
        _ if parked && view.replied > 0 => turn.send_parked(purpose),
        _ => turn.work(purpose),
    };
    let answered = turn.answered;
    tools.desk.header().end_turn();
    if !connection.is_tcp() {
        // Whatever is written from now on is for somebody else.
        tools.desk.header().end_write();
    }
    let Some(waits) = waits else { return Ended::Over };
    let slot = tools.desk.slot(index).expect("the slot was claimed");
    slot.touch(tools.now, answered);
    let state = if waits == Waits::Request { State::Rest } else { State::Parked };
    slot.release(connection.generation, state);
    Ended::Waits(waits)
}

/// A turn in progress.
struct Turn<'t, 'a> {
    connection: &'t mut Connection,
    index: u32,
    tools: &'t mut Tools<'a>,
    /// The view that holds, up to date with the commits since.
    view: View,
    marks: Marks,
    /// Received bytes, from the view's first.
    have: usize,
    /// Requests answered in this turn.
    answered: u64,
    /// Of these, the ones whose replies are not sent yet.
    unrecorded: u64,
    /// The client does not take its replies: they are parked as they are, and none is added to them.
    blocked: bool,
}

/// The client is gone.
struct Gone;

impl Turn<'_, '_> {
    fn work(&mut self, purpose: &Purpose<'_>) -> Option<Waits> {
        let began = self.tools.now;
        let same_frame = self.connection.waits == Waits::Bytes;
        self.begin()?;
        match purpose {
            Purpose::Dismiss(fault) => self.reply_last(fault),
            _ => self.serve(began).ok()?,
        }
        self.end(began, same_frame && self.view.answered == 0 && self.answered == 0)
    }

    fn slot(&self) -> Slot<'_> {
        self.tools.desk.slot(self.index).expect("the slot was claimed")
    }

    /// Makes a view hold that tells where this turn's bytes will lie.
    ///
    /// Unread bytes go to the front of the shared buffer, unless they are a large frame or the beginning of one, which
    /// lies at the front of the large place and is received and answered there. Nothing, if they are too many for the one
    /// and lie wrong for the other, which no turn leaves behind.
    fn begin(&mut self) -> Option<()> {
        let (in_base, out_base) = self.view.ends();
        let (from, offset) = (self.view.rx.0, self.view.rx.1 as usize);
        let mut place = Place::Shared;
        if self.have > 0 {
            let unread = &self.tools.desk.received(self.index, from)[offset..offset + self.have];
            let first = self.marks.order.map(|order| frame::next(unread, order, u32::MAX));
            let is_large = matches!(first, Some(Next::Partial { .. })) || self.have > RECEIVE;
            if is_large && from == Place::Large && offset == 0 {
                place = Place::Large;
            } else if self.have <= RECEIVE {
                self.tools.desk.move_received(self.index, from, offset..offset + self.have, Place::Shared);
            } else {
                return None;
            }
        }
        let have = self.have as u32;
        self.view = View { in_base, out_base, answered: 0, replied: 0, rx: (place, 0), tx: (Place::Shared, 0), have };
        self.flip();
        Some(())
    }

    fn flip(&self) {
        self.slot().flip(&self.view, self.marks);
    }

    fn serve(&mut self, began: u64) -> Result<(), Gone> {
        if !self.marks.half_closed {
            self.read()?;
        }
        let mut sent_at = began;
        while let Some((total, order)) = self.next_frame() {
            let is_inline = self.answer(total, order);
            let overdue = !is_inline && self.tools.now - sent_at > REPLY_DELAY;
            if overdue || self.view.replied as usize > REPLY_SOFT {
                if !self.send_midway(sent_at)? {
                    break;
                }
                sent_at = self.tools.now;
            }
            if self.tools.now - began > LONGEST || self.tools.broken.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Reads once, behind what is there already: as much as the buffer takes, or just the rest of the frame that is
    /// being received in place.
    fn read(&mut self) -> Result<(), Gone> {
        self.connection.rearm();
        let (have, marks, in_place) = (self.have, self.marks, self.view.rx.0 == Place::Large);
        let open = self.tools.desk.open(self.index, self.view.rx.0, Place::Shared);
        let first = marks.order.filter(|_| in_place).map(|order| frame::next(&open.rx[..have], order, u32::MAX));
        let end = match first {
            Some(Next::Partial { total: Some(total) }) => total.min(open.rx.len()),
            Some(Next::Whole { .. }) => have,
            _ => open.rx.len(),
        };
        let Some(room) = open.rx.get_mut(have..end).filter(|room| !room.is_empty()) else { return Ok(()) };
        match socket::receive(&self.connection.socket, room) {
            Ok(Moved::Bytes(n)) => {
                self.have += n;
                self.connection.unarmed += n as u32;
            }
            Ok(Moved::Nothing) => {}
            Ok(Moved::End) => self.marks.half_closed = true,
            Err(e) => {
                log::debug!("client {} ({}): {e}", self.connection.client, self.connection.peer);
                return Err(Gone);
            }
        }
        Ok(())
    }

    /// The next whole frame that is to be answered: its length with the prefix, and the client's byte order.
    fn next_frame(&mut self) -> Option<(usize, ByteOrder)> {
        if self.marks.closing {
            return None;
        }
        let limit = self.tools.settings.max_frame;
        let order = self.order()?;
        match frame::next(self.unread(), order, limit) {
            Next::Whole { total } => Some((total, order)),
            Next::Partial { .. } => None,
            Next::TooLarge { length } => {
                let message = format!("a frame of {length} bytes is longer than max-frame, {limit} bytes");
                self.reply_last(&Fault::of(Code::TooLarge, message));
                None
            }
        }
    }

    fn unread(&self) -> &[u8] {
        let begin = self.view.rx.1 as usize;
        &self.tools.desk.received(self.index, self.view.rx.0)[begin + self.view.answered as usize..begin + self.have]
    }

    /// The client's byte order, noted on the desk as soon as it is known. An empty frame leaves it open.
    fn order(&mut self) -> Option<ByteOrder> {
        if self.marks.order.is_some() {
            return self.marks.order;
        }
        let prefix = *self.unread().first_chunk::<PREFIX>()?;
        self.marks.order = self.connection.order.decide(prefix, self.tools.settings.max_frame);
        self.slot().set_marks(self.marks);
        Some(self.marks.order.unwrap_or(ByteOrder::Little))
    }

    /// Answers the next frame; whether that took no time worth measuring.
    fn answer(&mut self, total: usize, order: ByteOrder) -> bool {
        let call = Call {
            client: self.connection.client,
            peer: self.connection.peer,
            attempt: u32::from(self.marks.faults) + 1,
            deadline: self.tools.stop_by,
        };
        let begin = self.view.rx.1 as usize + self.view.answered as usize;
        let (answered, replied) = (self.view.answered, self.view.replied as usize);
        let reply_max = self.tools.desk.layout().reply_max();
        let Open { header, slot, rx, tx } = self.tools.desk.open(self.index, self.view.rx.0, Place::Shared);
        let out = &mut tx[replied..replied + reply_max];

        let (faults, now) = (self.marks.faults, self.tools.now);
        let mut is_inline = true;
        let service = &mut *self.tools.service;
        let mut run = |out: &mut [u8]| -> Result<usize, Failure> {
            let request = Request::parse(&rx[begin + PREFIX..begin + total])
                .map_err(|reason| Failure::Fault(Fault::of(Code::BadRequest, reason)))?;
            let method = service.find(&request.method).ok_or_else(|| {
                Failure::Fault(Fault::of(Code::UnknownMethod, format!("there is no method {:?}", request.method)))
            })?;
            if !may_run(&*service, method, faults) {
                let sentence = format!("the worker that ran this request died in method {:?}", request.method);
                return Err(Failure::Fault(Fault::of(Code::Crashed, sentence)));
            }
            is_inline = service.is_inline(method);
            let number = method as u32 + 1;
            slot.execute(number, answered);
            if !is_inline {
                header.begin_method(number, now);
            }
            match request.params {
                Some(params) => service.call(method, params, call, out, order),
                None => service.call(method, null_params(), call, out, order),
            }
        };
        let length = run(out).unwrap_or_else(|failure| {
            header.add_error();
            match &failure {
                Failure::Panicked => header.add_panic(),
                Failure::Broken(why) => *self.tools.broken = Some(why.clone()),
                Failure::Fault(_) => {}
            }
            write_fault(out, order, &Fault::from(failure))
        });
        slot.commit(answered + total as u32, (replied + length) as u32);
        if !is_inline {
            self.tools.now = clock::monotonic();
            header.end_method(self.tools.now);
        }
        self.marks.faults = 0;
        self.view.answered += total as u32;
        self.view.replied += length as u32;
        self.answered += 1;
        self.unrecorded += 1;
        is_inline
    }

    /// Makes the reply after which the client is closed, and forgets what it sent beyond.
    fn reply_last(&mut self, fault: &Fault) {
        let order = self.marks.order.unwrap_or(ByteOrder::Little);
        let (replied, skipped) = (self.view.replied as usize, self.have as u32);
        let Open { header, slot, tx, .. } = self.tools.desk.open(self.index, self.view.rx.0, Place::Shared);
        let length = write_fault(&mut tx[replied..], order, fault);
        header.add_error();
        self.marks.closing = true;
        // Before the reply counts: who finds it made finds that nothing comes after it.
        slot.set_marks(self.marks);
        slot.commit(skipped, (replied + length) as u32);
        self.view.answered = skipped;
        self.view.replied += length as u32;
        self.answered += 1;
        self.unrecorded += 1;
    }

    /// Sends the replies so far and lets a view begin behind them. False when the client does not take them.
    fn send_midway(&mut self, since: u64) -> Result<bool, Gone> {
        let sent = self.send(since)?;
        self.pass(sent);
        if self.view.replied > 0 {
            self.blocked = true;
            return Ok(false);
        }
        self.flip();
        Ok(true)
    }

    /// Sends; how many bytes the kernel took.
    fn send(&mut self, since: u64) -> Result<usize, Gone> {
        let replied = self.view.replied as usize;
        if replied == 0 {
            return Ok(0);
        }
        let open = self.tools.desk.open(self.index, self.view.rx.0, Place::Shared);
        let begin = self.view.tx.1 as usize;
        open.header.add_requests(self.unrecorded);
        let at = self.view.out_base;
        let bytes = &open.tx[begin..begin + replied];
        let sent = match transmit(self.connection, self.tools.writes, open.header, (self.index, at), bytes) {
            Ok(Moved::Bytes(n)) => n,
            Ok(Moved::Nothing) => 0,
            Ok(Moved::End) | Err(_) => return Err(Gone),
        };
        self.tools.now = clock::monotonic();
        open.header.record(self.tools.now, self.unrecorded, self.tools.now - since);
        self.unrecorded = 0;
        Ok(sent)
    }

    /// Moves the view, here and not yet on the desk, behind the answered frames and the bytes sent.
    fn pass(&mut self, sent: usize) {
        let answered = self.view.answered;
        self.view.in_base += u64::from(answered);
        self.view.rx.1 += answered;
        self.have -= answered as usize;
        self.view.have = self.have as u32;
        self.view.answered = 0;
        self.view.out_base += sent as u64;
        self.view.replied -= sent as u32;
        self.view.tx.1 = if self.view.replied == 0 { 0 } else { self.view.tx.1 + sent as u32 };
    }

    /// Sends, parks what is left, and says what the client is waited for; nothing if it is over.
    fn end(&mut self, began: u64, same_frame: bool) -> Option<Waits> {
        if self.marks.half_closed && !self.marks.closing && !self.blocked && self.ends_in_a_frame() {
            let message = "the connection ended in the middle of a frame";
            self.reply_last(&Fault::of(Code::BadRequest, message));
        }
        let sent = if self.blocked { 0 } else { self.send(began).ok()? };
        let unsent = self.view.replied as usize - sent;
        let unread = self.have - self.view.answered as usize;
        if unsent == 0 && unread == 0 {
            return match (self.marks.closing, self.marks.half_closed) {
                (true, _) => self.say_goodbye(sent),
                (false, true) => None,
                // The view that holds says it already: all is answered, all is sent.
                (false, false) => Some(Waits::Request),
            };
        }
        self.park(sent, unread);
        let waits = if unsent > 0 {
            Waits::Room
        } else if self.next_is_whole() {
            Waits::Turn
        } else {
            if self.connection.is_tcp() {
                socket::acknowledge_quickly(&self.connection.socket);
            }
            Waits::Bytes
        };
        if !(waits == Waits::Bytes && same_frame) {
            self.slot().set_since(self.tools.now);
        }
        Some(waits)
    }

    fn ends_in_a_frame(&self) -> bool {
        !self.unread().is_empty() && !self.next_is_whole()
    }

    fn next_is_whole(&self) -> bool {
        let order = self.marks.order.unwrap_or(ByteOrder::Little);
        // A length over the limit is something to be answered as well.
        !matches!(frame::next(self.unread(), order, self.tools.settings.max_frame), Next::Partial { .. })
    }

    /// Copies what is unread and unsent to the slot's own places, unless it lies there; then lets a view hold that
    /// says so. The view before stays true until then, for no copy overlaps its source.
    fn park(&mut self, sent: usize, unread: usize) {
        self.pass(sent);
        let (place, offset) = (self.view.rx.0, self.view.rx.1 as usize);
        if place == Place::Shared && unread > 0 {
            let target = if unread <= SMALL { Place::Small } else { Place::Large };
            self.tools.desk.move_received(self.index, place, offset..offset + unread, target);
            self.view.rx = (target, 0);
        }
        if self.view.replied > 0 {
            let begin = self.view.tx.1 as usize;
            self.tools.desk.keep_replies(self.index, begin..begin + self.view.replied as usize);
            self.view.tx = (Place::Large, 0);
        }
        self.flip();
    }

    /// Sends replies that were parked before this turn, and goes on if that is done.
    fn send_parked(&mut self, purpose: &Purpose<'_>) -> Option<Waits> {
        let (begin, unsent) = (self.view.tx.1 as usize, self.view.replied as usize);
        let open = self.tools.desk.open(self.index, Place::Shared, self.view.tx.0);
        let bytes = open.tx.get(begin..begin + unsent)?;
        let at = self.view.out_base;
        let sent = match transmit(self.connection, self.tools.writes, open.header, (self.index, at), bytes) {
            Ok(Moved::Bytes(n)) => n,
            Ok(Moved::Nothing) => 0,
            Ok(Moved::End) | Err(_) => return None,
        };
        self.pass(sent);
        if sent < unsent {
            // Who is told off and does not read is not told.
            if matches!(purpose, Purpose::Dismiss(_)) {
                return None;
            }
            if sent > 0 {
                self.flip();
                self.slot().set_since(self.tools.now);
            }
            return Some(Waits::Room);
        }
        match (self.marks.closing, self.marks.half_closed && self.have == 0) {
            (true, _) => self.say_goodbye(0),
            (false, true) => None,
            (false, false) => self.work(purpose),
        }
    }

    /// All is sent. Nothing more is, and the client is given a while to read it.
    fn say_goodbye(&mut self, sent: usize) -> Option<Waits> {
        self.pass(sent);
        let (received, written) = self.view.ends();
        self.view = View::at_rest(received + self.have as u64, written);
        self.flip();
        self.slot().set_since(self.tools.now);
        socket::finish_writing(&self.connection.socket);
        Some(Waits::End)
    }

    /// Reads what the client still sends after its last reply, and throws it away.
    fn hear_last_words(&mut self) -> Option<Waits> {
        let open = self.tools.desk.open(self.index, Place::Shared, Place::Shared);
        match socket::receive(&self.connection.socket, open.rx) {
            Ok(Moved::Bytes(n)) => {
                self.connection.last_words = self.connection.last_words.checked_sub(n as u32)?;
                Some(Waits::End)
            }
            Ok(Moved::Nothing) => Some(Waits::End),
            Ok(Moved::End) | Err(_) => None,
        }
    }
}

/// Writes to a client, in the way by which the kernel can tell afterwards how much: for a Unix client, what was written
/// before is noted first.
fn transmit(
    connection: &Connection,
    writes: Option<&OwnWrites>,
    header: Header<'_>,
    (slot, at): (u32, u64),
    bytes: &[u8],
) -> io::Result<Moved> {
    if connection.is_tcp() {
        return socket::transmit(&connection.socket, bytes);
    }
    match writes.map(OwnWrites::sum) {
        Some(Ok(sum)) => header.begin_write(slot, at, sum),
        Some(Err(_)) | None => header.set_knows_writes(false),
    }
    socket::transmit_summed(&connection.socket, bytes)
}

/// Whether a request may be run that was executing at so many deaths: once more, if that does no harm.
fn may_run(service: &dyn Service, method: usize, faults: u8) -> bool {
    faults == 0 || (faults == 1 && service.is_idempotent(method))
}

fn null_params() -> &'static RawValue {
    serde_json::from_str(NULL).expect("null is JSON")
}
