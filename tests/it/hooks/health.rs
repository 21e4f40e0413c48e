//! The health function: an unhealthy worker is not ready, and its clients are better off elsewhere.

use fdpassd::proto::control::{Kind, WorkerState};
use fdpassd::testing::{Client, Running, eventually};
use serde_json::json;

use crate::common::faulty::{self, whoami};
use crate::common::http::{get, metrics_address};
use crate::common::ping_all;
use crate::common::program::ctl;
use crate::common::upgrade::{begin, verdict};

const METRICS: &str = "workers.count = 2\nmetrics.listen = \"127.0.0.1:0\"";

#[track_caller]
fn wait_for_states(daemon: &Running, states: [WorkerState; 2]) {
    daemon.wait_until("the health is known", |status| {
        status.workers.iter().map(|worker| worker.state).eq(states)
    });
}

#[test]
fn an_unhealthy_worker_stays_unhealthy_after_an_upgrade() {
    let (daemon, switch) = faulty::start_with_health("workers.count = 1");
    let mut client = daemon.connect();
    let pid = whoami(&mut client).pid;
    // No successor becomes ready, so the worker stays.
    switch.set("no database");
    daemon.wait_until("it is unhealthy", |status| {
        status.workers[0].state == WorkerState::Unhealthy
    });
    let mut upgrade = begin(&daemon, None);
    daemon.wait_for_log("; replacing the workers");
    daemon.wait_until("the new master shows it as unhealthy", |status| {
        let mut workers = status.workers.iter();
        workers.any(|worker| worker.pid == Some(pid) && worker.state == WorkerState::Unhealthy)
    });
    assert_eq!(whoami(&mut client).pid, pid);
    switch.set("");
    verdict(&mut upgrade).expect("the program is fit");
}

#[test]
fn clients_of_an_unhealthy_worker_move_to_healthy_ones() {
    use WorkerState::{Ready, Unhealthy};
    let (daemon, switch) = faulty::start_with_health(METRICS);
    let address = metrics_address(&daemon);
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        whoami(client);
    }
    switch.set("0:no database\x1b[2J");
    wait_for_states(&daemon, [Unhealthy, Ready]);
    let seats = |clients: &mut [Client]| -> Vec<u32> {
        clients
            .iter_mut()
            .map(|client| whoami(client).seat)
            .collect()
    };
    assert_eq!(seats(&mut clients), [1; 10]);
    clients.extend((0..10).map(|_| daemon.connect()));
    assert_eq!(seats(&mut clients), [1; 20]);
    daemon.wait_for_log("is unhealthy: no database\\x1b[2J; ");
    daemon.wait_for_log(" clients moved to other workers");
    // The daemon is ready as long as one worker is.
    assert_eq!(get(&address, "/readyz").status_and_body(), (200, "ok\n"));
    let health = get(&address, "/healthz");
    assert!(
        health.status == 200
            && health
                .status_and_body()
                .1
                .contains(" is unhealthy: no database\\x1b[2J"),
        "{:?}",
        health.status_and_body()
    );
    let shown = ctl(&daemon, &["status"]).out;
    for words in [
        " unhealthy ",
        "\nworker ",
        " is unhealthy: no database\\x1b[2J\n",
    ] {
        assert!(shown.contains(words), "{words:?} is not in {shown}");
    }
    switch.set("");
    wait_for_states(&daemon, [Ready, Ready]);
    daemon.wait_for_log(" is healthy again");
    let events = daemon.ctl("events").expect("there are events");
    let count = |kind: Kind| {
        let events = events["events"].as_array().expect("a list").iter();
        events
            .filter(|event| event["event"] == kind.as_str())
            .count()
    };
    assert_eq!(
        (count(Kind::WorkerUnhealthy), count(Kind::WorkerHealthy)),
        (1, 1)
    );
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn clients_leave_an_unhealthy_worker_when_another_has_recovered() {
    use WorkerState::{Ready, Unhealthy};
    let config = "workers = { count = 2, dispatch = \"round-robin\" }";
    let (daemon, switch) = faulty::start_with_health(config);
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    switch.set("no database");
    wait_for_states(&daemon, [Unhealthy, Unhealthy]);
    // One of the workers has them all. Each gets five new ones.
    clients.extend((0..10).map(|_| daemon.connect()));
    ping_all(&mut clients);
    switch.set("0:no database");
    wait_for_states(&daemon, [Unhealthy, Ready]);
    eventually("all clients are with the healthy worker", || {
        let mut seats = clients.iter_mut().map(|client| whoami(client).seat);
        seats.all(|seat| seat == 1).then_some(())
    });
    daemon.wait_for_log(" is still unhealthy; ");
    daemon.wait_for_log(" clients moved to healthy workers");
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn clients_are_served_while_no_worker_is_healthy() {
    use WorkerState::{Ready, Unhealthy};
    let (daemon, switch) = faulty::start_with_health(METRICS);
    let address = metrics_address(&daemon);
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    whoami(&mut client);
    switch.set("no database");
    wait_for_states(&daemon, [Unhealthy, Unhealthy]);
    eventually("new clients should go elsewhere", || {
        let answer = get(&address, "/readyz");
        let why = answer
            .status_and_body()
            .1
            .matches("is unhealthy: no database")
            .count();
        (answer.status == 503 && why == 2).then_some(())
    });
    // A supervisor must not restart the daemon, which serves.
    assert_eq!(get(&address, "/healthz").status, 200);
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
    assert_eq!(daemon.call("ping", 2).expect("a result"), 2);
    switch.set("");
    wait_for_states(&daemon, [Ready, Ready]);
    eventually("they may come again", || {
        (get(&address, "/readyz").status_and_body() == (200, "ok\n")).then_some(())
    });
}

#[test]
fn a_reload_to_unhealthy_workers_is_rolled_back() {
    let (daemon, switch) = faulty::start_with_health("workers.count = 1");
    let mut client = daemon.connect();
    let before = whoami(&mut client);
    switch.set("no database");
    let refused = daemon
        .reload()
        .expect_err("no worker becomes ready")
        .to_string();
    assert!(
        refused.contains("it is unhealthy: no database"),
        "{refused}"
    );
    assert_eq!(whoami(&mut client).pid, before.pid);
}

#[test]
fn a_panic_in_the_health_function_rebuilds_the_state() {
    let (daemon, switch) = faulty::start_with_health("workers.count = 1");
    let mut client = daemon.connect();
    let first = whoami(&mut client);
    switch.set("panic");
    daemon.wait_for_log("error the health function panicked at examples/faulty.rs:");
    daemon.wait_for_log("is unhealthy: the health function panicked; no worker is healthy");
    switch.set("");
    daemon.wait_for_log(" is healthy again");
    let then = whoami(&mut client);
    assert_eq!((then.pid, then.calls), (first.pid, 1));
    assert_eq!(daemon.call("kept", ()).expect("a result"), json!([]));
}
