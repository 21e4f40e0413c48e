//! The tables at several widths of the terminal, each compared with a file in `tests/screens/tables`.
//!
//! With `UPDATE_SCREENS=1` the tests write the tables of now into the files, for review with `git diff`.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::proto::control::{
    AppStatus, ClientState, ClientStatus, Effective, Key, KeyOrigin, LastReload, LeavingStatus,
    Verdict,
};
use crate::proto::names::ClientId;

/// Compares what a verb prints for a reply, at three widths, with the files of this name. No line may wrap.
#[track_caller]
fn check(name: &str, verb: &[&str], reply: &str) {
    for columns in ["80", "100", "160"] {
        let width = |key: &str| (key == "COLUMNS").then(|| OsString::from(columns));
        let arguments = [verb, &["--color=never"]].concat();
        let reply = reply.to_owned();
        let ran = Daemon::that_answers(move |_, _| Some(reply.clone()))
            .asked_seen(&arguments, Seen::new(true, false, width));
        assert_eq!((ran.exit, ran.err.as_str()), (ExitStatus::Done, ""));
        let acts = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!ran.out.contains(acts), "{name}: {:?}", ran.out);
        let most: usize = columns.parse().expect("a number");
        for line in ran.out.lines() {
            assert!(line.chars().count() <= most, "{name}-{columns}: {line}");
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/screens/tables")
            .join(format!("{name}-{columns}.txt"));
        if std::env::var_os("UPDATE_SCREENS").is_some() {
            fs::write(&path, &ran.out).expect("the file of a table can be written");
        }
        let expected = fs::read_to_string(&path).expect("the file of a table");
        assert_eq!(ran.out, expected, "{}", path.display());
    }
}

/// Returns the status of a daemon with this number of workers, the last of which waits for its successor.
fn status_of(count: u32) -> Status {
    let mut status = status();
    let [ready, _, waiting] = [0, 1, 2].map(|index| status.workers[index].clone());
    let worker = |seat: u32| {
        let (id, pid) = (17 + u64::from(seat), 4_100_000 + 37 * seat);
        let base = match seat + 1 == count && count > 1 {
            true => &waiting,
            false => &ready,
        };
        WorkerStatus {
            seat,
            id: base.id.map(|_| WorkerId(id)),
            pid: base.pid.map(|_| pid),
            restarts: u64::from(seat % 4),
            ..base.clone()
        }
    };
    (status.count, status.workers) = (count, (0..count).map(worker).collect());
    status
}

#[test]
fn no_row_of_the_status_is_wider_than_the_terminal() {
    for count in [0, 1, 8, 64] {
        let reply = reply("status", &status_of(count));
        check(&format!("status-{count}"), &["status"], &reply);
    }
}

#[test]
fn long_names_in_the_status_are_shortened_or_continued() {
    let mut status = status_of(2);
    let path = "/srv/very/long/directory/of/a/deployment/with/a/release/2026-11-24T12-00-00/etc/fdpassd.toml";
    status.config_file = Some(path.into());
    let message =
        "line 3, column 9: unknown key \"limits.max-client\"; did you mean \"limits.max-clients\"?";
    status.last_reload = Some(LastReload {
        at: 1_795_479_362,
        verdict: Verdict::Rejected,
        message: Some(message.to_owned()),
    });
    status.paused = Some(
        "no descriptors are left\x1b[2J\u{202e} for all of the clients that wait at the listeners"
            .to_owned(),
    );
    let long = "unix:/run/user/1000/a-daemon-with-a-long-name/sockets/of/its/listeners/production/rpc.sock";
    status.listeners[1].address = long.to_owned();
    status.listeners[1].outage =
        Some("the socket file was removed by another process while the daemon ran".to_owned());
    let worker = &mut status.workers[0];
    (worker.id, worker.state) = (Some(WorkerId(123_456)), WorkerState::Unhealthy);
    worker.unhealthy = Some(
        "the database of the method \"resize\" does not answer since a quarter of an hour"
            .to_owned(),
    );
    worker.app = Some(AppStatus {
        pid: 4_123_456,
        name: Some("a-shop-with-a-really-long-name".to_owned()),
        version: Some("2026.11.24+build.123456789".to_owned()),
        concurrency: 64,
        rss_bytes: Some(1 << 30),
    });
    status.leaving = vec![LeavingStatus {
        id: WorkerId(123_400),
        pid: 4_112_011,
        seat: 17,
        generation: Generation(12),
        state: WorkerState::Draining,
        reason: "it has answered as many requests as it may".to_owned(),
        waits_for: "its turn in \"a-method-with-a-long-name\"".to_owned(),
        killed_in_seconds: Some(3725.0),
        clients: 1234,
    }];
    check("status-long", &["status"], &reply("status", &status));
}

