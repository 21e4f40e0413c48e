//! The state of a worker's channel.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use crate::loop_clock::Shortage;
use crate::proto::channel::ToWorker;

/// Whether the channel of a worker accepts messages, and leases may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SendState {
    #[default]
    Open,
    /// The channel accepts no message; `is_watched` if the poller reports when it does again.
    Full { is_watched: bool },
    /// The kernel has no memory for a message, or too many descriptors are in flight. The message is sent after a
    /// while, because no poller reports the end of that.
    Refused,
    /// A message of leases was refused when the worker had picked up this many leases. There is space when it has
    /// picked up more.
    Throttled { picked_up: u64 },
}

/// Whether the channel of some worker waits for memory of the kernel. The records of all channels share it, so that an
/// iteration of the loop looks at the channels only while one of them waits.
#[derive(Clone, Debug, Default)]
pub(super) struct ChannelWaits {
    is_set: Rc<Cell<bool>>,
    /// How often all channels were looked at.
    #[cfg(test)]
    walks: Rc<Cell<u64>>,
}

impl ChannelWaits {
    pub(super) fn is_set(&self) -> bool {
        self.is_set.get()
    }

    pub(super) fn set(&self, is_set: bool) {
        self.is_set.set(is_set);
    }

    pub(super) fn note_walk(&self) {
        #[cfg(test)]
        self.walks.set(self.walks.get() + 1);
    }

    #[cfg(test)]
    pub(super) fn walks(&self) -> u64 {
        self.walks.get()
    }
}

/// The master's record of a worker's channel.
#[derive(Debug, Default)]
pub(super) struct ChannelState {
    /// The worker has ended. Its last messages may still be in the channel.
    pub(super) has_ended: bool,
    pub(super) send_state: SendState,
    /// Messages that wait for the channel.
    pub(super) unsent: VecDeque<ToWorker>,
    /// The waits for memory of the kernel, to send and to receive.
    pub(super) sending: Shortage<Instant>,
    pub(super) receiving: Shortage<Instant>,
    /// Set while this channel or another one waits for memory.
    waits: ChannelWaits,
}

impl ChannelState {
    /// Shares the mark that a channel waits with the channels of other workers.
    pub(super) fn share(&mut self, waits: &ChannelWaits) {
        self.waits = waits.clone();
        self.waits.set(waits.is_set() || self.awaits_memory());
    }

    /// Returns whether the channel waits for memory of the kernel.
    pub(super) fn awaits_memory(&self) -> bool {
        self.send_state == SendState::Refused
            || self.sending.until().is_some()
            || self.receiving.until().is_some()
    }

    /// Records that the kernel has refused a message for lack of memory.
    pub(super) fn note_refused(&mut self) {
        self.send_state = SendState::Refused;
        self.waits.set(true);
    }

    /// Records that the kernel had no memory to deliver a message, and begins the wait for it.
    pub(super) fn note_not_received(&mut self, now: Instant) {
        self.receiving.begin(|wait| now + wait);
        self.waits.set(true);
    }

    /// Records that the kernel has accepted a message.
    pub(super) fn note_accepted(&mut self) {
        self.sending.end();
        if self.send_state == SendState::Refused {
            self.send_state = SendState::Open;
        }
    }
}
