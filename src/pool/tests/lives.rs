//! Random sequences of events: the rules of the module hold in any order.

use std::collections::BTreeSet;
use std::panic;

use super::*;

#[test]
fn rules_hold_under_random_sequences_of_events() {
    for seed in 0..2_000 {
        panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
    }
}

/// Fails unless the kept counts are those of all workers.
fn check_counts(pool: &Pool) {
    let (mut serving, mut stalled, mut kills) = (0, 0, Vec::new());
    for member in pool.members() {
        serving += usize::from(is_well(member));
        stalled += usize::from(member.is_stalled);
        kills.extend(member.kill_by);
    }
    assert_eq!((pool.serving(), pool.has_stalled()), (serving, stalled > 0));
    assert_eq!(pool.next_kill(), kills.into_iter().min());
}

fn run(seed: u64) {
    let mut life = Life::new(seed);
    for _ in 0..200 {
        life.step();
        life.reconcile();
    }
    if seed.is_multiple_of(4) {
        life.stop()
    } else {
        life.settle()
    }
}

/// A pool, and a model of the processes outside.
struct Life {
    random: backoff::Jitter,
    now: Instant,
    pool: Pool,
    alive: BTreeSet<WorkerId>,
    last: WorkerId,
    generation: u64,
    /// The generation that a roll may return to.
    rolls_from: Option<Generation>,
}

impl Life {
    fn new(seed: u64) -> Life {
        let now = Instant::now();
        let mut random = backoff::Jitter::new(seed);
        let count = random.below(9) as usize + 1;
        let pool = Pool::new(target(1, count), now, seed);
        Life {
            random,
            now,
            pool,
            alive: BTreeSet::new(),
            last: w(0),
            generation: 1,
            rolls_from: None,
        }
    }

    fn reconcile(&mut self) {
        let now = self.now;
        check_counts(&self.pool);
        let before = self.pool.members.clone();
        let had_backoff: Vec<bool> = self
            .pool
            .seats
            .iter()
            .map(|s| s.due.is_some_and(|due| due > now))
            .collect();
        let actions = self.pool.reconcile(now);
        let pool = &self.pool;
        for action in &actions {
            let before_of =
                |id: &WorkerId| before.iter().find(|m| m.id == *id).expect("it is there");
            match action {
                Action::Spawn {
                    seat,
                    id,
                    generation,
                } => {
                    assert!(
                        *id > self.last && *generation == pool.target.generation,
                        "{action:?}"
                    );
                    let is_forgiven = actions.contains(&Action::RolledBack);
                    assert!(
                        is_forgiven || !had_backoff.get(*seat).unwrap_or(&false),
                        "{action:?} waits"
                    );
                    self.last = *id;
                    self.alive.insert(*id);
                }
                Action::Drain { id, by, .. } => {
                    let member = before_of(id);
                    assert!(member.is_ready(), "{action:?} of {member:?}");
                    let has_another = fresh_ready(pool, member.seat).any(|other| other != *id);
                    let serves = |m: &Member| m.seat < pool.wanted() && is_well(m);
                    let is_missed = !member.is_stalled && !pool.members().any(serves);
                    let is_needless =
                        member.seat >= pool.wanted() && !pool.is_rolling() && !is_missed;
                    let is_allowed = has_another || is_needless || member.has_retired;
                    assert!(is_allowed, "{action:?} of {member:?}");
                    assert_eq!(*by, now + DRAIN);
                }
                Action::Kill { id, why } => {
                    let member = before_of(id);
                    let is_due = match (member.state, why) {
                        (MemberState::Starting { until }, KillDecision::NotReady) => until <= now,
                        (MemberState::Starting { .. }, KillDecision::Unneeded) => true,
                        (MemberState::Draining { until, .. }, KillDecision::NotGone) => {
                            until <= now
                        }
                        (
                            MemberState::Ready { .. } | MemberState::Draining { .. },
                            KillDecision::Stalled,
                        ) => member.is_stalled && member.kill_by.is_some_and(|by| by <= now),
                        _ => false,
                    };
                    assert!(is_due, "{action:?} of {member:?}");
                }
                Action::Stop { .. } => assert!(pool.is_stopping()),
                Action::Applied => {
                    assert!(self.rolls_from.take().is_some());
                    let is_there = |seat| fresh_ready(pool, seat).next().is_some();
                    assert!((0..pool.target.count).all(is_there));
                }
                Action::RolledBack => {
                    assert_eq!(self.rolls_from.take(), Some(pool.target.generation))
                }
                Action::GiveUp => assert!(!pool.ever_ready),
            }
        }
        check_counts(pool);
        let there: BTreeSet<_> = pool.members().map(|member| member.id).collect();
        assert_eq!(there, self.alive);
        assert_eq!(pool.is_rolling(), self.rolls_from.is_some());
        assert!(
            pool.deadline().is_none_or(|deadline| deadline > now),
            "it would spin"
        );
        self.check_seats(&spawned(&actions));
        assert_eq!(self.pool.reconcile(now), [], "asked again");
    }

