//! The keys of `[limits]`.

use std::io::Write;
use std::thread;

use fdpassd::proto::control::ClientsPage;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Reply, Running, ServiceManager, eventually};

use crate::common::faulty::{self, Execution, whoami};
use crate::common::{kernel, ping_of, tcp_address};

use super::{Row, check, comes_true};

pub(super) const LIMITS: &[Row] = &[
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
            eventually("each part is parked or refused", || {
                let page = daemon.ctl("clients").expect("a page");
                let page: ClientsPage = serde_json::from_value(page).expect("clients");
                let parked = page.clients.iter().filter(|client| client.bytes == 60_000);
                let refused = clients
                    .iter_mut()
                    .filter_map(|client| client.has_something().then_some(()));
                (parked.count() + refused.count() == 6).then_some(())
            });
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
            let accepted = daemon.status().accepted_total;
            // It takes a fifth of a mebibyte.
            let mut deaf = Client::connect(&Address::Unix(daemon.directory().join("rpc.sock")));
            let frame = deaf.frame(ping_of(1_000_000));
            let mut writer = deaf.writer();
            thread::scope(|threads| {
                threads.spawn(move || (0..20).try_for_each(|_| writer.write_all(&frame)));
                daemon.wait_until("replies wait, or it is closed", |status| {
                    status.accepted_total > accepted
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
        key: "drain-notice",
        configs: ["", "limits.drain-notice = \"1h\""],
        probe: |daemon, _, _| {
            daemon.ctl("drain").expect("it begins");
            let drain = daemon.status().drain.expect("it is under way");
            daemon.ctl("undrain").expect("it is over");
            drain.notice.is_some().to_string()
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
            let address = tcp_address(daemon);
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

#[test]
fn each_key_of_the_limits_has_its_effect() {
    thread::scope(|threads| {
        LIMITS
            .chunks(4)
            .for_each(|rows| drop(threads.spawn(|| check(rows))))
    });
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

/// Whether the daemon closes a client that sends no more than this.
fn ends_by_itself(daemon: &Running, sent: &[u8], is_expected: bool) -> String {
    let mut client = daemon.connect();
    client.send(sent);
    comes_true(is_expected, || client.has_something())
}

/// The rest of a frame, and its reply.
fn finish(client: &mut Client, rest: &[u8]) -> Reply {
    // It may be refused just now.
    let _ = client.writer().write_all(rest);
    client.reply()
}
