//! Requests whose replies are still pending.

use std::time::Instant;

use crate::master::control::reply::ControlReply;
use crate::proto::control::{Refusal, Verb};
use crate::proto::names::WorkerId;

/// A request whose reply is pending.
#[derive(Clone, Debug)]
pub(crate) struct PendingReply {
    /// The number of the client.
    pub(crate) client: u64,
    pub(crate) kind: PendingKind,
}

/// The condition for the reply to a request.
#[derive(Clone, Debug)]
pub(crate) enum PendingKind {
    /// The result is known; it is sent at the end of the loop's iteration.
    Known(Result<ControlReply, Refusal>),
    /// The reload is applied, with this result. The reply waits until the clients of retiring workers have moved.
    Applied(Result<ControlReply, Refusal>),
    /// The request is done; the reply has the state at the end of the loop's iteration.
    Done(Verb),
    /// The daemon has stopped.
    Stopped,
    /// The reload has its verdict.
    Reloaded,
    /// The check of this number has finished.
    Checked(u64),
    /// All workers that are wanted are there, and no others.
    Settled(Verb),
    /// The worker has no clients.
    Emptied(WorkerId),
    /// The notice of the drain has begun, or the daemon is drained; with `until_empty`, the last client has left.
    Drained { until_empty: bool },
    /// The rebalancing has been done.
    Rebalanced,
    /// The process has become another program, or the upgrade was refused.
    Upgraded,
    /// The upgrade is done, and all workers are of the new program.
    Renewed,
    /// An event has happened after this one, or the time is up.
    Event { after: u64, until: Instant },
}
