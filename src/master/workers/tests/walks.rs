//! The costs of an iteration of the loop in which nothing happens: it looks at no worker, however many there are.

use std::time::Duration;

use crate::config::{Config, Dispatch};
use crate::loop_clock::LoopClock;
use crate::master::workers::channel_state::ChannelState;
use crate::master::workers::tests::simulation::Simulation;

#[test]
fn an_iteration_without_events_looks_at_no_worker() {
    let mut simulation = Simulation::new(Dispatch::LeastLoaded, 16, 160);
    simulation.connect(160);
    let (workers, now) = (&mut simulation.workers, simulation.now);
    // The last workers have just become ready.
    assert!(workers.pool.reconcile(now).is_empty() && workers.pool.is_settled());
    assert_eq!(workers.pool.serving(), 16);
    let before = workers.pool.walks();
    let channels_before = workers.waits.walks();
    assert!(before > 0, "walks are counted");
    let (clients, telemetry) = (&mut simulation.clients, &mut simulation.telemetry);
    let (config, poller) = (Config::default(), &simulation.poller);
    workers.spread_clients(&config, clients, telemetry, poller, now);
    assert!(workers.pool.reconcile(now).is_empty());
    assert_eq!(workers.pool.deadline(), None);
    workers.check(&config, &LoopClock::new(), clients, telemetry, poller, now);
    workers.end_watch(clients);
    assert_eq!(
        (workers.pool.serving(), workers.pool.next_kill()),
        (16, None)
    );
    workers.retry_channels(poller, now);
    assert_eq!(workers.channels_deadline(now), None);
    assert_eq!(workers.pool.walks(), before);
    assert_eq!(workers.waits.walks(), channels_before);
}

/// Of idle workers only the chosen one is looked at: before and after the lease, and for `round-robin` to see whether it
/// is waited for.
#[test]
fn a_new_client_is_compared_with_few_workers() {
    for dispatch in [Dispatch::RoundRobin, Dispatch::LeastLoaded] {
        let mut simulation = Simulation::new(dispatch, 64, 1_000);
        simulation.connect(300);
        let walks = simulation.workers.pool.walks();
        let before = simulation.workers.dispatch.looks();
        // One in each iteration of the loop.
        (0..300).for_each(|_| simulation.connect(1));
        let looks = simulation.workers.dispatch.looks() - before;
        assert!(looks <= 3 * 300, "{dispatch:?}: {looks}");
        assert_eq!(simulation.workers.pool.walks(), walks);
    }
}

#[test]
fn channels_are_looked_at_while_one_waits_for_memory() {
    let simulation = &mut Simulation::new(Dispatch::LeastLoaded, 3, 3);
    let (workers, poller, now) = (&mut simulation.workers, &simulation.poller, simulation.now);
    let wait = Duration::from_millis(1);
    let ids = workers.ids();
    for id in [ids[0], ids[2]] {
        let worker = workers.all.get_mut(&id).expect("it is ready");
        worker.channel_state.note_refused();
    }
    assert_eq!(workers.channels_deadline(now), Some(now), "at once");
    workers.retry_channels(poller, now);
    assert_eq!(workers.channels_deadline(now), Some(now + wait));
    assert_eq!(workers.waits.walks(), 3);
    workers.retry_channels(poller, now + wait);
    assert_eq!(workers.channels_deadline(now + wait), None);
    assert_eq!(workers.waits.walks(), 4, "none waits any more");
    // One waits when it is added, and ends.
    let mut worker = workers.all.remove(&ids[1]).expect("it is ready");
    worker.channel_state = ChannelState::default();
    worker.channel_state.note_not_received(now);
    assert_eq!(workers.channels_deadline(now), None);
    workers.insert(worker);
    assert_eq!(workers.channels_deadline(now), Some(now + wait));
    workers.all.remove(&ids[1]);
    workers.retry_channels(poller, now);
    assert_eq!(workers.channels_deadline(now), None);
}