/// Returns a page of 120 clients, some of them with long names.
fn clients() -> String {
    let client = |id: u64| ClientStatus {
        id: ClientId(1000 * id),
        peer: match id % 4 {
            0 => format!("[2001:db8:85a3:8d3:1319:8a2e:370:{id:x}]:{}", 50_000 + id),
            1 => format!("pid {} (uid 1000)", 4000 + id),
            2 => "\x1b[2J\u{202e}".to_owned(),
            _ => format!("192.0.2.{id}:{}", 50_000 + id),
        },
        via: (id % 8 == 3).then(|| "[2001:db8::20]:5000".to_owned()),
        listener: Some("unix:/run/user/1000/long/directory/name/rpc.sock".to_owned()),
        worker: (!id.is_multiple_of(7)).then_some(WorkerId(id % 7)),
        state: Some(ClientState::Idle),
        method: id
            .is_multiple_of(5)
            .then(|| "a-method-with-a-long-name".to_owned()),
        age_seconds: (id * 3000) as f64,
        idle_seconds: id as f64,
        requests: id * id * id,
        moves: (id % 3) as u32,
        bytes: id * 100_000,
        wants_goaway: false,
        goaway: None,
    };
    let clients: Vec<ClientStatus> = (1..=120).map(client).collect();
    reply("clients", &json!({"clients": clients, "next": null}))
}

#[test]
fn no_row_of_120_clients_is_wider_than_the_terminal() {
    check("clients-120", &["clients"], &clients());
    let none = reply("clients", &json!({"clients": [], "next": null}));
    check("clients-0", &["clients"], &none);
}

#[test]
fn the_configuration_has_one_line_for_each_element_of_a_list() {
    let key = |key: &str, value: &str, origin| Key {
        key: key.to_owned(),
        value: Some(value.to_owned()),
        origin,
    };
    let listen = r#"["127.0.0.1:8080", { address = "unix:/run/fdpassd/a-listener-for-the-balancers/rpc.sock", proxy = "any", proxy-from = ["10.0.0.0/8", "192.168.0.0/16"] }]"#;
    let path = "\"/var/log/a/very/long/directory/of/logs/that/no/column/has/room/for/fdpassd.log\"";
    let effective = Effective {
        file: Some("/etc/fdpassd/fdpassd.toml".into()),
        files: vec!["/etc/fdpassd/fdpassd.toml".into()],
        keys: vec![
            key("listen", listen, KeyOrigin::File),
            key("workers.count", "4", KeyOrigin::Runtime),
            key("limits.max-clients-per-address", "0", KeyOrigin::Default),
            key("log.file", path, KeyOrigin::CommandLine),
        ],
    };
    check("config", &["config", "show"], &reply("config", &effective));
}

#[test]
fn events_have_their_number_and_continue_below() {
    let event = |id: u64, at: f64, level: &str, kind: &str, message: &str| json!({"id": id, "at": at, "level": level, "event": kind, "message": message});
    let noon = 1_795_521_601.123;
    let events = [
        event(998, noon, "info", "started", "fdpassd 0.1.0 serves"),
        event(
            999,
            noon + 1.0,
            "warn",
            "worker_died",
            "worker 17 (pid 4100037, gen 3) was killed by signal 11 in method \"resize\"; 617 clients move to other workers\x1b",
        ),
        event(
            1000,
            noon + 86_400.0,
            "info",
            "teleported",
            "of a newer daemon",
        ),
        event(
            1001,
            noon + 86_400.0,
            "error",
            "reload_rejected",
            "SIGHUP: reload rejected: /etc/fdpassd.toml: unknown key \"limits.max-client\"; did you mean \"limits.max-clients\"?",
        ),
    ];
    let page = json!({"events": events, "last": 1001, "lost": 997, "workers": 4, "clients": 9});
    check("events", &["events"], &reply("events", &page));
}
