//! DECISIONS: which workers there should be, against which there are. Pure: no clock, no descriptor, no log.
//!
//! The master tells what happened ([`Pool::ready`], [`Pool::exited`], …) and what is wanted ([`Pool::reload`],
//! [`Pool::scale`], …), asks [`Pool::reconcile`] what to do about it, and does that. Nothing is scripted: each call
//! compares what is wanted with what is, so that a fact that was missed costs a turn of the loop and no more.
//!
//! ```text
//!   spawn            ready           its seat has another, or is not wanted
//!  -------> Starting -----> Ready ------------------------------------------> Draining
//!              |            |   ^                                                |
//!              |       hold |   | release           Ready, Draining: stuck for too long
//!              |            v   |                             Draining: not gone in time
//!              |            Held                                                 |
//!              |                                                                 v
//!              +--------------------------------------------------------------> Killed
//!                 not ready in time, or not needed any more
//!
//!  From everywhere: it exits, and is gone. The end: Starting is killed, all others drain.
//! ```
//!
//! A *seat* is what stays when a process is replaced. Those of indices below the count are wanted. A worker is *fresh*
//! while it starts or is ready, is of the wanted generation, and is neither near its request limit, too old nor recycled. Every wanted
//! seat is to have a fresh worker; all else follows:
//!
//! 1. Only a ready worker is given clients. Every id in an action is of a worker that there is; every `Spawn` has a new
//!    one. An action is told once.
//! 2. A worker is drained when another one of its seat is fresh and ready, or when its seat is not wanted and somebody
//!    serves who is: a reload, a recycling, age and wear never take away a worker before another has its work. A seat
//!    where somebody serves waits for its turn, so that few start at a time; others get their worker at once.
//! 3. A *roll* goes from one generation to the next. It is over when each wanted seat has a fresh worker that is ready,
//!    or when the new ones fail: the generation before is wanted again, and nobody waits for what the failed one did.
//!    Until then seats beyond the count keep their workers, as they may be wanted again.
//! 4. A worker that was killed while it served is replaced at once. Only one that did not become ready, or ended within
//!    a second of it without having answered anything, lengthens its seat's streak and waits.
//! 5. A bad seat never stops the others; if no worker was ever ready, the pool gives up.
//! 6. One that is stuck keeps its seat, as it may come back. When all are, an extra seat gets somebody for everybody
//!    else, and loses it when one of the others is back.
//! 7. One that is held is nobody's: not counted, not drained, not killed, until it is released or the end is asked for.

pub mod backoff;
pub mod dispatch;
mod member;
pub mod rebalance;
mod reconcile;

use std::time::{Duration, Instant};

use crate::proto::names::{Generation, WorkerId};

pub use member::{Action, Late, Member, MemberState, Why};

/// A worker that ends so soon after it became ready, without an answer given, was never really there.
const PROBATION: Duration = Duration::from_secs(1);

/// What there is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The configuration that workers are started with.
    pub generation: Generation,
    /// How many.
    pub count: usize,
    /// How long one may take to become ready.
    pub start_timeout: Duration,
    /// How long one may take to finish.
    pub drain_timeout: Duration,
    /// How old one may get.
    pub max_lifetime: Option<Duration>,
}

/// Workers and the seats they are at.
#[derive(Debug)]
pub struct Pool {
    target: Target,
    roll: Option<Roll>,
    /// In the order of their ids, as those only grow.
    members: Vec<Member>,
    /// All seats that ever had somebody, wanted or not.
    seats: Vec<Seat>,
    /// Seats beyond the count for those who work while all others are stuck.
    extra: usize,
    next: WorkerId,
    /// Whether a worker has ever been ready.
    ever_ready: bool,
    /// Whether it was said that none ever will.
    gave_up: bool,
    /// When all are to be gone, once the end was asked for.
    stop_by: Option<Instant>,
    jitter: backoff::Jitter,
}

/// How long the start of a worker is put off for what the system has under way.
const POSTPONED: Duration = Duration::from_millis(100);

/// A generation is on trial.
#[derive(Debug)]
struct Roll {
    /// What is wanted if it fails.
    previous: Target,
    /// How often it has.
    failures: u32,
}

/// A seat among the workers: what stays when a process is replaced.
#[derive(Clone, Debug, Default)]
struct Seat {
    /// Deaths in a row that were its workers' own fault.
    streak: u32,
    /// Until when its next worker waits; none if it need not.
    due: Option<Instant>,
}

impl Pool {
    /// A pool whose workers are all due at once. `seed` makes the waits of different daemons differ.
    #[must_use]
    pub fn new(target: Target, now: Instant, seed: u64) -> Pool {
        Pool {
            roll: None,
            members: Vec::new(),
            seats: vec![
                Seat {
                    streak: 0,
                    due: Some(now)
                };
                target.count
            ],
            target,
            extra: 0,
            next: WorkerId(1),
            ever_ready: false,
            gave_up: false,
            stop_by: None,
            jitter: backoff::Jitter::new(seed),
        }
    }

