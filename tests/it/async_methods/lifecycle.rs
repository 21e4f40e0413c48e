//! Workers are replaced, held, stopped and restarted while requests of asynchronous methods are away.

use std::fs;

use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use serde_json::{Value, json};

use super::{config, recorded, runtime_thread, start, wait_for_away, wait_for_begun};
use crate::common::faulty::example;
use crate::common::restart::{How, restart, terminate, wait_for_confirmed_store};

/// Sends requests that take a while, one by each new client, and waits until all of them have begun.
fn away(daemon: &Running, count: usize, milliseconds: u64) -> Vec<Client> {
    let before = recorded(daemon, 0).len() / 2;
    let mut clients: Vec<Client> = (0..count).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("record", (number.to_string(), milliseconds));
        client.request("ping", number);
    }
    wait_for_begun(daemon, before + count);
    clients
}

fn expect_results(clients: &mut [Client]) {
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value(), Ok(json!(number.to_string())));
        assert_eq!(client.reply().value(), Ok(json!(number)));
    }
}

#[test]
fn replaced_workers_finish_the_requests_that_are_away() {
    let daemon = start("workers.count = 2");
    let ctl = |verb, params: Value| drop(daemon.ctl_with(verb, params).expect("it is done"));
    let worker = || {
        let status = daemon.status();
        let mut workers = status.workers.iter();
        let away = workers.find(|worker| worker.away > 0);
        let worker = away.or(status.workers.first());
        worker.and_then(|worker| worker.id).expect("it has one").0
    };
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let changes: [Change<'_>; 5] = [
        (
            "reload",
            Box::new(|| drop(daemon.reload().expect("it is applied"))),
        ),
        (
            "recycle",
            Box::new(|| ctl("recycle", json!({ "worker": worker() }))),
        ),
        ("scale", Box::new(|| ctl("scale", json!({ "count": 1 })))),
        (
            "scale again",
            Box::new(|| ctl("scale", json!({ "count": 2 }))),
        ),
        (
            "hold",
            Box::new(|| {
                let id = worker();
                ctl("hold", json!({ "worker": id }));
                ctl("release", json!({ "worker": id }));
            }),
        ),
    ];
    for (name, change) in changes {
        let mut clients = away(&daemon, 8, 1_000);
        change();
        expect_results(&mut clients);
        for client in &mut clients {
            assert_eq!(client.call("sleep", 1), Ok(json!(1)), "{name}");
        }
        daemon.wait_for_workers();
    }
    let status = daemon.status();
    let errors = (status.errors_total, status.deaths_total, status.lost_total);
    assert_eq!(errors, (0, 0, 0));
    assert_eq!(recorded(&daemon, 80).len(), 80, "each ran once");
}

#[test]
fn a_stop_waits_for_the_requests_that_are_away() {
    let mut daemon = start("workers.count = 1");
    let mut clients = away(&daemon, 8, 400);
    daemon.signal("INT");
    expect_results(&mut clients);
    for client in &mut clients {
        client.expect_end();
    }
    daemon.wait();
}

#[test]
fn a_restart_waits_for_the_requests_that_are_away() {
    for how in How::ALL {
        let manager = ServiceManager::new();
        let text = config("workers.count = 2\nlimits.restart-grace = \"60s\"");
        let started = manager.setup(example("waitd"), &text).start();
        let daemon = started.expect("it serves");
        daemon.wait_for_workers();
        let mut clients = away(&daemon, 16, 600);
        let daemon = restart(&manager, daemon, how, &example("waitd"));
        expect_results(&mut clients);
        for client in &mut clients {
            assert_eq!(client.call("sleep", 1), Ok(json!(1)), "{how:?}");
        }
        assert_eq!(recorded(&daemon, 32).len(), 32, "each ran once: {how:?}");
        assert_eq!(daemon.status().lost_total, 0, "{how:?}");
    }
}

