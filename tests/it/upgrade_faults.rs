//! Faults during an upgrade in place: the program cannot be run after all, a worker dies.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fdpassd::proto::control::{Event, Events, Kind};
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::faulty::{example, start_with, start_with_switch};
use crate::common::load::Load;
use crate::common::strace::Traced;
use crate::common::upgrade::{Programs, assert_refused, begin, upgrade, verdict};
use crate::common::{FDPASSD, http, kernel, metrics, ping_all};

/// Some tests last longer than a frame may by default.
const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n\
                    limits.frame-timeout = \"none\"\n";

#[test]
fn a_program_that_cannot_be_run_after_all_changes_nothing() {
    let programs = Programs::new();
    let (fdpassd, faulty) = (
        programs.copy(Path::new(FDPASSD)),
        programs.copy(&example("faulty")),
    );
    let config = format!("{BOTH}metrics.listen = \"unix:{{dir}}/metrics.sock\"\n");
    let daemon = Running::start(&fdpassd, &config).expect("it serves");
    let metrics = Address::Unix(daemon.directory().join("metrics.sock"));
    let before = daemon.wait_for_workers();
    let (mut idle, mut halfway) = (some_clients(&daemon), daemon.connect());
    let frame = halfway.frame("{\"in\":\"ping\",\"params\":[1,2,3]}");
    halfway.send(&frame[..11]);
    let load = Load::start(&daemon, 6, 4);
    load.wait_for(10);

    for (error, words) in [
        ("ENOEXEC", "Exec format error"),
        ("ENOMEM", "Cannot allocate memory"),
    ] {
        let Some(traced) = Traced::attach(daemon.pid(), "execve", &format!("execve:error={error}"))
        else {
            return;
        };
        assert_refused(
            upgrade(&daemon, Some(&faulty)),
            "refused",
            &format!("it cannot be executed: {words}"),
        );
        assert!(
            traced.text().contains("(INJECTED)"),
            "it has come to that: {}",
            traced.text()
        );
        let told = of_kind(&daemon, Kind::UpgradeRefused)
            .pop()
            .expect("an event");
        assert!(
            told.message.contains(words) && told.about.uid == Some(kernel::user()),
            "{told:?}"
        );
        load.wait_for(10);
        ping_all(&mut idle);
    }
    let after = daemon.status();
    assert_eq!(
        (after.pid, after.generation, after.lost_total),
        (daemon.pid(), before.generation, 0)
    );
    assert_eq!(pids(&after), pids(&before));
    assert_eq!(http::get(&metrics, "/metrics").status, 200);

    // A process started now inherits none of these descriptors, and signals are handled.
    daemon
        .ctl_with("scale", json!({ "count": 3 }))
        .expect("it is done");
    let workers = daemon.worker_pids();
    assert_inherits_nothing(&daemon, workers[2], workers[0]);
    daemon.kill_worker(0);
    load.wait_for(10);
    ping_all(&mut idle);

    upgrade(&daemon, Some(&faulty)).expect("it is fit");
    idle[0].call("whoami", ()).expect("it is the other one");
    load.wait_for(10);
    ping_all(&mut idle);
    halfway.send(&frame[11..]);
    assert_eq!(halfway.reply().value().expect("a pong"), json!([1, 2, 3]));
    load.finish();
    assert_eq!(http::get(&metrics, "/metrics").status, 200);
    let after = daemon.status();
    assert_eq!(
        (
            after.pid,
            after.lost_total,
            after.errors_total,
            after.deaths_total
        ),
        (daemon.pid(), 0, 0, 1)
    );
    assert_children(&daemon, 4);
}

#[test]
fn a_signal_just_before_an_upgrade_is_not_lost() {
    // The master gets it when it collects the child that has checked the snapshot, which it does in the iteration of
    // the loop that ends with execve(2), and when it writes the snapshot.
    for (call, when) in [("wait4", 1), ("memfd_create", 2)] {
        let programs = Programs::new();
        let program = programs.copy(Path::new(FDPASSD));
        let mut daemon = Running::start(&program, BOTH).expect("it serves");
        daemon.wait_for_workers();
        let inject = format!("{call}:signal=TERM:when={when}");
        let Some(traced) = Traced::attach(daemon.pid(), call, &inject) else {
            return;
        };
        let _asker = begin(&daemon, Some(&program));
        assert_eq!(daemon.wait().code(), Some(0), "{call}: {}", traced.text());
        assert!(traced.text().contains("SIGTERM"), "{}", traced.text());
    }
}

