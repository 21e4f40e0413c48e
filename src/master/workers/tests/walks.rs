//! The costs of an iteration of the loop in which nothing happens: it looks at no worker, however many there are.

use crate::config::{Config, Dispatch};
use crate::master::workers::tests::simulation::Simulation;

#[test]
fn an_iteration_without_events_looks_at_no_worker() {
    let mut simulation = Simulation::new(Dispatch::LeastLoaded, 16, 160);
    simulation.connect(160);
    let (workers, now) = (&mut simulation.workers, simulation.now);
    // The last workers have just become ready.
    assert!(workers.pool.reconcile(now).is_empty() && workers.pool.is_settled());
    let before = workers.pool.walks();
    assert!(before > 0, "walks are counted");
    let (clients, telemetry) = (&mut simulation.clients, &mut simulation.telemetry);
    let (config, poller) = (Config::default(), &simulation.poller);
    workers.spread_clients(&config, clients, telemetry, poller, now);
    assert!(workers.pool.reconcile(now).is_empty());
    assert_eq!(workers.pool.deadline(), None);
    assert_eq!(workers.pool.walks(), before);
}
