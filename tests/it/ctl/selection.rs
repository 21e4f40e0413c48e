//! Clients that are selected by what they are, params that are elsewhere, and colours that are asked for.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::Command;

use fdpassd::proto::control::ClientStatus;
use fdpassd::testing::{Running, eventually};
use serde_json::{Value, json};

use crate::common::program::{FDPASSCTL, control_socket, ctl};
use crate::common::start;

/// Returns the clients, once each of them waits for its next request and has been idle for a while.
fn idle_clients(daemon: &Running) -> Vec<ClientStatus> {
    eventually("all clients are idle", || {
        let page = daemon.ctl("clients").expect("a page");
        let clients: Vec<ClientStatus> =
            serde_json::from_value(page["clients"].clone()).expect("clients");
        let mut states = page["clients"].as_array().expect("clients").iter();
        let is_idle = states.all(|client| client["state"] == "idle");
        let is_old = clients.iter().all(|client| client.idle_seconds > 0.05);
        (is_idle && is_old).then_some(clients)
    })
}

#[test]
fn clients_are_kicked_by_address_and_by_idle_time() {
    let daemon = start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2");
    daemon.wait_for_workers();
    let mut tcp: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    for client in &mut tcp {
        client.call("ping", 1).expect("a pong");
    }
    let unix = UnixStream::connect(daemon.directory().join("rpc.sock")).expect("it listens");
    daemon.wait_until("four clients are there", |status| status.clients == 4);
    let clients = idle_clients(&daemon);

    let none = ctl(&daemon, &["kick", "--address", "192.0.2.1"]);
    assert_eq!(
        (none.code, none.out.as_str()),
        (Some(0), "0 clients kicked\n")
    );
    let none = ctl(&daemon, &["kick", "--address", "127.0.0.1", "--idle", "1h"]);
    assert_eq!(
        (none.code, none.out.as_str()),
        (Some(0), "0 clients kicked\n")
    );

    let first = clients
        .iter()
        .find(|client| client.peer.starts_with("127.0.0.1:"))
        .expect("a client over TCP");
    let one = ctl(&daemon, &["kick", "--address", &first.peer]);
    let expected = format!(
        "client {} ({}) is closed\n1 client kicked\n",
        first.id, first.peer
    );
    assert_eq!(
        (one.code, one.out, one.err),
        (Some(0), expected, String::new())
    );
    daemon.wait_until("three clients are there", |status| status.clients == 3);

    let two = ctl(&daemon, &["kick", "--address", "127.0.0.1", "--json"]);
    let kicked: Value = serde_json::from_str(&two.out).expect("JSON");
    let kicked = kicked["kicked"].as_array().expect("a list");
    assert_eq!((two.code, kicked.len()), (Some(0), 2), "{}", two.out);
    daemon.wait_until("one client is there", |status| status.clients == 1);
    for client in &mut tcp {
        client.expect_end();
    }

    idle_clients(&daemon);
    let last = ctl(&daemon, &["kick", "--idle", "50ms"]);
    assert!(last.out.ends_with("\n1 client kicked\n"), "{}", last.out);
    daemon.wait_until("no client is there", |status| status.clients == 0);
    drop(unix);
}

#[test]
fn kick_needs_a_client_or_a_selection_and_not_both() {
    let daemon = start("");
    for arguments in [
        &["kick"][..],
        &["kick", "1", "--idle", "1h"],
        &["kick", "--address", "localhost"],
        &["kick", "--idle", "0"],
    ] {
        let said = ctl(&daemon, arguments);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(64), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_call_reads_its_params_from_a_file_or_standard_input() {
    let daemon = start("");
    daemon.wait_for_workers();
    let file = daemon.directory().join("params.json");
    fs::write(&file, "{\"a\": [1,\n 2]}\n").expect("it is our directory");
    let named = format!("@{}", file.display());
    let result: Value = json!({"a": [1, 2]});
    let from_file = ctl(&daemon, &["call", "ping", &named]);
    assert_eq!(
        serde_json::from_str::<Value>(&from_file.out).ok(),
        Some(result.clone()),
        "{}",
        from_file.err
    );

    let from_input = Command::new(FDPASSCTL)
        .args(["call", "ping", "-"])
        .env("FDPASSD_SOCKET", control_socket(&daemon))
        .stdin(File::open(&file).expect("it was just written"))
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&from_input.stdout).into_owned();
    assert_eq!(
        serde_json::from_str::<Value>(&text).ok(),
        Some(result),
        "{from_input:?}"
    );

    fs::write(&file, "{\"a\":").expect("it is our directory");
    let said = ctl(&daemon, &["call", "ping", &named]);
    let expected = format!(
        "fdpassctl: {}: not JSON: the text ends before the value does\n",
        file.display()
    );
    assert_eq!((said.code, said.err), (Some(64), expected));
    let said = ctl(&daemon, &["call", "ping", "@/no/such/file"]);
    let expected = "fdpassctl: cannot read /no/such/file: No such file or directory (os error 2)\n";
    assert_eq!((said.code, said.err.as_str()), (Some(64), expected));
}

#[test]
fn colours_are_those_that_the_command_line_wants() {
    let daemon = start("");
    daemon.wait_for_workers();
    let is_coloured = |arguments: &[&str]| ctl(&daemon, arguments).out.contains('\x1b');
    assert!(is_coloured(&["status", "--color=always"]));
    assert!(!is_coloured(&["status", "--color", "never"]));
    assert!(!is_coloured(&["--color=auto", "status"]));
}

#[test]
fn a_worker_has_a_rate_and_percentiles_within_its_first_seconds() {
    let daemon = start("workers.count = 1\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    let shown = eventually("the worker has a rate", || {
        client.call("ping", 1).expect("a pong");
        let worker = daemon.status().workers.swap_remove(0);
        // After two seconds at least one of them was a full one of the clock.
        let is_late = worker.uptime_seconds > Some(2.0) && worker.requests_per_second.is_none();
        assert!(!is_late, "{worker:?}");
        let rate = worker.requests_per_second.filter(|rate| *rate > 0.0);
        rate.map(|_| worker)
    });
    assert!(
        shown.p50_seconds.is_some() && shown.p99_seconds.is_some(),
        "{shown:?}"
    );
}
