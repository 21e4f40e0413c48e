//! The polite end of a connection: the last frame reports to the client which of its requests were executed.
//!
//! ```text
//! begin    the reason is in the flags; from now on only the rest of a frame that has begun is read
//! frames   those that have been read are answered, also after the client has moved to another worker
//! goaway   one store commits the frame and closes the connection to further ones, as with any last reply
//! ```
//!
//! The frame has the number of answered requests, which the commits of their replies have counted in the slot. It is not
//! the reply to a request, so it is not counted.

use super::Turn;
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::rpc::GoawayReason;
use crate::shm::{Cursors, Region};
use crate::worker::connection::WaitingFor;
use crate::worker::kill_points::{self, Point};
use crate::worker::reply::write_goaway_frame;

impl Turn<'_, '_> {
    /// Notes that the client gets a goaway once its requests are answered. Returns whether the turn ends with that: the
    /// client keeps its place among those that wait for a permit.
    pub(super) fn note_goaway(&mut self, reason: GoawayReason) -> bool {
        if self.flags.closing {
            return false;
        }
        self.flags.goaway = self.flags.goaway.max(Some(reason));
        self.slot().set_flags(self.flags);
        kill_points::pass(Point::AfterGoawayBegins);
        self.connection.waits == WaitingFor::Permit && !self.is_kicked()
    }

    /// Returns whether no further request of the client is executed. A request that was executing when its worker died
    /// is answered before that: it may have had effects, and the goaway would report that it was not executed.
    pub(super) fn is_kicked(&self) -> bool {
        let was_executing = self.flags.crash_count > 0 || self.flags.timed_out;
        self.flags.goaway == Some(GoawayReason::Kicked) && !was_executing
    }

    /// Returns the most bytes that may be read now. Nothing is read after the last request that is executed here.
    pub(super) fn most_to_read(&mut self) -> usize {
        match self.flags.goaway {
            None => usize::MAX,
            Some(GoawayReason::Draining) => self.rest_of_frame(),
            Some(GoawayReason::Stopping | GoawayReason::Kicked) => 0,
        }
    }

    /// Returns the number of bytes that are missing in the frame that has begun, as far as it is known; 0 if none has.
    fn rest_of_frame(&mut self) -> usize {
        match (self.have, self.order()) {
            (0, _) => 0,
            (have, None) => PREFIX.saturating_sub(have),
            (have, Some(order)) => {
                match frame::next(self.unread(), order, self.context.settings.max_frame) {
                    Next::Partial { total: Some(total) } => total.saturating_sub(have),
                    Next::Partial { total: None } => PREFIX.saturating_sub(have),
                    Next::Complete { .. } | Next::TooLarge { .. } => 0,
                }
            }
        }
    }

    /// Writes the goaway, if the client gets one and its requests are answered, and discards the bytes after them.
    pub(super) fn end_with_goaway(&mut self) {
        let Some(reason) = self.flags.goaway.filter(|_| !self.flags.closing) else {
            return;
        };
        let is_done = match reason {
            GoawayReason::Draining => self.unread().is_empty(),
            GoawayReason::Stopping => !self.next_is_complete(),
            GoawayReason::Kicked => self.is_kicked(),
        };
        if is_done && self.departure.is_none() {
            self.reply_goaway(reason);
        }
    }

    #[cold]
    #[inline(never)]
    fn reply_goaway(&mut self, reason: GoawayReason) {
        let order = self.flags.order.unwrap_or(ByteOrder::Little);
        let (replied, now) = (self.cursors.replied as usize, self.context.now);
        let read = self.slot().requests();
        let open = self
            .context
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let length = write_goaway_frame(&mut open.tx[replied..], order, read, reason);
        self.flags.closing = true;
        self.flags.close_reason = reason.into();
        // If this worker dies now, the next one must give the client the whole time to read the frame.
        open.slot.set_since(now);
        self.cursors = Cursors {
            answered: self.have as u32,
            replied: (replied + length) as u32,
            ..self.cursors
        };
        kill_points::pass(Point::BeforeGoaway);
        open.slot.activate(&self.cursors, self.flags);
        kill_points::pass(Point::AfterGoaway);
    }
}
