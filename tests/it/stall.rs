//! Stuck workers: their other clients are served elsewhere, and a worker stuck for too long is replaced.

use std::cell::Cell;
use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::control::{Status, WorkerState};
use fdpassd::testing::{Client, Running, eventually};
use serde_json::json;

use crate::common::faulty::{self, Execution, server, whoami};
use crate::common::program::ctl;
use crate::common::{at_rest, kernel, let_pass, start};

#[test]
fn other_clients_of_a_blocked_worker_are_served_elsewhere() {
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"20ms\"");
    daemon.wait_for_workers();
    let mut caller = daemon.connect();
    let mut clients = connect(&daemon, 50);
    for (round, method) in ["sleep", "spin", "spin_inline", "sleep"]
        .into_iter()
        .enumerate()
    {
        // Those who were there before, and those who come now.
        clients.extend(connect(&daemon, 5));
        // Long enough for all of them, however slow the machine is.
        let began = Instant::now();
        clients.iter_mut().for_each(|client| _ = whoami(client));
        let time = Duration::from_millis(500) + 10 * began.elapsed();
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
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(
                client.reply().value().expect("a result"),
                json!([round, number])
            );
            assert_ne!(server(client).worker, stuck);
        }
        assert!(!caller.has_something(), "{method} has not returned yet");
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
    assert_eq!(status.clients, 71);
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

#[test]
fn a_worker_that_stays_stopped_is_killed_at_request_timeout() {
    // So long that no worker is wrongly taken for stuck, and its clients moved.
    let daemon = faulty::start(
        "workers.count = 2\nlimits = { stall-timeout = \"1s\", request-timeout = \"2s\" }",
    );
    daemon.wait_for_workers();
    for is_executing in [false, true] {
        let mut clients = connect(&daemon, 10);
        let mut caller = daemon.connect();
        let place = whoami(&mut caller);
        if is_executing {
            caller.request("sleep_again", 60_000);
            daemon.wait_until("it is being executed", |status| {
                status.workers[place.seat as usize].executing > 0
            });
        }
        caller.request("ping", "behind");
        stop_worker(&daemon, place.seat);
        for client in &mut clients {
            assert_ne!(whoami(client).pid, place.pid);
        }
        if is_executing {
            assert_eq!(
                caller.reply().value().expect_err("it took too long").code(),
                "timeout"
            );
        }
        assert_eq!(caller.reply().value().expect("a result"), "behind");
        let words = if is_executing {
            "exceeded request-timeout in method \"sleep_again\""
        } else {
            "has been stuck for request-timeout"
        };
        daemon.wait_for_log(&format!(
            "worker {} (pid {}, gen 1) {words}; killing it",
            place.worker, place.pid
        ));
        daemon.wait_until("it is replaced", |status| {
            let id = status.workers[place.seat as usize].id;
            id.is_some_and(|id| id.0 != place.worker) && stalled(status).is_empty()
        });
        ping_all(&mut clients);
        assert!(!caller.has_something());
    }
    let status = daemon.status();
    assert_eq!(
        (status.deaths_total, status.reruns_total, status.lost_total),
        (2, 0, 0)
    );
}

#[test]
fn a_request_past_request_timeout_is_answered_with_timeout() {
    let both: &[&str] = &["sleep_again", "spin_inline"];
    // Where request-timeout is the shorter one, it is not waited for the other.
    for (stall_timeout, methods) in [("20ms", both), ("60s", &["sleep"])] {
        let daemon = faulty::start(&format!(
            "workers.count = 2\nlimits = {{ stall-timeout = {stall_timeout:?}, request-timeout = \"1s\" }}"
        ));
        daemon.wait_for_workers();
        let mut others = connect(&daemon, 20);
        for method in methods {
            let mut caller = daemon.connect();
            let place = whoami(&mut caller);
            (0..5).for_each(|number| caller.request("ping", number));
            let began = Instant::now();
            caller.request(method, 60_000);
            (5..10).for_each(|number| caller.request("ping", number));
            for other in &mut others {
                other.request("whoami", ());
            }
            for number in 0..10 {
                if number == 5 {
                    let fault = caller.reply().value().expect_err("it takes too long");
                    assert_eq!(
                        fault.to_string(),
                        "timeout: the request took longer than request-timeout"
                    );
                    assert!(
                        began.elapsed() >= Duration::from_secs(1),
                        "too early: {:?}",
                        began.elapsed()
                    );
                }
                assert_eq!(caller.reply().value().expect("a result"), number);
            }
            for other in &mut others {
                server(other);
            }
            ping_all(&mut others);
            let words = format!(" in method {method:?} of client {} (", place.client);
            daemon.wait_for_log(&words);
            let log = daemon.stderr();
            let killed = log
                .lines()
                .find(|line| line.contains(&words) && line.contains("killed by signal 9"))
                .unwrap_or_else(|| panic!("{log}"));
            let pid = whoami(&mut caller).pid;
            assert!(!killed.contains(&format!("(pid {pid},")), "{killed}");
            daemon.wait_for_workers();
        }
        eventually("each death is told", || {
            let told = daemon
                .stderr()
                .matches("1 request answered with timeout")
                .count();
            (told == methods.len()).then_some(())
        });
        let status = daemon.status();
        let count = methods.len() as u64;
        assert_eq!(
            (
                status.errors_total,
                status.deaths_total,
                status.reruns_total
            ),
            (count, count, 0)
        );
        assert_eq!((status.lost_total, status.closed_for_crashes_total), (0, 0));
    }
}

