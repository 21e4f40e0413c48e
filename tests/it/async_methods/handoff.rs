//! The master is killed while futures cannot be dropped: they execute nothing after their clients are packed.

use std::fs;
use std::time::{Duration, SystemTime};

use fdpassd::testing::{Running, ServiceManager, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{config, recorded, wait_for_away};
use crate::common::faulty::example;
use crate::common::kernel;
use crate::common::restart::{How, restart, wait_for_confirmed_store};
use crate::common::strace::Traced;

/// Starts a daemon with one worker, of which no client is moved to another one while it is blocked.
fn start(manager: &ServiceManager) -> Running {
    let limits = "limits = { restart-grace = \"100ms\", stall-timeout = \"1h\" }";
    let text = config(&format!("workers.count = 1\n{limits}"));
    let started = manager.setup(example("waitd"), &text).start();
    let daemon = started.expect("it serves");
    daemon.wait_for_workers();
    daemon
}

#[test]
fn clients_outlive_a_blocking_future_of_a_killed_master() {
    for method in ["block", "compute"] {
        let manager = ServiceManager::new();
        let daemon = start(&manager);
        let mut waits = daemon.connect();
        waits.request("record", ("first", 600_000));
        recorded(&daemon, 1);
        let mut rerun = daemon.connect();
        rerun.request("until_rerun", ());
        wait_for_away(&daemon, 2);
        let mut blocker = daemon.connect();
        blocker.request(method, 600_000);
        // Its future is polled in the next turn of the runtime, which does not come.
        let mut behind = daemon.connect();
        behind.request("record", ("behind", 0));
        wait_for_away(&daemon, 4);
        let daemon = restart(&manager, daemon, How::Kill, &example("waitd"));
        for client in [&mut waits, &mut blocker, &mut behind] {
            match client.reply().value() {
                Ok(value) => assert_eq!(value, json!("behind"), "it was before the blocker"),
                Err(fault) => assert_eq!(fault.code(), "crashed", "{method}"),
            }
            assert_eq!(client.call("sleep", 1), Ok(json!(1)));
        }
        assert_eq!(rerun.reply().value(), Ok(json!(2)));
        let lines = recorded(&daemon, 1);
        for words in ["begun first", "begun behind", "done behind"] {
            let count = lines.iter().filter(|line| *line == words).count();
            assert!(count <= 1, "{words}: {lines:?}");
        }
        assert!(!lines.contains(&"done first".to_owned()), "{lines:?}");
        assert_eq!(daemon.status().lost_total, 0);
    }
}

#[test]
fn futures_are_not_polled_while_a_signal_handler_packs() {
    // It packs with two calls or more.
    const DELAY: Duration = Duration::from_millis(700);
    let manager = ServiceManager::new();
    let mut daemon = start(&manager);
    let worker = daemon.worker_pids()[0];
    let mut records = daemon.connect();
    records.request("record_often", "x");
    recorded(&daemon, 3);
    // From now on the loop cannot pack.
    let mut blocker = daemon.connect();
    blocker.request("block_in_loop", 600_000);
    daemon.wait_until("the loop is blocked", |status| {
        status.workers[0].executing == 2
    });
    wait_for_confirmed_store(&daemon);
    let inject = format!("sendmsg:delay_enter={}", DELAY.as_micros());
    let Some(traced) = Traced::attach(worker, "sendmsg", &inject) else {
        return;
    };
    daemon.signal("KILL");
    daemon.wait();
    kernel::send(worker, Signal::SIGTERM);
    eventually("the worker has packed and ended", || {
        kernel::is_over(worker).then_some(())
    });
    let ended = SystemTime::now();
    let record = daemon.directory().join("record");
    let written = fs::metadata(record).and_then(|found| found.modified());
    let still = ended.duration_since(written.expect("it is there"));
    let calls = traced.text().matches("(DELAYED)").count();
    drop(traced);
    let still = still.unwrap_or_default();
    assert!(
        calls >= 2 && still >= DELAY,
        "{calls} calls; {still:?} without a line"
    );
    let next = manager.setup(example("waitd"), "");
    let daemon = next.start_after(daemon).expect("the next master serves");
    for client in [&mut records, &mut blocker] {
        let fault = client.reply().value().expect_err("it was interrupted");
        assert_eq!(fault.code(), "crashed");
        assert_eq!(client.call("sleep", 1), Ok(json!(1)));
    }
    let lines = recorded(&daemon, 1);
    let begun = lines.iter().filter(|line| *line == "begun x").count();
    assert_eq!(begun, 1, "it does not run again");
    assert_eq!(daemon.call("waited", ()), Ok(Value::from(2)));
    assert_eq!(daemon.status().lost_total, 0);
}
