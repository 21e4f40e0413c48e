//! Reloads that are rejected or rolled back, and change nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use fdpassd::Generation;
use fdpassd::proto::control::{LastReload, ListenerStatus, Status, Verdict};
use fdpassd::testing::{Running, eventually};
use nix::sys::signal::Signal;

use crate::common::faulty;
use crate::common::load::Load;
use crate::common::program::{Program, control_socket, ctl, ctl_command};
use crate::common::{kernel, start, while_idle};

use super::{BOTH_FAMILIES, all_of, mode};

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
    let descriptors = while_idle(&daemon, || kernel::descriptors(daemon.pid()).len());
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
        workers = { count = 3, start-timeout = "6s" }
        limits.max-clients = 77
        log = { target = "file", file = "{dir}/log" }
        control.mode = "0600"
    "#;
    for (i, (fault, why, replaced)) in [
        ("exit", "the last one exited with status 9", 0),
        ("fail", "the model cannot be loaded", 0),
        ("panic", "the model is broken", 0),
        ("hang", "the last one was not ready within 6s", 0),
        ("exit:2", "the last one exited with status 9", 2),
        ("hang:1", "the last one was not ready within 6s", 1),
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
    // The children that are killed below must be executed workers.
    let old = format!("{BOTH_FAMILIES}workers = {{ count = 1, start = \"exec\" }}");
    let (daemon, switch) = faulty::start_with_switch(&old);
    let pid = daemon.wait_for_workers().workers[0].pid;
    let socket = daemon.directory().join("rpc.sock");
    switch.set("hang");
    daemon.write_config(
        "listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/rpc.sock\", mode = \"0666\" }]\nworkers = { count = 1, start = \"exec\" }",
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
fn a_rejected_reload_by_a_signal_binds_a_removed_control_socket() {
    let daemon = start("");
    let socket = control_socket(&daemon);
    fs::remove_file(&socket).expect("it is there");
    daemon.write_config("nonsense = 1");
    daemon.signal("HUP");
    daemon.wait_for_log("SIGHUP: the new configuration is rejected: ");
    eventually("the control socket is bound again", || {
        UnixStream::connect(&socket).ok()
    });
    assert_eq!(daemon.status().generation, Generation(1));
}
