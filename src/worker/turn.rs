//! The turn: all processing of one client at a time.
//!
//! ```text
//! claim    the lease word, by compare-exchange; if that fails, the lease is lost
//! unsent   parked replies: only they are sent, and nothing is read while some are left
//! begin    activate cursors to the region of the next bytes, before the first of them is read
//! read     once
//! frames   for each complete one: set `exec` in the shared memory, run the method, commit the reply;
//!          one that an app or a runtime executes ends the turn, see `turn/away.rs`
//! send     once, when no complete frame is left
//! park     copy what is unread or unsent to the slot's own regions, then activate cursors to them
//! end      the lease word
//! ```
//!
//! Between two turns a client's bytes are only in the shared memory and in the kernel. Recovery needs nothing that is
//! stored after a read or a write, because the kernel counts the bytes; cursors that are activated later only follow.
//! `exec` is stored before the method and the commit after it: a death between the two is a crash of that request, an
//! earlier or later one is not. So a side effect happens at most once.

mod answer;
mod away;
mod context;
mod goaway;
mod park;
mod proxy;
mod purpose;
mod read;
mod send;

use std::io;

use self::answer::{Departure, FrameOutcome};
pub(super) use self::away::AwayAnswer;
pub(super) use self::context::TurnContext;
pub(super) use self::purpose::Purpose;
use super::connection::{Connection, WaitingFor};
use super::kill_points::{self, Point};
use super::reply::Fault;
use crate::proto::rpc::Code;
use crate::shm::{Claim, CloseReason, Cursors, Flags, ProxyState, REPLY_SOFT, Slot};
use crate::sys::socket;

/// The time after which replies are sent without waiting for the replies to further frames, in ns.
const REPLY_DELAY: u64 = 1_000_000;

/// The time after which a turn ends although complete frames are left, so that other clients are served, in ns.
const MAX_TURN: u64 = 10_000_000;

/// The end of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnEnd {
    /// The client stays, and the worker waits for this.
    Waits(WaitingFor),
    /// The client must be closed; the slot is still claimed.
    MustClose,
    /// The lease had been revoked.
    Lost,
    /// The descriptor is not the client's socket any more. The slot is still claimed, as at a death.
    Foreign,
}

/// Runs one turn of a client, from the claim to the lease word.
pub(super) fn turn(
    connection: &mut Connection,
    index: u32,
    purpose: &Purpose<'_>,
    context: &mut TurnContext<'_>,
) -> TurnEnd {
    let Some(slot) = context.shm.slot(index) else {
        return TurnEnd::Lost;
    };
    let found = if purpose.is_of_away() {
        slot.claim_away(connection.lease_number)
            .then_some(Claim::Parked)
    } else {
        slot.claim(connection.lease_number)
    };
    let Some(found) = found else {
        return TurnEnd::Lost;
    };
    context.shm.header().begin_turn(index, context.now);
    kill_points::pass(Point::AfterClaim);
    let is_parked = found == Claim::Parked;
    let (cursors, flags) = (slot.cursors(), initial_flags(slot, is_parked));
    let mut turn = Turn {
        connection,
        index,
        context,
        cursors,
        flags,
        have: if is_parked { cursors.have as usize } else { 0 },
        answered: 0,
        unrecorded: 0,
        is_blocked: false,
        has_traffic: false,
        is_doubtful: false,
        is_foreign: false,
        departure: None,
    };
    let waits = turn.run(purpose, is_parked);
    let (is_active, is_foreign) = (turn.has_traffic || turn.answered > 0, turn.is_foreign);
    let close_reason = turn.flags.close_reason;
    if is_foreign {
        return TurnEnd::Foreign;
    }
    context.shm.header().end_turn();
    let slot = context.shm.slot(index).expect("the slot was claimed");
    let Some(waits) = waits else {
        slot.set_close_reason(close_reason);
        return TurnEnd::MustClose;
    };
    // Each lease begins with a turn: a client that moves without sending stays idle.
    if is_active {
        slot.touch(context.now);
    }
    kill_points::pass(Point::BeforeEnd);
    slot.release(connection.lease_number, waits.lease_state());
    TurnEnd::Waits(waits)
}

/// Returns the flags of the client in a slot, as far as they hold when a turn begins.
fn initial_flags(slot: Slot<'_>, is_parked: bool) -> Flags {
    let mut flags = slot.flags();
    if !is_parked {
        // An idle client's cursors refer to answered bytes, and its flags to an answered frame.
        answer::clear_crash_flags(&mut flags);
    }
    if !flags.closing {
        // A worker that died before it closed the client may have noted a reason.
        flags.close_reason = CloseReason::Left;
    }
    flags
}

/// A turn in progress.
struct Turn<'t, 'a> {
    connection: &'t mut Connection,
    index: u32,
    context: &'t mut TurnContext<'a>,
    /// The active cursors, with the replies that were committed since they became active.
    cursors: Cursors,
    flags: Flags,
    /// The number of received bytes, from the position on at which the cursors begin.
    have: usize,
    /// Requests answered in this turn.
    answered: u64,
    /// Of these, the requests whose time is not recorded yet. The next attempt to send records it.
    unrecorded: u64,
    /// Whether the socket accepts no more replies: they are parked, and no more are added.
    is_blocked: bool,
    /// Whether bytes were received from the client, or parked ones were sent to it.
    has_traffic: bool,
    /// Whether the descriptor must be checked before it is used: a method that is not inline has run, or the stream has
    /// ended.
    is_doubtful: bool,
    /// Whether the descriptor is not the client's socket.
    is_foreign: bool,
    /// The next request, if an app or a runtime executes it.
    departure: Option<Departure>,
}

