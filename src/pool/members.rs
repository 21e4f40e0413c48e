//! The workers of a pool, and the counts of them that each iteration of the loop needs.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use super::{Member, Pool};
use crate::proto::names::WorkerId;

/// The workers in the order of their ids, which only grow. Every access that can change them goes through `DerefMut`,
/// which drops the counts and raises the version.
#[derive(Clone, Debug, Default)]
pub(super) struct PoolMembers {
    all: Vec<Member>,
    /// `None` after a change, until they are asked for.
    counts: Cell<Option<MemberCounts>>,
    /// The number of changes.
    version: u64,
    /// How often all workers were looked at.
    #[cfg(test)]
    walks: Cell<u64>,
}

/// Counts of all workers that the master needs in each iteration of its loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MemberCounts {
    /// Workers that may be given clients.
    pub(super) serving: usize,
    /// Workers that are stuck.
    pub(super) stalled: usize,
    /// When the first of the stuck workers is killed.
    pub(super) next_kill: Option<Instant>,
}

impl PoolMembers {
    /// Returns all workers, to look at each of them.
    pub(super) fn walk(&self) -> impl Iterator<Item = &Member> {
        #[cfg(test)]
        self.walks.set(self.walks.get() + 1);
        self.all.iter()
    }

    /// Returns how often all workers were looked at.
    #[cfg(test)]
    pub(super) fn walks(&self) -> u64 {
        self.walks.get()
    }

    /// Returns the counts, which are kept until a worker changes.
    pub(super) fn counts(&self) -> MemberCounts {
        if let Some(counts) = self.counts.get() {
            return counts;
        }
        let mut counts = MemberCounts::default();
        for member in self.walk() {
            counts.serving += usize::from(member.serves());
            counts.stalled += usize::from(member.is_stalled);
            counts.next_kill = counts.next_kill.into_iter().chain(member.kill_by).min();
        }
        self.counts.set(Some(counts));
        counts
    }

    /// Returns the index of the worker with this id.
    pub(super) fn index_of(&self, id: WorkerId) -> Option<usize> {
        self.all.binary_search_by_key(&id, |member| member.id).ok()
    }
}

impl Deref for PoolMembers {
    type Target = Vec<Member>;

    fn deref(&self) -> &Vec<Member> {
        &self.all
    }
}

impl DerefMut for PoolMembers {
    fn deref_mut(&mut self) -> &mut Vec<Member> {
        self.counts.set(None);
        self.version += 1;
        &mut self.all
    }
}

impl Pool {
    /// Returns how many workers may be given clients. Looks at them only after a change, as the next two do.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.members.counts().serving
    }

    /// Returns whether a worker is stuck.
    #[must_use]
    pub fn has_stalled(&self) -> bool {
        self.members.counts().stalled > 0
    }

    /// Returns a number that is another one after each change of a worker.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.members.version
    }

    /// Returns when the first of the stuck workers is killed.
    #[must_use]
    pub fn next_kill(&self) -> Option<Instant> {
        self.members.counts().next_kill
    }
}
