//! Compares the workers that exist with those that are wanted. Pure: no clock, no descriptor, no log.
//!
//! The master reports what happened ([`Pool::ready`], [`Pool::exited`], …) and what is wanted ([`Pool::reload`],
//! [`Pool::scale`], …), then runs the actions that [`Pool::reconcile`] returns. There is no script: each call compares
//! the present state with the wanted one, so that a missed event costs one more turn of the loop, and nothing else.
//!
//! ```text
//!   spawn            ready           the seat has another worker, or is not wanted
//!  -------> Starting -----> Ready ------------------------------------------> Draining
//!              |            |   ^                                                |
//!              |       hold |   | release           Ready, Draining: stuck for too long
//!              |            v   |                             Draining: not gone in time
//!              |            Held                                                 |
//!              |                                                                 v
//!              +--------------------------------------------------------------> Killed
//!                 not ready in time, or not needed any more
//!
//!  From every state: the process exits, and the worker is removed. On stop: Starting is killed, all others drain.
//! ```
//!
//! A *seat* remains when a process is replaced. Seats with an index below the count are wanted. A worker is *fresh* if
//! it is starting or ready, is of the wanted generation, and is neither near its request limit, too old nor recycled.
//! Every wanted seat needs a fresh worker; the rules follow from that:
//!
//! 1. Only ready workers get clients. An action names an existing worker; `Spawn` has a new id. An action comes once.
//! 2. A worker is drained when another one of its seat is fresh and ready, or when its seat is not wanted and a wanted
//!    seat serves: a reload, a recycling, age and the request limit remove no worker before its successor is ready. A
//!    worker that has retired by itself serves no client, so it is drained at once, as if it had ended. A seat that
//!    still serves waits its turn, so that few start at a time; other seats come first. No more than four workers are
//!    started in 100 ms that are not ready yet, so that the first ones serve while others start.
//! 3. A *roll* replaces one generation by the next. It ends when each wanted seat has a fresh ready worker, or when the
//!    new workers fail: then the previous generation is wanted again, and the backoff of the failed one is dropped.
//!    Until then seats beyond the count keep their workers, which may be wanted again.
//! 4. A worker that was killed while it served is replaced at once. Only a worker that did not become ready, or that
//!    ended within a second of that without having answered or executed a request, unless it was killed from outside,
//!    lengthens the streak of its seat and delays its successor.
//! 5. A bad seat never stops the others. If no worker was ever ready, the pool gives up.
//! 6. A stuck worker keeps its seat, because it may recover. If all are stuck, an extra seat gets a stand-in, and loses
//!    it when one of the others is back.
//! 7. A held worker is not counted, drained or killed until it is released or the daemon stops.

pub mod backoff;
pub mod candidates;
pub mod dispatch;
mod events;
mod member;
mod members;
pub mod rebalance;
mod reconcile;
pub mod spread;

use std::time::{Duration, Instant};

use self::members::PoolMembers;
use crate::proto::names::{Generation, WorkerId};

pub use member::{Action, KillDecision, Member, MemberState, Why};

/// The workers that are wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The configuration that workers are started with.
    pub generation: Generation,
    /// The number of workers.
    pub count: usize,
    /// How long a worker may take to become ready.
    pub start_timeout: Duration,
    /// How long a worker may take to finish.
    pub drain_timeout: Duration,
    /// The age at which a worker is replaced.
    pub max_lifetime: Option<Duration>,
    /// Failed workers after which a new generation is rolled back, and failures of each seat without any worker ever
    /// ready after which the pool gives up.
    pub tries: u32,
}

/// Workers and their seats.
#[derive(Debug)]
pub struct Pool {
    target: Target,
    roll: Option<Roll>,
    members: PoolMembers,
    /// All seats that ever had a worker, wanted or not.
    seats: Vec<Seat>,
    /// Seats beyond the count for stand-ins while all other workers are stuck.
    extra: usize,
    next: WorkerId,
    /// Whether a worker was ever ready.
    ever_ready: bool,
    /// Whether [`Action::GiveUp`] was returned.
    gave_up: bool,
    /// Whether something has changed since the last [`Pool::reconcile`].
    has_changed: bool,
    /// When [`Pool::reconcile`] will have actions unless something changes.
    due: Option<Instant>,
    /// When the next worker may start because those before are not young any more.
    paced_until: Option<Instant>,
    /// When all workers must be gone, once the daemon stops.
    stop_by: Option<Instant>,
    jitter: backoff::Jitter,
}

