//! Workers that are stuck.

use super::*;

#[test]
fn a_stuck_worker_keeps_its_seat_until_it_is_killed() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut pool = ready_pool(2, now);
    assert!(
        pool.stalled(w(1), None) && !pool.stalled(w(1), None),
        "only the first mark is new"
    );
    assert_eq!(turn(&mut pool, now), []);
    assert!(pool.is_settled());
    assert!(!pool.stalled(w(1), Some(at(5))));
    assert_eq!(pool.deadline(), Some(at(5)));
    assert!(!pool.stalled(w(1), Some(at(8))));
    assert_eq!(turn(&mut pool, at(5)), []);
    assert!(pool.revived(w(1)) && !pool.revived(w(1)));
    assert_eq!((turn(&mut pool, at(8)), pool.deadline()), (vec![], None));
    assert!(pool.stalled(w(1), Some(at(9))), "marked again");
    assert_eq!(turn(&mut pool, at(9))[0], kill(1, KillDecision::Stalled));
    // A process in the kernel may outlive SIGKILL for long; it is not looked at again.
    assert_eq!(pool.member(w(1)).and_then(|member| member.kill_by), None);
    assert_eq!(
        spawned(&pool.reconcile(at(9))),
        [],
        "its successor was in the same turn"
    );
    assert_eq!(pool.exited(w(1), false, at(9)), None);
    assert_eq!(pool.due(0), None, "a kill is not a failure");
    assert_eq!(pool.member(w(3)).map(|member| member.seat), Some(0));
    assert!(
        !pool.stalled(w(3), Some(at(9))),
        "a starting worker has its own deadline"
    );
}

#[test]
fn a_stuck_draining_worker_is_killed_at_its_first_deadline() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    let soon = now + Duration::from_secs(1);
    assert!(pool.stalled(w(1), Some(soon)) && pool.stalled(w(2), Some(now + DRAIN * 2)));
    pool.recycle_all();
    // Stuck workers do not serve, so no seat waits its turn.
    assert_eq!(spawned(&ready(&mut pool, now)).len(), 2);
    assert_eq!(drained(&turn(&mut pool, now)).len(), 2);
    assert_eq!(turn(&mut pool, soon), [kill(1, KillDecision::Stalled)]);
    assert_eq!(
        turn(&mut pool, now + DRAIN),
        [kill(2, KillDecision::NotGone)]
    );
}

#[test]
fn a_held_worker_is_never_killed_for_being_stuck() {
    let now = Instant::now();
    let late = now + Duration::from_secs(5);
    let mut pool = ready_pool(1, now);
    assert!(pool.stalled(w(1), Some(now)) && pool.hold(w(1)));
    ready(&mut pool, now);
    assert_eq!((turn(&mut pool, late), pool.deadline()), (vec![], None));
    assert!(pool.exited(w(2), true, late).is_some());
    assert!(pool.release(w(1)));
    assert_eq!(
        turn(&mut pool, late),
        [Action::Spawn {
            seat: 1,
            id: w(3),
            generation: Generation(1)
        }],
        "a stand-in"
    );
    assert!(!pool.stalled(w(1), Some(late)), "it is still marked");
    assert_eq!(
        killed(&turn(&mut pool, late)),
        [(w(1), KillDecision::Stalled)]
    );
}

#[test]
fn the_stuck_one_of_two_workers_in_a_seat_drains() {
    let now = Instant::now();
    let mut pool = ready_pool(1, now);
    assert!(pool.hold(w(1)));
    ready(&mut pool, now);
    assert!(pool.stalled(w(2), None) && pool.release(w(1)));
    assert_eq!(drained(&turn(&mut pool, now)), [(w(2), Why::Surplus)]);
}

