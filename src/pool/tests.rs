use super::*;

mod lives;
mod rolls;
mod stuck;

const START: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(30);

fn target(generation: u64, count: usize) -> Target {
    let generation = Generation(generation);
    Target {
        generation,
        count,
        start_timeout: START,
        drain_timeout: DRAIN,
        max_lifetime: None,
    }
}

/// A pool of so many workers of generation 1, all ready: numbers 1, 2, … at seats 0, 1, ….
fn ready_pool(count: usize, now: Instant) -> Pool {
    let mut pool = Pool::new(target(1, count), now, 1);
    assert_eq!(ready(&mut pool, now).len(), count);
    assert!(pool.is_settled());
    pool
}

/// What is to be done; asked again, it is nothing.
fn turn(pool: &mut Pool, now: Instant) -> Vec<Action> {
    let actions = pool.reconcile(now);
    assert_eq!(pool.reconcile(now), []);
    actions
}

/// A turn, after which all who were spawned are ready.
fn ready(pool: &mut Pool, now: Instant) -> Vec<Action> {
    let actions = turn(pool, now);
    assert!(spawned(&actions).iter().all(|(_, id)| pool.ready(*id, now)));
    actions
}

/// Turns in which everybody does what is asked for, until nothing is.
fn calm(pool: &mut Pool, now: Instant) -> Vec<Action> {
    let mut all = Vec::new();
    loop {
        let actions = ready(pool, now);
        for id in drained(&actions)
            .iter()
            .map(|(id, _)| *id)
            .chain(killed(&actions).iter().map(|(id, _)| *id))
        {
            pool.exited(id, true, now);
        }
        if actions.is_empty() {
            return all;
        }
        all.extend(actions);
    }
}

fn spawned(actions: &[Action]) -> Vec<(usize, WorkerId)> {
    let spawn = |action: &Action| match action {
        Action::Spawn { seat, id, .. } => Some((*seat, *id)),
        _ => None,
    };
    actions.iter().filter_map(spawn).collect()
}

fn drained(actions: &[Action]) -> Vec<(WorkerId, Why)> {
    let drain = |action: &Action| match action {
        Action::Drain { id, why, .. } => Some((*id, *why)),
        _ => None,
    };
    actions.iter().filter_map(drain).collect()
}

fn killed(actions: &[Action]) -> Vec<(WorkerId, Late)> {
    let kill = |action: &Action| match action {
        Action::Kill { id, why } => Some((*id, *why)),
        _ => None,
    };
    actions.iter().filter_map(kill).collect()
}

/// The generations of those that are ready, by seats.
fn generations(pool: &Pool) -> Vec<u64> {
    let generation = |seat| {
        pool.occupant(seat)
            .filter(|m| matches!(m.state, MemberState::Ready { .. }))
            .map(|m| m.generation.0)
    };
    (0..pool.seats()).filter_map(generation).collect()
}

const fn w(id: u64) -> WorkerId {
    WorkerId(id)
}

#[test]
fn a_worker_killed_while_it_serves_is_replaced_at_once() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    assert_eq!(pool.exited(w(2), true, now), Some(Duration::ZERO));
    assert_eq!(spawned(&turn(&mut pool, now)), [(1, w(3))]);
    // Idle for longer than its probation is as good as having answered.
    assert!(pool.ready(w(3), now));
    assert_eq!(
        pool.exited(w(3), false, now + PROBATION),
        Some(Duration::ZERO)
    );
}

