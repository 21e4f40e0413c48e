//! Workers that serve the clients of stuck ones, and the return of the stuck ones.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, eventually};
use serde_json::json;

use crate::common::faulty::{self, Execution, server, whoami};
use crate::common::program::ctl;

use super::{connect, ping_all, stalled, stop_worker, stuck_in_requests, stuck_worker};

#[test]
fn other_clients_of_a_blocked_worker_are_served_elsewhere() {
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"20ms\"");
    daemon.wait_for_workers();
    let mut caller = daemon.connect();
    let mut clients = connect(&daemon, 50);
    let mut methods = VecDeque::from(["sleep", "spin", "spin_inline", "sleep"]);
    let mut usual = Duration::from_secs(3);
    while let Some(method) = methods.pop_front() {
        let round = methods.len();
        // Those who were there before, and those who come now.
        clients.extend(connect(&daemon, 5));
        // Long enough for all of them, however slow the machine is.
        let began = Instant::now();
        clients.iter_mut().for_each(|client| _ = whoami(client));
        let time = usual + 10 * began.elapsed();
        let id = whoami(&mut caller).client;
        let told = daemon.stderr().len();
        caller.request(method, time.as_millis() as u64);
        let stuck = stuck_worker(
            &daemon,
            told,
            &format!(" in method {method:?} of client {id} ("),
        );
        for (number, client) in clients.iter_mut().enumerate() {
            client.request("ping", [round, number]);
            client.request("whoami", ());
        }
        let mut servers = Vec::new();
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(
                client.reply().value().expect("a result"),
                json!([round, number])
            );
            servers.push(server(client).worker);
        }
        if caller.has_something() {
            // The machine has paused, and the method has returned before all were served: another try.
            methods.push_front(method);
            usual *= 2;
        } else {
            assert!(!servers.contains(&stuck), "{method}: {servers:?}");
        }
        assert_eq!(caller.reply().value().expect("a result"), json!(null));
        eventually("it is back", || {
            let log = daemon.stderr();
            let mut lines = log[told..]
                .lines()
                .filter(|line| line.contains(&format!("worker {stuck} (")));
            lines
                .any(|line| line.ends_with("responds again; back in rotation"))
                .then_some(())
        });
        daemon.wait_for_workers();
    }
    let status = daemon.status();
    assert!(status.stalls_total >= 4, "{} stalls", status.stalls_total);
    assert_eq!(
        (status.errors_total, status.lost_total, status.deaths_total),
        (0, 0, 0)
    );
    assert_eq!(status.clients, 1 + clients.len() as u64);
}

#[test]
fn a_single_stuck_worker_gets_a_temporary_substitute() {
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"300ms\"");
    let mut clients = connect(&daemon, 20);
    let execution = Execution::start(&daemon);
    let stuck = stuck_worker(&daemon, 0, " in method \"read_line\" of client ");
    for client in &mut clients {
        assert_ne!(whoami(client).worker, stuck);
    }
    assert_ne!(
        whoami(&mut daemon.connect()).worker,
        stuck,
        "nor does a new one wait"
    );
    let mut caller = execution.finish();
    daemon.wait_until("the stand-in is gone", |status| {
        let alone = status.workers.len() == 1 && status.leaving.is_empty();
        alone && status.workers[0].state == WorkerState::Ready
    });
    eventually("all are back", || {
        let mut all = clients.iter_mut().chain([&mut caller]);
        all.all(|client| whoami(client).seat == 0).then_some(())
    });
    let status = daemon.status();
    assert_eq!(
        (status.deaths_total, status.lost_total, status.errors_total),
        (0, 0, 0)
    );
}

