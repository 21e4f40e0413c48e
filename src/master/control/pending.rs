//! Requests whose answers are still to come.

use std::time::Instant;

use crate::proto::control::Verb;
use crate::proto::names::WorkerId;

/// What has to come before a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// It has been done; the answer comes at the end of the loop's turn.
    Nothing(Verb),
    /// The end of the daemon.
    Stopped,
    /// The verdict of the reload.
    Reloaded,
    /// The check of this number has been made.
    Checked(u64),
    /// All workers are there that there are to be, and no others.
    Settled(Verb),
    /// This worker has no clients.
    Emptied(WorkerId),
    /// There are no clients.
    Deserted,
    /// The rebalancing has been done.
    Rebalanced,
    /// This process is another program, or will not be.
    Upgraded,
    /// It is, and all workers are of it.
    Renewed,
    /// Something has happened after this one, or the time is up.
    Event { after: u64, until: Instant },
}