#[test]
fn a_streak_of_useless_workers_waits_ever_longer_and_the_others_are_left_alone() {
    let mut now = Instant::now();
    let mut pool = Pool::new(target(1, 2), now, 1);
    assert_eq!(turn(&mut pool, now).len(), 2);
    assert!(pool.ready(w(1), now));
    let mut id = w(2);
    let mut last = Duration::ZERO;
    for round in 0..12 {
        // Every other one is ready for a moment.
        assert!(round % 2 == 0 || pool.ready(id, now));
        let delay = pool.exited(id, false, now).expect("another is to come");
        assert!(
            delay >= last.mul_f64(1.2) || delay >= Duration::from_secs(22),
            "{delay:?} after {last:?}"
        );
        assert!(
            delay >= Duration::from_millis(100) && delay <= Duration::from_secs(30),
            "{delay:?}"
        );
        last = delay;
        assert_eq!(
            (pool.deadline(), pool.due(1), pool.due(0)),
            (Some(now + delay), Some(now + delay), None)
        );
        assert_eq!(turn(&mut pool, now + delay / 2), []);
        now += delay;
        id = spawned(&turn(&mut pool, now))[0].1;
    }
    assert!(matches!(
        pool.occupant(0),
        Some(Member {
            id: WorkerId(1),
            state: MemberState::Ready { .. },
            ..
        })
    ));
    assert!(pool.ready(id, now));
    assert_eq!(
        pool.exited(id, true, now),
        Some(Duration::ZERO),
        "one that answered ends the streak"
    );
    let id = spawned(&turn(&mut pool, now))[0].1;
    assert!(
        pool.exited(id, false, now)
            .is_some_and(|delay| delay < Duration::from_millis(200)),
        "it is forgotten"
    );
}

#[test]
fn a_postponed_start_is_no_failure_and_comes_soon() {
    let now = Instant::now();
    let mut pool = Pool::new(target(1, 1), now, 1);
    let mut at = now;
    for id in 1..100 {
        assert_eq!(spawned(&turn(&mut pool, at)), [(0, w(id))]);
        assert_eq!(pool.postponed(w(id), at), Duration::from_millis(100));
        at += Duration::from_millis(100);
        assert_eq!(
            (
                pool.deadline(),
                turn(&mut pool, at - Duration::from_millis(1))
            ),
            (Some(at), Vec::new())
        );
    }
    assert_eq!(spawned(&turn(&mut pool, at)), [(0, w(100))]);
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed_once_and_its_seat_waits() {
    let now = Instant::now();
    let mut pool = Pool::new(target(1, 1), now, 1);
    turn(&mut pool, now);
    assert_eq!(pool.deadline(), Some(now + START));
    let late = now + START;
    assert_eq!(
        turn(&mut pool, late),
        [Action::Kill {
            id: w(1),
            why: Late::NotReady
        }]
    );
    assert!(!pool.ready(w(1), late), "too late");
    let due = pool.due(0).expect("its seat waits");
    assert_eq!(
        pool.exited(w(1), false, late),
        Some(due - late),
        "one failure is counted once"
    );
    assert!(due - late < Duration::from_millis(200));
    assert_eq!(spawned(&turn(&mut pool, due)), [(0, w(2))]);
}

#[test]
fn if_none_is_ever_ready_the_pool_gives_up() {
    let mut now = Instant::now();
    let mut pool = Pool::new(target(1, 2), now, 1);
    let mut deaths = 0;
    loop {
        let actions = turn(&mut pool, now);
        if actions == [Action::GiveUp] {
            break;
        }
        for (_, id) in spawned(&actions) {
            pool.exited(id, false, now);
            deaths += 1;
        }
        now = pool.deadline().expect("something is due").max(now);
    }
    assert!((6..9).contains(&deaths), "{deaths}");
}

#[test]
fn stopping_finishes_all_but_the_starting_and_kills_the_late() {
    let now = Instant::now();
    let mut pool = ready_pool(4, now);
    assert!(pool.recycle(w(1)) && pool.hold(w(2)));
    assert_eq!(ready(&mut pool, now).len(), 2);
    assert_eq!(drained(&turn(&mut pool, now)), [(w(1), Why::Recycle)]);
    assert!(pool.exited(w(3), true, now).is_some());
    assert_eq!(spawned(&turn(&mut pool, now)), [(2, w(7))]);
    let by = now + Duration::from_secs(60);
    pool.stop(by);
    let stops = [(1, now + DRAIN), (2, by), (4, by), (5, by), (6, by)]
        .map(|(id, by)| Action::Stop { id: w(id), by });
    let kill = Action::Kill {
        id: w(7),
        why: Late::Unneeded,
    };
    assert_eq!(turn(&mut pool, now), [&stops[..], &[kill]].concat());
    assert!(!pool.reload(target(2, 4)));
    assert_eq!(pool.exited(w(7), false, now), None);
    pool.stop(now);
    assert_eq!(
        killed(&turn(&mut pool, now)),
        [1, 2, 4, 5, 6].map(|id| (w(id), Late::NotGone))
    );
    assert!(!pool.is_finished());
    for id in [1, 2, 4, 5, 6] {
        assert_eq!(pool.exited(w(id), true, now), None);
    }
    assert!(pool.is_finished());
    assert_eq!((pool.deadline(), turn(&mut pool, now)), (None, vec![]));
}

#[test]
fn scaling_adds_and_takes_away_and_who_only_starts_is_killed() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    pool.scale(4);
    assert_eq!(spawned(&turn(&mut pool, now)), [(2, w(3)), (3, w(4))]);
    assert!(pool.ready(w(3), now));
    assert!(!pool.is_settled());
    pool.scale(1);
    let actions = turn(&mut pool, now);
    assert_eq!(drained(&actions), [(w(2), Why::Scale), (w(3), Why::Scale)]);
    assert_eq!(killed(&actions), [(w(4), Late::Unneeded)]);
    assert_eq!(pool.seats(), 4, "they are still there");
    for id in [2, 3, 4] {
        assert!(!pool.is_settled());
        assert_eq!(
            pool.exited(w(id), false, now),
            None,
            "nobody comes after {id}"
        );
    }
    assert!(pool.is_settled());
    assert_eq!(
        (pool.seats(), pool.target().count, pool.deadline()),
        (1, 1, None)
    );
    pool.scale(2);
    assert_eq!(
        (pool.seats(), pool.is_settled()),
        (2, false),
        "a seat is to be seen before somebody is there"
    );
    calm(&mut pool, now);
    pool.scale(1);
    assert!(!pool.is_settled(), "before anybody was told");
}

