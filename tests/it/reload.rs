//! `fdpassctl reload` and SIGHUP: applied without a client noticing, or not at all.

mod rejected;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fdpassd::Generation;
use fdpassd::proto::control::{LastReload, Status, Verdict, WorkerState, WorkerStatus};
use fdpassd::testing::{Client, Running};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::faulty::{self, Execution, whoami};
use crate::common::fifo::Fifo;
use crate::common::load::Load;
use crate::common::program::{Program, ctl, ctl_command, short_timeout};
use crate::common::{kernel, ping_all, start, while_idle};

const BOTH_FAMILIES: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\n";

#[test]
fn a_reload_is_applied_under_load_and_no_client_notices() {
    let config = format!("{BOTH_FAMILIES}workers.count = 2");
    let daemon = start(&config);
    let before = daemon.wait_for_workers();
    assert_eq!(
        (before.generation, before.last_reload),
        (Generation(1), None)
    );
    let load = Load::start(&daemon, 6, 8);
    let mut pids = daemon.worker_pids();
    for generation in 2..=6 {
        if generation % 2 == 0 {
            let said = ctl(&daemon, &["reload", "--quiet"]);
            assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
            let words = format!("applied: generation {generation}, 2 workers ready, in ");
            assert!(said.out.starts_with(&words), "{}", said.out);
        } else {
            daemon.signal("HUP");
            daemon.wait_for_log(&format!("reloaded: generation {generation} is in force"));
        }
        // Not waited for: the verdict comes when it is so.
        let status = daemon.status();
        assert_eq!(
            (status.generation, status.reloading),
            (Generation(generation), false)
        );
        assert!(matches!(
            status.last_reload,
            Some(LastReload {
                verdict: Verdict::Applied,
                message: None,
                ..
            })
        ));
        let is_new = |w: &_| all_of(w, generation);
        assert!(status.workers.iter().all(is_new), "{:?}", status.workers);
        let next = daemon.worker_pids();
        assert!(
            next.len() == 2 && !next.iter().any(|pid| pids.contains(pid)),
            "{pids:?} {next:?}"
        );
        pids = next;
        load.wait_for(50);
        daemon.wait_until("the old workers are gone", |status| {
            status.leaving.is_empty()
        });
    }
    let answered: u64 = load.finish().iter().sum();
    let status = daemon.status();
    assert_eq!(
        (
            status.requests_total,
            status.errors_total,
            status.lost_total
        ),
        (answered, 0, 0)
    );
    assert_eq!((status.deaths_total, status.reruns_total), (0, 0));
}

fn all_of(worker: &WorkerStatus, generation: u64) -> bool {
    worker.generation == Generation(generation) && worker.state == WorkerState::Ready
}

#[test]
fn a_reload_in_json_has_its_result() {
    let daemon = start("workers.count = 1");
    let said = ctl(&daemon, &["reload", "--json"]);
    let result: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(
        (said.code, &result["generation"], &result["workers"]),
        (Some(0), &json!(2), &json!(1))
    );
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0, |found| found.permissions().mode() & 0o777)
}

#[test]
fn a_second_reload_is_refused_while_one_is_running() {
    let config = "workers = { count = 1, start-timeout = \"5m\" }";
    let (daemon, switch) = faulty::start_with_switch(config);
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    let old = whoami(&mut client).pid;
    switch.set("hang");
    let timeout = short_timeout(&daemon);
    let said = ctl(&daemon, &["reload", "--quiet", "--timeout", &timeout]);
    assert_eq!((said.code, said.out.as_str()), (Some(75), ""));
    let words = format!(
        "fdpassctl: faulty (pid {}) is still reloading; it continues, as the verb \"status\" shows\n",
        daemon.pid()
    );
    assert_eq!(said.err, words);
    let status = daemon.status();
    assert_eq!((status.reloading, status.generation), (true, Generation(1)));

    let waiting = Program::start(&mut ctl_command(&daemon, &["reload"]));
    let said = waiting.finish();
    let words = "fdpassctl: busy: another reload has been in progress for ";
    assert!(
        said.code == Some(1) && said.err.starts_with(words),
        "{said:?}"
    );
    daemon.signal("HUP");
    daemon.wait_for_log("SIGHUP: another reload has been in progress for ");
    assert_eq!(whoami(&mut client).pid, old);
    assert_eq!(
        daemon.status().last_reload,
        None,
        "a refusal is not a verdict"
    );

    // The one that hangs has not failed too often yet, and its successor is well.
    switch.set("");
    let children = kernel::children(daemon.pid());
    let hanging: Vec<_> = children.into_iter().filter(|pid| *pid != old).collect();
    assert_eq!(hanging.len(), 1);
    kernel::send(hanging[0], Signal::SIGKILL);
    let status = daemon.wait_until("it is applied", |status| status.last_reload.is_some());
    assert_eq!(
        (
            status.generation,
            status.last_reload.map(|last| last.verdict)
        ),
        (Generation(2), Some(Verdict::Applied))
    );
    assert_ne!(whoami(&mut client).pid, old);
    ctl(&daemon, &["reload"]);
    assert_eq!(daemon.status().generation, Generation(3));
}