#[test]
fn each_request_has_a_request_timeout_of_its_own() {
    let daemon = faulty::start(
        "workers.count = 2\nlimits = { stall-timeout = \"1s\", request-timeout = \"3s\" }",
    );
    let mut caller = daemon.connect();
    caller.request("sleep", 2_000);
    caller.request("sleep", 1_500);
    assert_eq!(caller.reply().value().expect("it is in time"), json!(null));
    assert_eq!(
        caller.reply().value().expect("it is in time, too"),
        json!(null)
    );
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn a_method_gets_its_deadline_and_none_without_a_timeout() {
    let daemon = faulty::start("limits.request-timeout = \"100s\"");
    let left = daemon
        .call("deadline", ())
        .expect("a result")
        .as_u64()
        .expect("there is a limit");
    assert!((90_000..=100_000).contains(&left), "{left} ms");

    let daemon = faulty::start(
        "workers.count = 2\nlimits = { stall-timeout = \"20ms\", request-timeout = \"none\" }",
    );
    daemon.wait_for_workers();
    assert_eq!(daemon.call("deadline", ()).expect("a result"), json!(null));
    let execution = Execution::start(&daemon);
    daemon.wait_for_log(" is stuck for ");
    stop_worker(&daemon, 0);
    let_pass(Duration::from_secs(1));
    daemon.signal_worker(0, "CONT");
    drop(execution.finish());
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn the_return_of_a_stuck_worker_without_clients_is_noticed() {
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"20ms\"");
    daemon.wait_for_workers();
    let others = connect(&daemon, 5);
    let execution = Execution::start(&daemon);
    stuck_worker(&daemon, 0, " in method \"read_line\" of client ");
    let end = execution.hang_up();
    drop(others);
    daemon.wait_until("it is left alone with its request", |status| {
        status.clients <= 1 && stuck_in_requests(status).len() == 1
    });
    end();
    daemon.wait_for_log("responds again; back in rotation");
    daemon.wait_until("all clients have left", |status| status.clients == 0);
    assert_no_wake_up(&daemon);

    // One without any client.
    let mut client = daemon.connect();
    let place = whoami(&mut client);
    stop_worker(&daemon, place.seat);
    daemon.wait_until("it is stuck", |status| stalled(status) == [place.worker]);
    drop(client);
    daemon.wait_until("all clients have left", |status| status.clients == 0);
    daemon.signal_worker(place.seat, "CONT");
    daemon.wait_until("it is back", |status| stalled(status).is_empty());
    assert_no_wake_up(&daemon);
}

#[test]
fn idle_clients_cause_no_wake_ups_but_those_of_the_checks() {
    let daemon = start("workers.count = 2\nlimits.stall-timeout = \"1s\"");
    daemon.wait_for_workers();
    let mut clients = connect(&daemon, 50);
    ping_all(&mut clients);
    let processes: Vec<u32> = [daemon.pid()]
        .into_iter()
        .chain(daemon.worker_pids())
        .collect();
    let sleeps = || -> Vec<u64> { processes.iter().map(|pid| kernel::sleeps(*pid)).collect() };
    let (began, before) = at_rest(&daemon, || (Instant::now(), sleeps()));
    let_pass(Duration::from_secs(3));
    let after = sleeps();
    let seconds = began.elapsed().as_secs_f64();
    let wake_ups: Vec<u64> = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    // A look every half second, and one a second for the balance; workers are asked at every other look.
    assert!(
        wake_ups[0] <= (3.0 * seconds) as u64 + 2
            && wake_ups[1].max(wake_ups[2]) <= seconds as u64 + 1,
        "{wake_ups:?} in {seconds} s"
    );
    assert!(wake_ups[1] >= 1, "they are looked at: {wake_ups:?}");
    assert_eq!(daemon.status().stalls_total, 0);
    ping_all(&mut clients);
}

/// With more work than CPUs, workers that are only waiting for theirs are taken for stuck. For two seconds, or as many as
/// the variable `STALL_SECONDS` says.
#[test]
fn workers_wrongly_taken_for_stuck_cause_no_error() {
    let daemon = start("workers.count = 2\nlimits.stall-timeout = \"10ms\"");
    daemon.wait_for_workers();
    let seconds = std::env::var("STALL_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let is_over = AtomicBool::new(false);
    let asked: u64 = thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        let loads: Vec<_> = (0..4)
            .map(|_| threads.spawn(|| ask_until(&daemon, end)))
            .collect();
        let asked = loads
            .into_iter()
            .map(|load| load.join())
            .collect::<Vec<_>>();
        is_over.store(true, Ordering::Relaxed);
        asked
            .into_iter()
            .map(|asked| asked.expect("every reply is right"))
            .sum()
    });
    let status = daemon.status();
    assert_eq!((status.requests_total, status.errors_total), (asked, 0));
    assert_eq!((status.lost_total, status.deaths_total), (0, 0));
}

