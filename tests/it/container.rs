//! The daemon as PID 1 of a container without an init: it collects the processes that are orphaned there, ends as
//! elsewhere, and logs to standard error.
//!
//! The container is a PID namespace with a /proc of its own, made by unshare(1), which needs root. Where that is not
//! allowed or missing, the tests are skipped.

use std::fs;
use std::process::{Child, Command, Stdio};

use fdpassd::testing::{Running, Setup, eventually};
use nix::sys::signal::Signal;

use crate::common::FDPASSD;
use crate::common::kernel::{children, is_over, send};
use crate::common::needs::skip;
use crate::common::program::run;

/// An app that leaves a process behind, in a session of its own.
const STRAY_APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app_cgroups/app.py");

/// Options of unshare(1): its program is PID 1 and is killed with it.
const OPTIONS: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];

/// A daemon in a container. `status` has the pids inside the container; only `init` may be sent signals.
struct Container {
    daemon: Running,
    /// The master's pid outside.
    init: u32,
}

impl Container {
    fn start(config: &str) -> Option<Container> {
        let tried = Command::new("unshare")
            .args(OPTIONS)
            .args(["nsenter", "--version"])
            .output();
        if !tried.as_ref().is_ok_and(|output| output.status.success()) {
            skip(
                "namespaces",
                &format!("no PID namespace can be made: {tried:?}"),
            );
            return None;
        }
        let setup = OPTIONS
            .iter()
            .fold(Setup::new("unshare", config), Setup::argument);
        let daemon = setup.argument(FDPASSD).start().expect("it serves");
        let status = daemon.wait_for_workers();
        assert_eq!(status.pid, 1);
        let init = children(daemon.pid())[0];
        Some(Container { daemon, init })
    }

    /// Returns the children of the master, with dead ones that it has not collected.
    fn children(&self) -> Vec<u32> {
        let mut all = children(self.init);
        all.sort_unstable();
        all
    }

    /// Waits until it has just these children.
    #[track_caller]
    fn wait_for_children(&self, wanted: &[u32]) {
        eventually(&format!("it has the children {wanted:?}"), || {
            (self.children() == wanted).then_some(())
        });
    }

    /// A shell in the container that runs this.
    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.init.to_string())
            .args(["--pid", "sh", "-c", script]);
        // Orphans have no output of the tests, which would be waited for.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Starts a shell with this script in the container, and waits for the shell only. The caller has its standard
    /// input.
    #[track_caller]
    fn run(&self, script: &str) -> Child {
        let mut shell = self
            .shell(script)
            .spawn()
            .expect("nsenter ran a moment ago");
        let input = shell.stdin.take();
        assert!(shell.wait().expect("it is our child").success(), "{script}");
        shell.stdin = input;
        shell
    }

    /// Processes that stay until what is returned is dropped, and whose parent has ended: their pids outside.
    #[track_caller]
    fn orphans(&self, count: usize) -> (Child, Vec<u32>) {
        let before = self.children();
        let shell = self.run(&format!("for i in $(seq {count}); do cat <&3 & done 3<&0"));
        let orphans = eventually("it has the orphans", || {
            let orphans: Vec<u32> = self
                .children()
                .into_iter()
                .filter(|pid| !before.contains(pid))
                .collect();
            (orphans.len() == count).then_some(orphans)
        });
        (shell, orphans)
    }
}

