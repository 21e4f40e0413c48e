//! The choice of the worker for a new client.

use fdpassd::proto::control::WorkerStatus;
use fdpassd::testing::Client;

use crate::common::faulty::{self, Execution, whoami};
use crate::common::kernel;

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
