//! The life of a zygote: one for each generation, replaced when it ends, given up when it cannot be.

use fdpassd::testing::{Running, eventually};

use super::processes::assert_forks;
use super::{EXEC, FORK, arguments, start, zygote, zygotes};
use crate::common::faulty::{self, example};
use crate::common::strace::Traced;
use crate::common::upgrade::{Programs, upgrade};
use crate::common::{FDPASSD, kernel, ping_all};

#[test]
fn a_zygote_that_is_killed_is_replaced() {
    let daemon = start();
    let mut clients: Vec<_> = (0..20).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    let mut before = zygote(&daemon, None);
    for _ in 0..3 {
        assert_forks(&daemon);
        kernel::send(before, nix::sys::signal::Signal::SIGKILL);
        before = zygote(&daemon, Some(before));
        assert_forks(&daemon);
        ping_all(&mut clients);
    }
    daemon.wait_for_log("killed by signal 9 (SIGKILL); starting another one");
    let status = daemon.status();
    assert_eq!((status.lost_total, status.failed_starts_total), (0, 0));
}

#[test]
fn workers_are_executed_when_a_second_zygote_fails() {
    let daemon = start();
    let first = zygote(&daemon, None);
    kernel::send(first, nix::sys::signal::Signal::SIGKILL);
    let second = zygote(&daemon, Some(first));
    kernel::send(second, nix::sys::signal::Signal::SIGKILL);
    let said = "the workers of generation 1 are executed, not forked, until the next reload";
    daemon.wait_for_log(said);
    for _ in 0..3 {
        assert_forks(&daemon);
    }
    assert_eq!(daemon.stderr().matches(said).count(), 1);
    let status = daemon.status();
    assert_eq!((status.start.as_str(), status.zygote), ("fork", None));
    assert!(zygotes(&daemon).is_empty());
    // A reload tries again.
    daemon.reload().expect("it is good");
    let third = zygote(&daemon, None);
    assert_eq!(arguments(third), ["fdpassd", "zygote", "2"]);
}

#[test]
fn workers_are_executed_where_a_zygote_cannot_fork() {
    let daemon = crate::common::start(EXEC);
    daemon.wait_for_workers();
    // The third prctl(2) of a zygote is PR_GET_TID_ADDRESS; a worker makes fewer calls.
    let inject = "prctl:error=EINVAL:when=3";
    let Some(_traced) = Traced::attach_with_children(daemon.pid(), "prctl", inject) else {
        return;
    };
    daemon.reload_with(FORK).expect("workers can be executed");
    let why = "cannot fork workers on this system: PR_GET_TID_ADDRESS of prctl(2): EINVAL";
    daemon.wait_for_log(why);
    let status = daemon.wait_for_workers();
    assert_eq!((status.start.as_str(), status.zygote), ("fork", None));
    assert_eq!(status.failed_starts_total, 0);
    assert_forks(&daemon);
    let report = "the workers of generation 2 are executed, not forked, until the next reload";
    assert_eq!(daemon.stderr().matches(report).count(), 1);
}

#[test]
fn a_reload_starts_a_zygote_of_its_own() {
    let daemon = start();
    let mut clients: Vec<_> = (0..20).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    let first = zygote(&daemon, None);
    daemon.reload().expect("it is good");
    let second = zygote(&daemon, Some(first));
    eventually("the first has ended", || {
        (zygotes(&daemon) == [second]).then_some(())
    });
    daemon.reload_with(EXEC).expect("workers may be executed");
    assert_eq!(daemon.status().start, "exec");
    eventually("no zygote is left", || {
        zygotes(&daemon).is_empty().then_some(())
    });
    daemon.reload_with(FORK).expect("workers may be forked");
    zygote(&daemon, None);
    ping_all(&mut clients);
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn a_reload_whose_zygote_has_threads_is_rolled_back() {
    let (daemon, switch) = faulty::start_with_switch(EXEC);
    daemon.wait_for_workers();
    switch.set("thread-in-main");
    let fault = daemon.reload_with(FORK).expect_err("no worker is ready");
    assert_eq!(fault.code(), "rolled_back");
    let why = "its zygote has 2 threads, and a forked worker would have only one of them";
    assert!(fault.to_string().contains(why), "{fault}");
    switch.set("");
    daemon.reload_with(FORK).expect("now it has one");
    let status = daemon.status();
    assert_eq!((status.start.as_str(), status.workers.len()), ("fork", 2));
    let zygote = status.zygote.expect("it forked them");
    eventually("it is the only one", || {
        (zygotes(&daemon) == [zygote]).then_some(())
    });
}

#[test]
fn a_zygote_with_threads_prevents_the_start() {
    let error = faulty::start_with("thread-in-main", FORK).expect_err("no worker is ready");
    assert_eq!(error.code(), Some(70), "{error}");
    let why = "its zygote has 2 threads, and a forked worker would have only one of them";
    assert!(error.stderr().contains(why), "{error}");
}

#[test]
fn a_reload_whose_zygote_is_late_is_rolled_back() {
    let (daemon, switch) = faulty::start_with_switch(EXEC);
    daemon.wait_for_workers();
    switch.set("hang-in-main");
    let late = "workers = { count = 2, start = \"fork\", start-timeout = \"500ms\" }";
    let fault = daemon.reload_with(late).expect_err("no worker is ready");
    assert_eq!(fault.code(), "rolled_back");
    let why = "was not ready within 500ms: its zygote is not ready";
    assert!(fault.to_string().contains(why), "{fault}");
    eventually("the zygote has ended", || {
        zygotes(&daemon).is_empty().then_some(())
    });
    assert_eq!(daemon.status().generation.0, 1);
}

#[test]
fn an_upgrade_starts_a_zygote_of_the_new_program() {
    let programs = Programs::new();
    let [fdpassd, faulty] =
        [FDPASSD.as_ref(), example("faulty").as_path()].map(|p| programs.copy(p));
    let daemon = Running::start(&fdpassd, FORK).expect("it serves");
    daemon.wait_for_workers();
    let mut clients: Vec<_> = (0..20).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    let first = zygote(&daemon, None);
    upgrade(&daemon, Some(&faulty)).expect("it is fit");
    let second = zygote(&daemon, Some(first));
    let program = std::fs::read_link(format!("/proc/{second}/exe")).expect("it runs");
    assert_eq!(program, faulty);
    eventually("the first has ended", || {
        (zygotes(&daemon) == [second]).then_some(())
    });
    ping_all(&mut clients);
    assert_forks(&daemon);
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn an_idle_zygote_does_not_wake_up() {
    let daemon = start();
    let zygote = zygote(&daemon, None);
    let sleeps = crate::common::while_idle(&daemon, || kernel::sleeps(zygote));
    crate::common::let_pass(std::time::Duration::from_millis(500));
    assert_eq!(kernel::sleeps(zygote), sleeps);
}