    /// The same pool, whose next worker is this one at the earliest: others had the numbers before.
    #[must_use]
    pub fn beginning_with(mut self, next: WorkerId) -> Pool {
        self.next = self.next.max(next);
        self
    }

    /// There were workers before this pool was, or clients wait for some, so that it does not give up.
    pub fn go_on(&mut self) {
        self.ever_ready = true;
    }

    /// A worker that serves, or is held, since before this pool was.
    pub fn adopt(
        &mut self,
        id: WorkerId,
        seat: usize,
        generation: Generation,
        is_held: bool,
        now: Instant,
    ) {
        let state = if is_held {
            MemberState::Held { since: now }
        } else {
            MemberState::Ready { since: now }
        };
        let member = Member {
            id,
            seat,
            generation,
            state,
            is_stalled: false,
            kill_by: None,
            spent: None,
            old_at: None,
            is_extra: false,
            is_released: false,
        };
        let place = self.members.partition_point(|other| other.id < id);
        self.members.insert(place, member);
        self.next = self.next.max(WorkerId(id.0 + 1));
        self.seats
            .resize_with(self.seats.len().max(seat + 1), Default::default);
        self.go_on();
    }

    /// The next worker's id.
    #[must_use]
    pub fn next(&self) -> WorkerId {
        self.next
    }

