//! Processes that real-time signals have killed, 34 to 64, are collected like all others.

use fdpassd::testing::{Running, eventually};

use crate::app_deaths;
use crate::common::faulty::{self, whoami};
use crate::common::kernel::{children, state};
use crate::common::program::run;
use crate::common::start;

const SIGNALS: [i32; 3] = [34, 40, 64];

/// Sends a signal that has no name in nix.
#[track_caller]
fn send(pid: u32, signal: i32) {
    let said = run("/bin/sh", &["-c", &format!("kill -{signal} {pid}")]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[track_caller]
fn expect_collected(pid: u32) {
    eventually("the process is collected", || {
        state(pid).is_none().then_some(())
    });
}

/// The master still collects children.
#[track_caller]
fn expect_next_collection(daemon: &Running) {
    let mut client = daemon.connect();
    let before = whoami(&mut client).pid;
    daemon.signal_worker(0, "KILL");
    expect_collected(before);
    assert_ne!(whoami(&mut client).pid, before);
    assert!(!daemon.stderr().contains("cannot collect"));
}

#[test]
fn a_worker_killed_by_a_real_time_signal_is_replaced() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    for signal in SIGNALS {
        let before = whoami(&mut client).pid;
        send(before, signal);
        expect_collected(before);
        assert_ne!(whoami(&mut client).pid, before);
        let death = daemon.status().workers[0].last_death.clone();
        assert_eq!(death, Some(format!("killed by signal {signal}")));
    }
    expect_next_collection(&daemon);
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn an_orphan_killed_by_a_real_time_signal_is_collected() {
    let daemon = faulty::start("workers.count = 1");
    for signal in SIGNALS {
        let script = "setsid sleep 1000 & wait";
        let mut client = daemon.connect();
        client.request("shell", script);
        let worker = daemon.worker_pids()[0];
        // The shell, and then the program that it has started.
        let orphan = eventually("the program is started", || {
            let shell = children(worker).first().copied()?;
            let program = children(shell).first().copied()?;
            let arguments = std::fs::read(format!("/proc/{program}/cmdline")).ok()?;
            arguments.starts_with(b"sleep").then_some(program)
        });
        daemon.kill_worker(0);
        eventually("the master has inherited it", || {
            children(daemon.pid()).contains(&orphan).then_some(())
        });
        send(orphan, signal);
        expect_collected(orphan);
    }
    expect_next_collection(&daemon);
}

#[test]
fn an_app_killed_by_a_real_time_signal_is_replaced() {
    let Some(config) = app_deaths::config(1, 4, "") else {
        return;
    };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for (n, signal) in (0_u64..).zip(SIGNALS) {
        client
            .call("price", serde_json::json!({ "n": n }))
            .expect("a result");
        let app = app_deaths::apps(daemon.directory())[0];
        send(app, signal);
        expect_collected(app);
        daemon.wait_for_log(&format!("its app was killed by signal {signal};"));
    }
    app_deaths::end(daemon, 1);
}
