//! The testing module itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fdpassd::testing::{Running, ServiceManager, Setup, eventually};
use serde_json::json;

use crate::common::{FDPASSD, kernel, let_pass, start, while_idle, while_idle_with};

#[test]
fn a_killed_worker_is_replaced_and_its_client_stays() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    let before = daemon.worker_pids();
    let mut client = daemon.connect();
    for seat in 0..2 {
        assert_eq!(client.call("ping", seat).expect("a result"), seat);
        daemon.kill_worker(seat);
    }
    assert_eq!(client.call("ping", 2).expect("a result"), 2);
    assert!(daemon.worker_pids().iter().all(|pid| !before.contains(pid)));
    daemon.wait_for_log("killed by signal 9");
}

#[test]
fn control_requests_may_have_params_and_be_read_later() {
    let daemon = start("");
    let mut version = daemon.ctl_request("version", ());
    let refused = daemon
        .ctl_with("status", json!({ "verbose": true }))
        .expect_err("status takes no params");
    assert_eq!(refused.code(), "bad_params");
    assert_eq!(
        version.reply().value().expect("a result")["pid"],
        daemon.pid()
    );
}

/// The tests' own measure: the connection of the last control client is not counted.
#[test]
fn a_daemon_with_a_control_client_is_not_idle() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let descriptors = || kernel::descriptors(daemon.pid()).len();
    let before = while_idle(&daemon, descriptors);
    let mut held = daemon.ctl_request("version", ());
    held.reply().value().expect("a result");
    assert_eq!(while_idle_with(&daemon, 1, descriptors), before + 1);
    thread::scope(|threads| {
        let measured = threads.spawn(|| while_idle(&daemon, descriptors));
        let_pass(Duration::from_millis(300));
        assert!(!measured.is_finished());
        drop(held);
        assert_eq!(measured.join().expect("it does not panic"), before);
    });
}

#[test]
fn a_written_configuration_is_where_the_daemon_reads_it() {
    let daemon = start("");
    daemon.write_config("log.level = \"warn\"");
    let checked = Command::new(FDPASSD)
        .arg("-T")
        .arg("-c")
        .arg(daemon.directory().join("config.toml"))
        .output();
    let shown = String::from_utf8(checked.expect("it runs").stdout).expect("text");
    assert!(shown.contains("level = \"warn\""), "{shown}");
    let socket = daemon
        .directory()
        .join("control.sock")
        .display()
        .to_string();
    assert!(
        shown.contains(&socket) && shown.contains("127.0.0.1:0"),
        "{shown}"
    );
}

#[test]
fn the_end_of_a_daemon_can_be_waited_for() {
    let mut daemon = start("");
    daemon.signal("TERM");
    assert!(daemon.wait().success());
}

#[test]
fn a_refused_configuration_is_an_error_with_the_daemons_words() {
    let error = Running::start(FDPASSD, "listne = []").expect_err("it must be refused");
    assert_eq!(error.code(), Some(78));
    assert!(error.stderr().contains("listne"), "{error}");
}

#[test]
fn arguments_and_variables_reach_the_daemon() {
    let wrapped = Setup::new("sh", "")
        .argument("-c")
        .argument("echo $WORD >&2; exec \"$0\" \"$@\"")
        .argument(FDPASSD);
    let daemon = wrapped
        .variable("WORD", "passed on")
        .start()
        .expect("it serves");
    daemon.wait_for_log("passed on");
}

#[test]
fn a_test_that_panics_leaves_no_process_and_no_file_behind() {
    let (tell, told) = mpsc::channel();
    let test = thread::spawn(move || {
        let daemon = start("workers.count = 2");
        daemon.wait_for_workers();
        let pids: Vec<u32> = daemon
            .worker_pids()
            .into_iter()
            .chain([daemon.pid()])
            .collect();
        daemon.signal_worker(1, "STOP");
        daemon.signal("STOP");
        tell.send((pids, daemon.directory().to_owned()))
            .expect("it is listened to");
        panic!("on purpose");
    });
    test.join().expect_err("it panics");
    let (pids, directory): (Vec<u32>, PathBuf) = told.recv().expect("it told before");
    for pid in pids {
        eventually("the process is gone", || has_ended(pid).then_some(()));
    }
    assert!(!directory.exists());
}

/// Collected, or at least waiting to be collected by its new parent.
fn has_ended(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .map_or(true, |status| status.contains("State:\tZ"))
}

#[test]
fn a_manager_passes_what_is_stored_at_the_start() {
    let manager = ServiceManager::new();
    // The store of the first daemon is still empty.
    let next = manager.setup(FDPASSD, "");
    let daemon = manager.setup(FDPASSD, "").start().expect("it serves");
    let mut client = daemon.connect();
    assert_eq!(client.call("ping", 1).expect("a pong"), 1);
    daemon.signal("TERM");
    let daemon = next.start_after(daemon).expect("the next master serves");
    assert_eq!(client.call("ping", 2).expect("a pong"), 2);
    assert_eq!(daemon.status().lost_total, 0);
}