#[test]
fn a_recycled_worker_goes_when_its_successor_is_ready() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    assert!(pool.recycle(w(2)) && !pool.is_settled());
    assert_eq!(
        turn(&mut pool, now),
        [Action::Spawn {
            seat: 1,
            id: w(3),
            generation: Generation(1)
        }]
    );
    assert!(!pool.recycle(w(3)), "it is not ready yet");
    assert_eq!(pool.occupant(1).map(|member| member.id), Some(w(2)));
    assert!(pool.ready(w(3), now));
    assert_eq!(pool.occupant(1).map(|member| member.id), Some(w(3)));
    let late = now + DRAIN;
    assert_eq!(
        turn(&mut pool, now),
        [Action::Drain {
            id: w(2),
            by: late,
            why: Why::Recycle
        }]
    );
    assert!(!pool.is_settled());
    assert_eq!(pool.deadline(), Some(late));
    assert_eq!(
        turn(&mut pool, late),
        [Action::Kill {
            id: w(2),
            why: Late::NotGone
        }]
    );
    assert_eq!(
        pool.exited(w(2), false, late),
        None,
        "its successor is there"
    );
    assert!(pool.is_settled());
    // One that is gone before that makes nobody wait who is there.
    assert!(pool.recycle(w(3)));
    turn(&mut pool, late);
    assert_eq!((pool.exited(w(3), false, now), pool.due(1)), (None, None));
}

#[test]
fn all_are_recycled_a_few_at_a_time() {
    let now = Instant::now();
    let mut pool = ready_pool(9, now);
    pool.recycle_all();
    assert_eq!(spawned(&turn(&mut pool, now)), [(0, w(10)), (1, w(11))]);
    assert!(pool.ready(w(11), now));
    let actions = turn(&mut pool, now);
    assert_eq!(
        (drained(&actions), spawned(&actions)),
        (vec![(w(2), Why::Recycle)], vec![(2, w(12))])
    );
    // One whose worker dies does not wait for its turn.
    assert!(pool.exited(w(9), true, now).is_some());
    assert_eq!(spawned(&turn(&mut pool, now)), [(8, w(13))]);
    assert!([10, 12, 13].iter().all(|id| pool.ready(w(*id), now)));
    assert_eq!(calm(&mut pool, now).len(), 2 + 2 * 5);
    assert!(pool.exited(w(2), true, now).is_none());
    assert!(pool.is_settled() && pool.members().all(|member| member.id > w(9)));
}

