//! Receiving a client's bytes, and finding its frames in them.

use super::{Gone, Turn};
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::misread;
use crate::proto::rpc::Code;
use crate::shm::{Cursors, RECEIVE_LEN, Region};
use crate::sys::socket::Transfer;
use crate::worker::kill_points::{self, Point};
use crate::worker::reply::Fault;

impl Turn<'_, '_> {
    /// Activates cursors to the region of this turn's bytes.
    ///
    /// Unread bytes are moved to the front of the shared buffer. A large frame, or the beginning of one, stays at the
    /// front of the large region, and is received and answered there. Returns `None` if the unread bytes do not fit
    /// into the shared buffer and are not at the front of the large region; no turn leaves such bytes.
    pub(super) fn activate_receive_cursors(&mut self) -> Option<()> {
        let (in_base, out_base) = self.cursors.ends();
        let (from, offset) = (self.cursors.rx.0, self.cursors.rx.1 as usize);
        let mut region = Region::Shared;
        if self.have > 0 {
            let unread = &self.context.shm.received(self.index, from)[offset..offset + self.have];
            let first = self
                .flags
                .order
                .map(|order| frame::next(unread, order, u32::MAX));
            let is_large = matches!(first, Some(Next::Partial { .. })) || self.have > RECEIVE_LEN;
            if is_large && from == Region::Large && offset == 0 {
                region = Region::Large;
            } else if self.have <= RECEIVE_LEN {
                self.context.shm.move_received(
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
        self.activate_cursors();
        kill_points::pass(Point::AfterBegin);
        Some(())
    }

    /// Reads once, after the bytes that are there: up to the end of the buffer, or the rest of the frame that is being
    /// received in place; at most `most` bytes.
    pub(super) fn read(&mut self, most: usize) -> Result<(), Gone> {
        self.connection.rearm();
        let (have, flags, in_place) = (self.have, self.flags, self.cursors.rx.0 == Region::Large);
        let open = self
            .context
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let first = flags
            .order
            .filter(|_| in_place)
            .map(|order| frame::next(&open.rx[..have], order, u32::MAX));
        let end = match first {
            Some(Next::Partial { total: Some(total) }) => total.min(open.rx.len()),
            Some(Next::Complete { .. }) => have,
            _ => open.rx.len(),
        };
        let end = end.min(have.saturating_add(most));
        let header = open.header;
        let Some(room) = open.rx.get_mut(have..end).filter(|room| !room.is_empty()) else {
            return Ok(());
        };
        match self.connection.receive(room) {
            Ok(Transfer::Bytes(n)) => {
                kill_points::pass(Point::AfterReceive);
                header.add_received(n);
                self.have += n;
                self.has_traffic = true;
                if !self.connection.is_tcp() {
                    self.connection.count_for_rearm(n);
                }
            }
            Ok(Transfer::Nothing) => {}
            Ok(Transfer::Shortage) => self.connection.is_refused = true,
            Ok(Transfer::End) => (self.flags.half_closed, self.is_doubtful) = (true, true),
            Err(e) => {
                self.check_socket()?;
                self.record_failure(&e);
                return Err(Gone);
            }
        }
        Ok(())
    }

    /// Returns the next complete frame to be answered: its length with the prefix, and the client's byte order.
    pub(super) fn next_frame(&mut self) -> Option<(usize, ByteOrder)> {
        if self.flags.closing || self.is_kicked() {
            return None;
        }
        let limit = self.context.settings.max_frame;
        let order = self.order()?;
        match frame::next(self.unread(), order, limit) {
            Next::Complete { total } => Some((total, order)),
            Next::Partial { .. } => None,
            Next::TooLarge { .. } if self.check_socket().is_err() => None,
            Next::TooLarge { length } => {
                let message = misread::too_large(
                    format!("a frame of {length} bytes is longer than max-frame, {limit} bytes"),
                    "the listener",
                    (length, order, limit),
                );
                self.reply_last(&Fault::from_code(Code::TooLarge, message));
                None
            }
        }
    }

    /// Rejects the client, whose frame will not be complete for this reason.
    pub(super) fn give_up_frame(&mut self, code: Code, reason: &str) {
        let order = self.flags.order.unwrap_or(ByteOrder::Little);
        let message = misread::incomplete(reason, self.unread(), order);
        self.reply_last(&Fault::from_code(code, message));
    }

    pub(super) fn unread(&self) -> &[u8] {
        let begin = self.cursors.rx.1 as usize;
        &self.context.shm.received(self.index, self.cursors.rx.0)
            [begin + self.cursors.answered as usize..begin + self.have]
    }

    /// Returns the client's byte order, and stores it in the shared memory once it is known. An empty frame leaves it
    /// undecided.
    pub(super) fn order(&mut self) -> Option<ByteOrder> {
        if self.flags.order.is_some() {
            return self.flags.order;
        }
        let prefix = *self.unread().first_chunk::<PREFIX>()?;
        self.flags.order = self
            .connection
            .order
            .decide(prefix, self.context.settings.max_frame);
        self.slot().set_flags(self.flags);
        Some(self.flags.order.unwrap_or(ByteOrder::Little))
    }
}
