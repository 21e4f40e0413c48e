//! The turn: everything that is done for a client at a time.
//!
//! ```text
//! claim    the lease word, by compare-exchange; who fails has lost the client
//! unsent   replies that were parked: only they are sent, and nothing is read while some are left
//! begin    cursors that say where the bytes to come will lie are active before the first of them is read
//! read     once
//! frames   for each whole one: execute in the shared memory, run the method, commit the reply
//! send     once, when no whole frame is left
//! park     what is unread or unsent goes to the slot's own regions, then cursors that say so are active
//! end      the lease word
//! ```
//!
//! Between two turns nothing that a client sent or is to be sent is anywhere but in the shared memory and in the kernel. Nothing
//! is stored after a read or a write. `exec` is stored before the method and the commit after it: a death between the
//! two is a fault of that request, one before or after is none, so a side effect happens at most once.

mod answer;
mod send;

use std::io;
use std::time::{Duration, Instant};

use super::connection::{Connection, WaitingFor};
use super::death::{self, Point};
use super::methods::Service;
use super::reply::Fault;
use crate::proto::channel::Settings;
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::rpc::Code;
use crate::shm::{
    Claim, Cursors, Flags, LeaseState, RECEIVE_LEN, REPLY_SOFT, Region, SMALL_LEN, Slot, WorkerShm,
};
use crate::sys::byte_counts::OwnWrites;
use crate::sys::socket::{self, Moved};

/// Replies wait for the ones behind them at most this long, in ns.
const REPLY_DELAY: u64 = 1_000_000;

/// A client that has more requests waiting lets others go first after this long, in ns.
const MAX_TURN: u64 = 10_000_000;

/// What a turn works with besides its client.
pub(super) struct Tools<'a> {
    pub(super) shm: &'a mut WorkerShm,
    pub(super) service: &'a mut dyn Service,
    pub(super) settings: &'a Settings,
    /// When the worker is killed, once it has received `Stop`.
    pub(super) stop_by: Option<Instant>,
    /// The same instant by both clocks, so that none is read to tell a method its deadline.
    pub(super) epoch: (Instant, u64),
    /// Whether a method is not run any more, by its index; beyond the end it is.
    pub(super) quarantined: &'a [bool],
    /// Requests that this process has answered.
    pub(super) served: u64,
    /// What this thread wrote, where the kernel keeps account.
    pub(super) writes: Option<&'a OwnWrites>,
    /// Why this process cannot continue, once it cannot.
    pub(super) broken: &'a mut Option<String>,
    /// The clock: ns of CLOCK_MONOTONIC at the beginning of the turn, and again at its end.
    pub(super) now: u64,
}

impl Tools<'_> {
    /// When the worker is killed, if a method begins now.
    fn deadline(&self) -> Option<Instant> {
        let (epoch, epoch_ns) = self.epoch;
        let timeout = self.settings.request_timeout.and_then(|timeout| {
            let begin = epoch + Duration::from_nanos(self.now.saturating_sub(epoch_ns));
            begin.checked_add(timeout)
        });
        [self.stop_by, timeout].into_iter().flatten().min()
    }

    /// Whether this process has answered as many requests as it is to.
    pub(super) fn has_reached_limit(&self) -> bool {
        self.settings
            .max_requests
            .is_some_and(|most| self.served >= most)
    }
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client stays, and is waited for.
    Waits(WaitingFor),
    /// It is over, and the slot still claimed.
    Over,
    /// The lease was not ours any more.
    Lost,
    /// The descriptor is not the client's socket any more. The slot is still claimed, as at a death.
    Foreign,
}

/// The purpose of a turn.
#[derive(Debug)]
pub(super) enum Purpose<'a> {
    /// To serve the client.
    Serve,
    /// To tell it off: this is its last reply, unless replies before it cannot be sent.
    Reject(&'a Fault),
    /// To end it without a word.
    Cut,
}

