use std::collections::BTreeSet;

use super::*;

const START: Duration = Duration::from_secs(10);

fn spawned(actions: &[Action]) -> Vec<(usize, WorkerId)> {
    let spawn = |action: &Action| match action {
        Action::Spawn(seat, id) => Some((*seat, *id)),
        _ => None,
    };
    actions.iter().filter_map(spawn).collect()
}

#[test]
fn a_worker_killed_while_it_serves_is_replaced_at_once() {
    let now = Instant::now();
    let mut pool = Pool::new(2, START, now, 1);
    let ids = spawned(&pool.reconcile(now));
    assert!(ids.iter().all(|(_, id)| pool.ready(*id, now)));
    assert_eq!(pool.exited(ids[1].1, true, now), Some(Duration::ZERO));
    assert_eq!(spawned(&pool.reconcile(now)), [(1, WorkerId(3))]);
    // Idle for longer than its probation is as good as having answered.
    assert!(pool.ready(WorkerId(3), now));
    assert_eq!(pool.exited(WorkerId(3), false, now + PROBATION), Some(Duration::ZERO));
}

#[test]
fn a_streak_of_useless_workers_waits_ever_longer_and_the_others_are_left_alone() {
    let mut now = Instant::now();
    let mut pool = Pool::new(2, START, now, 1);
    assert_eq!(pool.reconcile(now).len(), 2);
    assert!(pool.ready(WorkerId(1), now));
    let mut id = WorkerId(2);
    let mut last = Duration::ZERO;
    for _ in 0..12 {
        let delay = pool.exited(id, false, now).expect("another is to come");
        assert!(delay >= last.mul_f64(1.2) || delay >= Duration::from_secs(22), "{delay:?} after {last:?}");
        assert!(delay >= Duration::from_millis(100) && delay <= Duration::from_secs(30), "{delay:?}");
        last = delay;
        assert_eq!(pool.deadline(), Some(now + delay));
        assert_eq!(pool.reconcile(now + delay / 2), []);
        now += delay;
        id = spawned(&pool.reconcile(now))[0].1;
    }
    assert!(matches!(pool.states().next(), Some(State::Ready { .. })));
    assert!(pool.ready(id, now));
    assert_eq!(pool.exited(id, true, now), Some(Duration::ZERO), "one that answered ends the streak");
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed_once() {
    let now = Instant::now();
    let mut pool = Pool::new(1, START, now, 1);
    pool.reconcile(now);
    assert_eq!(pool.deadline(), Some(now + START));
    assert_eq!(pool.reconcile(now + START), [Action::Kill(0, WorkerId(1))]);
    assert_eq!(pool.reconcile(now + START * 2), []);
    assert!(!pool.ready(WorkerId(1), now + START), "too late");
}

#[test]
fn if_none_is_ever_ready_the_pool_gives_up() {
    let mut now = Instant::now();
    let mut pool = Pool::new(2, START, now, 1);
    let mut deaths = 0;
    loop {
        let actions = pool.reconcile(now);
        if actions == [Action::GiveUp] {
            break;
        }
        for (_, id) in spawned(&actions) {
            pool.exited(id, false, now);
            deaths += 1;
        }
        now = pool.deadline().expect("something is due").max(now);
    }
    assert!((2 * GIVE_UP..3 * GIVE_UP).contains(&deaths), "{deaths}");
}

#[test]
fn stopping_finishes_the_ready_kills_the_starting_and_kills_the_late() {
    let now = Instant::now();
    let mut pool = Pool::new(3, START, now, 1);
    pool.reconcile(now);
    assert!(pool.ready(WorkerId(1), now));
    assert!(pool.exited(WorkerId(3), false, now).is_some());
    let by = now + Duration::from_secs(30);
    pool.stop(by);
    assert_eq!(pool.reconcile(now), [Action::Stop(0, WorkerId(1), by), Action::Kill(1, WorkerId(2))]);
    assert_eq!(pool.exited(WorkerId(2), false, now), None);
    pool.stop(now);
    assert_eq!(pool.reconcile(now), [Action::Kill(0, WorkerId(1))]);
    assert!(!pool.is_finished());
    pool.exited(WorkerId(1), true, now);
    assert!(pool.is_finished());
}

/// Random lives: whatever happens, the rules of the module hold, and once the faults end all become ready.
#[test]
fn under_random_sequences_the_rules_hold() {
    for seed in 0..2_000 {
        let mut life = Life::new(seed);
        for _ in 0..200 {
            life.step();
        }
        life.settle();
    }
}

/// A pool, and what a world outside of it knows.
struct Life {
    seed: u64,
    random: backoff::Jitter,
    now: Instant,
    pool: Pool,
    alive: BTreeSet<WorkerId>,
    used: BTreeSet<WorkerId>,
}

impl Life {
    fn new(seed: u64) -> Life {
        let now = Instant::now();
        let pool = Pool::new(3, START, now, seed);
        Life { seed, random: backoff::Jitter::new(seed), now, pool, alive: BTreeSet::new(), used: BTreeSet::new() }
    }

    fn reconcile(&mut self) {
        let seed = self.seed;
        for action in self.pool.reconcile(self.now) {
            match action {
                Action::Spawn(_, id) => {
                    assert!(self.used.insert(id), "seed {seed}: {id} twice");
                    self.alive.insert(id);
                }
                Action::Kill(_, id) => assert!(self.alive.contains(&id), "seed {seed}: no {id}"),
                Action::Stop(..) => panic!("seed {seed}: nobody asked for the end"),
                Action::GiveUp => assert!(!self.pool.ever_ready && self.used.len() >= 9, "seed {seed}"),
            }
        }
        assert!(self.alive.len() <= 3, "seed {seed}");
        let there: BTreeSet<_> = self.pool.states().filter_map(State::worker).collect();
        assert_eq!(there, self.alive, "seed {seed}");
    }

    fn step(&mut self) {
        self.reconcile();
        let some = self.alive.iter().copied().nth(self.random.below(3) as usize);
        match (self.random.below(4), some) {
            (0, Some(id)) => {
                let expected =
                    self.pool.states().any(|s| matches!(s, State::Starting { id: i, until: Some(_) } if i == id));
                assert_eq!(self.pool.ready(id, self.now), expected, "seed {}", self.seed);
            }
            (1, Some(id)) => {
                let answered = self.random.below(2) == 0;
                assert!(self.pool.exited(id, answered, self.now).is_some(), "seed {}", self.seed);
                self.alive.remove(&id);
            }
            (2, _) => assert_eq!(self.pool.exited(WorkerId(1 << 40), true, self.now), None),
            _ => self.now += Duration::from_millis(self.random.below(20_000)),
        }
    }

    fn settle(&mut self) {
        self.pool.ever_ready = true;
        for _ in 0..10 {
            self.reconcile();
            for id in self.alive.clone() {
                let is_ready = self.pool.states().any(|s| matches!(s, State::Ready { id: i, .. } if i == id));
                if !is_ready && !self.pool.ready(id, self.now) {
                    self.pool.exited(id, false, self.now);
                    self.alive.remove(&id);
                }
            }
            self.now = self.pool.deadline().unwrap_or(self.now).max(self.now);
        }
        let ready = self.pool.states().filter(|s| matches!(s, State::Ready { .. })).count();
        assert_eq!(ready, 3, "seed {}", self.seed);
    }
}
