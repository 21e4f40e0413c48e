//! The end of a turn: sending, and parking what is left.

use super::Turn;
use crate::proto::frame::{self, ByteOrder, Next};
use crate::proto::rpc::Code;
use crate::shm::{Region, SMALL_LEN};
use crate::sys::socket;
use crate::worker::connection::WaitingFor;
use crate::worker::kill_points::{self, Point};

impl Turn<'_, '_> {
    /// Sends the replies and parks what is left. Returns what the worker waits for; none if the client must be closed.
    pub(super) fn end(&mut self, began: u64, is_same_frame: bool) -> Option<WaitingFor> {
        // A turn that answers nothing checks the descriptor. One that only hands over a request need not: its bytes
        // came from this descriptor, unless other code of this process may have replaced it.
        let is_checked =
            self.answered == 0 && (self.departure.is_none() || self.context.runs_other_code);
        if self.is_doubtful || is_checked {
            self.check_socket().ok()?;
        }
        if self.flags.half_closed && self.flags.proxy.is_awaited() && !self.flags.closing {
            self.end_without_header();
            return None;
        }
        let may_answer =
            !self.flags.closing && !self.is_blocked && !self.context.has_reached_limit();
        if self.flags.half_closed && may_answer && self.ends_in_a_frame() {
            let reason = "the connection ended in the middle of a frame";
            self.give_up_frame(Code::BadRequest, reason);
        }
        if may_answer {
            self.end_with_goaway();
        }
        let sent = if self.is_blocked {
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
        } else if let Some(departure) = self.departure.take() {
            self.depart(departure)
        } else if self.next_is_complete() {
            WaitingFor::Turn
        } else {
            if self.connection.is_tcp() {
                socket::acknowledge_quickly(&self.connection.socket);
            }
            WaitingFor::Bytes
        };
        // The time for a header begins with the connection, because a balancer sends it at once.
        let keeps_time = is_same_frame || self.flags.proxy.is_awaited();
        if !(waits == WaitingFor::Bytes && keeps_time) {
            self.slot().set_since(self.context.now);
        }
        Some(waits)
    }

    /// Records, for a Unix client, that all replies are sent. For a TCP client the kernel's count shows how much of the
    /// replies was sent. For a Unix client only the note of the last write does, and that ends with the turn: after a
    /// death at the beginning of the next turn, replies that were sent would seem unsent.
    fn become_idle(&mut self, sent: usize) {
        if !self.connection.is_tcp() && self.cursors.replied > 0 {
            self.advance_cursors(sent);
            self.activate_cursors();
        }
    }

    fn ends_in_a_frame(&self) -> bool {
        !self.unread().is_empty() && !self.next_is_complete()
    }

    pub(super) fn next_is_complete(&self) -> bool {
        if self.flags.proxy.is_awaited() {
            return false;
        }
        let order = self.flags.order.unwrap_or(ByteOrder::Little);
        // A length over the limit is answered as well.
        !matches!(
            frame::next(self.unread(), order, self.context.settings.max_frame),
            Next::Partial { .. }
        )
    }

    /// Copies unread and unsent bytes to the slot's own regions, unless they are there; then activates cursors to them.
    /// The previous cursors stay valid until then, because no copy overlaps its source.
    fn park(&mut self, sent: usize, unread: usize) {
        self.advance_cursors(sent);
        let (region, offset) = (self.cursors.rx.0, self.cursors.rx.1 as usize);
        if region == Region::Shared && unread > 0 {
            let target = if unread <= SMALL_LEN {
                Region::Small
            } else {
                Region::Large
            };
            self.context
                .shm
                .move_received(self.index, region, offset..offset + unread, target);
            self.cursors.rx = (target, 0);
        }
        if self.cursors.replied > 0 {
            let begin = self.cursors.tx.1 as usize;
            self.context
                .shm
                .park_replies(self.index, begin..begin + self.cursors.replied as usize);
            self.cursors.tx = (Region::Large, 0);
        }
        kill_points::pass(Point::AmidParking);
        self.activate_cursors();
        kill_points::pass(Point::AfterParking);
    }
}
