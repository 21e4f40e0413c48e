//! The purpose of a turn.

use super::AwayAnswer;
use crate::proto::rpc::GoawayReason;
use crate::shm::CloseReason;
use crate::worker::reply::Fault;

/// The purpose of a turn.
#[derive(Debug)]
pub(in crate::worker) enum Purpose<'a> {
    /// Serves the client.
    Serve,
    /// Rejects the client: this is its last reply, unless replies before it cannot be sent.
    Reject(&'a Fault),
    /// Rejects the client: its frame was not complete in time.
    Expire,
    /// Closes the client without a reply, for this reason.
    Close(CloseReason),
    /// Ends the connection of a client politely, for this reason: its last frame is a goaway.
    Goaway(GoawayReason),
    /// Commits the answer to the request that is away.
    Complete(&'a AwayAnswer<'a>),
    /// Takes back a request that its executor never received.
    TakeBack,
}

impl Purpose<'_> {
    /// Returns why the client is closed, if this is the purpose.
    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        match self {
            Purpose::Reject(fault) => Some(fault.close_reason()),
            Purpose::Expire => Some(CloseReason::FrameTimeout),
            Purpose::Close(reason) => Some(*reason),
            // The others get theirs when they have received their replies.
            Purpose::Goaway(GoawayReason::Kicked) => Some(CloseReason::Kicked),
            Purpose::Goaway(_) | Purpose::Serve | Purpose::Complete(_) | Purpose::TakeBack => None,
        }
    }

    /// Returns whether the purpose concerns a request that is away.
    pub(in crate::worker) fn is_of_away(&self) -> bool {
        matches!(self, Purpose::Complete(_) | Purpose::TakeBack)
    }
}
