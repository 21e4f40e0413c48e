//! The control socket: every verb, every refusal, and no client there delays another.

use std::process::Command;
use std::time::{Duration, Instant};

use fdpassd::proto::control::{MAX_REQUEST, REQUEST_TIMEOUT, Status, Version};
use fdpassd::testing::Client;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::program::{
    FDPASSCTL, OtherUser, Program, control_client, control_socket, wait_for_clients,
};
use crate::common::{kernel, start};

/// Control clients at a time, and how many of them are kept for admins.
const CLIENTS: usize = 72;
const RESERVED: usize = 8;
const PER_USER: usize = 8;

#[test]
fn one_connection_asks_every_verb_repeatedly() {
    let daemon = start("workers.count = 2");
    let mut client = control_client(&daemon);
    for params in ["", ",\"params\":null", ",\"params\":{}", ",\"more\":1"] {
        client.send_frame(format!("{{\"in\":\"version\"{params}}}"));
        let version: Version =
            serde_json::from_value(client.reply().value().expect("a result")).expect("a version");
        assert_eq!(
            (version.name.as_str(), version.version.as_str()),
            ("fdpassd", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(version.pid, daemon.pid());
        client.send_frame(format!("{{\"in\":\"status\"{params}}}"));
        let reply = client.reply();
        assert_eq!(reply.name, "status");
        let status: Status = serde_json::from_str(reply.result.get()).expect("a status");
        assert_eq!((status.pid, status.workers.len()), (daemon.pid(), 2));
    }
    // Of the second kind each is answered at the end of an iteration of the master's loop.
    for verb in ["version", "undrain"] {
        (0..50).for_each(|_| client.request(verb, ()));
        (0..50).for_each(|_| assert_eq!(client.reply().name, verb));
    }
}

#[test]
fn an_invalid_request_is_refused_and_the_connection_stays() {
    let daemon = start("");
    let mut client = control_client(&daemon);
    for (request, code, words) in [
        ("", "bad_request", "empty"),
        ("garbage", "bad_request", "expected"),
        ("{}", "bad_request", "there is no \"in\""),
        ("[\"status\"]", "bad_request", "object"),
        (
            "{\"in\":\"reload!\"}",
            "unknown_verb",
            "there is no verb \"reload!\"",
        ),
        ("{\"in\":\"ping\"}", "unknown_verb", "\"ping\""),
        ("{\"in\":\"\\u001b[2J\"}", "unknown_verb", "\\u{1b}"),
        (
            "{\"in\":\"status\",\"params\":{\"all\":true}}",
            "bad_params",
            "unknown key `all`",
        ),
        (
            "{\"in\":\"stop\",\"params\":{\"now\":true}}",
            "bad_params",
            "unknown key `now`",
        ),
        (
            "{\"in\":\"stop\",\"params\":7}",
            "bad_params",
            "expected an object",
        ),
        (
            "{\"in\":\"stop\",\"params\":[]}",
            "bad_params",
            "expected an object",
        ),
    ] {
        client.send_frame(request);
        let fault = client.reply().value().expect_err(request);
        assert!(
            fault.code() == code && fault.message().contains(words),
            "{request}: {fault}"
        );
    }
    client.send_frame("{\"in\":\"version\"}");
    assert_eq!(client.reply().name, "version");
    assert!(!daemon.status().stopping);
}

#[test]
fn a_request_may_have_64_kib_and_one_byte_more_is_the_end() {
    let daemon = start("");
    let mut client = control_client(&daemon);
    let verb = "{\"in\":\"version\"}";
    let longest = format!("{verb}{}", " ".repeat(MAX_REQUEST as usize - verb.len()));
    client.send_frame(&longest);
    assert_eq!(client.reply().name, "version");
    client.send((MAX_REQUEST + 1).to_le_bytes());
    let fault = client.reply().value().expect_err("it is too long");
    assert_eq!(
        fault.to_string(),
        "too_large: a request is at most 65536 bytes, not 65537"
    );
    client.expect_end();
}

#[test]
fn a_control_client_beyond_the_limit_is_refused() {
    let daemon = start("");
    let workers = daemon.wait_for_workers().workers;
    let last = daemon.ctl("events").expect("there are events")["last"].clone();
    // The connections that checked whether it serves have ended.
    wait_for_clients(&control_socket(&daemon), 0);
    // Each waits for the next event: without a request it would be closed after five seconds.
    let wait = json!({ "in": "events", "params": { "after": last, "wait": 60 } }).to_string();
    let connect = |_| {
        let mut client = control_client(&daemon);
        let frames = [client.frame(&wait), client.frame("{\"in\":\"version\"}")];
        client.send(frames.concat());
        client
    };
    let mut clients: Vec<Client> = (0..CLIENTS).map(connect).collect();
    let mut excess = control_client(&daemon);
    let fault = excess.reply().value().expect_err("there are enough");
    assert_eq!(
        fault.to_string(),
        "busy: there are too many control clients"
    );
    excess.expect_end();
    clients.pop();
    wait_for_clients(&control_socket(&daemon), CLIENTS - 1);
    ask_version(&mut control_client(&daemon));
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
    kernel::send(workers[0].pid.expect("it is ready"), Signal::SIGKILL);
    for client in &mut clients {
        assert_eq!(client.reply().name, "events");
        assert_eq!(client.reply().name, "version");
    }
}

#[test]
fn eight_at_a_time_of_each_user_and_eight_are_kept_for_root() {
    let Some(others) = OtherUser::new() else {
        return;
    };
    let socket = others.directory().join("control.sock");
    let daemon = start(&format!(
        "control = {{ socket = {socket:?}, mode = \"0666\" }}"
    ));
    // The first of these programs waits until all are started.
    let ask = |command: &mut Command| {
        let command = command.args(["version", "--timeout", "5m"]);
        Program::start(command.arg("--socket").arg(&socket))
    };
    let fates = |programs: Vec<Program>| {
        let said: Vec<_> = programs.into_iter().map(Program::finish).collect();
        let busy = said
            .iter()
            .filter(|said| said.code == Some(1) && said.err.contains("busy: there are too many"));
        (
            said.iter().filter(|said| said.code == Some(0)).count(),
            busy.count(),
        )
    };
    wait_for_clients(&socket, 0);
    // All of them wait in the queue while the master stands still: it accepts them in one go, the first come first.
    kernel::stop(daemon.pid());
    let one_user: Vec<Program> = (0..PER_USER + 2)
        .map(|_| ask(&mut others.command(FDPASSCTL, 70_000)))
        .collect();
    wait_for_clients(&socket, one_user.len());
    daemon.signal("CONT");
    assert_eq!(fates(one_user), (PER_USER, 2));

    wait_for_clients(&socket, 0);
    kernel::stop(daemon.pid());
    let many_users = (0..CLIENTS - RESERVED + 3).map(|i| 70_000 + (i / PER_USER) as u32);
    let many_users: Vec<Program> = many_users
        .map(|uid| ask(&mut others.command(FDPASSCTL, uid)))
        .collect();
    wait_for_clients(&socket, many_users.len());
    let root: Vec<Program> = (0..RESERVED)
        .map(|_| ask(&mut Command::new(FDPASSCTL)))
        .collect();
    wait_for_clients(&socket, many_users.len() + root.len());
    daemon.signal("CONT");
    assert_eq!(fates(many_users), (CLIENTS - RESERVED, 3));
    assert_eq!(fates(root), (RESERVED, 0));
}

#[test]
fn half_a_control_request_times_out_and_delays_no_other() {
    let daemon = start("");
    let begin = Instant::now();
    let (mut halfway, mut silent) = (control_client(&daemon), control_client(&daemon));
    let frame = halfway.frame("{\"in\":\"version\"}");
    halfway.send(&frame[..10]);
    assert_eq!(daemon.status().clients, 0);
    let fault = halfway
        .reply()
        .value()
        .expect_err("it never came to an end");
    assert_eq!(
        fault.to_string(),
        "timeout: the request did not arrive in time"
    );
    assert!(
        begin.elapsed() >= REQUEST_TIMEOUT - Duration::from_millis(10),
        "it took {:?}",
        begin.elapsed()
    );
    halfway.expect_end();
    silent.expect_end();
}

#[test]
fn a_control_client_that_never_reads_is_closed() {
    let daemon = start("");
    let socket = control_socket(&daemon);
    let mut deaf = control_client(&daemon);
    let requests: Vec<u8> = (0..3000)
        .flat_map(|_| deaf.frame("{\"in\":\"status\"}"))
        .collect();
    deaf.send(requests);
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
    assert_eq!(daemon.status().pid, daemon.pid());
    let memory = kernel::memory(daemon.pid());
    assert!(memory < 64 << 20, "the master takes {memory} bytes");
    wait_for_clients(&socket, 0);
    drop(deaf);
}

#[test]
fn stopped_workers_delay_no_control_client() {
    let daemon = start("workers.count = 2");
    let workers = daemon.wait_for_workers().workers;
    for worker in &workers {
        kernel::stop(worker.pid.expect("it is ready"));
    }
    let mut client = daemon.connect();
    client.request("ping", 1);
    let status = daemon.wait_until("the client is leased", |status| status.clients == 1);
    assert!(status.workers.iter().all(|worker| worker.pid.is_some()));
    daemon.signal_worker(0, "CONT");
    daemon.signal_worker(1, "CONT");
    assert_eq!(client.reply().value().expect("a result"), 1);
}

#[test]
fn only_root_and_the_daemons_user_may_stop_it() {
    let Some(nobody) = OtherUser::new() else {
        return;
    };
    let socket = nobody.directory().join("control.sock");
    let mut daemon = start(&format!(
        "control = {{ socket = {socket:?}, mode = \"0666\" }}"
    ));
    // Later, fdpassctl would print that a worker is ready.
    daemon.wait_for_workers();
    let ask = |verb: &str| {
        Program::start(
            nobody
                .command(FDPASSCTL, 65_534)
                .arg(verb)
                .arg("--socket")
                .arg(&socket),
        )
    };
    let said = ask("stop").finish();
    assert_eq!((said.code, said.out.as_str()), (Some(77), ""));
    assert_eq!(
        said.err,
        "fdpassctl: forbidden: only root may change this daemon\n"
    );
    daemon.wait_for_log("stop by uid 65534 (pid ");
    daemon.wait_for_log("): refused: only root may change this daemon\n");
    assert!(!daemon.status().stopping);
    for verb in ["status", "version"] {
        assert_eq!(
            ask(verb).finish().code,
            Some(0),
            "anyone who can connect may use the read-only verbs"
        );
    }
    assert_eq!(
        daemon.ctl("stop").expect("we are root"),
        json!({"pid": daemon.pid(), "killed": 0})
    );
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_socket_with_a_strict_mode_forbids_reading() {
    let Some(nobody) = OtherUser::new() else {
        return;
    };
    let socket = nobody.directory().join("control.sock");
    let _daemon = start(&format!(
        "control = {{ socket = {socket:?}, mode = \"0660\" }}"
    ));
    let said = Program::start(
        nobody
            .command(FDPASSCTL, 65_534)
            .arg("status")
            .arg("--socket")
            .arg(&socket),
    )
    .finish();
    assert_eq!(said.code, Some(77));
    let sentence = format!(
        "fdpassctl: forbidden: {} is for root and the group ",
        socket.display()
    );
    assert!(said.err.starts_with(&sentence), "{}", said.err);
}

#[track_caller]
fn ask_version(client: &mut Client) {
    client.send_frame("{\"in\":\"version\"}");
    assert_eq!(client.reply().name, "version");
}
