//! A worker as the pool sees it, and the actions and reasons that concern it.

use std::fmt;
use std::time::Instant;

use crate::proto::names::{Generation, WorkerId};

/// An existing worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The worker's id.
    pub id: WorkerId,
    /// The worker's seat.
    pub seat: usize,
    /// The number of the configuration that the worker was started with.
    pub generation: Generation,
    /// Where it is in its life.
    pub state: MemberState,
    /// Whether the worker is stuck.
    pub is_stalled: bool,
    /// When the worker is killed if it is still stuck; never set for a held worker.
    pub kill_by: Option<Instant>,
    /// Why the worker will be replaced although its generation is wanted.
    pub(super) spent: Option<Why>,
    /// Whether the worker has stopped to serve by its own decision: it is drained at once.
    pub(super) has_retired: bool,
    /// When the worker will be replaced for its age.
    pub(super) old_at: Option<Instant>,
    /// Whether the worker was started beyond the count, because all others were stuck.
    pub(super) is_extra: bool,
    /// Whether the worker was held and released, the last one of its seat: it stays, and its substitute goes.
    pub(super) is_released: bool,
}

impl Member {
    pub(super) fn new(
        id: WorkerId,
        seat: usize,
        generation: Generation,
        state: MemberState,
    ) -> Member {
        Member {
            id,
            seat,
            generation,
            state,
            is_stalled: false,
            kill_by: None,
            spent: None,
            has_retired: false,
            old_at: None,
            is_extra: false,
            is_released: false,
        }
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self.state, MemberState::Starting { .. })
    }

    /// Returns why the worker will be replaced although its generation is wanted, if it will.
    #[must_use]
    pub fn spent(&self) -> Option<Why> {
        self.spent
    }

    /// Returns whether the worker is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.state, MemberState::Ready { .. })
    }

    /// Returns whether the worker may be given clients: it is ready, not stuck, and has not retired by itself.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.is_ready() && !self.is_stalled && !self.has_retired
    }
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// The worker has been spawned.
    Starting {
        /// When the worker must be ready.
        until: Instant,
    },
    /// The worker serves.
    Ready {
        /// Since when.
        since: Instant,
    },
    /// The worker runs without clients and is left alone.
    Held {
        /// Since when the worker was ready.
        since: Instant,
    },
    /// The worker was asked to finish.
    Draining {
        /// When the worker must be gone.
        until: Instant,
        /// The reason.
        why: Why,
    },
    /// The worker was killed, and the master waits for its end.
    Killed,
}

/// Why a worker must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is a newer configuration.
    Reload,
    /// The worker's configuration was rolled back.
    Rollback,
    /// Fewer workers are wanted.
    Scale,
    /// The worker has answered nearly as many requests as it may.
    NearRequestLimit,
    /// The worker's app uses more memory than it may.
    Memory,
    /// A method has panicked, and the state that others use could not be rebuilt.
    Panic,
    /// The worker's app or runtime has not answered a request that it was asked to cancel.
    Unresponsive,
    /// The worker has reached its lifetime.
    Lifetime,
    /// The operator asked for a replacement.
    Recycle,
    /// The worker stood in for another one that is back.
    Surplus,
    /// The daemon stops.
    Stop,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Reload => "its configuration or program is outdated",
            Why::Rollback => "its configuration was rolled back",
            Why::Scale => "fewer workers are wanted",
            Why::NearRequestLimit => "it has answered nearly as many requests as it may",
            Why::Memory => "its app uses more memory than max-memory",
            Why::Panic => "a method has panicked",
            Why::Unresponsive => "a request has not ended in time",
            Why::Lifetime => "it is as old as it may get",
            Why::Recycle => "it was asked to be replaced",
            Why::Surplus => "its seat has been filled",
            Why::Stop => "the daemon stops",
        })
    }
}

/// Why a worker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillDecision {
    /// The worker did not become ready in time.
    NotReady,
    /// The worker did not finish in time.
    NotGone,
    /// The worker was stuck for too long.
    Stalled,
    /// The worker was still starting, and is not needed any more.
    Unneeded,
}

/// An action for the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker.
    Spawn {
        /// The worker's seat.
        seat: usize,
        /// The worker's id, never used before.
        id: WorkerId,
        /// The number of its configuration.
        generation: Generation,
    },
    /// Kill a worker.
    Kill {
        /// The worker's id.
        id: WorkerId,
        /// The reason.
        why: KillDecision,
    },
    /// Revoke a worker's clients and let it finish the request that it executes.
    Drain {
        /// The worker's id.
        id: WorkerId,
        /// When the worker is killed if it is still there.
        by: Instant,
        /// The reason.
        why: Why,
    },
    /// Ask a worker to finish, with its clients, because the daemon stops.
    Stop {
        /// The worker's id.
        id: WorkerId,
        /// When the worker is killed if it is still there.
        by: Instant,
    },
    /// The roll is over: each seat has a worker of the new generation.
    Applied,
    /// The roll is over: the previous configuration is wanted again.
    RolledBack,
    /// No worker was ever ready, and none will be.
    GiveUp,
}
