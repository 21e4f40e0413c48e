//! Programs that a method started end with its worker, unless they have a session of their own.

use std::fs;
use std::path::PathBuf;

use fdpassd::testing::{Running, Setup, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};

use crate::common::faulty::{self, Execution, example};
use crate::common::kernel::{children, is_over};

/// Starts processes that would run for long, and writes their pids down: a child; one in a process group of its own, as
/// timeout(1) makes it; a grandchild in such a group; and one in a session of its own. Then waits for them.
const SCRIPT: &str = "
    cd DIRECTORY
    tail -f /dev/null & echo $! >>in
    timeout 2000 sleep 1000 & echo $! >>in
    sh -c 'timeout 2000 sleep 1000 & echo $! >>in; wait' & echo $! >>in
    setsid sleep 1000 & echo $! >>out
    echo 4 >>up
    wait";

struct Family {
    /// Processes that must end with the worker.
    inside: Vec<u32>,
    /// The process that must not.
    outside: u32,
}

impl Family {
    /// Has a worker run the script; returns when all are there.
    #[track_caller]
    fn start(daemon: &Running) -> (Family, fdpassd::testing::Client) {
        let directory: PathBuf = daemon.directory().to_owned();
        let pids = |name: &str| -> Vec<u32> {
            let text = fs::read_to_string(directory.join(name)).unwrap_or_default();
            text.lines()
                .map(|pid| pid.parse().expect("a pid"))
                .collect()
        };
        ["in", "out", "up"]
            .iter()
            .for_each(|name| drop(fs::remove_file(directory.join(name))));
        let mut client = daemon.connect();
        client.request(
            "shell",
            SCRIPT.replace("DIRECTORY", &directory.display().to_string()),
        );
        eventually("all processes are started", || {
            let is_own_session = |pid: &u32| {
                getsid(Some(Pid::from_raw(*pid as i32))).is_ok_and(|s| s.as_raw() as u32 == *pid)
            };
            let out = pids("out");
            (pids("in").len() == 4 && out.first().is_some_and(is_own_session)).then_some(())
        });
        (
            Family {
                inside: pids("in"),
                outside: pids("out")[0],
            },
            client,
        )
    }

    #[track_caller]
    fn expect_end(&self) {
        for pid in &self.inside {
            eventually("what the worker started has ended", || {
                is_over(*pid).then_some(())
            });
        }
        assert!(!is_over(self.outside), "it has left on purpose");
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.outside as i32), Signal::SIGKILL);
    }
}

#[test]
fn programs_of_a_method_end_with_a_killed_worker() {
    let daemon = faulty::start("workers.count = 1\nlimits.request-timeout = \"5s\"");
    let (family, mut client) = Family::start(&daemon);
    assert_eq!(
        client
            .reply()
            .value()
            .expect_err("it takes too long")
            .code(),
        "timeout"
    );
    family.expect_end();
    // None of them is left to be collected, but the one that lives.
    eventually("all that has ended is collected", || {
        let left = children(daemon.pid());
        (left.len() == 2 && left.contains(&family.outside)).then_some(())
    });
    drop(family);
    eventually("so is that one", || {
        (children(daemon.pid()).len() == 1).then_some(())
    });

    daemon
        .reload_with("workers.count = 1")
        .expect("it is applied");
    let (family, mut client) = Family::start(&daemon);
    daemon.signal_worker(0, "KILL");
    assert_eq!(
        client
            .reply()
            .value()
            .expect_err("its worker has died")
            .code(),
        "crashed"
    );
    family.expect_end();
    assert_eq!(daemon.status().lost_total, 0);
}

/// Has a method start a program that it does not wait for. Returns its pid.
#[track_caller]
fn leave_program(daemon: &Running) -> u32 {
    let left = daemon.call("shell", "sleep 1000 & echo $! >&2");
    assert_eq!(left.expect("a result"), 0);
    eventually("the pid is written", || {
        let lines = daemon.stderr();
        lines.lines().find_map(|line| line.parse().ok())
    })
}

#[track_caller]
fn expect_end(pid: u32) {
    eventually("what was left in the background has ended", || {
        is_over(pid).then_some(())
    });
}

#[test]
fn programs_of_a_method_end_with_a_worker_that_exits() {
    let daemon = faulty::start("workers.count = 1");
    let pid = leave_program(&daemon);
    assert!(!is_over(pid));
    daemon
        .ctl_with(
            "recycle",
            serde_json::json!({ "worker": daemon.status().workers[0].id }),
        )
        .expect("it is recycled");
    expect_end(pid);
}

#[test]
fn programs_of_a_method_end_when_the_master_is_killed() {
    let daemon = faulty::start("workers.count = 1");
    daemon.wait_for_workers();
    let pid = leave_program(&daemon);
    daemon.signal("KILL");
    expect_end(pid);
}

/// The master, which would kill them, is killed while a method runs that makes its worker break off.
#[test]
fn programs_end_with_a_worker_that_breaks_off_without_a_master() {
    let daemon = faulty::start("workers.count = 1");
    let pid = leave_program(&daemon);
    let worker = daemon.worker_pids()[0];
    let mut breaks_off = Execution::start_method(&daemon, daemon.connect(), "close_others_after");
    daemon.signal("KILL");
    eventually("the master has ended", || {
        is_over(daemon.pid()).then_some(())
    });
    assert!(!is_over(pid));
    breaks_off.let_go();
    expect_end(pid);
    expect_end(worker);
}

#[test]
fn a_worker_has_a_session_of_its_own_and_the_exporter_has_not() {
    let setup = Setup::new(
        example("faulty"),
        "workers.count = 2\nmetrics.listen = \"unix:{dir}/metrics.sock\"",
    );
    let daemon = setup.start().expect("it serves");
    daemon.wait_for_workers();
    let session = |pid: u32| {
        getsid(Some(Pid::from_raw(pid as i32)))
            .expect("it runs")
            .as_raw() as u32
    };
    let workers = daemon.worker_pids();
    assert!(
        workers.iter().all(|worker| session(*worker) == *worker),
        "{workers:?}"
    );
    let others: Vec<u32> = children(daemon.pid())
        .into_iter()
        .filter(|pid| !workers.contains(pid))
        .collect();
    assert!(
        others.len() == 1 && session(others[0]) == session(daemon.pid()),
        "{others:?}"
    );
}
