//! Reloads and rollbacks.

use super::reconcile::YOUTH;
use super::*;

/// Returns a roll in which `replaced` of `count` workers were replaced and two more are starting.
fn rolling(count: usize, replaced: usize, now: Instant) -> Pool {
    let mut pool = ready_pool(count, now);
    assert!(pool.reload(target(2, count)));
    turn(&mut pool, now);
    for _ in 0..replaced {
        let id = starting(&pool)[0];
        assert!(pool.ready(id, now));
        let drains = drained(&turn(&mut pool, now));
        assert!(
            drains
                .iter()
                .all(|(id, _)| pool.exited(*id, true, now).is_none())
                && drains.len() == 1
        );
    }
    pool
}

fn starting(pool: &Pool) -> Vec<WorkerId> {
    pool.members()
        .filter(|member| member.is_starting())
        .map(|member| member.id)
        .collect()
}

#[test]
fn a_roll_replaces_few_workers_at_a_time_by_ready_ones() {
    let now = Instant::now();
    let mut pool = ready_pool(8, now);
    assert!(pool.reload(target(2, 8)) && pool.is_rolling());
    assert!(!pool.reload(target(3, 8)), "one roll at a time");
    let actions = turn(&mut pool, now);
    assert_eq!(
        (spawned(&actions), actions.len()),
        (vec![(0, w(9)), (1, w(10))], 2)
    );
    assert_eq!(turn(&mut pool, now), []);
    for replaced in 1..=8 {
        let id = starting(&pool)[0];
        assert!(pool.ready(id, now));
        let actions = turn(&mut pool, now);
        assert_eq!(drained(&actions), [(w(replaced), Why::Reload)]);
        assert_eq!(spawned(&actions).len(), usize::from(replaced <= 6));
        assert_eq!(
            actions.contains(&Action::Applied),
            replaced == 8,
            "{actions:?}"
        );
        assert_eq!(generations(&pool).len(), 8);
    }
    assert!(
        !pool.is_rolling() && !pool.is_settled(),
        "the old workers still drain"
    );
    for id in 1..=8 {
        assert_eq!(pool.exited(w(id), true, now), None);
    }
    assert!(pool.is_settled() && pool.reload(target(3, 8)));
}

#[test]
fn a_new_worker_that_is_not_ready_in_time_rolls_back() {
    let now = Instant::now();
    let mut pool = rolling(8, 3, now);
    assert_eq!(generations(&pool), [2, 2, 2, 1, 1, 1, 1, 1]);
    let starts = starting(&pool);
    let late = now + START;
    let actions = turn(&mut pool, late);
    assert_eq!(
        killed(&actions),
        [
            (starts[0], KillDecision::NotReady),
            (starts[1], KillDecision::NotReady)
        ]
    );
    assert!(actions.contains(&Action::RolledBack) && !pool.is_rolling());
    assert_eq!(*pool.target(), target(1, 8));
    // Seats with a worker of the generation that is wanted again keep it.
    assert_eq!(
        spawned(&actions)
            .iter()
            .map(|(seat, _)| *seat)
            .collect::<Vec<_>>(),
        [0, 1]
    );
    assert_eq!(drained(&actions), []);
    assert!(
        starts
            .iter()
            .all(|id| pool.exited(*id, false, late).is_none())
    );
    let drains = drained(&calm_from(&mut pool, actions, late));
    assert_eq!(drains.len(), 3);
    assert!(drains.iter().all(|(_, why)| *why == Why::Rollback));
    assert!(pool.is_settled());
    assert_eq!(generations(&pool), [1; 8]);
}

/// Runs [`calm`] after making the workers that were just spawned ready.
fn calm_from(pool: &mut Pool, before: Vec<Action>, now: Instant) -> Vec<Action> {
    assert!(spawned(&before).iter().all(|(_, id)| pool.ready(*id, now)));
    calm(pool, now)
}

