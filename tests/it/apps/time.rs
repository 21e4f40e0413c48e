//! Requests of an app that take long: timeouts, an app that does not answer, and clients that wait.

use std::fs;
use std::path::Path;
use std::time::Duration;

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{configuration, counted, kill, start, start_with};
use crate::common::restart::wait_for_confirmed_store;
use crate::common::{FDPASSD, kernel, let_pass};

#[test]
fn a_late_request_is_cancelled_and_its_caller_gets_timeout() {
    let config =
        "workers.count = 1\nlimits.request-timeout = \"5s\"\nlimits.stall-timeout = \"20s\"";
    let Some(daemon) = start(config) else {
        return;
    };
    let mut client = daemon.connect();
    client.request("until_cancelled", Value::Null);
    let fault = client.reply().value().expect_err("it is late");
    assert_eq!(fault.code(), "timeout");
    daemon.wait_for_log(
        "client 1: method \"until_cancelled\" exceeded request-timeout; the app is asked to cancel it",
    );
    assert_eq!(counted(&daemon, 2), ["begun", "timeout"]);
    assert_eq!(client.call("echo", 1), Ok(json!(1)));
    assert_eq!(daemon.status().deaths_total, 0, "the pair lives on");
}

#[test]
fn a_slow_request_is_logged_with_its_time() {
    let Some(daemon) = start("workers.count = 1\nlog.slow-request = \"4s\"") else {
        return;
    };
    let mut client = daemon.connect();
    assert_eq!(client.call("echo", 1), Ok(json!(1)));
    client
        .call("sleep", json!([4_500, "slept"]))
        .expect("a result");
    daemon.wait_for_log("client 1: slow request: method \"sleep\" took ");
    assert!(!daemon.stderr().contains("method \"echo\" took"));
}

#[test]
fn a_request_that_ignores_its_cancellation_ends_the_pair() {
    let config =
        "workers.count = 1\nlimits.request-timeout = \"5s\"\nlimits.stall-timeout = \"500ms\"";
    let Some(daemon) = start(config) else {
        return;
    };
    let mut client = daemon.connect();
    let mut idle = daemon.connect();
    client.request("never", Value::Null);
    let fault = client.reply().value().expect_err("it is late");
    assert_eq!(fault.code(), "timeout");
    daemon.wait_for_log("did not answer within request-timeout");
    assert_eq!(idle.call("echo", 1), Ok(json!(1)));
    assert_eq!(client.call("echo", 2), Ok(json!(2)));
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (1, 0));
    assert_eq!(counted(&daemon, 1), ["never"], "it ran once");
}

/// The app ignores the cancellation, and is asked for longer than the test takes.
const LATE: &str =
    "workers.count = 1\nlimits.request-timeout = \"5s\"\nlimits.stall-timeout = \"10m\"";

/// Sends two requests, and waits until both have exceeded their time.
fn send_late_requests(daemon: &Running) -> [Client; 2] {
    let mut clients = [daemon.connect(), daemon.connect()];
    clients[0].request("never", Value::Null);
    clients[1].request("idempotent_sleep", json!([600_000, "slept"]));
    for method in ["never", "idempotent_sleep"] {
        daemon.wait_for_log(&format!("method {method:?} exceeded request-timeout"));
    }
    clients
}

/// Both get `timeout`, and neither is executed once more.
#[track_caller]
fn expect_timeouts(clients: &mut [Client], counts: &Path) {
    for client in clients {
        let fault = client.reply().value().expect_err("it is late");
        assert_eq!(fault.code(), "timeout");
        assert_eq!(client.call("echo", 1), Ok(json!(1)));
    }
    let counts = fs::read_to_string(counts).expect("the app has written it");
    assert_eq!(counts.lines().count(), 2, "{counts}");
}

#[test]
fn late_requests_get_timeout_although_their_worker_is_killed() {
    let Some(daemon) = start(LATE) else {
        return;
    };
    let mut clients = send_late_requests(&daemon);
    kill(daemon.worker_pids()[0]);
    expect_timeouts(&mut clients, &daemon.directory().join("counts"));
}

#[test]
fn late_requests_get_timeout_although_the_master_is_killed() {
    let Some(config) = configuration(LATE, "", &[]) else {
        return;
    };
    let manager = ServiceManager::new();
    let daemon = manager.setup(FDPASSD, &config).start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    let mut clients = send_late_requests(&daemon);
    let counts = daemon.directory().join("counts");
    daemon.signal("KILL");
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let next = next.expect("the next master serves");
    expect_timeouts(&mut clients, &counts);
    assert_eq!(next.status().lost_total, 0);
}