/// The client must be closed, or its descriptor is that of another file.
struct Gone;

/// The reason why a worker ends if other code of its process has closed its descriptors.
pub(super) const FOREIGN: &str =
    "the descriptor of a client was closed by other code of this process";

impl Turn<'_, '_> {
    #[inline]
    fn run(&mut self, purpose: &Purpose<'_>, is_parked: bool) -> Option<WaitingFor> {
        let fault;
        let overloaded;
        let purpose = match purpose {
            Purpose::Serve | Purpose::Goaway(_) if self.must_be_rejected() => {
                let message = "there is too little memory for your unfinished frame";
                fault = Fault::from_code(Code::Overloaded, message);
                overloaded = Purpose::Reject(&fault);
                &overloaded
            }
            purpose => purpose,
        };
        let has_unsent = is_parked && self.cursors.replied > 0;
        let is_closing = is_parked && self.flags.closing;
        match purpose {
            Purpose::Complete(answer) => return self.complete(answer),
            Purpose::TakeBack => return Some(self.take_back()),
            Purpose::Goaway(reason) if self.note_goaway(*reason) => {
                return Some(WaitingFor::Permit);
            }
            _ => {}
        }
        // In these cases the client is written to or closed before anything is read.
        if !matches!(purpose, Purpose::Serve) || has_unsent || is_closing {
            self.check_socket().ok()?;
        }
        match purpose {
            Purpose::Close(reason) => {
                if !self.flags.closing {
                    self.flags.close_reason = *reason;
                }
                None
            }
            Purpose::Serve | Purpose::Goaway(_) if is_closing && !has_unsent => self.linger(),
            Purpose::Reject(_) | Purpose::Expire if self.flags.closing => None,
            _ if has_unsent => self.send_parked(purpose),
            _ => self.carry_out(purpose),
        }
    }

    fn carry_out(&mut self, purpose: &Purpose<'_>) -> Option<WaitingFor> {
        let began = self.context.now;
        let was_partial = self.connection.waits == WaitingFor::Bytes;
        if self.activate_receive_cursors().is_none() {
            self.note_lost();
            return None;
        }
        match purpose {
            Purpose::Reject(fault) => self.reply_last(fault),
            Purpose::Expire if self.flags.proxy.is_awaited() => self.give_up_header(),
            Purpose::Expire => {
                let reason = "the frame was not complete within frame-timeout";
                self.give_up_frame(Code::Timeout, reason);
            }
            _ => self.serve(began).ok()?,
        }
        let is_same_frame = was_partial && self.cursors.answered == 0 && self.answered == 0;
        self.end(began, is_same_frame)
    }

    fn serve(&mut self, began: u64) -> Result<(), Gone> {
        let most = self.most_to_read();
        if !self.flags.half_closed && most > 0 {
            self.read(most)?;
        }
        if self.flags.proxy != ProxyState::None && !self.read_header()? {
            return Ok(());
        }
        self.serve_frames(began)
    }

    /// Serves complete frames that have been received.
    #[inline]
    fn serve_frames(&mut self, began: u64) -> Result<(), Gone> {
        let mut sent_at = began;
        while let Some((total, order)) = self.next_frame() {
            let is_inline = match self.answer(total, order) {
                FrameOutcome::Answered { is_inline } => is_inline,
                FrameOutcome::Departs(departure) => {
                    self.departure = Some(departure);
                    break;
                }
            };
            self.is_doubtful |= !is_inline;
            let overdue = !is_inline && self.context.now - sent_at > REPLY_DELAY;
            if overdue || self.cursors.replied as usize > REPLY_SOFT {
                if !self.send_midway(sent_at)? {
                    break;
                }
                sent_at = self.context.now;
            }
            if self.context.now - began > MAX_TURN
                || self.context.broken.is_some()
                || self.context.has_reached_limit()
            {
                break;
            }
        }
        Ok(())
    }

    /// Checks that the descriptor still is the client's socket. If it is not, this process cannot continue, and the
    /// client is recovered as from a death: nothing more is done for it, nor stored in its shared memory.
    fn check_socket(&mut self) -> Result<(), Gone> {
        if !self.connection.has_its_socket() {
            *self.context.broken = Some(FOREIGN.to_owned());
            self.is_foreign = true;
            return Err(Gone);
        }
        self.is_doubtful = false;
        Ok(())
    }

    /// Records that a read or a write has failed, and that the client must be closed. It is lost unless the client or
    /// the network caused the error.
    fn record_failure(&mut self, error: &io::Error) {
        let (client, peer) = (self.connection.client, self.connection.peer);
        log::debug!("client {client} ({peer}): {error}");
        if !socket::is_broken_by_peer(error) {
            self.note_lost();
        }
    }

    /// Counts that the client must be closed for a reason of the daemon's own.
    fn note_lost(&mut self) {
        self.context.shm.header().add_lost();
        self.flags.close_reason = CloseReason::Lost;
    }

    fn slot(&self) -> Slot<'_> {
        self.context
            .shm
            .slot(self.index)
            .expect("the slot was claimed")
    }

    fn activate_cursors(&self) {
        self.slot().activate(&self.cursors, self.flags);
    }

    /// Moves the cursors of this turn past the answered frames and the bytes sent. The shared memory is not changed.
    fn advance_cursors(&mut self, sent: usize) {
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
}
