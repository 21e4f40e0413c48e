//! Computes the actions that lead from the present workers to the wanted ones.

use std::time::{Duration, Instant};

use super::{Action, KillDecision, Member, MemberState, Pool, Roll, Why};
use crate::proto::names::WorkerId;

/// How many workers may have been started a moment ago. More of them would only keep clients from the CPUs, and from the
/// workers that are ready by then. One that is not ready after this time is likely to wait for something else.
const MAX_YOUNG: usize = 4;
pub(super) const YOUTH: Duration = Duration::from_millis(100);

/// The workers of a seat, as far as they count.
#[derive(Clone, Copy, Default)]
struct SeatState {
    /// The fresh ready worker. Of several it is one that is not stuck, then the released one, then the youngest.
    keeper: Option<Keeper>,
    /// Whether a fresh worker is starting.
    is_coming: bool,
    /// Whether a worker is ready and not stuck, fresh or not.
    has_well: bool,
}

/// The worker that stays in its seat. The order of the fields ranks the workers of a seat.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Keeper {
    is_well: bool,
    is_released: bool,
    id: WorkerId,
}

impl Keeper {
    fn from_member(member: &Member) -> Keeper {
        Keeper {
            is_well: !member.is_stalled,
            is_released: member.is_released,
            id: member.id,
        }
    }
}

impl SeatState {
    /// Returns whether a worker serves and will do so: if there is a keeper, the others leave.
    fn is_served(&self) -> bool {
        self.keeper.map_or(self.has_well, |keeper| keeper.is_well)
    }
}

impl Pool {
    /// Returns the actions that are due now. A second call before anything else happens returns none.
    pub fn reconcile(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.has_changed && self.due.is_none_or(|due| now < due) {
            return actions;
        }
        if let Some(by) = self.stop_by {
            self.stop_all(by, &mut actions);
            self.kill_late(now, &mut actions);
        } else {
            // The changes of one pass may require another.
            while self.reconcile_once(now, &mut actions) {}
        }
        self.has_changed = false;
        self.due = self.next_due();
        actions
    }