#[test]
fn an_old_worker_stays_until_its_long_request_is_answered() {
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"20s\"");
    let mut neighbour = daemon.connect();
    let old = whoami(&mut neighbour);
    let execution = Execution::start(&daemon);
    let reloaded = daemon
        .reload()
        .expect("nobody waits for what is being executed");
    assert_eq!(reloaded["workers"], 1);
    let status = daemon.status();
    let [leaving] = status.leaving.as_slice() else {
        panic!("{:?}", status.leaving)
    };
    assert_eq!(
        (leaving.pid, leaving.generation, leaving.state),
        (old.pid, Generation(1), WorkerState::Draining)
    );
    assert_eq!(leaving.reason, "its configuration or program is outdated");
    assert_eq!(leaving.waits_for, "method \"read_line\" to return");
    assert!(
        leaving
            .killed_in_seconds
            .is_some_and(|seconds| (20.0..=30.0).contains(&seconds)),
        "{leaving:?}"
    );
    assert_eq!((leaving.clients, status.workers[0].clients), (1, 1));
    let said = ctl(&daemon, &["status"]).out;
    assert!(said.contains("method \"read_line\" to return"), "{said}");
    // The other client of its worker has moved by now.
    assert_ne!(whoami(&mut neighbour).pid, old.pid);
    // Its turn may take in one more request that follows at once, so it is not asked who serves it now.
    let mut caller = execution.finish();
    daemon.wait_until("the old worker is gone", |status| status.leaving.is_empty());
    assert_ne!(whoami(&mut caller).pid, old.pid);
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn an_old_worker_is_killed_at_drain_timeout() {
    for (method, drain) in [
        ("read_line", "\"200ms\""),
        ("read_line_once", "\"200ms\""),
        ("read_line", "\"0s\""),
    ] {
        let daemon = faulty::start(&format!(
            "workers.count = 1\nlimits.drain-timeout = {drain}"
        ));
        let mut client = daemon.connect();
        let old = whoami(&mut client);
        let _fifo = open_fifo(&daemon);
        client.request(method, daemon.directory().join("fifo"));
        (0..3).for_each(|i| client.request("ping", i));
        daemon.wait_until("the request is being executed", |s| {
            s.workers.iter().any(|worker| worker.executing > 0)
        });
        daemon.reload().expect("it is applied");
        match (method, client.reply().value()) {
            ("read_line", Err(fault)) => assert_eq!(fault.code(), "crashed"),
            ("read_line_once", Ok(value)) => assert_eq!(value, "attempt 2"),
            (_, other) => panic!("{method}: {other:?}"),
        }
        for i in 0..3 {
            assert_eq!(client.reply().value().expect("a result"), i);
        }
        assert_ne!(whoami(&mut client).pid, old.pid);
        assert!(kernel::is_over(old.pid));
        daemon.wait_for_log("did not finish in time; killing it");
        daemon.wait_until("the old worker is gone", |status| status.leaving.is_empty());
        assert_eq!(daemon.status().lost_total, 0);
    }
}

fn open_fifo(daemon: &Running) -> fs::File {
    let path = daemon.directory().join("fifo");
    let made = std::process::Command::new("mkfifo")
        .arg(&path)
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("it is our FIFO")
}

