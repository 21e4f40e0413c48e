//! Failures: their exit codes and sentences.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread;

use fdpassd::proto::control::Verb;
use fdpassd::testing::eventually;
use serde_json::Value;

use crate::common::program::{FDPASSCTL, control_socket, run};
use crate::common::{faulty, start};

#[test]
fn the_socket_of_a_listener_is_no_control_socket() {
    let daemon = start("listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 1");
    let listener = daemon.directory().join("rpc.sock").display().to_string();
    let said = run(FDPASSCTL, &["status", "-s", &listener]);
    let sentence = "fdpassctl: this is the socket of a listener, not a control socket\n";
    assert_eq!((said.code, said.err.as_str()), (Some(4), sentence));
}

#[test]
fn every_way_to_fail_has_its_exit_code_and_its_sentence() {
    let daemon = faulty::start("workers.count = 1");
    let directory = tempfile::tempdir().expect("a directory");
    let nobody = directory.path().join("nobody.sock").display().to_string();
    let address = daemon.address().to_string();
    let cases: [(&[&str], i32, &str); 15] = [
        (
            &["call", "nope", "--to", &address],
            1,
            "fdpassctl: unknown_method: unknown method \"nope\"\n",
        ),
        (
            &["call", "pi", "\"x\"", "--to", &address],
            1,
            "fdpassctl: unknown_method: unknown method \"pi\"\n",
        ),
        (
            &["call", "fault", "[\"mine\",\"a\\nb\"]", "--to", &address],
            1,
            "fdpassctl: mine: a\\nb\n",
        ),
        (
            &["call", "panic", "\"x\"", "--to", &address],
            1,
            "fdpassctl: crashed: ",
        ),
        (
            &["call", "exit", "3", "--to", &address],
            1,
            "fdpassctl: crashed: ",
        ),
        (
            &[
                "call",
                "spin",
                "60000",
                "--timeout",
                "0.2",
                "--to",
                &address,
            ],
            4,
            "fdpassctl: no reply within 200ms\n",
        ),
        (
            &["status", "-s", &nobody],
            3,
            "fdpassd is not running (no socket at ",
        ),
        (&["stop", "-s", &nobody], 3, "nobody.sock"),
        (
            &["status", "-n", "missingd"],
            3,
            "missingd is not running (no socket at ",
        ),
        (
            &["call", "ping", "--to", "127.0.0.1:1"],
            3,
            "nothing listens at 127.0.0.1:1",
        ),
        (&["call", "ping", "{", "--to", &address], 64, "not JSON"),
        (
            &["call", "ping", "--to", "here"],
            64,
            "expected an IP address and a port",
        ),
        (&["status", "--timeout", "soon"], 64, "--timeout"),
        (&["reload!"], 64, "Usage: fdpassctl"),
        (&[], 64, "Usage: fdpassctl"),
    ];
    for (arguments, code, words) in cases {
        let said = run(FDPASSCTL, arguments);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(code), ""),
            "{arguments:?}: {}",
            said.err
        );
        assert!(
            said.err.contains(words),
            "{arguments:?}: {words:?} is not in {:?}",
            said.err
        );
    }
    let said = run(FDPASSCTL, &["--help"]);
    assert!(
        said.out.lines().count() < 24 && said.out.lines().all(|line| line.chars().count() <= 80),
        "{}",
        said.out
    );
    for verb in Verb::ALL
        .iter()
        .map(|verb| verb.as_str())
        .chain(["call", "completions"])
    {
        let mut words = said.out.split([' ', ',', '\n']);
        assert!(
            said.code == Some(0) && words.any(|word| word == verb),
            "{verb}: {}",
            said.out
        );
    }
}