#[test]
fn orphans_are_collected_and_do_not_count_as_worker_deaths() {
    let Some(container) = Container::start("workers.count = 2") else {
        return;
    };
    let daemon = &container.daemon;
    let mut client = daemon.connect();
    let workers = container.children();
    assert_eq!(workers.len(), 2);

    let (input, orphans) = container.orphans(5);
    send(orphans[0], Signal::SIGKILL);
    send(orphans[1], Signal::SIGSEGV);
    let left: Vec<u32> = container
        .children()
        .into_iter()
        .filter(|pid| !orphans[..2].contains(pid))
        .collect();
    container.wait_for_children(&left);
    drop(input);
    container.wait_for_children(&workers);
    // Dead already when they become its own, most of them.
    drop(container.run("for i in $(seq 50); do true & done"));
    container.wait_for_children(&workers);
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
    assert_eq!(daemon.status().deaths_total, 0);
    assert!(
        !daemon.stderr().contains("killed by"),
        "{}",
        daemon.stderr()
    );

    // It still distinguishes its own from them.
    let (input, orphans) = container.orphans(2);
    for pid in [orphans[0], workers[0], workers[1]] {
        send(pid, Signal::SIGKILL);
    }
    assert_eq!(client.call("ping", 2).expect("a result"), 2);
    // A process of no worker is not ended.
    container
        .daemon
        .wait_until("both deaths are known", |status| status.deaths_total == 2);
    assert!(!is_over(orphans[1]));
    drop(input);
    let status = daemon.wait_for_workers();
    assert_eq!((status.deaths_total, status.lost_total), (2, 0));
    eventually("only the successors are left", || {
        let now = container.children();
        (now.len() == 2
            && !now
                .iter()
                .any(|pid| workers.contains(pid) || orphans.contains(pid)))
        .then_some(())
    });
}

/// Returns the pid of a process in its own PID namespace.
#[track_caller]
fn pid_inside(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

#[test]
fn processes_that_an_app_leaves_behind_are_collected() {
    if run("python3", &["--version"]).code != Some(0) {
        return skip("python3", "there is no python3");
    }
    let config = format!("workers.count = 1\napp.command = [\"python3\", {STRAY_APP:?}]");
    let Some(container) = Container::start(&config) else {
        return;
    };
    let daemon = &container.daemon;
    let mut client = daemon.connect();
    // The pids of the app and of the process that it has left, inside.
    let mut stray = || {
        let pids = client.call("pids", ()).expect("a result");
        let stray = pids[1].as_u64();
        let mut children = container.children().into_iter();
        children
            .find(|pid| pid_inside(*pid) == stray)
            .expect("PID 1 has inherited it")
    };
    let first = stray();
    send(first, Signal::SIGKILL);
    let worker: Vec<u32> = (container.children().into_iter())
        .filter(|pid| *pid != first)
        .collect();
    container.wait_for_children(&worker);

    // One that outlives its worker.
    send(worker[0], Signal::SIGKILL);
    daemon.wait_until("the death is known", |status| status.deaths_total == 1);
    daemon.wait_for_workers();
    let second = stray();
    // Also the app of the killed worker is collected.
    eventually("only the worker and what its app has left", || {
        (container.children().len() == 2).then_some(())
    });
    send(second, Signal::SIGKILL);
    eventually("only the worker is left", || {
        (container.children().len() == 1).then_some(())
    });
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (1, 0));
}

#[test]
fn sigterm_stops_it_from_inside_and_outside_despite_orphans() {
    for inside in [false, true] {
        let Some(mut container) = Container::start("workers = { count = 2, start = \"exec\" }")
        else {
            return;
        };
        let (_input, _) = container.orphans(2);
        let mut client = container.daemon.connect();
        assert_eq!(client.call("ping", "here").expect("a result"), "here");
        (0..50).for_each(|i| client.request("ping", i));
        // So they have arrived, all of them.
        assert_eq!(client.reply().value().expect("a result"), 0);
        if inside {
            // The end of the container may be its own.
            container
                .shell("kill -TERM 1")
                .status()
                .expect("nsenter ran a moment ago");
        } else {
            send(container.init, Signal::SIGTERM);
        }
        for i in 1..50 {
            assert_eq!(client.reply().value().expect("a result"), i);
        }
        client.expect_end();
        assert_eq!(
            container.daemon.wait().code(),
            Some(0),
            "{}",
            container.daemon.stderr()
        );
        for words in [
            " serves on ",
            " worker 2 (pid 3, gen 1) is ready",
            " SIGTERM: stopping",
            " stopped",
        ] {
            container.daemon.wait_for_log(words);
        }
    }
}
