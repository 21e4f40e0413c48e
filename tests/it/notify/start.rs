//! READY=1: when all wanted workers are ready, or have had their time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fdpassd::proto::control::{WorkerState, WorkerStatus};
use fdpassd::testing::{Running, ServiceManager, Setup, eventually};
use nix::sys::signal::Signal;

use super::Manager;
use crate::common::faulty::example;
use crate::common::kernel;

/// A start that takes longer than any test.
const LONG: &str = "5min";

/// Has workers that are made from now on have a fault.
fn set_fault(switch: &Path, fault: &str) {
    fs::write(switch, fault).expect("it is in our directory");
}

/// A daemon that this manager starts. Its workers have the fault that a file names, which is returned too.
fn setup_faulty(manager: &Manager, config: &str, fault: &str) -> (Setup, PathBuf) {
    let switch = manager.directory.path().join("fault");
    set_fault(&switch, fault);
    let setup = Setup::new(example("faulty"), config)
        .variable("NOTIFY_SOCKET", manager.path())
        .variable("FAULTY", format!("file:{}", switch.display()));
    (setup, switch)
}

fn start_faulty(manager: &Manager, config: &str, fault: &str) -> (Running, PathBuf) {
    let (setup, switch) = setup_faulty(manager, config, fault);
    (setup.start().expect("one worker is ready"), switch)
}

/// Returns the notifications until the daemon is ready, that one included.
#[track_caller]
fn until_ready(manager: &Manager) -> Vec<String> {
    let mut told = Vec::new();
    while !told.last().is_some_and(|last: &String| is_ready(last)) {
        told.push(manager.next_of_all());
    }
    told
}

fn is_ready(told: &str) -> bool {
    told.lines().any(|line| line == "READY=1")
}

/// Waits until a worker of this generation hangs, and has its successor become ready.
#[track_caller]
fn mend_hanging(daemon: &Running, switch: &Path, generation: u64) {
    let (id, pid) = eventually("a worker of the generation is not ready", || {
        let status = daemon.status();
        let mut workers = status.workers.iter();
        let is_late = |worker: &&WorkerStatus| {
            worker.generation.0 == generation && worker.state != WorkerState::Ready
        };
        workers
            .find(is_late)
            .and_then(|worker| worker.id.zip(worker.pid))
    });
    // One of an older generation may have hung before.
    daemon.wait_for_log(&format!(" hangs worker={id}\n"));
    set_fault(switch, "");
    kernel::send(pid, Signal::SIGKILL);
}

#[track_caller]
fn wait_for_ready_workers(daemon: &Running, count: usize) {
    daemon.wait_until(&format!("{count} workers are ready"), |status| {
        let states = status.workers.iter().map(|worker| worker.state);
        states.filter(|state| *state == WorkerState::Ready).count() == count
    });
}

#[test]
fn the_daemon_is_ready_when_the_last_worker_is() {
    let manager = Manager::new();
    let config = format!("workers = {{ count = 3, start-timeout = {LONG:?} }}");
    let (daemon, switch) = start_faulty(&manager, &config, "hang:1");
    wait_for_ready_workers(&daemon, 2);
    daemon.connect().call("ping", 1).expect("they serve");
    // It is not ready for the manager, for which the end of a reload would be that of the start.
    daemon
        .reload_with("listne = []")
        .expect_err("it is rejected");
    mend_hanging(&daemon, &switch, 1);

    let told = until_ready(&manager);
    assert_eq!(told[0], "EXTEND_TIMEOUT_USEC=310000000", "{told:?}");
    assert!(
        told[1].starts_with("STATUS=") && told[1].contains(" of 3 workers, "),
        "{told:?}"
    );
    let last = told.last().expect("it is ready");
    assert!(last.starts_with("READY=1\nSTATUS=3 workers, "), "{told:?}");
    daemon.ctl("reload").expect_err("it is rejected");
    assert!(manager.next_but_statuses().starts_with("RELOADING=1\n"));
}

#[test]
fn a_worker_that_always_fails_is_awaited() {
    let manager = Manager::new();
    let config = format!("workers = {{ count = 2, start-timeout = {LONG:?} }}");
    let (daemon, switch) = start_faulty(&manager, &config, "exit:1");
    // Each failure, and each wait for the next start, is a moment without a second worker.
    eventually("a worker has failed three times", || {
        let log = daemon.stderr();
        let failures = log.matches(" exited with status 9").count();
        (failures >= 3).then_some(())
    });
    set_fault(&switch, "");
    let told = until_ready(&manager);
    assert_eq!(
        told.last().expect("it is ready"),
        "READY=1\nSTATUS=2 workers, 0 clients, generation 1",
        "{told:?}"
    );
}

