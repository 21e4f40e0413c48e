//! The choice of the worker for a new client, and for clients that waited for the start of the workers.

use std::path::Path;
use std::time::Duration;

use fdpassd::proto::control::{Status, WorkerStatus};
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::faulty::{self, Execution, whoami};
use crate::common::restart::{How, restart};
use crate::common::{FDPASSD, kernel, let_pass, ping_all};

/// No worker is taken for stuck and loses its clients, however busy the machine is.
const NO_STALLS: &str = "limits.stall-timeout = \"1h\"";

#[test]
fn round_robin_is_exact_over_a_thousand_clients() {
    for workers in [2, 3] {
        let daemon = faulty::start(&format!(
            "workers = {{ count = {workers}, dispatch = \"round-robin\" }}\n{NO_STALLS}"
        ));
        daemon.wait_for_workers();
        let mut clients = Vec::new();
        for i in 0..1000 {
            let mut client = daemon.connect();
            assert_eq!(whoami(&mut client).seat, i % workers, "client {i}");
            clients.push(client);
        }
    }
}

/// New clients wait for a worker with 16 clients to pick up, unless the worker is not scheduled for a long time.
#[test]
fn round_robin_is_exact_when_a_thousand_connect_at_once() {
    let daemon = faulty::start(&format!(
        "workers = {{ count = 4, dispatch = \"round-robin\" }}\n{NO_STALLS}"
    ));
    daemon.wait_for_workers();
    let mut bursts = Vec::new();
    while bursts.last() != Some(&[250; 4]) {
        assert!(bursts.len() < 10, "no burst is even: {bursts:?}");
        let mut clients: Vec<Client> = (0..1000).map(|_| daemon.connect()).collect();
        for client in &mut clients {
            client.request("whoami", ());
        }
        let mut counts = [0; 4];
        for client in &mut clients {
            counts[faulty::server(client).seat as usize] += 1;
        }
        bursts.push(counts);
        drop(clients);
        daemon.wait_until("they have left", |status| status.clients == 0);
    }
}

#[test]
fn round_robin_is_exact_while_clients_leave() {
    let daemon = faulty::start(&format!(
        "workers = {{ count = 3, dispatch = \"round-robin\" }}\n{NO_STALLS}"
    ));
    daemon.wait_for_workers();
    let mut stays = Vec::new();
    for i in 0..300 {
        let mut client = daemon.connect();
        assert_eq!(whoami(&mut client).seat, i % 3, "client {i}");
        if i % 3 == 1 {
            stays.push(client);
        }
    }
    let status = daemon.wait_until("the others have left", |status| status.clients == 100);
    assert_eq!(
        status
            .workers
            .iter()
            .map(|worker| worker.clients)
            .collect::<Vec<_>>(),
        [0, 100, 0]
    );
}

#[test]
fn least_loaded_gives_no_client_to_a_worker_in_a_long_call() {
    let daemon = faulty::start(&format!(
        "workers = {{ count = 2, dispatch = \"least-loaded\" }}\n{NO_STALLS}"
    ));
    daemon.wait_for_workers();
    let mut caller = daemon.connect();
    let busy = whoami(&mut caller).seat;
    let execution = Execution::start_by(&daemon, caller);
    let mut others = Vec::new();
    for _ in 0..100 {
        let mut client = daemon.connect();
        assert_ne!(whoami(&mut client).seat, busy);
        others.push(client);
    }
    let mut caller = execution.finish();
    assert_eq!(whoami(&mut caller).seat, busy);
}

#[test]
fn least_loaded_spreads_idle_clients_evenly() {
    for workers in [2, 4] {
        let daemon = faulty::start(&format!("workers.count = {workers}\n{NO_STALLS}"));
        daemon.wait_for_workers();
        let mut clients = Vec::new();
        let mut add_client = || {
            let mut client = daemon.connect();
            whoami(&mut client);
            clients.push(client);
            clients.len() as u64
        };
        for _ in 1..400 {
            add_client();
        }
        // A worker that waited for a CPU has got fewer. It gets the next ones.
        let is_even = (400..=800).any(|_| {
            let even = add_client() / workers;
            let is_even = |worker: &WorkerStatus| worker.clients.abs_diff(even) <= even / 4;
            daemon.status().workers.iter().all(is_even)
        });
        let counts: Vec<u64> = daemon.status().workers.iter().map(|w| w.clients).collect();
        assert!(is_even, "after 800 clients, the workers have {counts:?}");
    }
}