#[test]
fn no_valid_reply_in_time_exits_with_4() {
    let directory = tempfile::tempdir().expect("a directory");
    let mute = directory.path().join("mute.sock");
    let listener = UnixListener::bind(&mute).expect("the path is free");
    let mute = mute.display().to_string();
    listener.set_nonblocking(true).expect("a socket takes it");
    // On a busy machine the time may be over before it connects.
    eventually("it connects, and gives up", || {
        let said = run(FDPASSCTL, &["status", "-s", &mute, "--timeout", "0.2"]);
        assert_eq!(
            (said.code, said.err.as_str()),
            (Some(4), "fdpassctl: no reply within 200ms\n")
        );
        listener.accept().ok().map(drop)
    });
    listener.set_nonblocking(false).expect("a socket takes it");

    let answers: [&[u8]; 5] = [
        b"",
        b"\x05\0\0\0hello",
        b"\xff\xff\xff\xff",
        b"\x02\0\0\0{}",
        b"\x09\0\0\0{\"out\":1",
    ];
    for answer in answers {
        let said = thread::scope(|threads| {
            threads.spawn(|| listener.accept().expect("it connects").0.write_all(answer));
            run(FDPASSCTL, &["status", "-s", &mute])
        });
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(4), ""),
            "{answer:?}: {}",
            said.err
        );
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let daemon = start("workers.count = 1");
    let socket = control_socket(&daemon).display().to_string();
    for verb in [
        "status",
        "events",
        "metrics",
        "config show",
        "completions zsh",
    ] {
        let script = format!("\"$0\" {verb} -s \"$1\" | head -1");
        let said = run("/bin/sh", &["-c", &script, FDPASSCTL, &socket]);
        assert_eq!(
            (said.code, said.err.as_str(), said.out.lines().count()),
            (Some(0), "", 1),
            "{verb}"
        );
    }
}

#[test]
fn a_word_in_place_of_an_id_is_refused_with_where_ids_are() {
    for (arguments, words) in [
        (
            &["clients", "--worker", "x"][..],
            "expected a worker's id, a number in the column ID of `fdpassctl status`",
        ),
        (&["hold", "x"], "expected a worker's id, a number"),
        (
            &["recycle", "some"],
            "expected \"all\" or a worker's id, a number",
        ),
        (
            &["kick", "x"],
            "expected a client's id, a number in the column ID of `fdpassctl clients`",
        ),
    ] {
        let said = run(FDPASSCTL, arguments);
        assert_eq!(said.code, Some(64), "{arguments:?}");
        assert!(said.err.contains(words), "{}", said.err);
    }
}

#[test]
fn an_error_is_an_object_for_programs() {
    let daemon = faulty::start("workers.count = 1");
    let address = daemon.address().to_string();
    let cases: [(&[&str], i32, &str, &str); 6] = [
        (
            &["status", "-s", "/nowhere/x.sock"],
            3,
            "not_running",
            "no socket at /nowhere/x.sock",
        ),
        (&["status", "--timeout", "soon"], 64, "usage", "\"1m 30s\""),
        (&["relod"], 64, "usage", "did you mean \"reload\"?"),
        (
            &["call", "nope", "--to", &address],
            1,
            "unknown_method",
            "\"nope\"",
        ),
        (
            &["call", "fault", "[\"mine\",\"why\"]", "--to", &address],
            1,
            "mine",
            "why",
        ),
        (
            &[
                "call",
                "spin",
                "60000",
                "--timeout",
                "0.2",
                "--to",
                &address,
            ],
            4,
            "no_reply",
            "200ms",
        ),
    ];
    for (arguments, exit, code, words) in cases {
        let said = run(FDPASSCTL, &[arguments, &["--json"]].concat());
        assert_eq!(said.code, Some(exit), "{arguments:?}: {}", said.err);
        assert_eq!(said.out.matches('\n').count(), 1, "{}", said.out);
        let found: Value = serde_json::from_str(&said.out).expect("JSON");
        assert_eq!(found["error"]["code"], code, "{}", said.out);
        let message = found["error"]["message"].as_str().expect("a message");
        assert!(message.contains(words), "{words:?} is not in {message:?}");
        assert!(said.err.starts_with("fdpassctl: "), "{}", said.err);
    }
}
