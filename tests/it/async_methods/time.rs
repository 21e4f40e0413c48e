//! Requests of asynchronous methods that take long, and clients that leave.

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use super::{recorded, runtime_thread, start, start_with, threads, wait_for_away, wait_for_begun};
use crate::common::starvation::Starved;

#[test]
fn the_future_of_a_client_that_has_left_is_dropped() {
    for listen in ["127.0.0.1:0", "unix:{dir}/rpc.sock"] {
        let daemon = start_with(
            &format!("workers.count = 1\nlisten = [\"{listen}\"]"),
            &[("WAITD_CONCURRENCY", "1")],
        );
        let mut client = daemon.connect();
        // A reply that it has not read makes the end of a TCP connection a reset, not a half-close.
        client.request("ping", 0);
        client.request("until_dropped", "x");
        recorded(&daemon, 1);
        let mut next = daemon.connect();
        next.request("sleep", 1);
        drop(client);
        assert_eq!(recorded(&daemon, 2), ["begun x", "dropped x false"]);
        assert_eq!(next.reply().value(), Ok(json!(1)), "its permit is free");
        let status = daemon.status();
        assert_eq!((status.deaths_total, status.lost_total), (0, 0));
    }
}

#[test]
fn a_late_future_is_dropped_and_its_caller_gets_timeout() {
    // The future has begun by then, even if the thread of the runtime does not run for a while.
    let config =
        "workers.count = 1\nlimits.request-timeout = \"4s\"\nlimits.stall-timeout = \"20s\"";
    for concurrency in ["1", "64"] {
        let daemon = start_with(config, &[("WAITD_CONCURRENCY", concurrency)]);
        let mut client = daemon.connect();
        client.request("until_dropped", "x");
        client.request("ping", 1);
        let fault = client.reply().value().expect_err("it is late");
        assert_eq!(fault.code(), "timeout");
        daemon.wait_for_log("client 1: method \"until_dropped\" exceeded request-timeout;");
        // It was dropped before its caller was answered.
        assert_eq!(recorded(&daemon, 0), ["begun x", "dropped x true"]);
        assert_eq!(client.reply().value(), Ok(json!(1)));
        assert_eq!(daemon.status().deaths_total, 0);
    }
}

#[test]
fn a_request_that_ends_before_its_future_begins_is_complete() {
    let config =
        "workers.count = 1\nlimits.request-timeout = \"1500ms\"\nlimits.stall-timeout = \"20s\"";
    let daemon = start(config);
    let (mut blocker, mut late) = (daemon.connect(), daemon.connect());
    let mut leaves = daemon.connect();
    blocker.request("block", 8_000);
    wait_for_away(&daemon, 1);
    late.request("until_dropped", "x");
    // A reply that it has not read makes the end of its connection a reset.
    leaves.request("ping", 0);
    leaves.request("until_dropped", "y");
    wait_for_away(&daemon, 3);
    drop(leaves);
    for client in [&mut blocker, &mut late] {
        let fault = client.reply().value().expect_err("it is late");
        assert_eq!(fault.code(), "timeout");
    }
    wait_for_away(&daemon, 0);
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
}

#[test]
fn a_worker_whose_futures_are_blocked_is_replaced() {
    let config =
        "workers.count = 1\nlimits.request-timeout = \"5s\"\nlimits.stall-timeout = \"1s\"";
    let daemon = start(config);
    let mut blocker = daemon.connect();
    let mut idle = daemon.connect();
    blocker.request("block", 600_000);
    let fault = blocker.reply().value().expect_err("it is late");
    assert_eq!(fault.code(), "timeout");
    daemon.wait_for_log("its runtime did not answer within request-timeout and stall-timeout");
    assert_eq!(idle.call("sleep", 1), Ok(json!(1)));
    assert_eq!(blocker.call("sleep", 1), Ok(json!(1)));
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (1, 0));
}