/// Makes twenty reloads, or `RELOADS`.
#[test]
fn many_reloads_leave_nothing_behind() {
    let reloads = std::env::var("RELOADS")
        .ok()
        .and_then(|reloads| reloads.parse().ok())
        .unwrap_or(20);
    let config = format!("{BOTH_FAMILIES}workers.count = 1");
    let daemon = start(&config);
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..20)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    let mut ping_all = |n: u64| {
        clients
            .iter_mut()
            .for_each(|c| assert_eq!(c.call("ping", n).expect("a result"), n))
    };
    let both = [
        config.clone(),
        format!("{config}\nlimits.idle-timeout = \"1h\"\nlimits.max-clients-per-address = 50"),
    ];
    let mut reload = |n: u64| {
        daemon
            .reload_with(&both[n as usize % 2])
            .expect("it is applied");
        ping_all(n);
    };
    // Takes the memory that is taken once.
    (0..6).for_each(&mut reload);
    let gone = |status: &Status| status.leaving.is_empty();
    let measure = || {
        daemon.wait_until("the old workers are gone", gone);
        (
            while_idle(&daemon, || kernel::descriptors(daemon.pid()).len()),
            kernel::memory(daemon.pid()),
            kernel::children(daemon.pid()).len(),
        )
    };
    let (descriptors, memory, children) = measure();
    (0..reloads).for_each(&mut reload);
    let after = measure();
    println!(
        "{reloads} reloads: {memory} bytes before, {} after; {descriptors} descriptors",
        after.1
    );
    assert_eq!(
        (after.0, after.2),
        (descriptors, children),
        "{:?}",
        kernel::descriptors(daemon.pid())
    );
    assert_eq!(children, 1);
    assert!(
        after.1 < memory + (1 << 20),
        "the master took {memory} bytes and now takes {}",
        after.1
    );
    let status = daemon.status();
    assert_eq!(
        (status.generation, status.clients, status.lost_total),
        (Generation(7 + reloads), 20, 0)
    );
}

/// The new worker is blocked by the first client that moves to it.
#[test]
fn clients_move_in_parts_and_new_ones_are_accepted_between() {
    const IDLE: u64 = 1500;
    /// Leases in the message that is being picked up, and those that may wait.
    const MOVED: u64 = 253 + 2 * 253;
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    let mut first = daemon.connect();
    let old = whoami(&mut first);
    let mut idle: Vec<Client> = (0..IDLE).map(|_| daemon.connect()).collect();
    ping_all(&mut idle);
    let execution = Execution::start(&daemon);
    let mut fifo = Fifo::new(daemon.directory());
    first.request("read_line", fifo.path());
    let mut reload = daemon.ctl_request("reload", ());
    let is_blocked = |status: &Status| {
        let new = status
            .workers
            .iter()
            .find(|worker| worker.pid != Some(old.pid));
        new.is_some_and(|worker| worker.executing == 1 && worker.clients > 253)
    };
    let status = daemon.wait_until("the new worker is blocked", is_blocked);
    let left = status.leaving.first().map_or(0, |leaving| leaving.clients);
    assert!(
        left >= IDLE + 1 - MOVED,
        "{left} clients are still with their worker"
    );
    let accepted = status.accepted_total;
    let new = daemon.connect();
    daemon.wait_until("another client is accepted", |status| {
        status.accepted_total > accepted
    });
    let _waits = execution.finish();
    // The last ones have not moved, and are served by the worker that they have had before.
    for client in idle.iter_mut().rev().take(100) {
        assert_eq!(whoami(client).pid, old.pid);
    }
    assert!(
        !reload.has_something(),
        "the reply comes when all have moved"
    );
    fifo.let_go();
    reload.reply().value().expect("it is applied");
    assert_eq!(first.reply().value().expect("a result"), "done\n");
    ping_all(&mut idle);
    ping_all(&mut [first, new]);
    let status = daemon.status();
    assert_eq!((status.moved_total, status.lost_total), (IDLE + 2, 0));
}

#[test]
fn each_worker_keeps_as_many_clients_as_its_seat_had() {
    // No client moves but by the reload.
    let daemon =
        start("workers = { count = 8, rebalance = \"manual\" }\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..80).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    let counts = |status: &Status| -> Vec<u64> {
        let workers = status.workers.iter();
        workers.map(|worker| worker.clients).collect()
    };
    let before = counts(&daemon.status());
    assert_eq!(before.iter().sum::<u64>(), 80, "{before:?}");
    daemon.reload().expect("the configuration is good");
    let after = daemon.wait_until("all clients have moved", |status| {
        status.leaving.is_empty() && counts(status).iter().sum::<u64>() == 80
    });
    assert_eq!(counts(&after), before);
    ping_all(&mut clients);
}
