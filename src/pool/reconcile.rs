//! What is to be done, from what is wanted and what is.

use std::time::Instant;

use super::{Action, Late, Member, MemberState, Pool, Why};
use crate::proto::names::WorkerId;

/// So many deaths in a row at every seat, with none ever ready, are enough to see that none will be.
const GIVE_UP: u32 = 3;

/// So many workers of a new generation that were no good are enough to see that it is not. Of those that are not ready
/// in time, one is.
const ROLL_BACK: u32 = 3;

/// What a seat has, of what counts.
#[derive(Clone, Copy, Default)]
struct Crew {
    /// The fresh worker that is ready. Of several it is one that is not stuck, then the one that was released, then the
    /// youngest.
    keeper: Option<Keeper>,
    /// Whether a fresh one is being started.
    is_coming: bool,
    /// Whether anybody is ready and not stuck, fresh or not.
    has_well: bool,
}

/// The order of the fields ranks the workers of a seat.
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

impl Crew {
    /// Whether somebody serves and will do so: who is not the keeper goes when there is one.
    fn is_served(&self) -> bool {
        self.keeper.map_or(self.has_well, |keeper| keeper.is_well)
    }
}

impl Pool {
    /// What is to be done now. Asked again before anything else happens, it is nothing.
    pub fn reconcile(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(by) = self.stop_by {
            self.stop_all(by, &mut actions);
            self.kill_late(now, &mut actions);
        } else {
            // What one pass changes may call for more.
            while self.pass(now, &mut actions) {}
        }
        actions
    }