#[test]
fn three_failed_new_workers_roll_back_and_cause_no_wait() {
    let mut now = Instant::now();
    let mut pool = rolling(8, 1, now);
    // A seat whose old worker dies during the roll gets a new one, which fails as well.
    assert!(pool.exited(w(8), true, now).is_some());
    let [(7, id)] = spawned(&turn(&mut pool, now))[..] else {
        panic!("the seat gets a new worker")
    };
    assert_eq!(
        pool.member(id).map(|member| member.generation),
        Some(Generation(2))
    );
    for failures in 1..3 {
        let id = pool.occupant(7).expect("a new one").id;
        let delay = pool.exited(id, false, now).expect("a successor is due");
        assert!(delay >= Duration::from_millis(100));
        assert_eq!(turn(&mut pool, now), []);
        now += delay;
        assert_eq!(spawned(&turn(&mut pool, now)).len(), 1, "after {failures}");
    }
    let (other, last) = (starting(&pool)[0], pool.occupant(7).expect("a new one").id);
    assert_eq!(pool.exited(last, false, now), None, "it has no successor");
    let actions = turn(&mut pool, now);
    assert_eq!(actions[0], Action::RolledBack);
    assert!(
        killed(&actions).contains(&(other, KillDecision::Unneeded)),
        "{actions:?}"
    );
    assert!(
        spawned(&actions).iter().any(|(seat, _)| *seat == 7),
        "at once: {actions:?}"
    );
    assert_eq!(pool.exited(other, false, now), None);
    assert!(
        pool.reload(target(3, 8)),
        "another reload is accepted at once"
    );
    for (id, _) in killed(&actions) {
        pool.exited(id, false, now);
    }
    calm_from(&mut pool, actions, now);
    assert_eq!(generations(&pool), [3; 8]);
}

#[test]
fn a_failed_generation_leaves_seats_without_other_workers() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    assert!(pool.reload(target(2, 2)));
    assert_eq!(spawned(&turn(&mut pool, now)), [(0, w(3))]);
    assert!(pool.exited(w(2), true, now).is_some());
    let later = now + START / 2;
    assert_eq!(spawned(&turn(&mut pool, later)), [(1, w(4))]);
    let actions = turn(&mut pool, now + START);
    assert_eq!(
        killed(&actions),
        [
            (w(3), KillDecision::NotReady),
            (w(4), KillDecision::Unneeded)
        ]
    );
    assert_eq!(spawned(&actions), [(1, w(5))]);
    assert_eq!(
        pool.member(w(5)).map(|member| member.generation),
        Some(Generation(1))
    );
}

#[test]
fn a_death_in_probation_is_a_failure_and_a_later_one_is_not() {
    let now = Instant::now();
    let mut pool = rolling(8, 3, now);
    let new: Vec<WorkerId> = pool
        .members()
        .filter(|m| m.generation.0 == 2)
        .map(|m| m.id)
        .take(3)
        .collect();
    for (round, id) in new.into_iter().enumerate() {
        pool.exited(id, round == 0, now);
    }
    assert!(!turn(&mut pool, now).contains(&Action::RolledBack));
    let id = starting(&pool)[0];
    pool.exited(id, false, now);
    assert!(turn(&mut pool, now).contains(&Action::RolledBack));
}

#[test]
fn a_reload_clears_waits_and_ignores_old_failures() {
    let now = Instant::now();
    let mut pool = Pool::new(target(1, 2), now, 1);
    turn(&mut pool, now);
    assert!(pool.ready(w(1), now) && pool.exited(w(2), false, now).is_some());
    assert_eq!(turn(&mut pool, now), []);
    assert!(pool.reload(target(2, 2)));
    assert_eq!(
        spawned(&turn(&mut pool, now)),
        [(0, w(3)), (1, w(4))],
        "a new configuration has no wait"
    );
    // In its probation, but of the old generation.
    assert_eq!(pool.exited(w(1), false, now), None);
    assert!(pool.exited(w(3), false, now) > Some(Duration::ZERO));
    assert!(pool.exited(w(4), false, now) > Some(Duration::ZERO));
    assert_eq!(turn(&mut pool, now), [], "two failures");
    // A starting worker that is not ready in time is not a failure of it either.
    let mut pool = Pool::new(target(1, 1), now, 1);
    turn(&mut pool, now);
    let later = now + START / 2;
    assert!(pool.reload(target(2, 1)));
    assert_eq!(spawned(&turn(&mut pool, later)), [(0, w(2))]);
    assert_eq!(
        turn(&mut pool, now + START),
        [kill(1, KillDecision::NotReady)]
    );
    assert!(pool.is_rolling() && pool.exited(w(1), false, now + START).is_none());
    assert!(
        pool.ready(w(2), now + START) && !pool.is_settled(),
        "Applied was not returned yet"
    );
    assert_eq!(turn(&mut pool, now + START), [Action::Applied]);
    assert!(pool.is_settled());
}

