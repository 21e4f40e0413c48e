//! Apps with many requests: what an app's death means for the others, and what the status shows of a full app.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, Running, TIMEOUT, eventually};
use serde_json::json;

use crate::app_deaths::{LISTEN, apps, config, end, journal, kill_9, wait_until_begun};
use crate::common::metrics::samples;
use crate::common::program::ctl;
use crate::common::start;

/// The requests of these tests wait for their files.
const PATIENT: &str = "limits.request-timeout = \"1h\"\n";

/// A file that never exists.
const NEVER: &str = "/none";

/// Sends one request for each client. In the first attempt each waits for a file that never exists, in the second for
/// `then-N`. Waits until the app has begun all of them.
fn idempotent_away(daemon: &Running, clients: usize) -> Vec<Client> {
    let send = |number| {
        let mut client = daemon.connect();
        let then = then(daemon.directory(), number);
        client.request("price", json!({"n": number, "until": NEVER, "then": then}));
        client
    };
    let clients: Vec<Client> = (0..clients).map(send).collect();
    (0..clients.len() as u64).for_each(|number| wait_until_begun(daemon, number));
    clients
}

fn then(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("then-{number}"))
}

fn wait_for_away(daemon: &Running, requests: u64) {
    daemon.wait_until("they are away", |status| {
        status.workers.iter().map(|worker| worker.away).sum::<u64>() == requests
    });
}

/// Returns the requests that run for the second time, in the order of their beginnings.
fn reruns(daemon: &Running) -> Vec<usize> {
    let journal = fs::read_to_string(journal(daemon)).expect("the app writes it");
    let of_second = |line: &str| line.strip_suffix(" 2")?.parse().ok();
    journal.lines().filter_map(of_second).collect()
}

/// Nothing has caused the death of an app that is killed from outside.
#[test]
fn requests_of_a_killed_app_run_again_together() {
    let Some(config) = config(1, 8, PATIENT) else {
        return;
    };
    let daemon = start(&config);
    let mut clients = idempotent_away(&daemon, 5);
    apps(daemon.directory()).into_iter().for_each(kill_9);
    daemon.wait_until("its death is noticed", |status| status.deaths_total == 1);
    wait_for_away(&daemon, 5);
    let other = daemon.call("price", json!({"n": 100}));
    assert_eq!(other.expect("there are permits"), 100);
    assert_eq!(reruns(&daemon).len(), 5);
    for (number, client) in clients.iter_mut().enumerate() {
        assert!(!client.has_something());
        fs::write(then(daemon.directory(), number), "").expect("it is ours");
        assert_eq!(client.reply().value().expect("it runs again"), number);
    }
    assert_eq!(daemon.status().reruns_total, 5);
    end(daemon, 6);
}

/// One of them may have caused the death.
#[test]
fn requests_of_an_app_that_has_exited_run_again_alone() {
    // Those that wait are not moved to another worker.
    let more = format!("{PATIENT}limits.stall-timeout = \"1h\"\n");
    let Some(config) = config(1, 8, &more) else {
        return;
    };
    let daemon = start(&config);
    let mut clients = idempotent_away(&daemon, 4);
    let fault = daemon.call("exit", json!({"status": 3}));
    assert_eq!(fault.expect_err("it ends its app").code(), "crashed");
    let mut other = daemon.connect();
    for step in 1..=clients.len() {
        eventually("the next one runs", || {
            (reruns(&daemon).len() == step).then_some(())
        });
        wait_for_away(&daemon, 1);
        if step == 1 {
            daemon.wait_until("the others wait", |status| status.workers[0].waiting == 3);
            other.request("price", json!({"n": 100}));
            daemon.wait_until("it waits, too", |status| status.workers[0].waiting == 4);
        }
        let number = reruns(&daemon)[step - 1];
        fs::write(then(daemon.directory(), number), "").expect("it is ours");
        let client = &mut clients[number];
        assert_eq!(client.reply().value().expect("it runs again"), number);
        if step == 1 {
            // It does not wait for all of them.
            assert_eq!(other.reply().value().expect("it is its turn"), 100);
        }
    }
    assert_eq!(daemon.status().reruns_total, 4);
    end(daemon, 6);
}

#[test]
fn a_method_that_ends_ten_apps_with_others_is_quarantined() {
    let Some(config) = config(1, 8, PATIENT) else {
        return;
    };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for number in 1..=10 {
        assert!(daemon.status().quarantined.is_empty(), "{number}");
        client.request("price", json!({"n": number, "until": NEVER}));
        wait_for_away(&daemon, 1);
        let fault = daemon.call("exit", json!({"status": 3}));
        assert_eq!(fault.expect_err("it ends its app").code(), "crashed");
        assert_eq!(client.reply().value().expect("it runs again"), number);
    }
    daemon.wait_for_log("method \"exit\" was executing at each of the last 10 deaths within 600s");
    let status = daemon.status();
    assert_eq!(status.quarantined, ["exit"]);
    assert_eq!((status.deaths_total, status.reruns_total), (10, 10));
    let fault = daemon.call("exit", json!({"status": 3}));
    let fault = fault.expect_err("it does not run");
    assert!(fault.to_string().contains("quarantined"), "{fault}");
    assert_eq!(daemon.status().deaths_total, 10);
    assert!(
        daemon
            .ctl_with("release", json!({"method": "exit"}))
            .is_ok()
    );
    end(daemon, 11);
}