#[test]
fn a_master_killed_during_a_restart_loses_no_client() {
    let manager = ServiceManager::new();
    let text = config("workers.count = 2\nlimits.restart-grace = \"60s\"");
    let started = manager.setup(example("waitd"), &text).start();
    let mut daemon = started.expect("it serves");
    daemon.wait_for_workers();
    wait_for_confirmed_store(&daemon);
    let mut others: Vec<Client> = (0..40).map(|_| daemon.connect()).collect();
    let halves: Vec<Vec<u8>> = others
        .iter_mut()
        .map(|client| {
            assert_eq!(client.call("sleep", 1), Ok(json!(1)));
            let frame = client.frame(r#"{"in":"sleep","params":1}"#);
            client.send(&frame[..10]);
            frame[10..].to_vec()
        })
        .collect();
    let mut waits = away(&daemon, 1, 10_000);
    // One worker still executes a request, and has given up its other clients; the other has exited.
    daemon.signal("TERM");
    daemon.wait_for_log(" for the next master; running requests get ");
    daemon.wait_until("one worker is left", |status| {
        status.workers.iter().flat_map(|worker| worker.pid).count() == 1
    });
    eventually("it has given up its other clients", || {
        let page = daemon.ctl_with("clients", json!({})).expect("a page");
        let clients = page["clients"].as_array()?;
        let given_up = clients.iter().filter(|client| client["state"] == "waiting");
        (given_up.count() + 1 == clients.len()).then_some(())
    });
    // After this reply the loop of the master has begun again.
    let left = daemon.worker_pids();
    daemon.signal("KILL");
    daemon.wait();
    for worker in left {
        terminate(worker);
    }
    let next = manager.setup(example("waitd"), "").start_after(daemon);
    let next = next.expect("the next master serves");
    for (client, half) in others.iter_mut().zip(halves) {
        client.send(half);
        assert_eq!(client.reply().value(), Ok(json!(1)));
    }
    expect_results(&mut waits);
    assert_eq!(recorded(&next, 2).len(), 2, "it ran once");
    let status = next.status();
    assert_eq!((status.clients, status.lost_total), (41, 0));
}

#[test]
fn a_restart_ends_the_futures_that_exceed_restart_grace() {
    for how in [How::Term, How::Kill, How::TermAll] {
        let manager = ServiceManager::new();
        let text = config("workers.count = 2\nlimits.restart-grace = \"100ms\"");
        let started = manager.setup(example("waitd"), &text).start();
        let daemon = started.expect("it serves");
        daemon.wait_for_workers();
        let mut recorders = away(&daemon, 8, 600_000);
        let mut waiting: Vec<Client> = (0..8).map(|_| daemon.connect()).collect();
        for client in &mut waiting {
            client.request("until_rerun", ());
        }
        wait_for_away(&daemon, 16);
        let daemon = restart(&manager, daemon, how, &example("waitd"));
        for (number, client) in recorders.iter_mut().enumerate() {
            let fault = client.reply().value().expect_err("it was interrupted");
            assert_eq!(fault.code(), "crashed", "{how:?}");
            assert_eq!(client.reply().value(), Ok(json!(number)));
        }
        for client in &mut waiting {
            assert_eq!(client.reply().value(), Ok(json!(2)), "{how:?}");
        }
        assert_eq!(recorded(&daemon, 8).len(), 8, "each ran once: {how:?}");
        assert_eq!(daemon.status().lost_total, 0, "{how:?}");
    }
}

#[test]
fn the_runtime_blocks_all_signals() {
    let daemon = start("workers.count = 1");
    let pid = daemon.worker_pids()[0];
    let status = format!("/proc/{pid}/task/{}/status", runtime_thread(pid));
    let status = fs::read_to_string(status).expect("it runs");
    let blocked = status
        .lines()
        .find_map(|line| line.strip_prefix("SigBlk:\t"));
    let blocked = u64::from_str_radix(blocked.expect("a mask"), 16).expect("a mask");
    // SIGHUP, SIGINT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM and SIGCHLD.
    for signal in [1, 2, 10, 12, 14, 15, 17] {
        assert!(blocked & (1 << (signal - 1)) != 0, "{signal}: {blocked:x}");
    }
}