#[test]
fn an_old_starting_worker_stays_until_its_successor_is_ready() {
    let now = Instant::now();
    let mut pool = Pool::new(target(1, 2), now, 1);
    turn(&mut pool, now);
    assert!(pool.reload(target(2, 2)));
    assert_eq!(spawned(&turn(&mut pool, now)), [(0, w(3)), (1, w(4))]);
    assert!(pool.ready(w(3), now));
    assert_eq!(turn(&mut pool, now), [kill(1, KillDecision::Unneeded)]);
    assert!(pool.ready(w(4), now));
    assert_eq!(
        turn(&mut pool, now),
        [Action::Applied, kill(2, KillDecision::Unneeded)]
    );
}

#[test]
fn a_roll_may_change_the_count_and_drains_the_surplus_last() {
    let now = Instant::now();
    let mut pool = ready_pool(4, now);
    assert!(pool.reload(target(2, 2)));
    assert_eq!(spawned(&ready(&mut pool, now)), [(0, w(5))]);
    let actions = ready(&mut pool, now);
    assert_eq!(
        (spawned(&actions), drained(&actions)),
        (vec![(1, w(6))], vec![(w(1), Why::Reload)])
    );
    let drains = [(w(2), Why::Reload), (w(3), Why::Scale), (w(4), Why::Scale)];
    let actions = turn(&mut pool, now);
    assert_eq!(
        (actions[0], drained(&actions)),
        (Action::Applied, drains.to_vec())
    );
    // A growing count, rolled back.
    let mut pool = ready_pool(2, now);
    assert!(pool.reload(target(2, 4)));
    assert_eq!(
        spawned(&turn(&mut pool, now)),
        [(0, w(3)), (2, w(4)), (3, w(5))]
    );
    assert!(pool.ready(w(4), now));
    let actions = turn(&mut pool, now + START);
    assert!(actions.contains(&Action::RolledBack));
    assert_eq!(drained(&actions), [(w(4), Why::Scale)]);
    assert_eq!(pool.target().count, 2);
}

#[test]
fn scaling_during_a_roll_outlives_it() {
    let now = Instant::now();
    let mut pool = rolling(4, 3, now);
    pool.scale(5);
    let [(4, id)] = spawned(&turn(&mut pool, now))[..] else {
        panic!("the new seat does not wait")
    };
    assert!(pool.ready(id, now));
    assert_eq!(turn(&mut pool, now), [], "one seat has no new worker yet");
    pool.scale(2);
    let actions = turn(&mut pool, now);
    assert_eq!(
        actions.iter().position(|action| *action == Action::Applied),
        Some(0),
        "the other seats have one"
    );
    assert!(drained(&actions).iter().all(|(_, why)| *why == Why::Scale));
    // A starting worker of a seat that is not wanted any more is killed, whatever the result of the roll.
    let mut pool = ready_pool(1, now);
    assert!(pool.reload(target(2, 2)));
    assert_eq!(spawned(&turn(&mut pool, now)), [(0, w(2)), (1, w(3))]);
    pool.scale(1);
    assert_eq!(turn(&mut pool, now), [kill(3, KillDecision::Unneeded)]);
    // Scaled, then rolled back.
    let mut pool = rolling(4, 1, now);
    pool.scale(3);
    assert_eq!(turn(&mut pool, now), [], "seat 3 may be wanted again");
    let actions = turn(&mut pool, now + START);
    assert!(actions.contains(&Action::RolledBack));
    assert_eq!(drained(&actions), [(w(4), Why::Scale)]);
    assert_eq!(*pool.target(), target(1, 3));
}

