use super::events::PROBATION;
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
        tries: 3,
    }
}

/// Returns a pool of this many ready workers of generation 1: ids 1, 2, … in seats 0, 1, ….
fn ready_pool(count: usize, now: Instant) -> Pool {
    let mut pool = Pool::new(target(1, count), now, 1);
    let mut spawned = 0;
    while spawned < count {
        spawned += ready(&mut pool, now).len();
    }
    assert!(pool.is_settled());
    pool
}

/// Returns the actions that are due; a second call has none.
fn turn(pool: &mut Pool, now: Instant) -> Vec<Action> {
    let actions = pool.reconcile(now);
    assert_eq!(pool.reconcile(now), []);
    actions
}

/// Runs a turn, and makes all spawned workers ready.
fn ready(pool: &mut Pool, now: Instant) -> Vec<Action> {
    let actions = turn(pool, now);
    assert!(spawned(&actions).iter().all(|(_, id)| pool.ready(*id, now)));
    actions
}

/// Runs turns in which every action succeeds, until there is none.
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

fn killed(actions: &[Action]) -> Vec<(WorkerId, KillDecision)> {
    let kill = |action: &Action| match action {
        Action::Kill { id, why } => Some((*id, *why)),
        _ => None,
    };
    actions.iter().filter_map(kill).collect()
}

/// Returns the generations of ready workers, by seat.
fn generations(pool: &Pool) -> Vec<u64> {
    let generation = |seat| {
        pool.occupant(seat)
            .filter(|m| m.is_ready())
            .map(|m| m.generation.0)
    };
    (0..pool.seats()).filter_map(generation).collect()
}

const fn w(id: u64) -> WorkerId {
    WorkerId(id)
}

const fn kill(id: u64, why: KillDecision) -> Action {
    Action::Kill { id: w(id), why }
}

#[test]
fn a_worker_killed_while_it_serves_is_replaced_at_once() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    assert_eq!(pool.exited(w(2), true, now), Some(Duration::ZERO));
    assert_eq!(spawned(&turn(&mut pool, now)), [(1, w(3))]);
    // Being idle for longer than the probation counts as an answer.
    assert!(pool.ready(w(3), now));
    assert_eq!(
        pool.exited(w(3), false, now + PROBATION),
        Some(Duration::ZERO)
    );
}