#[test]
fn the_daemon_is_ready_without_a_worker_after_the_timeout() {
    let manager = Manager::new();
    let began = Instant::now();
    let config = "workers = { count = 2, start-timeout = \"1s\" }";
    let (daemon, _) = start_faulty(&manager, config, "exit:1");
    let told = until_ready(&manager);
    assert!(began.elapsed() >= Duration::from_secs(1), "{told:?}");
    assert_eq!(told[0], "EXTEND_TIMEOUT_USEC=11000000");
    // Its clients did not wait.
    assert_eq!(told[1], "STATUS=1 of 2 workers, 0 clients, generation 1");
    assert_eq!(
        told.last().expect("it is ready"),
        "READY=1\nSTATUS=1 of 2 workers, 0 clients, generation 1"
    );
    daemon.connect().call("ping", 1).expect("it serves");
}

#[test]
fn a_daemon_without_any_worker_is_never_ready() {
    let manager = Manager::new();
    let config = "workers = { count = 1, start-timeout = \"50ms\" }";
    let (setup, _) = setup_faulty(&manager, config, "exit");
    let error = setup.start().expect_err("no worker is ready");
    assert_eq!(error.code(), Some(70));
    assert_eq!(manager.next_of_all(), "EXTEND_TIMEOUT_USEC=10050000");
    let told = manager.next_of_all();
    assert!(told.starts_with("STATUS=no worker ever became"), "{told}");
    assert_eq!(manager.pending(), None);
}

#[test]
fn a_reload_that_outlasts_the_start_is_reported_after_it() {
    let manager = Manager::new();
    let config = "workers = { count = 2, start-timeout = \"1s\" }";
    let (daemon, switch) = start_faulty(&manager, config, "exit:1");
    set_fault(&switch, "hang:1");
    daemon.write_config(&config.replace("1s", LONG));
    let mut reload = daemon.ctl_request("reload", ());
    let told = until_ready(&manager);
    assert!(
        told.iter().all(|told| !told.starts_with("RELOADING=1")),
        "{told:?}"
    );
    assert!(manager.next_but_statuses().starts_with("RELOADING=1\n"));
    mend_hanging(&daemon, &switch, 2);
    reload.reply().value().expect("it is applied");
    assert_eq!(
        manager.next_but_statuses(),
        "READY=1\nSTATUS=2 workers, 0 clients, generation 2"
    );
}

#[test]
fn the_start_is_over_for_the_manager_before_an_upgrade() {
    let manager = Manager::new();
    let config = format!("workers = {{ count = 2, start-timeout = {LONG:?} }}");
    let (daemon, switch) = start_faulty(&manager, &config, "exit:1");
    let mut upgrade = daemon.ctl_request("upgrade", ());
    daemon.wait_for_log("before the upgrade");
    set_fault(&switch, "");
    upgrade.reply().value().expect("it is the same program");
    let told = until_ready(&manager);
    let last = told.last().expect("it is ready");
    assert_eq!(last, "READY=1\nSTATUS=2 workers, 0 clients, generation 1");
    // The new program does not report a start.
    daemon.ctl("reload").expect("it is applied");
    assert!(manager.next_but_statuses().starts_with("RELOADING=1\n"));
    assert!(manager.next_but_statuses().starts_with("READY=1\n"));
}

#[test]
fn a_restart_is_over_when_the_last_worker_is_ready() {
    let manager = ServiceManager::new();
    let directory = tempfile::tempdir().expect("a directory");
    let switch = directory.path().join("fault");
    set_fault(&switch, "");
    let setup = |config: &str| {
        let fault = format!("file:{}", switch.display());
        manager
            .setup(example("faulty"), config)
            .variable("FAULTY", fault)
    };
    let config = format!("workers = {{ count = 2, start-timeout = {LONG:?} }}");
    let before = setup(&config).start().expect("it serves");
    let mut client = before.connect();
    client.call("ping", 1).expect("a result");
    before.signal("TERM");
    set_fault(&switch, "hang:1");
    let daemon = setup("").start_after(before).expect("one worker is ready");
    client.call("ping", 2).expect("one worker serves it");
    mend_hanging(&daemon, &switch, 2);
    wait_for_ready_workers(&daemon, 2);
    let told = eventually("the manager is told that it is ready", || {
        let told = manager.told();
        let stop = told
            .iter()
            .position(|told| told.starts_with("STOPPING=1"))?;
        let told = told[stop..].to_vec();
        told.iter().any(|told| is_ready(told)).then_some(told)
    });
    let ready = told.iter().find(|told| is_ready(told)).expect("it is told");
    assert!(
        ready.starts_with("READY=1\nSTATUS=2 workers, 1 client, "),
        "{told:?}"
    );
}