    /// Returns when [`Pool::reconcile`] will have actions although nothing happened.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.has_changed {
            return self.next_due();
        }
        self.due
    }

    fn next_due(&self) -> Option<Instant> {
        let seats = self.seats.iter().filter(|_| !self.is_stopping());
        let dues = seats.filter_map(|seat| seat.due);
        let of_member = |member: &Member| {
            let (own, kill_by) = match member.state {
                MemberState::Starting { until } | MemberState::Draining { until, .. } => {
                    (Some(until), member.kill_by)
                }
                MemberState::Ready { .. } => (
                    member.old_at.filter(|_| member.spent.is_none()),
                    member.kill_by,
                ),
                MemberState::Held { .. } | MemberState::Killed => (None, None),
            };
            own.into_iter().chain(kill_by).min()
        };
        let dues = dues.chain(self.paced_until);
        self.members().filter_map(of_member).chain(dues).min()
    }

    /// Returns whether each wanted seat has its worker, and all other workers are held.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let states = self.seat_states();
        let is_in_place = |member: &Member| {
            let keeps = states[member.seat]
                .keeper
                .is_some_and(|keeper| keeper.id == member.id);
            matches!(member.state, MemberState::Held { .. }) || keeps && member.seat < self.wanted()
        };
        let is_idle = !self.is_rolling() && !self.is_stopping();
        is_idle
            && states[..self.wanted()]
                .iter()
                .all(|state| state.keeper.is_some())
            && self.members().all(is_in_place)
    }

    /// Kills the starting workers and lets the others finish.
    fn stop_all(&mut self, by: Instant, actions: &mut Vec<Action>) {
        for member in self.members.iter_mut() {
            let until = match member.state {
                MemberState::Starting { .. } => {
                    actions.push(kill(member, KillDecision::Unneeded));
                    continue;
                }
                MemberState::Ready { .. } | MemberState::Held { .. } => by,
                MemberState::Draining { why: Why::Stop, .. } | MemberState::Killed => continue,
                MemberState::Draining { until, .. } => until,
            };
            member.state = MemberState::Draining {
                until,
                why: Why::Stop,
            };
            actions.push(Action::Stop {
                id: member.id,
                by: until,
            });
        }
    }

    /// Returns whether anything changed.
    fn reconcile_once(&mut self, now: Instant, actions: &mut Vec<Action>) -> bool {
        let before = actions.len();
        self.expire(now);
        self.kill_late(now, actions);
        self.end_roll(actions);
        self.extra = self.extra.min(self.target.count);
        let seats = self.seats.len().max(self.wanted());
        self.seats.resize_with(seats, Default::default);
        if self.is_hopeless() {
            if !std::mem::replace(&mut self.gave_up, true) {
                actions.push(Action::GiveUp);
            }
            return false;
        }
        let mut states = self.seat_states();
        if states[..self.target.count].iter().any(SeatState::is_served) {
            self.extra = 0;
        }
        self.spawn_missing(&mut states, now, actions);
        if self.is_stuck(&states) {
            self.extra += 1;
            return true;
        }
        self.end_unneeded(&states, now, actions);
        actions.len() > before
    }

    /// Ends the waits that are over, and marks the workers that are too old.
    fn expire(&mut self, now: Instant) {
        for seat in &mut self.seats {
            seat.due = seat.due.filter(|due| *due > now);
        }
        for member in self.members.iter_mut() {
            if member.is_ready() && member.old_at.is_some_and(|old_at| old_at <= now) {
                member.spent.get_or_insert(Why::Lifetime);
            }
        }
    }

    fn kill_late(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut not_ready = Vec::new();
        for member in self.members.iter_mut() {
            let is_due = member.kill_by.is_some_and(|by| by <= now);
            let why = match member.state {
                MemberState::Starting { until } if until <= now => KillDecision::NotReady,
                MemberState::Draining { until, .. } if until <= now => KillDecision::NotGone,
                MemberState::Ready { .. } | MemberState::Draining { .. } if is_due => {
                    KillDecision::Stalled
                }
                MemberState::Starting { .. }
                | MemberState::Ready { .. }
                | MemberState::Held { .. }
                | MemberState::Draining { .. }
                | MemberState::Killed => continue,
            };
            actions.push(kill(member, why));
            if why == KillDecision::NotReady {
                not_ready.push(*member);
            }
        }
        for member in not_ready {
            self.count_failure(&member, now);
            if let Some(roll) = &mut self.roll
                && member.generation == self.target.generation
            {
                // A single worker that is not ready in time is enough.
                roll.failures = self.target.tries;
            }
        }
    }

    /// Ends a roll that has failed or has reached every seat.
    fn end_roll(&mut self, actions: &mut Vec<Action>) {
        let Some(roll) = &self.roll else { return };
        let is_everywhere = self.seat_states()[..self.target.count]
            .iter()
            .all(|state| state.keeper.is_some());
        if self.has_failed_roll() {
            self.target = roll.previous.clone();
            self.clear_backoff();
            actions.push(Action::RolledBack);
        } else if is_everywhere {
            actions.push(Action::Applied);
        } else {
            return;
        }
        self.roll = None;
    }

    /// Returns whether the generation on trial will be rolled back.
    pub(super) fn has_failed_roll(&self) -> bool {
        let has_failed = |roll: &Roll| roll.failures >= self.target.tries;
        self.roll.as_ref().is_some_and(has_failed)
    }

    /// Returns whether the pool gives up.
    pub(super) fn is_hopeless(&self) -> bool {
        // A seat that the next pass adds has not failed yet.
        let wanted = self.seats.get(..self.target.count);
        !self.ever_ready
            && wanted.is_some_and(|seats| seats.iter().all(|seat| seat.streak >= self.target.tries))
    }

    /// Drains ready workers whose seat has another worker or is not wanted, and kills such starting ones. Workers of
    /// the previous generation may be needed again during a roll, and the last one that serves always is.
    fn end_unneeded(&mut self, states: &[SeatState], now: Instant, actions: &mut Vec<Action>) {
        let (wanted, is_rolling) = (self.wanted(), self.is_rolling());
        let (generation, count) = (self.target.generation, self.target.count);
        let until = now + self.target.drain_timeout;
        let is_served = states[..wanted].iter().any(SeatState::is_served);
        for member in self.members.iter_mut() {
            let keeper = states[member.seat].keeper.map(|keeper| keeper.id);
            let is_wanted = member.seat < wanted;
            let has_another = keeper.is_some_and(|id| id != member.id);
            let is_too_much = !is_wanted && !is_rolling && (is_served || member.is_stalled);
            match member.state {
                MemberState::Ready { .. } if has_another || is_too_much || member.has_retired => {
                    let why = match member.spent {
                        _ if member.seat >= count && member.is_extra => Why::Surplus,
                        _ if member.seat >= count => Why::Scale,
                        _ if member.generation < generation => Why::Reload,
                        _ if member.generation > generation => Why::Rollback,
                        spent => spent.unwrap_or(Why::Surplus),
                    };
                    member.state = MemberState::Draining { until, why };
                    actions.push(Action::Drain {
                        id: member.id,
                        by: until,
                        why,
                    });
                }
                MemberState::Starting { .. } => {
                    let may_be_needed = if member.generation == generation {
                        is_wanted
                    } else {
                        is_rolling
                    };
                    if keeper.is_some() || !may_be_needed {
                        actions.push(kill(member, KillDecision::Unneeded));
                    }
                }
                MemberState::Ready { .. }
                | MemberState::Held { .. }
                | MemberState::Draining { .. }
                | MemberState::Killed => {}
            }
        }
    }

    fn spawn_missing(&mut self, states: &mut [SeatState], now: Instant, actions: &mut Vec<Action>) {
        let mut successors = states
            .iter()
            .filter(|state| state.is_served() && state.is_coming)
            .count();
        let (mut young, mut next) = self.young(now);
        self.paced_until = None;
        let mut chosen = Vec::new();
        let seats = 0..self.wanted();
        let (served, empty): (Vec<_>, Vec<_>) = seats.partition(|seat| states[*seat].is_served());
        for seat in empty.into_iter().chain(served) {
            let state = &mut states[seat];
            if state.keeper.is_some() || state.is_coming || self.seats[seat].due.is_some() {
                continue;
            }
            let is_successor = state.is_served();
            if is_successor && successors >= (self.target.count / 4).max(1) {
                continue;
            }
            if young >= MAX_YOUNG {
                self.paced_until = next;
                break;
            }
            successors += usize::from(is_successor);
            young += 1;
            next = next.or(Some(now + YOUTH));
            state.is_coming = true;
            chosen.push(seat);
        }
        chosen.sort_unstable();
        for seat in chosen {
            self.spawn(seat, now, actions);
        }
    }

    /// Returns the number of workers that were started a moment ago, and until when the first of them counts.
    fn young(&self, now: Instant) -> (usize, Option<Instant>) {
        let timeout = self.target.start_timeout;
        let old_at = |member: &Member| match member.state {
            MemberState::Starting { until } if self.is_fresh(member) => {
                (until + YOUTH).checked_sub(timeout)
            }
            _ => None,
        };
        let young = self.members().filter_map(old_at).filter(|at| *at > now);
        young.fold((0, None), |(count, first), at| {
            (
                count + 1,
                Some(first.map_or(at, |first: Instant| first.min(at))),
            )
        })
    }

    fn spawn(&mut self, seat: usize, now: Instant, actions: &mut Vec<Action>) {
        let id = self.next;
        self.next = WorkerId(id.0 + 1);
        let generation = self.target.generation;
        let until = now + self.target.start_timeout;
        let state = MemberState::Starting { until };
        self.members.push(Member {
            is_extra: seat >= self.target.count,
            ..Member::new(id, seat, generation, state)
        });
        actions.push(Action::Spawn {
            seat,
            id,
            generation,
        });
    }

    /// Returns whether all workers that could serve are stuck and none is starting. An extra seat in its backoff waits.
    fn is_stuck(&self, states: &[SeatState]) -> bool {
        let (ordinary, extra) = states[..self.wanted()].split_at(self.target.count);
        let is_stalled = |member: &Member| member.is_stalled && member.is_ready();
        self.extra < self.target.count
            && self.members().any(is_stalled)
            && !ordinary
                .iter()
                .chain(extra)
                .any(|state| state.is_served() || state.is_coming)
            && extra.iter().all(|state| state.keeper.is_some())
    }

    /// Returns the workers of every seat that ever had one or is wanted.
    fn seat_states(&self) -> Vec<SeatState> {
        let mut states = vec![SeatState::default(); self.seats.len().max(self.wanted())];
        for member in self.members() {
            let state = &mut states[member.seat];
            let is_fresh = self.is_fresh(member);
            match member.state {
                MemberState::Starting { .. } => state.is_coming |= is_fresh,
                MemberState::Ready { .. } => {
                    state.has_well |= member.serves();
                    state.keeper = state
                        .keeper
                        .max(is_fresh.then(|| Keeper::from_member(member)));
                }
                MemberState::Held { .. } | MemberState::Draining { .. } | MemberState::Killed => {}
            }
        }
        states
    }
}

/// Marks a worker as killed: only its exit can follow.
fn kill(member: &mut Member, why: KillDecision) -> Action {
    member.state = MemberState::Killed;
    // Nothing more can be done if it is not gone then.
    member.kill_by = None;
    Action::Kill { id: member.id, why }
}