/// One turn of a client, from the claim to the lease word.
pub(super) fn turn(
    connection: &mut Connection,
    index: u32,
    purpose: &Purpose<'_>,
    tools: &mut Tools<'_>,
) -> Ended {
    let Some(slot) = tools.shm.slot(index) else {
        return Ended::Lost;
    };
    let Some(found) = slot.claim(connection.lease_number) else {
        return Ended::Lost;
    };
    tools.shm.header().begin_turn(index, tools.now);
    death::pass(Point::AfterClaim);
    let (cursors, mut flags) = (slot.cursors(), slot.flags());
    let parked = found == Claim::Parked;
    // Of an idle client the cursors tell of bytes that are answered, and the flags of a frame that is.
    let have = if parked { cursors.have as usize } else { 0 };
    if !parked {
        answer::forgive(&mut flags);
    }
    let overloaded = Purpose::Reject(&Fault::from_code(
        Code::Overloaded,
        "there is too little memory for your unfinished frame",
    ));
    let purpose = match purpose {
        Purpose::Serve if flags.overloaded && !flags.closing => &overloaded,
        purpose => purpose,
    };
    let mut turn = Turn {
        connection,
        index,
        tools,
        cursors,
        flags,
        have,
        answered: 0,
        unrecorded: 0,
        blocked: false,
        moved: false,
        is_doubtful: false,
        is_foreign: false,
    };
    // Those that write or end it before they read.
    let is_at_its_end =
        !matches!(purpose, Purpose::Serve) || (parked && (cursors.replied > 0 || flags.closing));
    let waits = match purpose {
        _ if is_at_its_end && turn.check_socket().is_err() => None,
        Purpose::Cut => None,
        Purpose::Serve if parked && flags.closing && cursors.replied == 0 => turn.linger(),
        Purpose::Reject(_) if flags.closing => None,
        _ if parked && cursors.replied > 0 => turn.send_parked(purpose),
        _ => turn.work(purpose),
    };
    let (is_active, is_foreign) = (turn.moved || turn.answered > 0, turn.is_foreign);
    if is_foreign {
        return Ended::Foreign;
    }
    tools.shm.header().end_turn();
    let Some(waits) = waits else {
        return Ended::Over;
    };
    let slot = tools.shm.slot(index).expect("the slot was claimed");
    // Not in a turn for nothing, as each lease begins with one: a client that is moved is no less idle.
    if is_active {
        slot.touch(tools.now);
    }
    let state = if waits == WaitingFor::Request {
        LeaseState::Idle
    } else {
        LeaseState::Parked
    };
    death::pass(Point::BeforeEnd);
    slot.release(connection.lease_number, state);
    Ended::Waits(waits)
}

/// A turn in progress.
struct Turn<'t, 'a> {
    connection: &'t mut Connection,
    index: u32,
    tools: &'t mut Tools<'a>,
    /// The active cursors, up to date with the commits since.
    cursors: Cursors,
    flags: Flags,
    /// Received bytes, from the first of the cursors.
    have: usize,
    /// Requests answered in this turn.
    answered: u64,
    /// Of these, the ones whose replies are not sent yet.
    unrecorded: u64,
    /// The client does not take its replies: they are parked as they are, and none is added to them.
    blocked: bool,
    /// Bytes came from the client, or some of those that were parked for it went.
    moved: bool,
    /// A method that is no inline one has run, or there is nothing to read although there was: the descriptor has to be
    /// looked at before more is done with it.
    is_doubtful: bool,
    /// The descriptor is not the client's socket.
    is_foreign: bool,
}

/// The client is gone.
struct Gone;

/// Why a worker ends whose descriptors other code has closed.
pub(super) const FOREIGN: &str =
    "the descriptor of a client was closed by other code of this process";

impl Turn<'_, '_> {
    fn work(&mut self, purpose: &Purpose<'_>) -> Option<WaitingFor> {
        let began = self.tools.now;
        let same_frame = self.connection.waits == WaitingFor::Bytes;
        if self.begin().is_none() {
            self.tools.shm.header().add_lost();
            return None;
        }
        match purpose {
            Purpose::Reject(fault) => self.reply_last(fault),
            _ => self.serve(began).ok()?,
        }
        self.end(
            began,
            same_frame && self.cursors.answered == 0 && self.answered == 0,
        )
    }

    /// Finds out whether the descriptor still is the client's socket. If it is not, this process cannot go on, and the client
    /// is recovered as from a death: nothing more is done for it here, nor said in its shared memory.
    fn check_socket(&mut self) -> Result<(), Gone> {
        if !self.connection.has_its_socket() {
            *self.tools.broken = Some(FOREIGN.to_owned());
            self.is_foreign = true;
            return Err(Gone);
        }
        self.is_doubtful = false;
        Ok(())
    }

