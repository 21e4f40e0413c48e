//! `examples/counterd.rs`: its count is right, whatever happens to its workers and its master.

use std::fs::File;
use std::path::Path;
use std::thread;

use fdpassd::testing::{Client, Running, ServiceManager, Setup};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::faulty::example;
use crate::common::read;
use crate::common::restart::wait_for_confirmed_store;

const SENDERS: usize = 4;
const ADDITIONS: u64 = 50;

#[test]
fn the_readme_shows_the_example() {
    let (example, readme) = (read("examples/counterd.rs"), read("README.md"));
    let (_, code) = example
        .split_once("\n\n")
        .expect("code follows the description");
    assert!(readme.contains(&format!("```rust,no_run\n{code}```\n")));
}

#[test]
fn the_count_outlives_reload_recycle_and_kill_of_workers() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(setup(state.path()));
    thread::scope(|scope| {
        let daemon = &daemon;
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                scope.spawn(move || {
                    let mut client = daemon.connect();
                    let mut last = 0;
                    for number in 1..=ADDITIONS {
                        let total = add(&mut client, &format!("sender {sender}"), number);
                        assert!(total > last, "{total} after {last}");
                        last = total;
                    }
                })
            })
            .collect();
        // At least once each, and until all additions are made.
        loop {
            daemon.reload().expect("the configuration is good");
            daemon.kill_worker(0);
            daemon.ctl("recycle").expect("there are workers");
            daemon.kill_worker(1);
            if senders.iter().all(|sender| sender.is_finished()) {
                break;
            }
        }
    });
    assert_eq!(total(&daemon), SENDERS as u64 * ADDITIONS);
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn an_addition_counts_once_if_its_worker_is_killed_before_it() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(setup(state.path()));
    let mut client = daemon.connect();
    assert_eq!(add(&mut client, "a", 1), 1);
    let lock = File::create(state.path().join("lock")).expect("it is there");
    lock.lock().expect("no addition is being made");
    request(&mut client, "a", 2);
    let status = daemon.wait_until("the addition waits for the lock", |status| {
        status.workers.iter().any(|worker| worker.executing == 1)
    });
    let worker = status.workers.iter().find(|worker| worker.executing == 1);
    daemon.kill_worker(worker.expect("it was there").seat);
    lock.unlock().expect("it is locked");
    assert_eq!(client.reply().value().expect("a result"), 2);
    assert_eq!(total(&daemon), 2);
}

#[test]
fn an_addition_counts_once_if_its_worker_dies_after_it() {
    let state = tempfile::tempdir().expect("a directory");
    // The file is written, and the reply is not committed.
    let daemon = start(setup(state.path()).variable("FDPASSD_DIE_AT", "after-handler:3"));
    let mut client = daemon.connect();
    for number in 1..=20 {
        assert_eq!(add(&mut client, "a", number), number);
    }
    let status = daemon.wait_for_workers();
    assert!(status.deaths_total >= 6, "{}", status.deaths_total);
    assert_eq!(status.lost_total, 0);
    assert_eq!(stored_total(&state), 20);
}

#[test]
fn a_repeated_addition_counts_once_and_an_old_one_is_refused() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(setup(state.path()));
    let mut client = daemon.connect();
    assert_eq!(add(&mut client, "a", 7), 1);
    assert_eq!(add(&mut client, "b", 1), 2);
    assert_eq!(add(&mut client, "a", 7), 1);
    request(&mut client, "a", 6);
    let fault = client.reply().value().expect_err("7 was applied");
    assert_eq!(fault.code(), "old_number");
    let most = json!({"sender": "c", "number": 1, "n": u64::MAX});
    let fault = client.call("add", most).expect_err("the sum is too large");
    assert_eq!(fault.code(), "bad_params");
    assert_eq!(total(&daemon), 2);
}

#[test]
fn the_count_outlives_the_master() {
    let state = tempfile::tempdir().expect("a directory");
    let program = example("counterd");
    let manager = ServiceManager::new();
    // As systemd does, the manager passes the same variable to each master.
    let with_state = |setup: Setup| setup.variable("STATE_DIRECTORY", state.path());
    let mut daemon = start(with_state(manager.setup(&program, CONFIG)));
    let mut client = daemon.connect();
    assert_eq!(add(&mut client, "a", 1), 1);
    for (number, signal) in [(2, "TERM"), (3, "KILL")] {
        wait_for_confirmed_store(&daemon);
        daemon.signal(signal);
        let next = with_state(manager.setup(&program, CONFIG));
        daemon = next.start_after(daemon).expect("the next master serves");
        assert_eq!(add(&mut client, "a", number), number, "{signal}");
    }
}

const CONFIG: &str = "workers.count = 2";

fn setup(state: &Path) -> Setup {
    Setup::new(example("counterd"), CONFIG).variable("STATE_DIRECTORY", state)
}

#[track_caller]
fn start(setup: Setup) -> Running {
    let daemon = setup.start().expect("the daemon serves");
    daemon.wait_for_workers();
    daemon
}

/// Requests that 1 is added.
fn request(client: &mut Client, sender: &str, number: u64) {
    client.request("add", json!({"sender": sender, "number": number, "n": 1}));
}

/// Adds 1 and returns the total. As any client may, it repeats a request that was executing at two deaths of workers.
#[track_caller]
fn add(client: &mut Client, sender: &str, number: u64) -> u64 {
    loop {
        request(client, sender, number);
        match client.reply().value() {
            Err(fault) if fault.code() == "crashed" => {}
            reply => {
                let total = reply.expect("an addition does not fail");
                return total.as_u64().expect("a total is a number");
            }
        }
    }
}

#[track_caller]
fn total(daemon: &Running) -> u64 {
    let total = daemon.call("total", ()).expect("a result");
    total.as_u64().expect("a total is a number")
}

fn stored_total(state: &TempDir) -> u64 {
    let file = File::open(state.path().join("counter.json")).expect("it is there");
    let counter: Value = serde_json::from_reader(file).expect("it is JSON");
    counter["total"].as_u64().expect("a total is a number")
}
