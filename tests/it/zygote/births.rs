//! Births: in numbers, with an app, with asynchronous methods, and while the zygote does not answer.

use std::time::{Duration, Instant};

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::eventually;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;

use super::processes::assert_forks;
use super::{FORK, start, zygote, zygotes};
use crate::common::faulty::{self, whoami};
use crate::common::kernel;

#[test]
fn a_process_for_each_request_is_forked() {
    let daemon = faulty::start(
        "workers = { count = 2, start = \"fork\", max-requests = 1 }\nlimits.stall-timeout = \"1h\"",
    );
    let mut client = daemon.connect();
    let mut pids: Vec<u32> = (0..100).map(|_| whoami(&mut client).pid).collect();
    pids.dedup();
    assert_eq!(pids.len(), 100);
    let status = daemon.status();
    assert_eq!((status.lost_total, status.failed_starts_total), (0, 0));
    let zygote = status.zygote.expect("it forked them");
    // A worker has the name of the zygote until it has set its own.
    eventually("it is the only one", || {
        (zygotes(&daemon) == [zygote]).then_some(())
    });
}

#[test]
fn all_workers_of_a_large_daemon_are_forked() {
    let daemon = crate::common::start("workers = { count = 64, start = \"fork\" }");
    let status = daemon.wait_for_workers();
    assert_eq!(status.workers.len(), 64);
    eventually("there is one zygote", || {
        (zygotes(&daemon).len() == 1).then_some(())
    });
    assert_eq!(status.failed_starts_total, 0);
}

#[test]
fn an_app_runs_in_a_forked_worker_and_ends_with_it() {
    let Some(daemon) = crate::apps::start(FORK) else {
        return;
    };
    let status = daemon.wait_for_workers();
    let apps: Vec<u32> = status
        .workers
        .iter()
        .map(|worker| worker.app.as_ref().expect("each has one").pid)
        .collect();
    assert_eq!(
        daemon.call("echo", json!([7])).expect("a result"),
        json!([7])
    );
    daemon.kill_worker(0);
    eventually("its app has ended", || {
        kernel::is_over(apps[0]).then_some(())
    });
    daemon.wait_for_workers();
    assert_eq!(
        daemon.call("echo", json!([8])).expect("a result"),
        json!([8])
    );
}

#[cfg(feature = "tokio")]
#[test]
fn asynchronous_methods_run_in_forked_workers() {
    let config = format!("{FORK}[waitd]\nrecord = \"{{dir}}/record\"\n");
    let waitd = faulty::example("waitd");
    let daemon = fdpassd::testing::Running::start(waitd, &config).expect("it serves");
    let status = daemon.wait_for_workers();
    assert!(status.workers.iter().all(|worker| worker.runtime.is_some()));
    assert_forks(&daemon);
}

#[test]
fn a_worker_whose_zygote_does_not_answer_is_late() {
    let daemon =
        crate::common::start("workers = { count = 2, start = \"fork\", start-timeout = \"8s\" }");
    daemon.wait_for_workers();
    let first = zygote(&daemon, None);
    kernel::stop(first);
    daemon.kill_worker(0);
    daemon.wait_for_log("was not ready within 8s: its zygote has not forked it; killing zygote");
    let second = zygote(&daemon, Some(first));
    let status = daemon.wait_for_workers();
    assert_eq!(status.failed_starts_total, 1);
    eventually("the first has ended", || {
        kernel::is_over(first).then_some(())
    });
    assert!(!kernel::is_over(second));
}

#[test]
fn a_birth_that_is_not_wanted_any_more_is_withdrawn() {
    let daemon = start();
    let first = zygote(&daemon, None);
    kernel::stop(first);
    let _scaling = daemon.ctl_request("scale", json!({"count": 4}));
    daemon.wait_until("two are requested", |status| {
        let starting = status.workers.iter();
        let starting = starting.filter(|worker| worker.state == WorkerState::Starting);
        starting.count() == 2
    });
    daemon
        .ctl_with("scale", json!({"count": 2}))
        .expect("it may");
    daemon.wait_until("they are gone", |status| status.workers.len() == 2);
    kernel::send(first, Signal::SIGCONT);
    // The processes that it forked for them have ended, and it serves on.
    assert_forks(&daemon);
    eventually("no other process is left", || {
        (kernel::children(daemon.pid()).len() == 2).then_some(())
    });
    let status = daemon.status();
    assert_eq!(
        (status.zygote, status.failed_starts_total),
        (Some(first), 0)
    );
}

#[test]
fn a_stop_does_not_wait_for_a_zygote_that_is_stopped() {
    let mut daemon = start();
    kernel::stop(zygote(&daemon, None));
    daemon.kill_worker(0);
    let began = Instant::now();
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    assert!(began.elapsed() < Duration::from_secs(20), "it has drained");
}

/// Kills a process, which may have ended.
fn kill(pid: u32) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
}

#[test]
fn a_forked_process_that_is_killed_at_once_is_replaced() {
    let daemon = start();
    let first = zygote(&daemon, None);
    for _ in 0..20 {
        let before = daemon.worker_pids();
        let pid = daemon.status().workers[0].pid;
        if let Some(pid) = pid {
            kill(pid);
        }
        // Each new child as soon as it is there, so that some die before the master knows them.
        for child in kernel::children(daemon.pid()) {
            if child != first && !before.contains(&child) {
                kill(child);
            }
        }
    }
    let status = daemon.wait_for_workers();
    assert_eq!(status.zygote, Some(first));
    assert_forks(&daemon);
}