#[test]
fn worker_deaths_during_an_upgrade_are_noticed() {
    // The master is stopped when the snapshot is written and the old program still runs, which does not notice the
    // death, and just before the new one runs, for which SIGCHLD waits. With a single worker no other death is a hint.
    let (early, late) = ("memfd_create:signal=STOP:when=2", "execve:signal=STOP");
    for (call, workers, victims) in [(early, 1, 1), (early, 2, 1), (late, 2, 1), (late, 2, 2)] {
        let programs = Programs::new();
        let program = programs.copy(&example("faulty"));
        let config = BOTH.replace("count = 2", &format!("count = {workers}"));
        let daemon = Running::start(&program, &config).expect("it serves");
        daemon.wait_for_workers();
        let mut idle = some_clients(&daemon);
        let load = Load::start(&daemon, 6, 4);
        load.wait_for(10);
        let (pid, pids) = (daemon.pid(), daemon.worker_pids());
        let name = call.split(':').next().expect("a call");
        let Some(traced) = Traced::attach(pid, name, call) else {
            return;
        };
        let mut asker = begin(&daemon, Some(&program));
        eventually("it is stopped", || {
            traced.text().contains("stopped by SIGSTOP").then_some(())
        });
        drop(traced);
        eventually("it stays stopped", || {
            (kernel::state(pid) == Some('T')).then_some(())
        });
        assert_eq!(
            arguments(pid).contains("resume"),
            call == late,
            "{call}: {}",
            arguments(pid)
        );
        for worker in &pids[..victims] {
            kernel::send(*worker, Signal::SIGKILL);
            eventually("it is dead", || kernel::is_over(*worker).then_some(()));
        }
        kernel::send(pid, Signal::SIGCONT);

        verdict(&mut asker).expect("it is upgraded");
        ping_all(&mut idle);
        load.wait_for(10);
        load.finish();
        let status = daemon.wait_until("the load has left", |status| {
            status.clients == idle.len() as u64
        });
        assert_eq!(
            (status.pid, status.lost_total, status.errors_total),
            (pid, 0, 0),
            "{call}"
        );
        assert_eq!(status.deaths_total, victims as u64);
        let died = of_kind(&daemon, Kind::WorkerDied);
        let dead: BTreeSet<u32> = died.iter().filter_map(|event| event.about.pid).collect();
        assert_eq!(dead, pids[..victims].iter().copied().collect());
        assert!(
            died.iter()
                .all(|event| event.message.contains("killed by signal 9")),
            "{died:?}"
        );
        let samples = metrics::text(&daemon);
        assert!(
            samples.contains(&format!(
                "worker_deaths_total{{cause=\"signal\"}} {victims}"
            )),
            "{samples}"
        );
        assert_children(&daemon, workers);
    }
}

#[test]
fn an_upgrade_during_a_reload_or_upgrade_is_refused() {
    let programs = Programs::new();
    let (daemon, switch) = start_with_switch("workers = { count = 1, start-timeout = \"5m\" }");
    let program = programs.copy(&example("faulty"));
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    switch.set("hang");
    let reload = daemon.ctl_request("reload", ());
    daemon.wait_for_log("reloading; generation 2");
    assert_refused(
        upgrade(&daemon, Some(&program)),
        "busy",
        "another reload is in progress",
    );
    daemon.signal("USR2");
    daemon.wait_for_log("SIGUSR2: another reload is in progress");
    drop(reload);
    drop((client, daemon));

    let daemon = start_with("mute", "workers.count = 1").expect("it serves");
    let first = begin(&daemon, Some(&program));
    let candidate = eventually("it is tried", || {
        kernel::children(daemon.pid())
            .into_iter()
            .find(|pid| arguments(*pid).contains("check-handover"))
    });
    assert_refused(
        upgrade(&daemon, Some(&program)),
        "busy",
        "another upgrade is in progress",
    );
    daemon.ctl("stop").expect("it stops");
    eventually("the candidate is gone", || {
        kernel::is_over(candidate).then_some(())
    });
    drop(first);
}

fn some_clients(daemon: &Running) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..40)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    ping_all(&mut clients);
    clients
}

fn pids(status: &fdpassd::proto::control::Status) -> Vec<Option<u32>> {
    status.workers.iter().map(|worker| worker.pid).collect()
}

#[track_caller]
fn of_kind(daemon: &Running, kind: Kind) -> Vec<Event> {
    let told = daemon
        .ctl_with("events", json!({ "after": 0 }))
        .expect("it is told");
    let told: Events = serde_json::from_value(told).expect("events");
    told.events
        .into_iter()
        .filter(|event| event.event == kind)
        .collect()
}

/// A worker without clients has no socket of the master, and no more shared memory than an earlier one.
#[track_caller]
fn assert_inherits_nothing(daemon: &Running, worker: u32, before: u32) {
    let of = |pid: u32, kind: &str| -> Vec<String> {
        let all = kernel::descriptors(pid).into_iter().map(|(_, name)| name);
        all.filter(|name| name.starts_with(kind)).collect()
    };
    let masters = of(daemon.pid(), "socket:");
    let shared: Vec<String> = of(worker, "socket:")
        .into_iter()
        .filter(|name| masters.contains(name))
        .collect();
    assert!(shared.is_empty(), "{shared:?} of {masters:?}");
    assert_eq!(of(worker, "/memfd:"), of(before, "/memfd:"));
}

/// Waits until the master has this many children, and none of them is dead.
#[track_caller]
fn assert_children(daemon: &Running, count: usize) {
    eventually("every child is collected", || {
        let children = kernel::children(daemon.pid());
        (children.len() == count && !children.iter().any(|pid| kernel::is_over(*pid))).then_some(())
    });
}

/// Returns the command line of a process.
fn arguments(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .replace('\0', " ")
}
