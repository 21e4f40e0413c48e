//! request-timeout: stuck workers that are killed, and the deadline of a method.

use std::time::{Duration, Instant};

use fdpassd::testing::eventually;
use serde_json::json;

use crate::common::faulty::{self, Execution, server, whoami};
use crate::common::let_pass;

use super::{connect, ping_all, stalled, stop_worker};

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
        "workers.count = 2\nlimits = { stall-timeout = \"1s\", request-timeout = \"6500ms\" }",
    );
    let mut caller = daemon.connect();
    // Together longer than request-timeout; each may end late on a busy machine.
    caller.request("sleep", 3_500);
    caller.request("sleep", 3_500);
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
    daemon.wait_for_log(" has been stuck for ");
    stop_worker(&daemon, 0);
    let_pass(Duration::from_secs(1));
    daemon.signal_worker(0, "CONT");
    drop(execution.finish());
    assert_eq!(daemon.status().deaths_total, 0);
}