#[test]
fn few_successors_start_at_the_same_moment() {
    let now = Instant::now();
    let mut pool = ready_pool(64, now);
    assert!(pool.reload(target(2, 64)));
    let first = spawned(&turn(&mut pool, now));
    assert_eq!(first.len(), 4);
    assert_eq!(turn(&mut pool, now), []);
    assert!(pool.ready(first[0].1, now));
    let actions = turn(&mut pool, now);
    assert_eq!((spawned(&actions).len(), drained(&actions).len()), (1, 1));
    // Those that take long do not count any more.
    let mut later = now;
    for starting in [8, 12, 16] {
        later = pool.deadline().expect("the next ones are due");
        assert!(later > now && later <= now + START);
        assert_eq!(spawned(&turn(&mut pool, later)).len(), 4, "{starting}");
    }
    assert_eq!(turn(&mut pool, later + YOUTH), [], "a quarter is starting");
}

#[test]
fn a_stop_ends_the_pace_of_successors() {
    let now = Instant::now();
    let mut pool = ready_pool(64, now);
    assert!(pool.reload(target(2, 64)));
    turn(&mut pool, now);
    assert!(pool.deadline().is_some_and(|due| due < now + DRAIN));
    pool.stop(now + DRAIN);
    turn(&mut pool, now);
    assert_eq!(pool.deadline(), Some(now + DRAIN), "it would spin");
}

#[test]
fn a_death_before_new_seats_have_workers_gives_up_nothing() {
    let now = Instant::now();
    let mut pool = Pool::new(target(1, 1), now, 1);
    turn(&mut pool, now);
    pool.reload(target(2, 3));
    assert!(pool.exited(w(1), false, now).is_some());
    assert_eq!(spawned(&turn(&mut pool, now)).len(), 3);
}

#[test]
fn the_successor_of_a_worker_is_the_one_that_stays_in_its_seat() {
    let now = Instant::now();
    let mut pool = ready_pool(8, now);
    assert_eq!(pool.successor(w(3)), None);
    assert!(pool.reload(target(2, 8)));
    let spawned = spawned(&ready(&mut pool, now));
    for (seat, id) in spawned {
        let before = w(seat as u64 + 1);
        assert_eq!(pool.successor(before), Some(id));
        assert_eq!(pool.successor(id), None);
    }
    assert_eq!(pool.successor(w(8)), None, "its seat comes later");
}

#[test]
fn a_draining_worker_is_not_killed_while_its_clients_move() {
    let now = Instant::now();
    let mut pool = ready_pool(1, now);
    assert!(pool.recycle(w(1)));
    ready(&mut pool, now);
    assert_eq!(drained(&turn(&mut pool, now)), [(w(1), Why::Recycle)]);
    let half = now + DRAIN / 2;
    pool.clients_moved(w(1), half);
    assert_eq!(turn(&mut pool, now + DRAIN), []);
    assert_eq!(
        turn(&mut pool, half + DRAIN),
        [kill(1, KillDecision::NotGone)]
    );
}

#[test]
fn the_first_workers_serve_while_others_start() {
    let now = Instant::now();
    let mut pool = Pool::new(target(1, 64), now, 1);
    let first = spawned(&turn(&mut pool, now));
    assert_eq!(first.len(), 4);
    assert!(pool.deadline().is_some_and(|due| due == now + YOUTH));
    assert!(pool.ready(first[0].1, now));
    assert_eq!(spawned(&turn(&mut pool, now)), [(4, w(5))]);
    assert_eq!(spawned(&turn(&mut pool, now + YOUTH)).len(), 4);
}

#[test]
fn a_seat_that_does_not_serve_comes_before_successors() {
    let now = Instant::now();
    let mut pool = ready_pool(64, now);
    assert!(pool.reload(target(2, 64)));
    pool.exited(w(64), true, now);
    let spawned = spawned(&turn(&mut pool, now));
    assert!(spawned.len() == 4 && spawned[3].0 == 63, "{spawned:?}");
}