/// A generation on trial.
#[derive(Debug)]
struct Roll {
    /// The target if the new generation fails.
    previous: Target,
    /// The failures of the new generation so far.
    failures: u32,
}

/// A seat: what remains when a process is replaced.
#[derive(Clone, Debug, Default)]
struct Seat {
    /// Deaths in a row that were its workers' own fault.
    streak: u32,
    /// The earliest start of its next worker; `None` if it need not wait.
    due: Option<Instant>,
}

impl Pool {
    /// Returns a pool whose workers are all due at once. `seed` makes the waits of different daemons differ.
    #[must_use]
    pub fn new(target: Target, now: Instant, seed: u64) -> Pool {
        let due = Some(now);
        Pool {
            roll: None,
            members: PoolMembers::default(),
            seats: vec![Seat { streak: 0, due }; target.count],
            target,
            extra: 0,
            next: WorkerId(1),
            ever_ready: false,
            gave_up: false,
            has_changed: true,
            due: None,
            paced_until: None,
            stop_by: None,
            jitter: backoff::Jitter::new(seed),
        }
    }

    /// Returns the pool with this id for its next worker, or a later one: lower ids were used before.
    #[must_use]
    pub fn with_next_id(mut self, next: WorkerId) -> Pool {
        self.next = self.next.max(next);
        self
    }

    /// Prevents [`Action::GiveUp`], because there were workers before this pool, or clients wait for some.
    pub fn disable_give_up(&mut self) {
        self.has_changed = true;
        self.ever_ready = true;
    }

    /// Adds a worker that served, or was held, before this pool existed.
    pub fn adopt(
        &mut self,
        id: WorkerId,
        seat: usize,
        generation: Generation,
        is_held: bool,
        now: Instant,
    ) {
        let since = now;
        let state = if is_held {
            MemberState::Held { since }
        } else {
            MemberState::Ready { since }
        };
        let index = self.members.partition_point(|other| other.id < id);
        self.members
            .insert(index, Member::new(id, seat, generation, state));
        self.next = self.next.max(WorkerId(id.0 + 1));
        self.seats
            .resize_with(self.seats.len().max(seat + 1), Default::default);
        self.disable_give_up();
    }

    /// Returns the id of the next worker.
    #[must_use]
    pub fn next(&self) -> WorkerId {
        self.next
    }