/// Ten clients that ask many things at a time, each numbered; how many in all.
fn ask_until(daemon: &Running, end: Instant) -> u64 {
    let mut clients = connect(daemon, 10);
    let mut asked = 0;
    while Instant::now() < end {
        for client in &mut clients {
            let frames: Vec<u8> = (asked..asked + 50)
                .flat_map(|number| client.frame(format!(r#"{{"in":"ping","params":{number}}}"#)))
                .collect();
            client.send(frames);
        }
        for client in &mut clients {
            for number in asked..asked + 50 {
                assert_eq!(client.reply().value().expect("a result"), number);
            }
        }
        asked += 50;
    }
    assert!(!clients.iter_mut().any(Client::has_something));
    asked * clients.len() as u64
}

#[track_caller]
fn connect(daemon: &Running, count: usize) -> Vec<Client> {
    (0..count).map(|_| daemon.connect()).collect()
}

#[track_caller]
fn ping_all(clients: &mut [Client]) {
    clients
        .iter_mut()
        .for_each(|client| client.request("ping", 1));
    for client in clients {
        assert_eq!(client.reply().value().expect("a result"), 1);
    }
}

/// Waits until a worker is told to be stuck, with these words, behind the first bytes of the log; which one it is. Nobody
/// knows before: on a busy machine another one may be taken for stuck, and its clients move.
#[track_caller]
fn stuck_worker(daemon: &Running, told: usize, words: &str) -> u64 {
    eventually("the worker is stuck", || {
        let log = daemon.stderr();
        let line = log[told..]
            .lines()
            .find(|line| line.contains(words) && line.contains(" is stuck for "))?;
        let (_, id) = line.split_once(" worker ")?;
        id.split_once(' ')?.0.parse().ok()
    })
}

/// The workers that are stuck, or are taken for it.
fn stalled(status: &Status) -> Vec<u64> {
    let stalled = status
        .workers
        .iter()
        .filter(|worker| worker.state == WorkerState::Stalled);
    stalled.filter_map(|worker| Some(worker.id?.0)).collect()
}

/// Returns those of them that are executing.
fn stuck_in_requests(status: &Status) -> Vec<u64> {
    let executing = status.workers.iter().filter(|worker| worker.executing > 0);
    let executing: Vec<u64> = executing.filter_map(|worker| Some(worker.id?.0)).collect();
    stalled(status)
        .into_iter()
        .filter(|id| executing.contains(id))
        .collect()
}

/// Stops the worker in this seat when it sleeps, in a method or because it has nothing to do: one that has sent a reply
/// may not have ended the turn yet, and the client of that turn would wait. Its number and its process.
#[track_caller]
fn stop_worker(daemon: &Running, seat: u32) -> (u64, u32) {
    let worker = daemon.status().workers.swap_remove(seat as usize);
    let (id, pid) = worker.id.zip(worker.pid).expect("it has a process");
    eventually("the worker sleeps", || {
        (kernel::state(pid) == Some('S')).then_some(())
    });
    kernel::stop(pid);
    (id.0, pid)
}

#[track_caller]
fn assert_no_wake_up(daemon: &Running) {
    let processes: Vec<u32> = [daemon.pid()]
        .into_iter()
        .chain(daemon.worker_pids())
        .collect();
    let sleeps = || -> Vec<u64> { processes.iter().map(|pid| kernel::sleeps(*pid)).collect() };
    let before = at_rest(daemon, sleeps);
    let_pass(Duration::from_millis(1_500));
    assert_eq!(sleeps(), before);
}
