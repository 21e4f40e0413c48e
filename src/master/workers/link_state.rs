//! The state of a worker's channel.

use std::collections::VecDeque;
use std::time::Instant;

use crate::loop_clock::Shortage;
use crate::proto::channel::ToWorker;

/// Whether the channel of a worker accepts messages, and leases may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Intake {
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

/// The master's record of a worker's channel.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// The worker has ended. Its last messages may still be in the channel.
    pub(super) has_ended: bool,
    pub(super) intake: Intake,
    /// Messages that wait for the channel.
    pub(super) unsent: VecDeque<ToWorker>,
    /// The waits for memory of the kernel, to send and to receive.
    pub(super) sending: Shortage<Instant>,
    pub(super) receiving: Shortage<Instant>,
}

impl Link {
    /// Records that the kernel has accepted a message.
    pub(super) fn note_accepted(&mut self) {
        self.sending.end();
        if self.intake == Intake::Refused {
            self.intake = Intake::Open;
        }
    }
}