    /// Returns the target; during a roll that of the new generation.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns all workers in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.walk()
    }

    /// Returns how often all workers were looked at.
    #[cfg(test)]
    pub(crate) fn walks(&self) -> u64 {
        self.members.walks()
    }

    /// Returns the worker with this id.
    #[must_use]
    pub fn member(&self, id: WorkerId) -> Option<&Member> {
        self.members.get(self.members.index_of(id)?)
    }

    /// Returns the number of seats to show: the wanted ones, or more while later seats have a worker.
    #[must_use]
    pub fn seats(&self) -> usize {
        let last = self.members().map(|member| member.seat + 1).max();
        last.unwrap_or(0).max(self.target.count)
    }

    /// Returns the worker to show for a seat: the fresh ready one, else another ready one, else one that is starting,
    /// held, draining or killed, in this order. Of several alike it is the youngest.
    #[must_use]
    pub fn occupant(&self, seat: usize) -> Option<&Member> {
        let rank = |member: &&Member| match member.state {
            MemberState::Ready { .. } if self.is_fresh(member) => 5,
            MemberState::Ready { .. } => 4,
            MemberState::Starting { .. } => 3,
            MemberState::Held { .. } => 2,
            MemberState::Draining { .. } => 1,
            MemberState::Killed => 0,
        };
        self.members()
            .filter(|member| member.seat == seat)
            .max_by_key(rank)
    }

    /// Returns whether each seat below the count has a ready worker, even one that will be replaced. A seat whose next
    /// worker waits for its start has none.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let mut has_ready = vec![false; self.seats()];
        let ready = self.members().filter(|member| member.is_ready());
        ready.for_each(|member| has_ready[member.seat] = true);
        has_ready[..self.target.count].iter().all(|ready| *ready)
    }

    /// Returns the earliest start of the next worker of a seat without a fresh one; `None` if the seat does not wait.
    #[must_use]
    pub fn due(&self, seat: usize) -> Option<Instant> {
        let is_vacant = seat < self.wanted() && !self.has_fresh(seat) && !self.is_stopping();
        self.seats.get(seat).filter(|_| is_vacant)?.due
    }

    /// Starts to replace all workers by those of another generation. Returns false during a roll or a stop.
    pub fn reload(&mut self, target: Target) -> bool {
        if self.is_rolling() || self.is_stopping() {
            return false;
        }
        self.roll = Some(Roll {
            previous: std::mem::replace(&mut self.target, target),
            failures: 0,
        });
        self.has_changed = true;
        self.clear_backoff();
        true
    }

    /// Returns whether a new generation is on trial.
    #[must_use]
    pub fn is_rolling(&self) -> bool {
        self.roll.is_some()
    }

    /// Sets the number of workers, also for the end of a roll in progress, whatever its result.
    pub fn scale(&mut self, count: usize) {
        self.has_changed = true;
        self.target.count = count;
        if let Some(roll) = &mut self.roll {
            roll.previous.count = count;
        }
    }

    /// Marks a ready worker to be replaced. Returns false if it is not ready.
    pub fn recycle(&mut self, id: WorkerId) -> bool {
        let ready = |member: &&mut Member| member.is_ready();
        let Some(member) = self.member_mut(id).filter(ready) else {
            return false;
        };
        member.spent.get_or_insert(Why::Recycle);
        true
    }

    /// Marks all ready workers to be replaced. Starting ones are new anyway.
    pub fn recycle_all(&mut self) {
        self.has_changed = true;
        for member in self.members.iter_mut().filter(|member| member.is_ready()) {
            member.spent.get_or_insert(Why::Recycle);
        }
    }

    /// Takes a ready worker out of service, without clients; its seat gets another one. Returns false if it is not
    /// ready.
    pub fn hold(&mut self, id: WorkerId) -> bool {
        if let Some(member) = self.member_mut(id)
            && let MemberState::Ready { since } = member.state
        {
            member.state = MemberState::Held { since };
            member.kill_by = None;
            return true;
        }
        false
    }

    /// Returns a held worker to its seat, from which its substitute is drained. A worker that is not fresh any more is
    /// drained itself. Returns false if the worker is not held.
    pub fn release(&mut self, id: WorkerId) -> bool {
        let Some(member) = self.member_mut(id) else {
            return false;
        };
        let MemberState::Held { since } = member.state else {
            return false;
        };
        member.state = MemberState::Ready { since };
        let seat = member.seat;
        let seat_members = self.members.iter_mut().filter(|member| member.seat == seat);
        seat_members.for_each(|member| member.is_released = member.id == id);
        true
    }

    /// Starts the end of all workers. A second call can only make it earlier.
    pub fn stop(&mut self, by: Instant) {
        let by = self.stop_by.map_or(by, |before| before.min(by));
        self.has_changed = true;
        self.stop_by = Some(by);
        self.roll = None;
        self.paced_until = None;
        for member in self.members.iter_mut() {
            if let MemberState::Draining { until, .. } = &mut member.state {
                *until = by.min(*until);
            }
        }
    }

    /// Returns whether [`Pool::stop`] was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop_by.is_some()
    }

    /// Returns whether the pool was stopped and all workers are gone.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_stopping() && self.members.is_empty()
    }

    /// Returns the worker with this id, which is about to change.
    fn member_mut(&mut self, id: WorkerId) -> Option<&mut Member> {
        self.has_changed = true;
        let index = self.members.index_of(id)?;
        self.members.get_mut(index)
    }

    /// Returns the number of seats that need a worker: those with a lower index.
    fn wanted(&self) -> usize {
        self.target.count + self.extra
    }

    fn is_fresh(&self, member: &Member) -> bool {
        (member.is_ready() || member.is_starting())
            && member.generation == self.target.generation
            && member.spent.is_none()
    }

    /// Returns the worker that stays in the seat of one that leaves, if it serves.
    #[must_use]
    pub fn successor(&self, id: WorkerId) -> Option<WorkerId> {
        let seat = self.member(id)?.seat;
        let stays = |member: &&Member| {
            member.seat == seat && member.id != id && member.serves() && self.is_fresh(member)
        };
        self.members().filter(stays).map(|member| member.id).max()
    }

    /// Returns whether a worker will be replaced when its successor is ready, or is not needed.
    #[must_use]
    pub fn is_leaving(&self, member: &Member) -> bool {
        !self.is_fresh(member) || member.seat >= self.wanted()
    }

    fn has_fresh(&self, seat: usize) -> bool {
        self.members()
            .any(|member| member.seat == seat && self.is_fresh(member))
    }

    /// Drops all waits: those of one generation mean nothing for another.
    fn clear_backoff(&mut self) {
        self.seats.fill(Seat::default());
    }
}

#[cfg(test)]
mod tests;