#[test]
fn clients_of_a_worker_whose_futures_are_blocked_go_elsewhere() {
    let config =
        "workers.count = 2\nlimits.request-timeout = \"none\"\nlimits.stall-timeout = \"200ms\"";
    let daemon = start(config);
    let mut blocker = daemon.connect();
    let mut others: Vec<_> = (0..6).map(|_| daemon.connect()).collect();
    for other in &mut others {
        assert_eq!(other.call("ping", 0), Ok(json!(0)));
    }
    blocker.request("block", 4_000);
    daemon.wait_until("it is found stuck", |status| status.stalls_total > 0);
    for other in &mut others {
        assert_eq!(other.call("sleep", 1), Ok(json!(1)));
    }
    daemon.wait_for_log("its runtime has answered none of 1 request");
    assert_eq!(blocker.reply().value(), Ok(Value::Null));
    daemon.wait_until("it responds again", |status| {
        status.workers.iter().all(|worker| worker.executing == 0)
    });
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn reloads_wait_for_requests_that_are_away() {
    let daemon = start("workers.count = 1");
    let mut clients: Vec<_> = (0..16).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("record", (number.to_string(), 700));
    }
    wait_for_begun(&daemon, 16);
    daemon.reload().expect("it is reloaded");
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value(), Ok(json!(number.to_string())));
        assert_eq!(client.call("sleep", 1), Ok(json!(1)));
    }
    assert_eq!(recorded(&daemon, 32).len(), 32, "each ran once");
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
}

#[test]
fn a_worker_whose_requests_only_wait_is_not_stuck() {
    let config =
        "workers.count = 2\nlimits.request-timeout = \"none\"\nlimits.stall-timeout = \"1s\"";
    let daemon = start(config);
    let mut client = daemon.connect();
    assert_eq!(client.call("sleep", 4_000), Ok(json!(1)));
    assert_eq!(daemon.status().stalls_total, 0);
}

/// Returns a client, and the pid and the id of its worker, which has none of these pids.
fn client_elsewhere(daemon: &Running, others: &[u64]) -> (Client, u64, u64) {
    loop {
        let mut client = daemon.connect();
        let worker = client.call("whoami", ()).expect("a result");
        let number = |key: &str| worker[key].as_u64().expect("a number");
        if !others.contains(&number("pid")) {
            return (client, number("pid"), number("worker"));
        }
    }
}

#[test]
fn a_worker_whose_runtime_only_lacks_a_cpu_is_not_stuck() {
    let config =
        "workers.count = 2\nlimits.request-timeout = \"none\"\nlimits.stall-timeout = \"200ms\"";
    let daemon = start(config);
    let (mut client, pid, worker) = client_elsewhere(&daemon, &[]);
    let (mut blocker, _, blocked) = client_elsewhere(&daemon, &[pid]);
    let busy = client.call("busy_threads", 4);
    assert_eq!(busy, Ok(Value::Null));
    let rivals = eventually("they have their name", || {
        let found = threads(pid as u32, "busy");
        (found.len() == 4).then_some(found)
    });
    let starved = Starved::start(runtime_thread(pid as u32), &rivals);
    // Each needs another turn of the runtime, so one of them waits for the CPU soon.
    for _ in 0..8 {
        client.request("sleep", 1);
    }
    wait_for_away(&daemon, 1);
    blocker.request("block", 600_000);
    daemon.wait_until("the other one is stuck", |status| {
        let is_stuck = |id: u64| {
            let mut workers = status.workers.iter();
            let worker = workers.find(|worker| worker.id.is_some_and(|found| found.0 == id));
            worker.is_some_and(|worker| worker.state == WorkerState::Stalled)
        };
        assert!(!is_stuck(worker), "it only waits for a CPU");
        is_stuck(blocked)
    });
    assert_eq!(daemon.status().stalls_total, 1);
    drop(starved);
    for _ in 0..8 {
        assert_eq!(client.reply().value(), Ok(json!(1)));
    }
    let status = daemon.status();
    assert_eq!((status.stalls_total, status.deaths_total), (1, 0));
}