/// Such an app cannot cancel a request, so it does not get `stall-timeout` to do so.
#[test]
fn an_app_of_one_request_at_a_time_is_ended_at_the_timeout() {
    // The others take less than that even if their app does not run for a while.
    let config =
        "workers.count = 2\nlimits.request-timeout = \"5s\"\nlimits.stall-timeout = \"10m\"";
    let Some(daemon) = start_with(config, &[("CONCURRENCY", "1")]) else {
        return;
    };
    let mut client = daemon.connect();
    let mut others: Vec<_> = (0..4).map(|_| daemon.connect()).collect();
    client.request("never", Value::Null);
    counted(&daemon, 1);
    for (number, other) in others.iter_mut().enumerate() {
        other.request("echo", number);
    }
    for (number, other) in others.iter_mut().enumerate() {
        assert_eq!(other.reply().value(), Ok(json!(number)));
    }
    assert_eq!(
        client.reply().value().expect_err("it is late").code(),
        "timeout"
    );
    daemon.wait_for_log(": its app did not answer within request-timeout");
    let status = daemon.wait_for_workers();
    assert_eq!((status.deaths_total, status.lost_total), (1, 0));
}

#[test]
fn clients_of_an_app_whose_loop_is_blocked_go_elsewhere() {
    let config =
        "workers.count = 2\nlimits.request-timeout = \"none\"\nlimits.stall-timeout = \"200ms\"";
    let Some(daemon) = start(config) else {
        return;
    };
    let mut blocker = daemon.connect();
    let mut others: Vec<_> = (0..6).map(|_| daemon.connect()).collect();
    for other in &mut others {
        assert_eq!(other.call("echo", 0), Ok(json!(0)));
    }
    let end = daemon.directory().join("end");
    blocker.request("block", &end);
    daemon.wait_until("it is found stuck", |status| {
        let mut workers = status.workers.iter();
        workers.any(|worker| worker.state == WorkerState::Stalled && worker.away == 1)
    });
    for (number, other) in others.iter_mut().enumerate() {
        other.request("echo", number);
    }
    for (number, other) in others.iter_mut().enumerate() {
        assert_eq!(other.reply().value(), Ok(json!(number)));
    }
    assert!(!blocker.has_something(), "the others did not wait for it");
    fs::write(&end, "").expect("it is ours");
    assert_eq!(blocker.reply().value(), Ok(json!(end)));
    assert_eq!(daemon.status().deaths_total, 0);
}

/// A worker that has given up a late request waits for its other requests without using its CPU.
#[test]
fn a_worker_waits_idle_after_it_gave_up_a_request() {
    const TICKS: u64 = 20;
    let config =
        "workers.count = 1\nlimits.request-timeout = \"6s\"\nlimits.stall-timeout = \"4s\"";
    let Some(daemon) = start(config) else {
        return;
    };
    let worker = daemon.worker_pids()[0];
    let (mut late, mut other) = (daemon.connect(), daemon.connect());
    late.request("never", Value::Null);
    daemon.wait_for_log("exceeded request-timeout");
    // It is not late yet when the first is given up.
    other.request("never", Value::Null);
    let before = kernel::cpu_ticks(worker);
    let mut after = before;
    eventually("the worker has ended", || {
        match kernel::cpu_ticks_if_there(worker) {
            Some(ticks) => after = ticks,
            None => return Some(()),
        }
        None
    });
    let spent = after - before;
    assert!(spent <= TICKS, "{spent} hundredths of a second of CPU time");
}

/// Time in which a worker was stopped does not count against a request, and does not keep the worker busy afterwards.
#[test]
fn a_worker_that_was_stopped_waits_idle() {
    let config =
        "workers.count = 1\nlimits.request-timeout = \"4s\"\nlimits.stall-timeout = \"30s\"";
    let Some(daemon) = start(config) else {
        return;
    };
    let worker = daemon.worker_pids()[0];
    let end = daemon.directory().join("end");
    let mut client = daemon.connect();
    client.request("until_exists", (&end, "x"));
    counted(&daemon, 1);
    kernel::stop(worker);
    let_pass(Duration::from_secs(2));
    kernel::send(worker, Signal::SIGCONT);
    kernel::assert_waits(&[worker], Duration::from_millis(3_800), 0.1);
    std::fs::write(&end, "").expect("it is ours");
    let _ = client.reply();
    assert_eq!(daemon.status().deaths_total, 0);
}