    /// When [`Pool::reconcile`] will have something to do although nothing happened.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let dues = self
            .seats
            .iter()
            .filter(|_| !self.is_stopping())
            .filter_map(|seat| seat.due);
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
        self.members().filter_map(of_member).chain(dues).min()
    }

    /// Whether all is as it is to be: each wanted seat has its worker, and nobody else is there but those who are held.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let crews = self.crews();
        let is_in_place = |member: &Member| {
            let keeps = crews[member.seat]
                .keeper
                .is_some_and(|keeper| keeper.id == member.id);
            matches!(member.state, MemberState::Held { .. }) || keeps && member.seat < self.wanted()
        };
        let is_idle = !self.is_rolling() && !self.is_stopping();
        is_idle
            && crews[..self.wanted()]
                .iter()
                .all(|crew| crew.keeper.is_some())
            && self.members().all(is_in_place)
    }

    /// The end: those who start are of no use, the others finish.
    fn stop_all(&mut self, by: Instant, actions: &mut Vec<Action>) {
        for member in &mut self.members {
            let until = match member.state {
                MemberState::Starting { .. } => {
                    actions.push(kill(member, Late::Unneeded));
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

    /// Whether it changed anything.
    fn pass(&mut self, now: Instant, actions: &mut Vec<Action>) -> bool {
        let before = actions.len();
        self.look_at_the_clock(now);
        self.kill_late(now, actions);
        self.judge(actions);
        self.extra = self.extra.min(self.target.count);
        let seats = self.seats.len().max(self.wanted());
        self.seats.resize_with(seats, Default::default);
        if self.is_hopeless() {
            if !std::mem::replace(&mut self.gave_up, true) {
                actions.push(Action::GiveUp);
            }
            return false;
        }
        let mut crews = self.crews();
        if crews[..self.target.count].iter().any(Crew::is_served) {
            self.extra = 0;
        }
        self.spawn_missing(&mut crews, now, actions);
        if self.is_stuck(&crews) {
            self.extra += 1;
            return true;
        }
        self.end_unneeded(&crews, now, actions);
        actions.len() > before
    }

    /// Waits that are over, and workers that are too old.
    fn look_at_the_clock(&mut self, now: Instant) {
        for seat in &mut self.seats {
            seat.due = seat.due.filter(|due| *due > now);
        }
        for member in &mut self.members {
            if matches!(member.state, MemberState::Ready { .. })
                && member.old_at.is_some_and(|old_at| old_at <= now)
            {
                member.spent.get_or_insert(Why::Lifetime);
            }
        }
    }

    fn kill_late(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut not_ready = Vec::new();
        for member in &mut self.members {
            let is_due = member.kill_by.is_some_and(|by| by <= now);
            let why = match member.state {
                MemberState::Starting { until } if until <= now => Late::NotReady,
                MemberState::Draining { until, .. } if until <= now => Late::NotGone,
                MemberState::Ready { .. } | MemberState::Draining { .. } if is_due => Late::Stalled,
                MemberState::Starting { .. }
                | MemberState::Ready { .. }
                | MemberState::Held { .. }
                | MemberState::Draining { .. }
                | MemberState::Killed => continue,
            };
            actions.push(kill(member, why));
            if why == Late::NotReady {
                not_ready.push(*member);
            }
        }
        for member in not_ready {
            self.fail(&member, now);
            if let Some(roll) = self
                .roll
                .as_mut()
                .filter(|_| member.generation == self.target.generation)
            {
                roll.failures = ROLL_BACK;
            }
        }
    }

    /// Ends a roll.
    fn judge(&mut self, actions: &mut Vec<Action>) {
        let Some(roll) = &self.roll else { return };
        let is_everywhere = self.crews()[..self.target.count]
            .iter()
            .all(|crew| crew.keeper.is_some());
        if roll.failures >= ROLL_BACK {
            self.target = roll.previous.clone();
            self.forgive();
            actions.push(Action::RolledBack);
        } else if is_everywhere {
            actions.push(Action::Applied);
        } else {
            return;
        }
        self.roll = None;
    }

    fn is_hopeless(&self) -> bool {
        !self.ever_ready
            && self.seats[..self.target.count]
                .iter()
                .all(|seat| seat.streak >= GIVE_UP)
    }

    /// Drains those whose seat has somebody else or is not wanted; who is not even ready is killed. During a roll
    /// whatever the previous generation has may be needed again, and the last who serves always is.
    fn end_unneeded(&mut self, crews: &[Crew], now: Instant, actions: &mut Vec<Action>) {
        let (wanted, is_rolling) = (self.wanted(), self.is_rolling());
        let (generation, count) = (self.target.generation, self.target.count);
        let until = now + self.target.drain_timeout;
        let is_served = crews[..wanted].iter().any(Crew::is_served);
        for member in &mut self.members {
            let keeper = crews[member.seat].keeper.map(|keeper| keeper.id);
            let is_wanted = member.seat < wanted;
            let has_another = keeper.is_some_and(|id| id != member.id);
            let is_too_much = !is_wanted && !is_rolling && (is_served || member.is_stalled);
            match member.state {
                MemberState::Ready { .. } if has_another || is_too_much => {
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
                        actions.push(kill(member, Late::Unneeded));
                    }
                }
                MemberState::Ready { .. }
                | MemberState::Held { .. }
                | MemberState::Draining { .. }
                | MemberState::Killed => {}
            }
        }
    }

    fn spawn_missing(&mut self, crews: &mut [Crew], now: Instant, actions: &mut Vec<Action>) {
        let mut stand_ins = crews
            .iter()
            .filter(|crew| crew.is_served() && crew.is_coming)
            .count();
        for (seat, crew) in crews[..self.wanted()].iter_mut().enumerate() {
            if crew.keeper.is_some() || crew.is_coming || self.seats[seat].due.is_some() {
                continue;
            }
            if crew.is_served() {
                if stand_ins >= (self.target.count / 4).max(1) {
                    continue;
                }
                stand_ins += 1;
            }
            crew.is_coming = true;
            self.spawn(seat, now, actions);
        }
    }

    fn spawn(&mut self, seat: usize, now: Instant, actions: &mut Vec<Action>) {
        let id = self.next;
        self.next = WorkerId(id.0 + 1);
        let generation = self.target.generation;
        let member = Member {
            id,
            seat,
            generation,
            state: MemberState::Starting {
                until: now + self.target.start_timeout,
            },
            is_stalled: false,
            kill_by: None,
            spent: None,
            old_at: None,
            is_extra: seat >= self.target.count,
            is_released: false,
        };
        self.members.push(member);
        actions.push(Action::Spawn {
            seat,
            id,
            generation,
        });
    }

    /// Whether all who could serve are stuck and nobody is coming. An extra seat that waits has to wait.
    fn is_stuck(&self, crews: &[Crew]) -> bool {
        let (ordinary, extra) = crews[..self.wanted()].split_at(self.target.count);
        let is_stalled = |member: &Member| {
            member.is_stalled && matches!(member.state, MemberState::Ready { .. })
        };
        self.extra < self.target.count
            && self.members().any(is_stalled)
            && !ordinary
                .iter()
                .chain(extra)
                .any(|crew| crew.is_served() || crew.is_coming)
            && extra.iter().all(|crew| crew.keeper.is_some())
    }

    /// What each seat has, of all there ever were and all that are wanted.
    fn crews(&self) -> Vec<Crew> {
        let mut crews = vec![Crew::default(); self.seats.len().max(self.wanted())];
        for member in self.members() {
            let crew = &mut crews[member.seat];
            let is_fresh = self.is_fresh(member);
            match member.state {
                MemberState::Starting { .. } => crew.is_coming |= is_fresh,
                MemberState::Ready { .. } => {
                    crew.has_well |= !member.is_stalled;
                    crew.keeper = crew
                        .keeper
                        .max(is_fresh.then(|| Keeper::from_member(member)));
                }
                MemberState::Held { .. } | MemberState::Draining { .. } | MemberState::Killed => {}
            }
        }
        crews
    }
}

/// Its end is awaited from now on.
fn kill(member: &mut Member, why: Late) -> Action {
    member.state = MemberState::Killed;
    Action::Kill { id: member.id, why }
}