#[test]
fn a_stand_in_serves_while_all_are_stuck() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    assert!(pool.stalled(w(1), None));
    assert_eq!(turn(&mut pool, now), []);
    assert!(pool.stalled(w(2), None));
    assert_eq!(spawned(&turn(&mut pool, now)), [(2, w(3))]);
    assert!(pool.ready(w(3), now) && pool.is_settled());
    assert!(pool.stalled(w(3), None));
    assert_eq!(spawned(&ready(&mut pool, now)), [(3, w(4))]);
    assert!(pool.stalled(w(4), None));
    assert_eq!(turn(&mut pool, now), [], "at most as many as workers");
    assert!(pool.revived(w(4)));
    assert_eq!(turn(&mut pool, now), [], "it is in no wanted seat");
    assert!(pool.revived(w(1)));
    assert_eq!(
        drained(&turn(&mut pool, now)),
        [(w(3), Why::Surplus), (w(4), Why::Surplus)]
    );
}

#[test]
fn a_stand_in_stays_until_the_killed_worker_is_replaced() {
    let now = Instant::now();
    let mut pool = ready_pool(1, now);
    assert!(pool.stalled(w(1), Some(now + DRAIN)));
    assert_eq!(spawned(&ready(&mut pool, now)), [(1, w(2))]);
    let killed_at = now + DRAIN;
    assert_eq!(turn(&mut pool, killed_at).len(), 2);
    assert_eq!(pool.exited(w(1), false, killed_at), None);
    assert!(pool.ready(w(3), killed_at));
    assert_eq!(drained(&turn(&mut pool, killed_at)), [(w(2), Why::Surplus)]);
}

#[test]
fn a_failed_stand_in_waits_and_a_starting_one_is_killed() {
    let now = Instant::now();
    let mut pool = ready_pool(3, now);
    assert!((1..=3).all(|id| pool.stalled(w(id), None)));
    assert_eq!(spawned(&turn(&mut pool, now)), [(3, w(4))]);
    let delay = pool.exited(w(4), false, now).expect("a successor is due");
    assert!(delay >= Duration::from_millis(100));
    assert_eq!(turn(&mut pool, now), [], "no other seat is used");
    assert_eq!(spawned(&turn(&mut pool, now + delay)), [(3, w(5))]);
    assert!(pool.revived(w(2)));
    assert_eq!(
        turn(&mut pool, now + delay),
        [kill(5, KillDecision::Unneeded)]
    );
    assert_eq!(pool.exited(w(5), false, now + delay), None);
}

#[test]
fn stand_ins_are_scaled_with_the_workers() {
    let now = Instant::now();
    let mut pool = ready_pool(3, now);
    for id in 1..=5 {
        assert!(pool.stalled(w(id), None));
        ready(&mut pool, now);
    }
    assert_eq!(pool.seats(), 6);
    assert!(pool.stalled(w(6), None));
    pool.scale(1);
    assert_eq!(
        drained(&turn(&mut pool, now)).len(),
        4,
        "one is wanted, and one stands in"
    );
}

#[test]
fn a_roll_continues_although_all_workers_are_stuck() {
    let now = Instant::now();
    let mut pool = ready_pool(2, now);
    assert!(pool.stalled(w(1), None) && pool.stalled(w(2), None) && pool.reload(target(2, 2)));
    assert_eq!(spawned(&ready(&mut pool, now)), [(0, w(3)), (1, w(4))]);
    let drains = vec![(w(1), Why::Reload), (w(2), Why::Reload)];
    let actions = turn(&mut pool, now);
    assert_eq!((actions[0], drained(&actions)), (Action::Applied, drains));
}

#[test]
fn a_worker_that_retires_by_itself_has_a_successor_at_once() {
    let now = Instant::now();
    let mut pool = ready_pool(1, now);
    pool.retires(w(1));
    let actions = turn(&mut pool, now);
    assert_eq!(drained(&actions), [(w(1), Why::Unresponsive)]);
    assert_eq!(spawned(&actions), [(0, w(2))]);
    assert!(pool.ready(w(2), now));
    assert_eq!(pool.exited(w(1), false, now), None);
    assert_eq!(turn(&mut pool, now), []);
    // A worker that was near its limit of requests has reached it.
    pool.spent(w(2), Why::NearRequestLimit);
    assert_eq!(spawned(&turn(&mut pool, now)), [(0, w(3))]);
    pool.retires(w(2));
    let actions = turn(&mut pool, now);
    assert_eq!(actions.len(), 1, "its successor is starting already");
    assert_eq!(drained(&actions), [(w(2), Why::NearRequestLimit)]);
}