#[test]
fn a_streak_of_failures_doubles_the_wait_of_its_seat_only() {
    let mut now = Instant::now();
    let mut pool = Pool::new(target(1, 2), now, 1);
    assert_eq!(turn(&mut pool, now).len(), 2);
    assert!(pool.ready(w(1), now));
    let mut id = w(2);
    let mut last = Duration::ZERO;
    for round in 0..12 {
        // Every other worker is ready for a moment.
        assert!(round % 2 == 0 || pool.ready(id, now));
        let delay = pool.exited(id, false, now).expect("a successor is due");
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
    let first = pool.occupant(0).expect("a worker");
    assert!(first.id == w(1) && first.is_ready());
    assert!(pool.ready(id, now));
    assert_eq!(
        pool.exited(id, true, now),
        Some(Duration::ZERO),
        "an answer ends the streak"
    );
    let id = spawned(&turn(&mut pool, now))[0].1;
    assert!(
        pool.exited(id, false, now)
            .is_some_and(|delay| delay < Duration::from_millis(200)),
        "the streak is over"
    );
}

#[test]
fn a_postponed_start_is_no_failure_and_follows_soon() {
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
fn a_worker_not_ready_in_time_is_killed_once_and_seat_waits() {
    let now = Instant::now();
    let mut pool = Pool::new(target(1, 1), now, 1);
    turn(&mut pool, now);
    assert_eq!(pool.deadline(), Some(now + START));
    let late = now + START;
    assert_eq!(turn(&mut pool, late), [kill(1, KillDecision::NotReady)]);
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
fn the_pool_gives_up_if_no_worker_is_ever_ready() {
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
fn stop_kills_starting_and_late_workers_and_drains_others() {
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

    assert_eq!(
        turn(&mut pool, now),
        [&stops[..], &[kill(7, KillDecision::Unneeded)]].concat()
    );
    assert!(!pool.reload(target(2, 4)));
    assert_eq!(pool.exited(w(7), false, now), None);
    pool.stop(now);
    assert_eq!(
        killed(&turn(&mut pool, now)),
        [1, 2, 4, 5, 6].map(|id| (w(id), KillDecision::NotGone))
    );
    assert!(!pool.is_finished());
    for id in [1, 2, 4, 5, 6] {
        assert_eq!(pool.exited(w(id), true, now), None);
    }
    assert!(pool.is_finished());
    assert_eq!((pool.deadline(), turn(&mut pool, now)), (None, vec![]));
}

#[test]
fn scaling_adds_and_drains_workers_and_kills_starting_ones() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    pool.scale(4);
    assert_eq!(spawned(&turn(&mut pool, now)), [(2, w(3)), (3, w(4))]);
    assert!(pool.ready(w(3), now));
    assert!(!pool.is_settled());
    pool.scale(1);
    let actions = turn(&mut pool, now);
    assert_eq!(drained(&actions), [(w(2), Why::Scale), (w(3), Why::Scale)]);
    assert_eq!(killed(&actions), [(w(4), KillDecision::Unneeded)]);
    assert_eq!(pool.seats(), 4, "draining workers still show");
    for id in [2, 3, 4] {
        assert!(!pool.is_settled());
        assert_eq!(pool.exited(w(id), false, now), None, "no successor of {id}");
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
        "a seat shows before it has a worker"
    );
    calm(&mut pool, now);
    pool.scale(1);
    assert!(!pool.is_settled(), "before any action");
}

#[test]
fn a_pool_is_complete_when_each_seat_has_a_ready_worker() {
    let now = Instant::now();
    let mut pool = Pool::new(target(1, 2), now, 1);
    assert!(!pool.is_complete(), "before any action");
    turn(&mut pool, now);
    assert!(pool.ready(w(1), now) && !pool.is_complete());
    let wait = pool.exited(w(2), false, now).expect("it is replaced");
    assert!(wait > Duration::ZERO);
    turn(&mut pool, now);
    assert!(!pool.is_complete(), "a seat waits");
    assert_eq!(spawned(&turn(&mut pool, now + wait)), [(1, w(3))]);
    assert!(pool.ready(w(3), now + wait) && pool.is_complete());
    assert!(pool.recycle(w(1)) && pool.is_complete(), "it still serves");
    pool.scale(3);
    assert!(!pool.is_complete());
    pool.scale(1);
    assert!(pool.is_complete());
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
    assert_eq!(turn(&mut pool, late), [kill(2, KillDecision::NotGone)]);
    assert_eq!(
        pool.exited(w(2), false, late),
        None,
        "its successor is there"
    );
    assert!(pool.is_settled());
    // A worker that exits before its successor is ready causes no wait.
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
    // A seat whose worker dies does not wait its turn.
    assert!(pool.exited(w(9), true, now).is_some());
    assert_eq!(spawned(&turn(&mut pool, now)), [(8, w(13))]);
    assert!([10, 12, 13].iter().all(|id| pool.ready(w(*id), now)));
    assert_eq!(calm(&mut pool, now).len(), 2 + 2 * 5);
    assert!(pool.exited(w(2), true, now).is_none());
    assert!(pool.is_settled() && pool.members().all(|member| member.id > w(9)));
}

#[test]
fn request_limit_and_lifetime_replace_a_worker() {
    let now = Instant::now();
    let mut pool = ready_pool(1, now);
    pool.spent(w(1), Why::NearRequestLimit);
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
fn a_held_worker_is_not_touched_until_its_release() {
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
    assert!(pool.is_settled(), "a held worker does not count");
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
    // Its successor is starting.
    assert!(pool.release(w(1)));
    assert_eq!(turn(&mut pool, now), [kill(2, KillDecision::Unneeded)]);
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
        "its substitute leaves"
    );
    assert_eq!(turn(&mut pool, now), [], "no other worker is started");
    // Of two released workers the later one stays.
    let mut pool = ready_pool(1, now);
    assert!(pool.hold(w(1)));
    ready(&mut pool, now);
    assert!(pool.hold(w(2)) && pool.release(w(2)) && pool.release(w(1)));
    assert_eq!(drained(&turn(&mut pool, now)), [(w(2), Why::Surplus)]);
    // Its substitute was recycled before the release.
    let mut pool = ready_pool(1, now);
    assert!(pool.hold(w(1)));
    ready(&mut pool, now);
    assert!(pool.recycle(w(2)) && pool.release(w(1)));
    assert_eq!(pool.occupant(0).map(|member| member.id), Some(w(1)));
    assert_eq!(drained(&turn(&mut pool, now)), [(w(2), Why::Recycle)]);
}