#[test]
fn while_all_workers_are_stuck_substitutes_serve() {
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"300ms\"");
    daemon.wait_for_workers();
    let mut clients = connect(&daemon, 20);
    let executions: Vec<Execution> = (1..=2)
        .map(|stuck| {
            let execution = Execution::start(&daemon);
            daemon.wait_until("it is stuck", |status| {
                stuck_in_requests(status).len() == stuck
            });
            execution
        })
        .collect();
    let stuck = stuck_in_requests(&daemon.status());
    let said = ctl(&daemon, &["status"]);
    assert_eq!(
        (said.code, said.out.matches("stalled").count()),
        (Some(0), 2),
        "{}{}",
        said.out,
        said.err
    );
    clients.extend(connect(&daemon, 5));
    for client in &mut clients {
        assert!(!stuck.contains(&whoami(client).worker));
    }
    assert!(daemon.status().stalls_total >= 2);
    let callers = executions.into_iter().map(Execution::finish);
    clients.extend(callers);
    daemon.wait_until("all is as before", |status| {
        let ids: Vec<u64> = status
            .workers
            .iter()
            .filter_map(|worker| worker.id.map(|id| id.0))
            .collect();
        ids == stuck && stalled(status).is_empty() && status.leaving.is_empty()
    });
    ping_all(&mut clients);
    assert_eq!(
        (
            daemon.status().clients,
            daemon.status().lost_total,
            daemon.status().deaths_total
        ),
        (27, 0, 0)
    );
}

#[test]
fn a_continued_worker_gets_clients_again() {
    let config =
        "workers = { count = 2, dispatch = \"round-robin\" }\nlimits.stall-timeout = \"20ms\"";
    let daemon = faulty::start(config);
    daemon.wait_for_workers();
    let mut clients = connect(&daemon, 20);
    let asked = Cell::new(0);
    for round in 0..5 {
        // In its shared memory are requests that it has not read, half frames, and nothing.
        let (worker, pid) = stop_worker(&daemon, 0);
        for client in &mut clients {
            (0..3).for_each(|number| client.request("ping", [round, number]));
            client.request("whoami", ());
        }
        for client in &mut clients {
            for number in 0..3 {
                assert_eq!(
                    client.reply().value().expect("a result"),
                    json!([round, number])
                );
            }
            assert_ne!(server(client).pid, pid);
        }
        asked.set(asked.get() + 4 * clients.len() as u64);
        daemon.wait_until("it is known to be stuck", |status| {
            stalled(status) == [worker]
        });
        daemon.signal_worker(0, "CONT");
        daemon.wait_until("it is back", |status| stalled(status).is_empty());
        let back = eventually("it gets clients again", || {
            let mut client = daemon.connect();
            asked.set(asked.get() + 1);
            (whoami(&mut client).pid == pid).then_some(client)
        });
        clients.push(back);
    }
    ping_all(&mut clients);
    assert!(
        !clients.iter_mut().any(Client::has_something),
        "nobody is answered twice"
    );
    daemon.wait_for_log("responds again; back in rotation");
    let status = daemon.status();
    assert_eq!(
        (status.requests_total, status.errors_total),
        (asked.get() + 25, 0)
    );
    assert_eq!((status.lost_total, status.deaths_total), (0, 0));
}

#[test]
fn a_worker_stopped_in_a_request_answers_it_once() {
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"20ms\"");
    daemon.wait_for_workers();
    let mut others = connect(&daemon, 4);
    for (method, result) in [("sleep", json!(null)), ("sleep_again", json!(1))] {
        let mut caller = daemon.connect();
        let mut time = 500;
        let place = loop {
            let place = whoami(&mut caller);
            caller.request(method, time);
            caller.request("ping", "behind");
            eventually("it is being executed, or it was", || {
                let is_executing = daemon.status().workers[place.seat as usize].executing > 0;
                (is_executing || caller.has_something()).then_some(())
            });
            stop_worker(&daemon, place.seat);
            if !caller.has_something() {
                break place;
            }
            // The machine was too slow to stop it in time.
            daemon.signal_worker(place.seat, "CONT");
            assert_eq!(caller.reply().value().expect("a result"), result);
            assert_eq!(caller.reply().value().expect("a result"), "behind");
            time *= 3;
        };
        for other in &mut others {
            assert_ne!(whoami(other).pid, place.pid);
        }
        assert!(!caller.has_something());
        daemon.signal_worker(place.seat, "CONT");
        assert_eq!(caller.reply().value().expect("a result"), result);
        assert_eq!(caller.reply().value().expect("a result"), "behind");
        daemon.wait_until("it is back", |status| stalled(status).is_empty());
        assert!(!caller.has_something());
    }
    let status = daemon.status();
    assert_eq!(
        (
            status.errors_total,
            status.deaths_total,
            status.reruns_total
        ),
        (0, 0, 0)
    );
}
