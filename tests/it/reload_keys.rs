//! Each key of the configuration has its effect after a reload, and loses it again by the next one.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use fdpassd::proto::control::WorkerState;
use fdpassd::proto::frame::ByteOrder;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Reply, Running, ServiceManager, eventually};
use nix::sys::signal::Signal;

use crate::app_keys;
use crate::common::faulty::{self, Execution, Switch, server, whoami};
use crate::common::needs::skip_part;
use crate::common::program::{FDPASSCTL, OtherUser, Program, control_socket};
use crate::common::{http, kernel, let_pass, ping_of};

/// A key, two configurations that differ in nothing but it, and what shows that each is in force.
struct Row {
    key: &'static str,
    configs: [&'static str; 2],
    /// It is told whether the second configuration is in force: what that brings is waited for.
    probe: fn(&Running, &Switch, bool) -> String,
    shows: [&'static str; 2],
}

const LISTEN: &[Row] = &[
    Row {
        key: "listen",
        configs: [
            "listen = [\"127.0.0.1:0\"]",
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
        ],
        probe: |daemon, _, _| daemon.directory().join("rpc.sock").exists().to_string(),
        shows: ["false", "true"],
    },
    Row {
        key: "byte-order",
        configs: [
            "",
            "listen = [{ address = \"127.0.0.1:0\", byte-order = \"big\" }]",
        ],
        probe: |daemon, _, _| {
            let mut client = daemon.connect().in_order(ByteOrder::Big);
            client.request("ping", 1);
            // Read as little-endian the length is too much, and the refusal is not for a big-endian reader.
            eventually("there is a reply", || client.has_something().then_some(()));
            let order = daemon.status().listeners[0].byte_order;
            format!(
                "{order:?} {}",
                order == fdpassd::proto::frame::OrderRule::Big && client.reply().name == "pong"
            )
        },
        shows: ["Little false", "Big true"],
    },
    Row {
        key: "backlog",
        configs: ["", "listen = [{ address = \"127.0.0.1:0\", backlog = 7 }]"],
        probe: |daemon, _, _| (daemon.status().listeners[0].queue_max == Some(7)).to_string(),
        shows: ["false", "true"],
    },
    Row {
        key: "mode",
        configs: [
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
            "listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/rpc.sock\", mode = \"0606\" }]",
        ],
        probe: |daemon, _, _| mode(daemon, "rpc.sock"),
        shows: ["660", "606"],
    },
];

/// Only root can give a file away.
const OWNERS: &[Row] = &[
    Row {
        key: "owner",
        configs: [
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
            "listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/rpc.sock\", owner = \"65534\" }]",
        ],
        probe: |daemon, _, _| {
            fs::metadata(daemon.directory().join("rpc.sock"))
                .expect("it is there")
                .uid()
                .to_string()
        },
        shows: ["0", "65534"],
    },
    Row {
        key: "group",
        configs: [
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
            "listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/rpc.sock\", group = \"65534\" }]",
        ],
        probe: |daemon, _, _| {
            (fs::metadata(daemon.directory().join("rpc.sock"))
                .expect("it is there")
                .gid()
                == 65_534)
                .to_string()
        },
        shows: ["false", "true"],
    },
];

const WORKERS: &[Row] = &[
    Row {
        key: "count",
        configs: ["workers.count = 1", "workers.count = 3"],
        probe: |daemon, _, _| {
            // A worker that leaves a surplus seat is shown there until it has ended.
            let status = daemon.wait_for_workers();
            format!(
                "{} {}",
                status.workers.len(),
                kernel::children(daemon.pid()).len()
            )
        },
        shows: ["1 1", "3 3"],
    },
    Row {
        key: "dispatch",
        configs: [
            "limits.stall-timeout = \"1h\"\nworkers.dispatch = \"round-robin\"",
            "limits.stall-timeout = \"1h\"\nworkers.dispatch = \"least-loaded\"",
        ],
        probe: |daemon, _, _| {
            // One of the two workers has something to do.
            let execution = Execution::start(daemon);
            let mut next = [daemon.connect(), daemon.connect()];
            next.iter_mut()
                .for_each(|client| client.request("whoami", ()));
            daemon.wait_until("both are there", |status| status.clients == 3);
            let _caller = execution.finish();
            let seats = next.each_mut().map(|client| server(client).seat);
            format!("{} {}", daemon.status().dispatch, seats[0] == seats[1])
        },
        shows: ["round-robin false", "least-loaded true"],
    },
    Row {
        key: "start-timeout",
        configs: ["", "workers.start-timeout = \"2s\""],
        probe: |daemon, switch, is_second| {
            switch.set("hang:1");
            daemon.signal_worker(1, "KILL");
            let hanging = eventually("its successor hangs", || {
                let worker = daemon.status().workers.swap_remove(1);
                worker.pid.filter(|_| worker.state == WorkerState::Starting)
            });
            let line = format!("(pid {hanging}, gen ");
            let is_late = comes_true(is_second, || {
                let log = daemon.stderr();
                let mut lines = log.lines().filter(|text| text.contains(&line));
                lines.any(|text| text.contains(" is not ready after 2s; killing it"))
            });
            switch.set("");
            if !is_second {
                kernel::send(hanging, Signal::SIGKILL);
            }
            daemon.wait_for_workers();
            is_late
        },
        shows: ["false", "true"],
    },
    Row {
        key: "max-requests",
        configs: ["", "workers.max-requests = 2"],
        probe: |daemon, _, _| {
            let mut client = daemon.connect();
            let pids: BTreeSet<u32> = (0..12).map(|_| whoami(&mut client).pid).collect();
            (pids.len() > 3).to_string()
        },
        shows: ["false", "true"],
    },
    Row {
        key: "max-lifetime",
        configs: ["", "workers.max-lifetime = \"200ms\""],
        probe: |daemon, _, is_second| {
            let pids = daemon.worker_pids();
            comes_true(is_second, || daemon.worker_pids() != pids)
        },
        shows: ["false", "true"],
    },
];

const LIMITS: &[Row] = &[
    Row {
        key: "max-clients",
        configs: ["", "limits.max-clients = 2"],
        probe: |daemon, _, _| {
            let _clients: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
            let status = daemon.wait_until("all are looked at", |s| {
                s.clients == 3 || s.paused.is_some()
            });
            format!("{} {}", status.clients, status.max_clients == 2)
        },
        shows: ["3 false", "2 true"],
    },
    Row {
        key: "max-clients-per-address",
        configs: ["", "limits.max-clients-per-address = 2"],
        probe: |daemon, _, _| {
            let mut clients: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
            // It may have been closed by now.
            let frame = clients[2].frame(r#"{"in":"ping"}"#);
            let _ = clients[2].writer().write_all(&frame);
            clients[2].reply().name
        },
        shows: ["pong", "error"],
    },
    Row {
        key: "max-frame",
        configs: ["", "limits.max-frame = \"4KiB\""],
        probe: |daemon, _, _| {
            let mut client = daemon.connect();
            client.send_frame(ping_of(5_000));
            client
                .reply()
                .value()
                .map_or_else(|fault| fault.code().to_owned(), |_| "pong".to_owned())
        },
        shows: ["pong", "too_large"],
    },
    Row {
        key: "buffers",
        configs: [
            "limits = { max-frame = \"64KiB\", buffers = \"4MiB\" }\nworkers.count = 1",
            "limits = { max-frame = \"64KiB\", buffers = \"256KiB\" }\nworkers.count = 1",
        ],
        probe: |daemon, _, _| {
            let frame = daemon.connect().frame(ping_of(65_000));
            let mut clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
            for client in &mut clients {
                client.send(&frame[..60_000]);
            }
            let mut told_off = 0;
            for client in &mut clients {
                let reply = if client.has_something() {
                    client.reply()
                } else {
                    finish(client, &frame[60_000..])
                };
                told_off += u32::from(
                    reply
                        .value()
                        .is_err_and(|fault| fault.code() == "overloaded"),
                );
            }
            (told_off > 0).to_string()
        },
        shows: ["false", "true"],
    },
    Row {
        key: "idle-timeout",
        configs: ["", "limits.idle-timeout = \"50ms\""],
        probe: |daemon, _, is_second| ends_by_itself(daemon, b"", is_second),
        shows: ["false", "true"],
    },
    Row {
        key: "frame-timeout",
        configs: ["", "limits.frame-timeout = \"50ms\""],
        probe: |daemon, _, is_second| ends_by_itself(daemon, b"\x09\0\0\0abc", is_second),
        shows: ["false", "true"],
    },
    Row {
        key: "send-timeout",
        configs: [
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nlimits.send-timeout = \"100ms\"",
        ],
        probe: |daemon, _, is_second| {
            // It takes a fifth of a mebibyte.
            let mut deaf = Client::connect(&Address::Unix(daemon.directory().join("rpc.sock")));
            let frame = deaf.frame(ping_of(1_000_000));
            let mut writer = deaf.writer();
            thread::scope(|threads| {
                threads.spawn(move || (0..20).try_for_each(|_| writer.write_all(&frame)));
                daemon.wait_until("replies wait, or it is closed", |status| {
                    status.requests_total > 0
                        && (status.clients == 0
                            || status.workers.iter().any(|w| w.parked_bytes > 0))
                });
                let is_closed = comes_true(is_second, || daemon.status().clients == 0);
                if !is_second {
                    (0..20).for_each(|_| drop(deaf.receive()));
                }
                is_closed
            })
        },
        shows: ["false", "true"],
    },
    Row {
        key: "request-timeout",
        configs: ["", "limits.request-timeout = \"100ms\""],
        probe: |daemon, _, is_second| {
            let time = if is_second { u64::MAX } else { 200 };
            match daemon.call("spin", time) {
                Ok(_) => "done".to_owned(),
                Err(fault) => fault.code().to_owned(),
            }
        },
        shows: ["done", "timeout"],
    },
    Row {
        key: "stall-timeout",
        configs: [
            "limits.stall-timeout = \"1h\"",
            "limits.stall-timeout = \"20ms\"",
        ],
        probe: |daemon, _, is_second| {
            let before = daemon.status().stalls_total;
            let execution = Execution::start(daemon);
            let is_stuck = comes_true(is_second, || daemon.status().stalls_total > before);
            drop(execution.finish());
            is_stuck
        },
        shows: ["false", "true"],
    },
    Row {
        key: "drain-timeout",
        configs: ["", "limits.drain-timeout = \"100s\""],
        probe: |daemon, _, _| {
            let execution = Execution::start(daemon);
            let busy = daemon
                .status()
                .workers
                .iter()
                .find(|worker| worker.executing > 0)
                .and_then(|worker| worker.id);
            let recycling = daemon.ctl_request("recycle", serde_json::json!({ "worker": busy }));
            let limit = || {
                daemon
                    .status()
                    .leaving
                    .first()
                    .and_then(|leaving| leaving.killed_in_seconds)
            };
            let left = eventually("it drains", limit);
            drop(execution.finish());
            drop(recycling);
            (left > 50.0).to_string()
        },
        shows: ["false", "true"],
    },
    Row {
        key: "tcp-keepalive",
        configs: [
            "limits.tcp-keepalive = \"none\"",
            "limits.tcp-keepalive = \"100s\"",
        ],
        probe: |daemon, _, _| {
            let Address::Tcp(address) = daemon.address() else {
                panic!("it listens on TCP")
            };
            let mut client = daemon.connect();
            client.call("ping", 1).expect("a result");
            let timer = eventually("no other timer of the connection is running", || {
                let timer = kernel::timer(address.port());
                timer
                    .is_none_or(|(kind, _)| kind == kernel::KEEPALIVE)
                    .then_some(timer)
            });
            timer
                .is_some_and(|(_, seconds)| (80..=100).contains(&seconds))
                .to_string()
        },
        shows: ["false", "true"],
    },
];

const METRICS: &[Row] = &[
    Row {
        key: "metrics.listen",
        configs: ["", "metrics.listen = \"unix:{dir}/metrics.sock\""],
        probe: |daemon, _, _| {
            let path = daemon.directory().join("metrics.sock");
            let is_there = UnixStream::connect(&path).is_ok();
            let answer = is_there.then(|| http::get(&Address::Unix(path), "/healthz"));
            answer.map_or("nobody".to_owned(), |answer| answer.body)
        },
        shows: ["nobody", "ok\n"],
    },
    Row {
        key: "hosts",
        configs: [
            "metrics.listen = \"127.0.0.1:0\"",
            "metrics = { listen = \"127.0.0.1:0\", hosts = [\"node1.example.org\"] }",
        ],
        probe: |daemon, _, _| {
            let request = http::request("/healthz").replace("localhost", "node1.example.org:9464");
            // The row before had a Unix socket, whose line may be the last one still.
            let address = eventually("it is logged where TCP clients get metrics", || {
                let address = http::metrics_address(daemon);
                matches!(address, Address::Tcp(_)).then_some(address)
            });
            http::ask(&address, request).status.to_string()
        },
        shows: ["403", "200"],
    },
];

const CONTROL_AND_LOG: &[Row] = &[
    Row {
        key: "control.mode",
        configs: ["", "control.mode = \"0600\""],
        probe: |daemon, _, _| mode(daemon, "control.sock"),
        shows: ["660", "600"],
    },
    Row {
        key: "target",
        configs: ["", "log = { target = \"file\", file = \"{dir}/log\" }"],
        probe: |daemon, _, _| panics_are_told(daemon, &["log"]),
        shows: ["standard error", "log"],
    },
    Row {
        key: "file",
        configs: [
            "log = { target = \"file\", file = \"{dir}/log-1\" }",
            "log = { target = \"file\", file = \"{dir}/log-2\" }",
        ],
        probe: |daemon, _, _| panics_are_told(daemon, &["log-1", "log-2"]),
        shows: ["log-1", "log-2"],
    },
    Row {
        key: "format",
        configs: ["", "log.format = \"json\""],
        probe: |daemon, _, _| {
            let count = || daemon.stderr().matches("panicked").count();
            let before = count();
            daemon.call("panic", "on purpose").expect_err("it panics");
            eventually("it is logged", || (count() > before).then_some(()));
            let text = daemon.stderr();
            let line = text
                .lines()
                .rfind(|line| line.contains("panicked"))
                .expect("it is there");
            if line.starts_with('{') {
                "json".to_owned()
            } else {
                "text".to_owned()
            }
        },
        shows: ["text", "json"],
    },
    Row {
        key: "level",
        configs: ["", "log.level = \"debug\""],
        probe: |daemon, _, _| {
            let count = |words: &str| daemon.stderr().matches(words).count();
            let (debug, errors) = (count(" debug client "), count("panicked"));
            daemon.call("panic", "on purpose").expect_err("it panics");
            // Later lines are read later.
            eventually("the panic is logged", || {
                (count("panicked") > errors).then_some(())
            });
            (count(" debug client ") > debug).to_string()
        },
        shows: ["false", "true"],
    },
];

/// Only root can become a member of a group or another user.
const GROUPS: &[Row] = &[
    Row {
        key: "admin-group",
        configs: [
            "control.mode = \"0666\"",
            "control = { mode = \"0666\", admin-group = \"61201\" }",
        ],
        probe: |daemon, _, _| {
            format!(
                "{} {}",
                asked_by(61_201, daemon, "undrain"),
                asked_by(61_202, daemon, "status")
            )
        },
        shows: ["forbidden done", "done forbidden"],
    },
    Row {
        key: "read-group",
        configs: [
            "control.mode = \"0666\"",
            "control = { mode = \"0666\", read-group = \"61201\" }",
        ],
        probe: |daemon, _, _| {
            format!(
                "{} {}",
                asked_by(61_201, daemon, "status"),
                asked_by(61_202, daemon, "status")
            )
        },
        shows: ["done done", "done forbidden"],
    },
];

#[test]
fn each_key_of_the_listeners_has_its_effect() {
    check(LISTEN);
    if kernel::user() == 0 {
        check(OWNERS);
    } else {
        skip_part("root", "only root can give a file away");
    }
}

#[test]
fn each_key_of_the_workers_has_its_effect() {
    check(WORKERS);
}

#[test]
fn each_key_of_the_limits_has_its_effect() {
    thread::scope(|threads| {
        LIMITS
            .chunks(4)
            .for_each(|rows| drop(threads.spawn(|| check(rows))))
    });
}

#[test]
fn each_key_of_the_control_socket_and_of_the_log_has_its_effect() {
    check(CONTROL_AND_LOG);
    if kernel::user() == 0 {
        check(GROUPS);
    } else {
        skip_part("root", "only root can become another user");
    }
}

#[test]
fn each_key_of_the_metrics_has_its_effect() {
    check(METRICS);
}

/// A look that was planned by the old limit comes by the new one.
#[test]
fn a_shorter_stall_timeout_applies_at_once() {
    let (daemon, _switch) =
        faulty::start_with_switch("limits.stall-timeout = \"1h\"\nworkers.count = 1");
    let mut client = daemon.connect();
    whoami(&mut client);
    daemon
        .reload_with("limits.stall-timeout = \"20ms\"\nworkers.count = 1")
        .expect("it is applied");
    drop(client);
    let execution = Execution::start(&daemon);
    daemon.wait_until("it is stuck", |status| status.stalls_total > 0);
    drop(execution.finish());
}

/// The grace is the daemon's last: a row of its own, for nothing comes after it.
#[test]
fn restart_grace_has_its_effect() {
    for (from, to) in [("100s", "50ms"), ("50ms", "100s")] {
        let manager = ServiceManager::new();
        let config = |grace| format!("workers.count = 1\nlimits.restart-grace = \"{grace}\"");
        let daemon = manager
            .setup(faulty::example("faulty"), &config(from))
            .start()
            .expect("it serves");
        daemon.wait_for_workers();
        daemon.reload_with(&config(to)).expect("it is applied");
        let blocked = Execution::start(&daemon);
        daemon.signal("TERM");
        daemon.wait_for_log(" for the next master; running requests get ");
        let next = |daemon| {
            manager
                .setup(faulty::example("faulty"), "")
                .start_after(daemon)
                .expect("it serves")
        };
        if to == "50ms" {
            let _daemon = next(daemon);
            let fault = blocked
                .into_client()
                .reply()
                .value()
                .expect_err("its worker is gone");
            assert_eq!(fault.code(), "crashed");
        } else {
            let mut client = blocked.finish();
            let _daemon = next(daemon);
            client.call("ping", 1).expect("a pong");
        }
    }
}

/// All that the shipped file shows is there: in it a line begins with `#` and the key.
#[test]
fn the_rows_are_all_keys_there_are() {
    let text = include_str!("../../config/fdpassd.toml");
    let key = |line: &'static str| {
        let (key, _) = line.strip_prefix('#')?.split_once(" = ")?;
        key.trim().rsplit('.').next()
    };
    let mut keys: BTreeSet<&str> = text
        .lines()
        .filter_map(key)
        .filter(|key| !key.contains([' ', '"']))
        .collect();
    // Within an entry of `listen`, where they are told of in words, or of a name that there is twice. One must not change:
    // see reload.rs.
    keys.extend([
        "byte-order",
        "backlog",
        "freebind",
        "mode",
        "owner",
        "group",
        "control.mode",
        "metrics.listen",
    ]);
    keys.retain(|key| !["socket", "address"].contains(key));
    let rows = [
        LISTEN,
        OWNERS,
        WORKERS,
        LIMITS,
        METRICS,
        CONTROL_AND_LOG,
        GROUPS,
    ];
    let rows = rows.into_iter().flatten().map(|row| row.key);
    // Those have tests of their own: restart-grace above, rebalance in rebalance.rs, ipv6-prefix in limits.rs, freebind
    // in listeners.rs, and those of an app in app_keys.rs.
    let covered: BTreeSet<&str> = rows
        .chain(["restart-grace", "rebalance", "ipv6-prefix", "freebind"])
        .chain(app_keys::KEYS)
        .collect();
    assert_eq!(covered, keys.into_iter().collect());
}

/// From the first configuration to the second and back.
#[track_caller]
fn check(rows: &[Row]) {
    let (daemon, switch) = faulty::start_with_switch("workers.count = 2");
    daemon.wait_for_workers();
    for Row {
        key,
        configs,
        probe,
        shows,
    } in rows
    {
        for i in [0, 1, 0] {
            let count = if configs[i].contains("workers.count") {
                ""
            } else {
                "workers.count = 2\n"
            };
            let reloaded = daemon.reload_with(&format!("{count}{}", configs[i]));
            assert!(reloaded.is_ok(), "{key}: {reloaded:?}");
            let shown = || {
                daemon.wait_until("no client is there", |status| {
                    status.clients == 0 && status.leaving.is_empty()
                });
                probe(&daemon, &switch, i == 1)
            };
            assert_eq!(shown(), shows[i], "{key}: {:?}", configs[i]);
        }
        daemon.wait_until("nobody is there", |status| status.clients == 0);
    }
    assert_eq!(daemon.status().lost_total, 0);
}

fn mode(daemon: &Running, name: &str) -> String {
    let found = fs::metadata(daemon.directory().join(name)).expect("it is there");
    format!("{:o}", found.permissions().mode() & 0o777)
}

/// Returns the result of fdpassctl, run by this user in the group of the same number.
fn asked_by(uid: u32, daemon: &Running, verb: &str) -> &'static str {
    let user = OtherUser::if_root().expect("we are root");
    // Everybody can reach the socket, but for its own mode.
    fs::set_permissions(daemon.directory(), fs::Permissions::from_mode(0o711)).expect("it is ours");
    let mut command = user.command(FDPASSCTL, uid);
    match Program::start(
        command
            .arg(verb)
            .arg("--socket")
            .arg(control_socket(daemon)),
    )
    .finish()
    .code
    {
        Some(0) => "done",
        Some(77) => "forbidden",
        other => panic!("{verb} came to {other:?}"),
    }
}

/// Whether the daemon closes a client that sends no more than this.
fn ends_by_itself(daemon: &Running, sent: &[u8], is_expected: bool) -> String {
    let mut client = daemon.connect();
    client.send(sent);
    comes_true(is_expected, || client.has_something())
}

/// Whether that comes true: it is waited for if it is expected, else it may not have come after a while.
#[track_caller]
fn comes_true(is_expected: bool, mut is_so: impl FnMut() -> bool) -> String {
    if is_expected {
        eventually("the key has its effect", || is_so().then_some(()));
        return true.to_string();
    }
    let_pass(Duration::from_millis(300));
    is_so().to_string()
}

/// The rest of a frame, and its reply.
fn finish(client: &mut Client, rest: &[u8]) -> Reply {
    // It may be refused just now.
    let _ = client.writer().write_all(rest);
    client.reply()
}

/// Where a worker logs that a method panics: which of these files, or standard error.
fn panics_are_told(daemon: &Running, files: &[&str]) -> String {
    let text = |file: &&str| fs::read_to_string(daemon.directory().join(file)).unwrap_or_default();
    let counts = || -> Vec<usize> {
        let texts = files.iter().map(text).chain([daemon.stderr()]);
        texts.map(|text| text.matches("panicked").count()).collect()
    };
    let before = counts();
    daemon.call("panic", "on purpose").expect_err("it panics");
    let after = eventually("it is logged", || {
        Some(counts()).filter(|after| *after != before)
    });
    let grown = (0..after.len())
        .find(|i| after[*i] > before[*i])
        .expect("one has more");
    files
        .get(grown)
        .copied()
        .unwrap_or("standard error")
        .to_owned()
}