#[test]
fn a_worn_worker_and_an_old_one_are_replaced() {
    let now = Instant::now();
    let mut pool = ready_pool(1, now);
    pool.near_request_limit(w(1));
    assert_eq!(
        drained(&calm(&mut pool, now)),
        [(w(1), Why::NearRequestLimit)]
    );
    let lifetime = Duration::from_secs(1000);
    assert!(pool.reload(Target {
        max_lifetime: Some(lifetime),
        ..target(2, 64)
    }));
    calm(&mut pool, now);
    let ages: Vec<Duration> = pool
        .members()
        .filter_map(|member| Some(member.old_at? - now))
        .collect();
    assert!(
        ages.iter()
            .all(|age| (lifetime * 9 / 10..=lifetime).contains(age)),
        "{ages:?}"
    );
    assert!(
        ages.iter().max() > ages.iter().min().map(|age| *age + lifetime / 20).as_ref(),
        "{ages:?}"
    );
    let due = pool.deadline().expect("age is a deadline");
    assert_eq!(turn(&mut pool, due - Duration::from_millis(1)), []);
    assert_eq!(spawned(&ready(&mut pool, due)).len(), 1);
    assert!(matches!(
        drained(&turn(&mut pool, due))[..],
        [(_, Why::Lifetime)]
    ));
}

#[test]
fn a_held_worker_is_left_alone_until_it_is_released() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    assert!(pool.hold(w(1)) && !pool.hold(w(1)) && !pool.release(w(2)));
    assert_eq!(spawned(&turn(&mut pool, now)), [(0, w(3))]);
    assert!(!pool.hold(w(3)), "it is not ready");
    assert!(!pool.recycle(w(1)));
    assert!(pool.ready(w(3), now) && pool.is_settled());
    assert!(pool.reload(target(2, 2)));
    assert_eq!(
        drained(&calm(&mut pool, now)),
        [(w(3), Why::Reload), (w(2), Why::Reload)]
    );
    pool.scale(1);
    calm(&mut pool, now);
    assert!(pool.is_settled(), "a held one does not count");
    assert_eq!(pool.occupant(0).map(|member| member.id), Some(w(4)));
    assert!(pool.release(w(1)));
    assert_eq!(drained(&turn(&mut pool, now)), [(w(1), Why::Reload)]);
}

#[test]
fn a_released_worker_gets_its_seat_back() {
    let now = Instant::now();
    let mut pool = ready_pool(1, now);
    assert!(pool.hold(w(1)));
    turn(&mut pool, now);
    // Its successor only starts.
    assert!(pool.release(w(1)));
    assert_eq!(
        turn(&mut pool, now),
        [Action::Kill {
            id: w(2),
            why: Late::Unneeded
        }]
    );
    assert_eq!(pool.exited(w(2), false, now), None);
    assert!(
        matches!(pool.member(w(1)), Some(Member { state: MemberState::Ready { since }, .. }) if *since == now)
    );
    assert!(pool.hold(w(1)));
    ready(&mut pool, now);
    assert!(pool.release(w(1)));
    assert_eq!(
        drained(&turn(&mut pool, now)),
        [(w(3), Why::Surplus)],
        "its substitute goes"
    );
    assert_eq!(turn(&mut pool, now), [], "and no other one comes");
    // Of two that are released the later one stays.
    let mut pool = ready_pool(1, now);
    assert!(pool.hold(w(1)));
    ready(&mut pool, now);
    assert!(pool.hold(w(2)) && pool.release(w(2)) && pool.release(w(1)));
    assert_eq!(drained(&turn(&mut pool, now)), [(w(2), Why::Surplus)]);
    // Its substitute is recycled meanwhile.
    let mut pool = ready_pool(1, now);
    assert!(pool.hold(w(1)));
    ready(&mut pool, now);
    assert!(pool.recycle(w(2)) && pool.release(w(1)));
    assert_eq!(pool.occupant(0).map(|member| member.id), Some(w(1)));
    assert_eq!(drained(&turn(&mut pool, now)), [(w(2), Why::Recycle)]);
}