/// A pair with 16 requests of this length is killed while another pair serves other clients. Returns the longest time
/// that one of these waits for a reply.
fn longest_wait(milliseconds: u64) -> Option<Duration> {
    const CALLERS: usize = 16;
    let daemon = start(&config(1, CALLERS, PATIENT)?);
    let mut callers: Vec<Client> = (0..CALLERS).map(|_| daemon.connect()).collect();
    for (number, caller) in callers.iter_mut().enumerate() {
        let params = json!({"n": number, "until": NEVER, "ms": milliseconds});
        caller.request("price", params);
    }
    (0..CALLERS as u64).for_each(|number| wait_until_begun(&daemon, number));
    let first = apps(daemon.directory());
    daemon
        .ctl_with("scale", json!({"count": 2}))
        .expect("another pair");
    daemon.wait_for_workers();
    let is_over = AtomicBool::new(false);
    let serve = || {
        let mut client = daemon.connect();
        let (began, mut longest) = (Instant::now(), Duration::ZERO);
        // If a caller fails, this ends nevertheless.
        while !is_over.load(Ordering::Relaxed) && began.elapsed() < TIMEOUT {
            let begin = Instant::now();
            let result = client.call("price", json!({"n": 100}));
            assert_eq!(result.expect("no call fails"), 100);
            longest = longest.max(begin.elapsed());
        }
        longest
    };
    let longest = thread::scope(|scope| {
        let others: Vec<_> = (0..4).map(|_| scope.spawn(serve)).collect();
        let answered = daemon.status().requests_total;
        daemon.wait_until("others are served", |status| {
            status.requests_total > answered + 100
        });
        first.into_iter().for_each(kill_9);
        for (number, caller) in callers.iter_mut().enumerate() {
            assert_eq!(caller.reply().value().expect("it runs again"), number);
        }
        is_over.store(true, Ordering::Relaxed);
        let longest = others
            .into_iter()
            .map(|other| other.join().expect("served"));
        longest.max().expect("there are others")
    });
    println!("{CALLERS} requests of {milliseconds} ms: others wait at most {longest:?}");
    end(daemon, CALLERS as u64 + 4);
    Some(longest)
}

#[test]
fn others_do_not_wait_for_the_requests_of_a_killed_app() {
    let Some(_) = longest_wait(1) else { return };
    let Some(longest) = longest_wait(1_000) else {
        return;
    };
    // One at a time they take 16 s.
    assert!(longest < Duration::from_secs(8), "{longest:?}");
}

#[test]
fn requests_that_wait_for_a_permit_are_shown() {
    let more = format!(
        "{LISTEN}{PATIENT}limits.stall-timeout = \"1h\"\nmetrics.listen = \"127.0.0.1:0\"\n"
    );
    let Some(config) = config(1, 1, &more) else {
        return;
    };
    let daemon = start(&config);
    let file = daemon.directory().join("end");
    let mut clients: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("order", json!({"n": number, "until": &file}));
    }
    daemon.wait_until("two wait", |status| status.workers[0].waiting == 2);
    // A TCP client that closes could still read, for all that its end shows.
    let mut leaver = Client::connect(&daemon.addresses()[1]);
    leaver.request("order", json!({"n": 3}));
    let status = daemon.wait_until("three wait", |status| status.workers[0].waiting == 3);
    assert_eq!(status.workers[0].away, 1);
    let figures = samples(&daemon);
    let figure = |name: &str| figures[&format!("fdpassd_worker_requests_{name}{{worker=\"0\"}}")];
    assert_eq!((figure("away"), figure("waiting")), (1.0, 3.0));
    let shown = ctl(&daemon, &["status"]).out;
    assert!(shown.contains(" AWAY MOST WAIT "), "{shown}");
    // One that leaves does not wait any more.
    drop(leaver);
    daemon.wait_until("two wait", |status| status.workers[0].waiting == 2);
    fs::write(&file, "").expect("it is ours");
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value().expect("it is its turn"), number);
    }
    daemon.wait_until("none waits", |status| status.workers[0].waiting == 0);
    end(daemon, 4);
}

/// To the daemon, an app whose requests all take longer than `stall-timeout` is like one that hangs.
#[test]
fn an_overloaded_app_gets_one_substitute() {
    let Some(config) = config(
        1,
        1,
        &format!("{PATIENT}limits.stall-timeout = \"200ms\"\n"),
    ) else {
        return;
    };
    let daemon = start(&config);
    let file = daemon.directory().join("end");
    let mut clients: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("order", json!({"n": number, "until": &file}));
    }
    let is_stalled = |state| state == WorkerState::Stalled;
    let status = daemon.wait_until("both are full", |status| {
        let states = status.workers.iter().map(|worker| worker.state);
        states.filter(|state| is_stalled(*state)).count() == 2
    });
    assert_eq!(status.workers.len(), 2, "twice `count` is the most");
    assert_eq!(apps(daemon.directory()).len(), 2);
    fs::write(&file, "").expect("it is ours");
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value().expect("it is its turn"), number);
    }
    eventually("the substitute ends", || {
        (apps(daemon.directory()).len() == 1).then_some(())
    });
    daemon.wait_for_workers();
    assert_eq!(daemon.status().errors_total, 0);
    end(daemon, 5);
}
