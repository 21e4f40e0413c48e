//! Events of a worker, as the master reports them.

use std::time::{Duration, Instant};

use super::{Member, MemberState, Pool, Seat, Why};
use crate::proto::names::WorkerId;

/// A worker that ends this soon after it became ready, without an answer, counts as one that never was ready.
pub(super) const PROBATION: Duration = Duration::from_secs(1);

/// How long a start is delayed for work that the system has in progress.
const POSTPONED: Duration = Duration::from_millis(100);

impl Pool {
    /// Marks a starting worker as ready. Returns false if there is none with this id.
    pub fn ready(&mut self, id: WorkerId, now: Instant) -> bool {
        let old_at = self
            .target
            .max_lifetime
            .map(|lifetime| now + self.jitter.shortened(lifetime));
        let starting = |member: &&mut Member| member.is_starting();
        let Some(member) = self.member_mut(id).filter(starting) else {
            return false;
        };
        member.state = MemberState::Ready { since: now };
        member.old_at = old_at;
        self.ever_ready = true;
        true
    }

    /// Marks a worker that should be replaced when its successor is ready.
    pub fn spent(&mut self, id: WorkerId, why: Why) {
        self.mark_spent(id, why);
    }

    /// Marks a worker that was ready. Returns it.
    fn mark_spent(&mut self, id: WorkerId, why: Why) -> Option<&mut Member> {
        let member = self.member_mut(id)?;
        if !matches!(
            member.state,
            MemberState::Ready { .. } | MemberState::Held { .. }
        ) {
            return None;
        }
        member.spent.get_or_insert(why);
        Some(member)
    }

    /// Marks a worker that serves no more clients, by its own decision: it is drained before its successor is ready. A
    /// reason to replace it that is known already stays, such as its limit of requests.
    pub fn retires(&mut self, id: WorkerId) {
        if let Some(member) = self.mark_spent(id, Why::Unresponsive) {
            member.has_retired = true;
        }
    }

    /// Marks a worker as stuck, to be killed at `kill_by` if it still is; a later call changes the time. Returns true
    /// if the worker was not marked before.
    ///
    /// A starting worker has its own deadline. A held one has none: it may be in a debugger. If it is still stuck when
    /// it is released, that must be reported again.
    pub fn stalled(&mut self, id: WorkerId, kill_by: Option<Instant>) -> bool {
        let runs =
            |member: &&mut Member| !member.is_starting() && member.state != MemberState::Killed;
        let Some(member) = self.member_mut(id).filter(runs) else {
            return false;
        };
        member.kill_by = kill_by.filter(|_| !matches!(member.state, MemberState::Held { .. }));
        !std::mem::replace(&mut member.is_stalled, true)
    }

    /// Removes the mark of [`Pool::stalled`]. Returns true if there was one.
    pub fn revived(&mut self, id: WorkerId) -> bool {
        let Some(member) = self.member_mut(id) else {
            return false;
        };
        member.kill_by = None;
        std::mem::take(&mut member.is_stalled)
    }

    /// Postpones the end of a draining worker: clients of it, or of one before it, have moved. The time is for what it
    /// executes, not for how fast others pick up its clients.
    pub fn clients_moved(&mut self, id: WorkerId, now: Instant) {
        let later = now + self.target.drain_timeout;
        if self.is_stopping() {
            return;
        }
        if let Some(member) = self.member_mut(id)
            && let MemberState::Draining { until, .. } = &mut member.state
        {
            *until = later.max(*until);
        }
    }

    /// Removes a worker whose process has ended. `was_useful` is whether a worker that was ready is replaced at once:
    /// it answered or executed a request, or was killed from outside. Returns how long its successor waits; `None` if
    /// there is one already, or none will come.
    pub fn exited(&mut self, id: WorkerId, was_useful: bool, now: Instant) -> Option<Duration> {
        let index = self.members.index_of(id)?;
        let member = self.members.remove(index);
        self.has_changed = true;
        if self.is_stopping() {
            return None;
        }
        let in_probation = |since| !was_useful && now.duration_since(since) < PROBATION;
        match member.state {
            MemberState::Starting { .. } => self.count_failure(&member, now),
            MemberState::Ready { since } if in_probation(since) => self.count_failure(&member, now),
            MemberState::Ready { .. } => self.seats[member.seat] = Seat::default(),
            // The pool asked for this end, or the worker did not serve: the successor need not wait.
            MemberState::Held { .. } | MemberState::Draining { .. } | MemberState::Killed => {}
        }
        let is_missed = member.seat < self.wanted()
            && !self.has_fresh(member.seat)
            && !self.is_hopeless()
            && !self.has_failed_roll();
        let wait = |due: Instant| due.saturating_duration_since(now);
        is_missed.then(|| self.seats[member.seat].due.map_or(Duration::ZERO, wait))
    }

    /// Removes a worker that could not be started, by no fault of its own. Returns how long its successor waits.
    pub fn postponed(&mut self, id: WorkerId, now: Instant) -> Duration {
        if let Some(index) = self.members.index_of(id) {
            let member = self.members.remove(index);
            self.has_changed = true;
            self.seats[member.seat].due = Some(now + POSTPONED);
        }
        POSTPONED
    }

    /// Delays the successor of a failed worker. A worker of another generation than the wanted one does not predict its
    /// successor.
    pub(super) fn count_failure(&mut self, member: &Member, now: Instant) {
        if member.generation != self.target.generation {
            return;
        }
        let seat = &mut self.seats[member.seat];
        seat.streak = seat.streak.saturating_add(1);
        seat.due = Some(now + self.jitter.backoff(seat.streak));
        if let Some(roll) = &mut self.roll {
            roll.failures += 1;
        }
    }
}