    fn slot(&self) -> Slot<'_> {
        self.tools
            .shm
            .slot(self.index)
            .expect("the slot was claimed")
    }

    /// Activates cursors that tell where this turn's bytes will lie.
    ///
    /// Unread bytes go to the front of the shared buffer, unless they are a large frame or the beginning of one, which
    /// lies at the front of the large region and is received and answered there. Nothing, if they are too many for the one
    /// and lie wrong for the other, which no turn leaves behind.
    fn begin(&mut self) -> Option<()> {
        let (in_base, out_base) = self.cursors.ends();
        let (from, offset) = (self.cursors.rx.0, self.cursors.rx.1 as usize);
        let mut region = Region::Shared;
        if self.have > 0 {
            let unread = &self.tools.shm.received(self.index, from)[offset..offset + self.have];
            let first = self
                .flags
                .order
                .map(|order| frame::next(unread, order, u32::MAX));
            let is_large = matches!(first, Some(Next::Partial { .. })) || self.have > RECEIVE_LEN;
            if is_large && from == Region::Large && offset == 0 {
                region = Region::Large;
            } else if self.have <= RECEIVE_LEN {
                self.tools.shm.move_received(
                    self.index,
                    from,
                    offset..offset + self.have,
                    Region::Shared,
                );
            } else {
                return None;
            }
        }
        let have = self.have as u32;
        self.cursors = Cursors {
            in_base,
            out_base,
            answered: 0,
            replied: 0,
            rx: (region, 0),
            tx: (Region::Shared, 0),
            have,
        };
        self.flip();
        death::pass(Point::AfterBegin);
        Some(())
    }

    fn flip(&self) {
        self.slot().flip(&self.cursors, self.flags);
    }

    fn serve(&mut self, began: u64) -> Result<(), Gone> {
        if !self.flags.half_closed {
            self.read()?;
        }
        let mut sent_at = began;
        while let Some((total, order)) = self.next_frame() {
            let is_inline = self.answer(total, order);
            self.is_doubtful |= !is_inline;
            let overdue = !is_inline && self.tools.now - sent_at > REPLY_DELAY;
            if overdue || self.cursors.replied as usize > REPLY_SOFT {
                if !self.send_midway(sent_at)? {
                    break;
                }
                sent_at = self.tools.now;
            }
            if self.tools.now - began > MAX_TURN
                || self.tools.broken.is_some()
                || self.tools.has_reached_limit()
            {
                break;
            }
        }
        Ok(())
    }

    /// Reads once, behind what is there already: as much as the buffer takes, or just the rest of the frame that is
    /// being received in place.
    fn read(&mut self) -> Result<(), Gone> {
        self.connection.rearm();
        let (have, flags, in_place) = (self.have, self.flags, self.cursors.rx.0 == Region::Large);
        let open = self
            .tools
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let first = flags
            .order
            .filter(|_| in_place)
            .map(|order| frame::next(&open.rx[..have], order, u32::MAX));
        let end = match first {
            Some(Next::Partial { total: Some(total) }) => total.min(open.rx.len()),
            Some(Next::Whole { .. }) => have,
            _ => open.rx.len(),
        };
        let Some(room) = open.rx.get_mut(have..end).filter(|room| !room.is_empty()) else {
            return Ok(());
        };
        match self.connection.receive(room) {
            Ok(Moved::Bytes(n)) => {
                death::pass(Point::AfterReceive);
                self.have += n;
                self.moved = true;
                self.connection.unarmed += n as u32;
            }
            Ok(Moved::Nothing) => {}
            Ok(Moved::End) => (self.flags.half_closed, self.is_doubtful) = (true, true),
            Err(e) => {
                self.check_socket()?;
                self.broke_off(&e);
                return Err(Gone);
            }
        }
        Ok(())
    }

    /// A read or a write has failed, and the client is to be closed. It is lost unless the error is its own doing, or the
    /// network's.
    fn broke_off(&self, error: &io::Error) {
        log::debug!(
            "client {} ({}): {error}",
            self.connection.client,
            self.connection.peer
        );
        if !socket::is_broken_by_peer(error) {
            self.tools.shm.header().add_lost();
        }
    }

    /// The next whole frame that is to be answered: its length with the prefix, and the client's byte order.
    fn next_frame(&mut self) -> Option<(usize, ByteOrder)> {
        if self.flags.closing {
            return None;
        }
        let limit = self.tools.settings.max_frame;
        let order = self.order()?;
        match frame::next(self.unread(), order, limit) {
            Next::Whole { total } => Some((total, order)),
            Next::Partial { .. } => None,
            Next::TooLarge { .. } if self.check_socket().is_err() => None,
            Next::TooLarge { length } => {
                let message =
                    format!("a frame of {length} bytes is longer than max-frame, {limit} bytes");
                self.reply_last(&Fault::from_code(Code::TooLarge, message));
                None
            }
        }
    }

    fn unread(&self) -> &[u8] {
        let begin = self.cursors.rx.1 as usize;
        &self.tools.shm.received(self.index, self.cursors.rx.0)
            [begin + self.cursors.answered as usize..begin + self.have]
    }

    /// The client's byte order, noted in the shared memory as soon as it is known. An empty frame leaves it open.
    fn order(&mut self) -> Option<ByteOrder> {
        if self.flags.order.is_some() {
            return self.flags.order;
        }
        let prefix = *self.unread().first_chunk::<PREFIX>()?;
        self.flags.order = self
            .connection
            .order
            .decide(prefix, self.tools.settings.max_frame);
        self.slot().set_flags(self.flags);
        Some(self.flags.order.unwrap_or(ByteOrder::Little))
    }

    /// Moves the cursors, here and not yet in the shared memory, behind the answered frames and the bytes sent.
    fn pass(&mut self, sent: usize) {
        let answered = self.cursors.answered;
        self.cursors.in_base += u64::from(answered);
        self.cursors.rx.1 += answered;
        self.have -= answered as usize;
        self.cursors.have = self.have as u32;
        self.cursors.answered = 0;
        self.cursors.out_base += sent as u64;
        self.cursors.replied -= sent as u32;
        self.cursors.tx.1 = if self.cursors.replied == 0 {
            0
        } else {
            self.cursors.tx.1 + sent as u32
        };
    }

    /// Sends, parks what is left, and says what the client is waited for; nothing if it is over.
    fn end(&mut self, began: u64, same_frame: bool) -> Option<WaitingFor> {
        if self.is_doubtful || self.answered == 0 {
            self.check_socket().ok()?;
        }
        let may_answer = !self.flags.closing && !self.blocked && !self.tools.has_reached_limit();
        if self.flags.half_closed && may_answer && self.ends_in_a_frame() {
            let message = "the connection ended in the middle of a frame";
            self.reply_last(&Fault::from_code(Code::BadRequest, message));
        }
        let sent = if self.blocked {
            0
        } else {
            self.send(began).ok()?
        };
        let unsent = self.cursors.replied as usize - sent;
        let unread = self.have - self.cursors.answered as usize;
        if unsent == 0 && unread == 0 {
            return match (self.flags.closing, self.flags.half_closed) {
                (true, _) => self.begin_lingering_close(sent),
                (false, true) => None,
                (false, false) => {
                    self.become_idle(sent);
                    Some(WaitingFor::Request)
                }
            };
        }
        self.park(sent, unread);
        let waits = if unsent > 0 {
            WaitingFor::Writable
        } else if self.next_is_whole() {
            WaitingFor::Turn
        } else {
            if self.connection.is_tcp() {
                socket::acknowledge_quickly(&self.connection.socket);
            }
            WaitingFor::Bytes
        };
        if !(waits == WaitingFor::Bytes && same_frame) {
            self.slot().set_since(self.tools.now);
        }
        Some(waits)
    }

    /// All is answered, and all is sent. Cursors that says of replies that they were made and not that they were sent is true
    /// of both, for the kernel tells; but of a Unix client only as long as the note of its write holds. That ends with
    /// the turn, so that a death at the beginning of the next one would find replies that nobody seems to have written.
    fn become_idle(&mut self, sent: usize) {
        if !self.connection.is_tcp() && self.cursors.replied > 0 {
            self.pass(sent);
            self.flip();
        }
    }

    fn ends_in_a_frame(&self) -> bool {
        !self.unread().is_empty() && !self.next_is_whole()
    }

    fn next_is_whole(&self) -> bool {
        let order = self.flags.order.unwrap_or(ByteOrder::Little);
        // A length over the limit is something to be answered as well.
        !matches!(
            frame::next(self.unread(), order, self.tools.settings.max_frame),
            Next::Partial { .. }
        )
    }

    /// Copies what is unread and unsent to the slot's own regions, unless it lies there; then activates cursors that
    /// say so. The cursors before stay true until then, for no copy overlaps its source.
    fn park(&mut self, sent: usize, unread: usize) {
        self.pass(sent);
        let (region, offset) = (self.cursors.rx.0, self.cursors.rx.1 as usize);
        if region == Region::Shared && unread > 0 {
            let target = if unread <= SMALL_LEN {
                Region::Small
            } else {
                Region::Large
            };
            self.tools
                .shm
                .move_received(self.index, region, offset..offset + unread, target);
            self.cursors.rx = (target, 0);
        }
        if self.cursors.replied > 0 {
            let begin = self.cursors.tx.1 as usize;
            self.tools
                .shm
                .park_replies(self.index, begin..begin + self.cursors.replied as usize);
            self.cursors.tx = (Region::Large, 0);
        }
        death::pass(Point::AmidParking);
        self.flip();
        death::pass(Point::AfterParking);
    }
}