#[test]
fn a_stopped_worker_gets_few_new_clients() {
    const CLIENTS: u64 = 200;
    const WINDOW: u64 = 16;
    for dispatch in ["round-robin", "least-loaded"] {
        let daemon = faulty::start(&format!(
            "workers = {{ count = 2, dispatch = \"{dispatch}\" }}\n{NO_STALLS}"
        ));
        daemon.wait_for_workers();
        let stopped = daemon.worker_pids()[1];
        kernel::stop(stopped);
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| daemon.connect()).collect();
        clients
            .iter_mut()
            .for_each(|client| client.request("whoami", ()));
        let status =
            daemon.wait_until("all but those of the stopped worker are served", |status| {
                status.clients == CLIENTS
                    && status.requests_total == CLIENTS - status.workers[1].clients
            });
        let swallowed = status.workers[1].clients;
        assert!(
            swallowed <= WINDOW,
            "{dispatch}: the stopped worker got {swallowed} of {CLIENTS}"
        );
        daemon.signal_worker(1, "CONT");
        let served = clients.iter_mut().map(|client| faulty::server(client));
        assert_eq!(
            served.filter(|server| server.pid == stopped).count() as u64,
            swallowed
        );
    }
}

/// The first worker that is ready gets all clients that wait; the others are ready a moment later.
#[track_caller]
fn assert_spread(daemon: &Running, clients: &mut [Client], workers: u64) {
    let share = clients.len() as u64 / workers;
    let is_spread = |status: &Status| status.workers.iter().all(|worker| worker.clients == share);
    let status = daemon.wait_until("each worker has its share", is_spread);
    assert_eq!((status.lost_total, status.errors_total), (0, 0));
    ping_all(clients);
}

#[test]
fn idle_clients_are_spread_over_all_workers_after_a_restart() {
    for how in [How::Term, How::Kill, How::TermAll] {
        let manager = ServiceManager::new();
        let config = format!("workers.count = 4\n{NO_STALLS}");
        let daemon = manager.setup(FDPASSD, &config).start().expect("it serves");
        daemon.wait_for_workers();
        let mut clients: Vec<Client> = (0..400).map(|_| daemon.connect()).collect();
        ping_all(&mut clients);
        let daemon = restart(&manager, daemon, how, Path::new(FDPASSD));
        println!("{how:?}");
        assert_spread(&daemon, &mut clients, 4);
    }
}

#[test]
fn idle_clients_are_spread_after_the_death_of_all_workers() {
    let daemon = crate::common::start(&format!("workers.count = 3\n{NO_STALLS}"));
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..300).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    // The master notices no death before all are dead.
    let workers = daemon.worker_pids();
    kernel::stop(daemon.pid());
    for worker in &workers {
        kernel::send(*worker, Signal::SIGKILL);
    }
    for worker in workers {
        eventually("the worker is dead", || {
            kernel::is_over(worker).then_some(())
        });
    }
    daemon.signal("CONT");
    assert_spread(&daemon, &mut clients, 3);
}

#[test]
fn no_client_is_spread_if_clients_are_moved_by_hand() {
    let manager = ServiceManager::new();
    let config = format!("workers = {{ count = 2, rebalance = \"manual\" }}\n{NO_STALLS}");
    let daemon = manager.setup(FDPASSD, &config).start().expect("it serves");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    let daemon = restart(&manager, daemon, How::Term, Path::new(FDPASSD));
    ping_all(&mut clients);
    let moves = moves(&daemon);
    assert_eq!(moves, [1; 50], "each was leased once after the restart");
}

/// Returns how often each client has moved.
fn moves(daemon: &Running) -> Vec<u64> {
    let clients = daemon.ctl("clients").expect("a list");
    let clients = clients["clients"].as_array().expect("an array").iter();
    clients
        .filter_map(|client| client["moves"].as_u64())
        .collect()
}

#[test]
fn clients_stay_when_a_worker_is_added_long_after_a_death() {
    let daemon = crate::common::start(&format!("workers.count = 1\n{NO_STALLS}"));
    let mut clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    kernel::send(daemon.worker_pids()[0], Signal::SIGKILL);
    ping_all(&mut clients);
    assert_eq!(moves(&daemon), [1; 50]);
    daemon
        .ctl_with("scale", json!({ "count": 2 }))
        .expect("it starts");
    daemon.wait_for_workers();
    let_pass(Duration::from_millis(500));
    assert_eq!(moves(&daemon), [1; 50], "none moves to the new one");
}
