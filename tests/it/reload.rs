//! `fdpassctl reload` and SIGHUP: applied without a client noticing, or not at all.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fdpassd::Generation;
use fdpassd::proto::control::{
    LastReload, ListenerStatus, Status, Verdict, WorkerState, WorkerStatus,
};
use fdpassd::testing::{Client, Running, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::faulty::{self, Execution, whoami};
use crate::common::load::Load;
use crate::common::program::{Program, ctl, ctl_command, short_timeout};
use crate::common::{at_rest, kernel, start};

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

/// Everything that a reload which is rejected must leave alone.
#[derive(Debug, PartialEq)]
struct Untouched {
    generation: Generation,
    pids: Vec<u32>,
    listeners: Vec<String>,
    modes: Vec<u32>,
}

impl Untouched {
    fn of(daemon: &Running) -> Untouched {
        let status = daemon.status();
        let listener =
            |l: &ListenerStatus| format!("{} {:?} {:?}", l.address, l.byte_order, l.queue_max);
        let modes =
            ["a.sock", "b.sock", "control.sock"].map(|name| mode(&daemon.directory().join(name)));
        Untouched {
            generation: status.generation,
            pids: daemon.worker_pids(),
            listeners: status.listeners.iter().map(listener).collect(),
            modes: modes.into(),
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0, |found| found.permissions().mode() & 0o777)
}

#[test]
fn a_rejected_file_is_reported_with_its_place() {
    let base = r#"
        listen = ["127.0.0.1:0", { address = "unix:{dir}/a.sock", mode = "0600" }, "unix:{dir}/b.sock"]
        workers.count = 2
    "#;
    let daemon = start(base);
    daemon.wait_for_workers();
    // From here on no socket can be bound in the place of that one.
    fs::remove_file(daemon.directory().join("b.sock")).expect("it is there");
    fs::write(daemon.directory().join("b.sock"), "").expect("it is our directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("it is bound");
    let before = Untouched::of(&daemon);
    let descriptors = at_rest(&daemon, || kernel::descriptors(daemon.pid()).len());
    let mut client = daemon.connect();
    let load = Load::start(&daemon, 1, 8);
    let listen = |more: &str| {
        format!(
            "listen = [{{ address = \"127.0.0.1:0\", backlog = 9, byte-order = \"big\" }}, \
             {{ address = \"unix:{{dir}}/a.sock\", mode = \"0666\" }}, \"unix:{{dir}}/new.sock\", {more}]\n"
        )
    };
    // The mistake, with its place if there is one.
    let cases: Vec<(String, &str, Option<&str>)> = vec![
        ("workers.count = ".to_owned(), "", Some("workers.count = ")),
        (
            "[limits]\nmax-frames = 1".to_owned(),
            "unknown key `max-frames`",
            Some("max-frames"),
        ),
        ("[workers]\ncount = 0".to_owned(), "0", Some("count = 0")),
        (
            "[limits]\nbuffers = \"1KiB\"".to_owned(),
            "buffers must be at least 4 times max-frame",
            Some("buffers = "),
        ),
        (
            "[control]\nsocket = \"{dir}/other.sock\"".to_owned(),
            "control.socket cannot be changed by a reload",
            Some("socket = "),
        ),
        (
            "listen = [{ address = \"unix:{dir}/a.sock\", owner = \"no such user\" }]".to_owned(),
            "no such user",
            Some("\"no such user\""),
        ),
        (
            listen(&format!("\"{taken}\"")),
            "Address already in use",
            None,
        ),
        (
            listen("\"unix:{dir}/missing/rpc.sock\""),
            "No such file",
            None,
        ),
        (
            listen("{ address = \"unix:{dir}/b.sock\", mode = \"0666\" }"),
            "which is not a socket",
            None,
        ),
        (
            format!(
                "{}log = {{ target = \"file\", file = \"{{dir}}/missing/log\" }}",
                listen("")
            ),
            "cannot open log file",
            None,
        ),
    ];
    for (config, words, place) in &cases {
        daemon.write_config(config);
        let said = ctl(&daemon, &["reload"]);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{config}");
        assert!(
            said.err.starts_with("fdpassctl: rejected") && said.err.contains(words),
            "{config}: {}",
            said.err
        );
        let file = daemon.directory().join("config.toml");
        if let Some(place) = place {
            let text = fs::read_to_string(&file).expect("we wrote it");
            let at = text.find(place).expect("it is there");
            let line = text[..at].matches('\n').count() + 1;
            let shown: Vec<&str> = said.err.lines().collect();
            assert_eq!(shown[0], "fdpassctl: rejected, and nothing was changed:");
            let words = format!("--> {}:{line}:", file.display());
            assert!(
                shown.iter().any(|shown| shown.contains(&words)),
                "{words:?} in {}",
                said.err
            );
            assert!(
                shown
                    .iter()
                    .any(|shown| shown.trim_start_matches([' ', '|']).starts_with('^')),
                "{}",
                said.err
            );
        }
        let status = daemon.status();
        let Some(LastReload {
            verdict: Verdict::Rejected,
            message: Some(message),
            ..
        }) = status.last_reload
        else {
            panic!("{:?}", status.last_reload)
        };
        assert!(message.contains(words), "{message}");
        assert!(!status.reloading && status.leaving.is_empty());
        assert!(!daemon.directory().join("new.sock").exists(), "{config}");
        assert_eq!(Untouched::of(&daemon), before, "{config}");
    }
    load.wait_for(20);
    load.finish();
    client.call("ping", 1).expect("a result");
    drop(client);
    eventually("all that was opened is closed", || {
        (kernel::descriptors(daemon.pid()).len() == descriptors).then_some(())
    });
    // The verdict of a signal is in the log.
    daemon.write_config(&cases[1].0);
    daemon.signal("HUP");
    let file = daemon.directory().join("config.toml");
    let text = fs::read_to_string(&file).expect("we wrote it");
    let line = text[..text.find("max-frames").expect("it is there")]
        .matches('\n')
        .count()
        + 1;
    daemon.wait_for_log(&format!(
        "SIGHUP: the new configuration is rejected: {}:{line}:1: unknown key",
        file.display()
    ));
    fs::remove_file(&file).expect("it is there");
    let said = ctl(&daemon, &["reload"]);
    assert!(
        said.code == Some(1) && said.err.contains("cannot read the file"),
        "{}",
        said.err
    );

    // Mistakes leave nothing that would be in the way of what is right.
    fs::remove_file(daemon.directory().join("b.sock")).expect("it is in the way");
    assert_eq!(
        daemon.reload_with(base).expect("it is applied")["generation"],
        2
    );
}

#[test]
fn a_generation_that_is_not_ready_in_time_is_rolled_back() {
    let old = format!("{BOTH_FAMILIES}workers.count = 3");
    let (daemon, switch) = faulty::start_with_switch(&old);
    let pids = |status: &Status| {
        status
            .workers
            .iter()
            .map(|worker| worker.pid)
            .collect::<Vec<_>>()
    };
    let mut before = daemon.wait_for_workers();
    let load = Load::start(&daemon, 4, 8);
    let new = r#"
        listen = ["127.0.0.1:0", { address = "unix:{dir}/rpc.sock", mode = "0666" }, "unix:{dir}/new.sock"]
        workers = { count = 3, start-timeout = "2s" }
        limits.max-clients = 77
        log = { target = "file", file = "{dir}/log" }
        control.mode = "0600"
    "#;
    for (i, (fault, why, replaced)) in [
        ("exit", "the last one exited with status 9", 0),
        ("fail", "the model cannot be loaded", 0),
        ("panic", "the model is broken", 0),
        ("hang", "the last one was not ready within 2s", 0),
        ("exit:2", "the last one exited with status 9", 2),
        ("hang:1", "the last one was not ready within 2s", 1),
    ]
    .into_iter()
    .enumerate()
    {
        switch.set(fault);
        daemon.write_config(new);
        let said = ctl(&daemon, &["reload", "--quiet"]);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{fault}");
        let words = "fdpassctl: rolled_back: its workers do not become ready; the last one ";
        assert!(
            said.err.starts_with(words) && said.err.contains(why),
            "{fault}: {}",
            said.err
        );
        load.wait_for(20);

        let status = daemon.wait_until("only the old configuration has workers", |status| {
            let is_old = |w: &_| all_of(w, status.generation.0);
            status.leaving.is_empty() && status.workers.iter().all(is_old)
        });
        assert_eq!(
            (status.generation, status.max_clients),
            (before.generation, before.max_clients)
        );
        let verdict = status.last_reload.clone().expect("there was one");
        assert!(
            verdict.verdict == Verdict::RolledBack
                && verdict.message.is_some_and(|m| m.contains(why))
        );
        let changed = pids(&status)
            .iter()
            .zip(pids(&before))
            .filter(|(now, then)| **now != *then)
            .count();
        assert_eq!(
            changed,
            replaced,
            "{fault}: {:?} {:?}",
            pids(&before),
            pids(&status)
        );
        let path = |name: &str| daemon.directory().join(name);
        assert!(
            !path("new.sock").exists(),
            "{fault}: a listener of it is still there"
        );
        assert_eq!(
            (mode(&path("rpc.sock")), mode(&path("control.sock"))),
            (0o660, 0o660),
            "{fault}"
        );
        assert_eq!(status.listeners.len(), 2);

        // The next one works.
        switch.set("");
        let generation = 3 + 2 * i;
        assert_eq!(
            daemon.reload_with(&old).expect("it is applied")["generation"],
            generation,
            "{fault}"
        );
        load.wait_for(20);
        before = daemon.wait_until("the old workers are gone", |status| {
            status.leaving.is_empty()
        });
    }
    load.finish();
    let status = daemon.status();
    assert_eq!((status.lost_total, status.errors_total), (0, 0));
}

#[test]
fn a_reload_changes_nothing_before_its_workers_are_ready() {
    let old = format!("{BOTH_FAMILIES}workers.count = 1");
    let (daemon, switch) = faulty::start_with_switch(&old);
    let pid = daemon.wait_for_workers().workers[0].pid;
    let socket = daemon.directory().join("rpc.sock");
    switch.set("hang");
    daemon.write_config(
        "listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/rpc.sock\", mode = \"0666\" }]\nworkers.count = 1",
    );
    let waiting = Program::start(&mut ctl_command(&daemon, &["reload", "--quiet"]));
    daemon.wait_until("its worker is being started", |status| status.reloading);
    assert_eq!(mode(&socket), 0o660);
    switch.set("");
    let children = kernel::children(daemon.pid()).into_iter();
    children
        .filter(|child| Some(*child) != pid)
        .for_each(|child| kernel::send(child, Signal::SIGKILL));
    let said = waiting.finish();
    assert_eq!((said.code, mode(&socket)), (Some(0), 0o666), "{}", said.err);
}

#[test]
fn a_second_reload_is_refused_while_one_is_running() {
    let (daemon, switch) = faulty::start_with_switch("workers.count = 1");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    let old = whoami(&mut client).pid;
    switch.set("hang");
    let timeout = short_timeout(&daemon);
    let said = ctl(&daemon, &["reload", "--quiet", "--timeout", &timeout]);
    assert_eq!((said.code, said.out.as_str()), (Some(75), ""));
    let words = format!(
        "fdpassctl: faulty (pid {}) is still reloading; it continues, see \"fdpassctl status\"\n",
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
    assert_eq!(daemon.status().last_reload, None, "a refusal is no verdict");

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
    // Its neighbour has gone on long ago.
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

/// Twenty reloads, or as many as the variable `RELOADS` says.
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
            at_rest(&daemon, || kernel::descriptors(daemon.pid()).len()),
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