    /// What is wanted. During a roll it is the new generation.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// All workers that there are, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    /// This worker, if there is one such.
    #[must_use]
    pub fn member(&self, id: WorkerId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// How many seats there are to be seen: those wanted, or more while more have somebody.
    #[must_use]
    pub fn seats(&self) -> usize {
        self.members()
            .map(|member| member.seat + 1)
            .max()
            .unwrap_or(0)
            .max(self.target.count)
    }

    /// The worker to show for a seat: the fresh one that is ready, else another one that is, else one that starts. Only
    /// if there is none of these, one that is held, drains, or was killed and is not gone yet, in this order. Of several
    /// alike it is the youngest.
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

    /// Until when a seat that has no fresh worker waits for its next one; none if it does not wait.
    #[cfg(test)]
    fn due(&self, seat: usize) -> Option<Instant> {
        let is_waiting = seat < self.wanted() && !self.has_fresh(seat) && !self.is_stopping();
        self.seats.get(seat).filter(|_| is_waiting)?.due
    }

    /// Begins to replace all workers by those of another generation. False while that is still going on for the one
    /// before, or the end was asked for.
    pub fn reload(&mut self, target: Target) -> bool {
        if self.is_rolling() || self.is_stopping() {
            return false;
        }
        let previous = std::mem::replace(&mut self.target, target);
        self.roll = Some(Roll {
            previous,
            failures: 0,
        });
        self.forgive();
        true
    }

    /// Whether a new generation is on trial.
    #[must_use]
    pub fn is_rolling(&self) -> bool {
        self.roll.is_some()
    }

    /// So many workers are wanted, whatever becomes of a roll that is going on.
    pub fn scale(&mut self, count: usize) {
        self.target.count = count;
        if let Some(roll) = &mut self.roll {
            roll.previous.count = count;
        }
    }

    /// A ready worker is to be replaced. False if it is none.
    pub fn recycle(&mut self, id: WorkerId) -> bool {
        let ready = |member: &&mut Member| matches!(member.state, MemberState::Ready { .. });
        let Some(member) = self.member_mut(id).filter(ready) else {
            return false;
        };
        member.spent.get_or_insert(Why::Recycle);
        true
    }

    /// All ready workers are to be replaced. Those that start are new anyway.
    pub fn recycle_all(&mut self) {
        let ids: Vec<WorkerId> = self.members().map(|member| member.id).collect();
        for id in ids {
            self.recycle(id);
        }
    }

    /// A ready worker is to be left alone, without clients; its seat gets another one. False if it is none.
    pub fn hold(&mut self, id: WorkerId) -> bool {
        let Some(member) = self.member_mut(id) else {
            return false;
        };
        let MemberState::Ready { since } = member.state else {
            return false;
        };
        member.state = MemberState::Held { since };
        member.kill_by = None;
        true
    }

    /// Returns a held worker to its seat, from which its substitute is drained. A worker that is not fresh any more is
    /// drained itself. False if the worker is not held.
    pub fn release(&mut self, id: WorkerId) -> bool {
        let Some(member) = self.member_mut(id) else {
            return false;
        };
        let MemberState::Held { since } = member.state else {
            return false;
        };
        member.state = MemberState::Ready { since };
        let seat = member.seat;
        for member in self.members.iter_mut().filter(|member| member.seat == seat) {
            member.is_released = member.id == id;
        }
        true
    }

    /// A worker said that it can serve. False if there is none such, or it was not expected to say so.
    pub fn ready(&mut self, id: WorkerId, now: Instant) -> bool {
        let starting = |member: &&mut Member| matches!(member.state, MemberState::Starting { .. });
        let old_at = self
            .target
            .max_lifetime
            .map(|lifetime| now + self.jitter.shortened(lifetime));
        let Some(member) = self.member_mut(id).filter(starting) else {
            return false;
        };
        member.state = MemberState::Ready { since: now };
        member.old_at = old_at;
        self.ever_ready = true;
        true
    }

    /// A worker has answered nearly as many requests as it may.
    pub fn near_request_limit(&mut self, id: WorkerId) {
        let serves = |member: &&mut Member| {
            matches!(
                member.state,
                MemberState::Ready { .. } | MemberState::Held { .. }
            )
        };
        if let Some(member) = self.member_mut(id).filter(serves) {
            member.spent.get_or_insert(Why::NearRequestLimit);
        }
    }

    /// A worker is stuck, and is killed at `kill_by` if it still is; told again, that is changed. True if it is news.
    ///
    /// One that starts has a deadline of its own. One that is held has none: it may be in the hands of a debugger. If it
    /// is stuck still when it is released, that is to be told again.
    pub fn stalled(&mut self, id: WorkerId, kill_by: Option<Instant>) -> bool {
        let runs = |member: &&mut Member| {
            !matches!(
                member.state,
                MemberState::Starting { .. } | MemberState::Killed
            )
        };
        let Some(member) = self.member_mut(id).filter(runs) else {
            return false;
        };
        member.kill_by = kill_by.filter(|_| !matches!(member.state, MemberState::Held { .. }));
        !std::mem::replace(&mut member.is_stalled, true)
    }

    /// A worker is not stuck any more. True if that is news.
    pub fn revived(&mut self, id: WorkerId) -> bool {
        let Some(member) = self.member_mut(id) else {
            return false;
        };
        member.kill_by = None;
        std::mem::take(&mut member.is_stalled)
    }

    /// A worker's process has ended; `was_useful` tells whether it ever answered a request. Returns how long its
    /// successor waits; none if there is one already, or none is to come.
    pub fn exited(&mut self, id: WorkerId, was_useful: bool, now: Instant) -> Option<Duration> {
        let index = self.members.iter().position(|member| member.id == id)?;
        let member = self.members.remove(index);
        if self.is_stopping() {
            return None;
        }
        match member.state {
            MemberState::Starting { .. } => self.fail(&member, now),
            MemberState::Ready { since }
                if !was_useful && now.duration_since(since) < PROBATION =>
            {
                self.fail(&member, now)
            }
            MemberState::Ready { .. } => self.seats[member.seat] = Seat::default(),
            // Its end was our wish, or nobody's loss: it tells nothing of the next.
            MemberState::Held { .. } | MemberState::Draining { .. } | MemberState::Killed => {}
        }
        let is_missed = member.seat < self.wanted() && !self.has_fresh(member.seat);
        let wait = |due: Instant| due.saturating_duration_since(now);
        is_missed.then(|| self.seats[member.seat].due.map_or(Duration::ZERO, wait))
    }

    /// A worker could not be started, by no fault of its own. Returns how long its successor waits.
    pub fn postponed(&mut self, id: WorkerId, now: Instant) -> Duration {
        if let Some(index) = self.members.iter().position(|member| member.id == id) {
            let member = self.members.remove(index);
            self.seats[member.seat].due = Some(now + POSTPONED);
        }
        POSTPONED
    }

    /// The end is asked for. Asked again, it can only come sooner.
    pub fn stop(&mut self, by: Instant) {
        let by = self.stop_by.map_or(by, |before| before.min(by));
        self.stop_by = Some(by);
        self.roll = None;
        for member in &mut self.members {
            if let MemberState::Draining { until, .. } = &mut member.state {
                *until = by.min(*until);
            }
        }
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop_by.is_some()
    }

    /// Whether the end was asked for and has been reached.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_stopping() && self.members.is_empty()
    }

    fn member_mut(&mut self, id: WorkerId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    /// Seats that are to have a worker are those of indices below this.
    fn wanted(&self) -> usize {
        self.target.count + self.extra
    }

    fn is_fresh(&self, member: &Member) -> bool {
        let is_there = matches!(
            member.state,
            MemberState::Starting { .. } | MemberState::Ready { .. }
        );
        is_there && member.generation == self.target.generation && member.spent.is_none()
    }

    fn has_fresh(&self, seat: usize) -> bool {
        self.members()
            .any(|member| member.seat == seat && self.is_fresh(member))
    }

    /// A worker was no good. If it is not of the wanted generation, that tells nothing of its successor.
    fn fail(&mut self, member: &Member, now: Instant) {
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

    /// Nobody waits for what workers of another generation did.
    fn forgive(&mut self) {
        self.seats.fill(Seat::default());
    }
}

#[cfg(test)]
mod tests;