    fn check_seats(&self, spawned: &[(usize, WorkerId)]) {
        let pool = &self.pool;
        if pool.is_stopping() || pool.gave_up && !pool.ever_ready {
            return;
        }
        let seats = pool.seats().max(pool.wanted());
        let (mut serving, mut ready, mut starting) =
            (vec![0; seats], vec![0; seats], vec![0; seats]);
        for member in pool.members() {
            serving[member.seat] += usize::from(is_well(member));
            let fresh = usize::from(pool.is_fresh(member));
            match member.state {
                MemberState::Ready { .. } => ready[member.seat] += fresh,
                MemberState::Starting { .. } => starting[member.seat] += fresh,
                MemberState::Held { .. } | MemberState::Draining { .. } | MemberState::Killed => {}
            }
        }
        let stand_ins = (0..seats)
            .filter(|seat| serving[*seat] > 0 && starting[*seat] > 0)
            .count();
        let most = (pool.target.count / 4).max(1);
        let all: usize = starting.iter().sum();
        assert!(pool.paced_until.is_none() || all >= 4, "{all}");
        assert!(
            stand_ins <= most || spawned.iter().all(|(seat, _)| serving[*seat] == 0),
            "{stand_ins}"
        );
        for seat in 0..pool.wanted() {
            assert!(ready[seat] + starting[seat] <= 1, "two in {seat}");
            let is_taken =
                ready[seat] + starting[seat] == 1 || serving[seat] > 0 && stand_ins >= most;
            let waits = pool.due(seat).is_some() || pool.paced_until.is_some();
            assert!(is_taken || waits, "no worker for {seat}");
        }
    }

    fn step(&mut self) {
        let now = self.now;
        let nth = self.random.below(self.alive.len().max(1) as u64) as usize;
        // Sometimes the id of a worker that is long gone.
        let id = self
            .alive
            .iter()
            .copied()
            .nth(nth)
            .filter(|_| self.random.below(50) > 0)
            .unwrap_or(w(1 << 40));
        let state = self.pool.member(id).map(|member| member.state);
        let is_ready = matches!(state, Some(MemberState::Ready { .. }));
        let soon = now + Duration::from_millis(self.random.below(20_000));
        match self.random.below(25) {
            0..6 => {
                let expected = matches!(state, Some(MemberState::Starting { .. }));
                assert_eq!(self.pool.ready(id, now), expected);
            }
            6..11 => {
                self.pool.exited(id, self.random.below(2) == 0, now);
                self.alive.remove(&id);
            }
            11 | 12 => {
                let mut next = target(self.generation + 1, self.random.below(9) as usize + 1);
                next.max_lifetime = (self.random.below(3) == 0).then_some(Duration::from_secs(100));
                let previous = self.pool.target.generation;
                let is_taken = self.pool.reload(next);
                assert_eq!(is_taken, self.rolls_from.is_none());
                if is_taken {
                    self.generation += 1;
                    self.rolls_from = Some(previous);
                }
            }
            13 => self.pool.scale(self.random.below(9) as usize + 1),
            14 => assert_eq!(self.pool.recycle(id), is_ready),
            15 => self.pool.recycle_all(),
            16 => assert_eq!(self.pool.hold(id), is_ready),
            17 => assert_eq!(
                self.pool.release(id),
                matches!(state, Some(MemberState::Held { .. }))
            ),
            18 => self.pool.spent(id, Why::NearRequestLimit),
            19 | 20 => {
                self.pool
                    .stalled(id, (self.random.below(2) == 0).then_some(soon));
            }
            21 => {
                self.pool.revived(id);
            }
            22 => self.now = soon,
            23 => self.pool.retires(id),
            _ => self.end_leaving(),
        }
    }

    /// Ends all draining and killed workers.
    fn end_leaving(&mut self) {
        let is_leaving =
            |m: &&Member| matches!(m.state, MemberState::Draining { .. } | MemberState::Killed);
        let leaving: Vec<WorkerId> = self
            .pool
            .members()
            .filter(is_leaving)
            .map(|m| m.id)
            .collect();
        for id in leaving {
            self.pool.exited(id, false, self.now);
            self.alive.remove(&id);
        }
    }

    /// Completes what every worker was asked for; none is stuck any more.
    fn complete(&mut self) {
        self.end_leaving();
        for member in self.pool.members().copied().collect::<Vec<_>>() {
            self.pool.revived(member.id);
            let is_starting = member.is_starting();
            assert_eq!(self.pool.ready(member.id, self.now), is_starting);
        }
    }

    /// Ends the faults: the pool settles.
    fn settle(&mut self) {
        self.pool.ever_ready = true;
        let held = |m: &&Member| matches!(m.state, MemberState::Held { .. });
        let before: Vec<WorkerId> = self.pool.members().filter(held).map(|m| m.id).collect();
        for _ in 0..100 {
            self.complete();
            self.reconcile();
            if self.pool.is_settled() {
                break;
            }
            let next = self.pool.seats.iter().filter_map(|seat| seat.due).min();
            self.now = next.unwrap_or(self.now);
        }
        let pool = &self.pool;
        // An upgrade waits until it is settled, and a start is over when it is complete.
        assert!(pool.is_settled() && pool.is_complete(), "{pool:#?}");
        let serving: Vec<usize> = (0..pool.seats())
            .flat_map(|seat| fresh_ready(pool, seat).map(move |_| seat))
            .collect();
        assert_eq!(serving, (0..pool.target.count).collect::<Vec<_>>());
        assert_eq!(
            pool.members()
                .filter(held)
                .map(|m| m.id)
                .collect::<Vec<_>>(),
            before
        );
        assert_eq!(pool.members().count(), serving.len() + before.len());
    }

    /// Stops the pool in any state.
    fn stop(&mut self) {
        self.pool.stop(self.now + DRAIN);
        self.rolls_from = None;
        self.reconcile();
        self.now += DRAIN;
        self.reconcile();
        assert!(
            self.pool
                .members()
                .all(|member| member.state == MemberState::Killed)
        );
        self.complete();
        assert!(self.pool.is_finished());
    }
}

fn is_well(member: &Member) -> bool {
    !member.is_stalled && !member.has_retired && member.is_ready()
}

fn fresh_ready(pool: &Pool, seat: usize) -> impl Iterator<Item = WorkerId> + '_ {
    let is_it = move |m: &&Member| m.seat == seat && pool.is_fresh(m) && m.is_ready();
    pool.members().filter(is_it).map(|m| m.id)
}
