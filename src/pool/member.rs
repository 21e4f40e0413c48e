//! A worker as the pool sees it, and what is said of it.

use std::fmt;
use std::time::Instant;

use crate::proto::names::{Generation, WorkerId};

/// A worker that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: WorkerId,
    /// Where.
    pub seat: usize,
    /// The configuration it was started with.
    pub generation: Generation,
    /// Where it is in its life.
    pub state: MemberState,
    /// Whether it is stuck.
    pub is_stalled: bool,
    /// When it is killed if it is still stuck then; never set of one that is held.
    pub kill_by: Option<Instant>,
    /// Why it is to be replaced although its generation is wanted.
    pub(super) spent: Option<Why>,
    /// When it is to be replaced for its age.
    pub(super) old_at: Option<Instant>,
    /// Whether it was started beyond the count, because all others were stuck.
    pub(super) is_extra: bool,
    /// Whether it was held and released, the last one of its seat: it stays, and its substitute goes.
    pub(super) is_released: bool,
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It has been spawned.
    Starting {
        /// When it must be ready.
        until: Instant,
    },
    /// It serves.
    Ready {
        /// Since when.
        since: Instant,
    },
    /// It runs without clients and is left alone.
    Held {
        /// Since when it was ready.
        since: Instant,
    },
    /// It was told to finish.
    Draining {
        /// When it must be gone.
        until: Instant,
        /// What for.
        why: Why,
    },
    /// It was killed; its end is awaited.
    Killed,
}

/// Why a worker is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is a newer configuration.
    Reload,
    /// Its configuration was given up.
    Rollback,
    /// Fewer workers are wanted.
    Scale,
    /// It has answered nearly as many requests as it may.
    NearRequestLimit,
    /// It is as old as it may get.
    Lifetime,
    /// The operator wants another one.
    Recycle,
    /// It stood in for somebody who is there again.
    Surplus,
    /// The end was asked for.
    Stop,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Reload => "its configuration or program is outdated",
            Why::Rollback => "its configuration was rolled back",
            Why::Scale => "fewer workers are wanted",
            Why::NearRequestLimit => "it has answered as many requests as it may",
            Why::Lifetime => "it is as old as it may get",
            Why::Recycle => "it was asked to be replaced",
            Why::Surplus => "its seat has been filled",
            Why::Stop => "the daemon stops",
        })
    }
}

/// Why a worker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// It did not become ready in time.
    NotReady,
    /// It did not finish in time.
    NotGone,
    /// It was stuck for too long.
    Stalled,
    /// It was still starting, and nobody needs it any more.
    Unneeded,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Late::NotReady => "it was not ready in time",
            Late::NotGone => "it was not gone in time",
            Late::Stalled => "it was stuck for too long",
            Late::Unneeded => "it is not needed any more",
        })
    }
}

/// What the master is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker.
    Spawn {
        /// At this seat.
        seat: usize,
        /// It is this one, never seen before.
        id: WorkerId,
        /// With the configuration of this number.
        generation: Generation,
    },
    /// Kill a worker.
    Kill {
        /// Which.
        id: WorkerId,
        /// What for.
        why: Late,
    },
    /// Take a worker's clients and have it finish what it executes.
    Drain {
        /// Which.
        id: WorkerId,
        /// It is killed then.
        by: Instant,
        /// What for.
        why: Why,
    },
    /// The end: tell a worker to finish, with its clients.
    Stop {
        /// Which.
        id: WorkerId,
        /// It is killed then.
        by: Instant,
    },
    /// The roll is over: each seat has a worker of the new generation.
    Applied,
    /// The roll is over: the configuration before is wanted again.
    RolledBack,
    /// No worker was ever ready, and none will be.
    GiveUp,
}
