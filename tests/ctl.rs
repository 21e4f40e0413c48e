//! fdpassctl as people and scripts use it, and the line that tells how to.

mod common;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use common::program::{FDPASSCTL, Program, control_socket, ctl, run};
use common::{FDPASSD, faulty, start};
use fdpassd::proto::control::{Status, Verb, Version};
use serde_json::{Value, json};

#[test]
fn status_is_a_page_for_people_and_one_line_of_json_for_programs() {
    let daemon = start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2");
    daemon.wait_for_workers();
    daemon.call("ping", 1).expect("a result");
    let said = ctl(&daemon, &["status"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let version = env!("CARGO_PKG_VERSION");
    for words in [
        format!("fdpassd {version}, pid {}, up ", daemon.pid()),
        format!("\nconfig    {}\n", daemon.directory().join("config.toml").display()),
        "\ndispatch  least-loaded\n".to_owned(),
        "; accepted 1, refused 0, moved 0, lost 0\n".to_owned(),
        "\nrequests  1; errors 0\n".to_owned(),
        format!("\nlistener  {}  ", daemon.addresses()[0]),
        format!("\nlistener  {}  ", daemon.addresses()[1]),
        " ready ".to_owned(),
    ] {
        assert!(said.out.contains(&words), "{words:?} is not in\n{}", said.out);
    }
    for pid in daemon.worker_pids() {
        assert!(said.out.lines().any(|line| line.contains(&format!(" {pid} "))), "{}", said.out);
    }
    let said = ctl(&daemon, &["status", "--json"]);
    assert_eq!((said.code, said.out.matches('\n').count()), (Some(0), 1));
    let status: Status = serde_json::from_str(&said.out).expect("the status is what proto::control says");
    assert_eq!((status.pid, status.requests_total), (daemon.pid(), 1));
}

#[test]
fn version_tells_of_both_and_of_a_daemon_that_is_not_there() {
    let daemon = start("");
    let version = env!("CARGO_PKG_VERSION");
    let said = ctl(&daemon, &["version"]);
    let both = format!("fdpassctl {version}\nfdpassd {version}, pid {}\n", daemon.pid());
    assert_eq!((said.code, said.out), (Some(0), both));
    let said = ctl(&daemon, &["version", "--json"]);
    let Value::Object(both) = serde_json::from_str(&said.out).expect("JSON") else { panic!("{}", said.out) };
    assert_eq!(both["fdpassctl"], version);
    let daemons: Version = serde_json::from_value(both["daemon"].clone()).expect("a version");
    assert_eq!(daemons.pid, daemon.pid());

    let socket = control_socket(&daemon).display().to_string();
    drop(daemon);
    let said = run(FDPASSCTL, &["version", "-s", &socket]);
    assert_eq!((said.code, said.out), (Some(0), format!("fdpassctl {version}\nfdpassd: not running\n")));
    let said = run(FDPASSCTL, &["version", "-s", &socket, "--json"]);
    assert_eq!(said.out, format!("{{\"fdpassctl\":\"{version}\",\"daemon\":null}}\n"));
}

#[test]
fn a_call_prints_the_result_as_it_came() {
    let daemon =
        start(r#"listen = [{ address = "unix:{dir}/rpc.sock", byte-order = "big" }, "127.0.0.1:0", "0.0.0.0:0"]"#);
    for params in ["{\"hello\":1}", "[ 1e400, {\"a\":1,\"a\":2} ]", "-7", "null", "\"\\u001b\""] {
        for json in [&[][..], &["--json"]] {
            // To the first listener, in its byte order: the daemon is asked for both.
            let said = ctl(&daemon, &[&["call", "ping", params], json].concat());
            assert_eq!((said.code, said.out, said.err.as_str()), (Some(0), format!("{params}\n"), ""));
        }
    }
    let to = daemon.addresses()[1].to_string();
    let said = run(FDPASSCTL, &["call", "ping", "7", "--to", &to]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "7\n"));
    let said = ctl(&daemon, &["call", "pi", "1000000"]);
    assert!(said.out.starts_with("3.14159"), "{said:?}");
}

#[test]
fn a_stop_in_json_says_what_it_took() {
    let mut daemon = start("");
    let said = ctl(&daemon, &["stop", "--json"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let stopped: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(stopped, json!({"pid": daemon.pid(), "killed": 0}));
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn every_way_to_fail_has_its_exit_code_and_its_sentence() {
    let daemon = faulty::start("workers.count = 1");
    let directory = tempfile::tempdir().expect("a directory");
    let nobody = directory.path().join("nobody.sock").display().to_string();
    let address = daemon.address().to_string();
    let cases: [(&[&str], i32, &str); 14] = [
        (&["call", "nope", "--to", &address], 1, "fdpassctl: unknown_method: there is no method \"nope\"\n"),
        (&["call", "pi", "\"x\"", "--to", &address], 1, "fdpassctl: unknown_method: there is no method \"pi\"\n"),
        (&["call", "fault", "[\"mine\",\"a\\nb\"]", "--to", &address], 1, "fdpassctl: mine: a\\nb\n"),
        (&["call", "panic", "\"x\"", "--to", &address], 1, "fdpassctl: crashed: "),
        (&["call", "exit", "3", "--to", &address], 1, "fdpassctl: crashed: "),
        (&["call", "spin", "60000", "--timeout", "0.2", "--to", &address], 4, "fdpassctl: no reply within 200ms\n"),
        (&["status", "-s", &nobody], 3, "fdpassd is not running (no socket at "),
        (&["stop", "-s", &nobody], 3, "nobody.sock"),
        (&["call", "ping", "--to", "127.0.0.1:1"], 3, "nothing listens at 127.0.0.1:1"),
        (&["call", "ping", "{", "--to", &address], 64, "not JSON"),
        (&["call", "ping", "--to", "here"], 64, "expected an IP address and a port"),
        (&["status", "--timeout", "soon"], 64, "--timeout"),
        (&["reload!"], 64, "Usage: fdpassctl"),
        (&[], 64, "Usage: fdpassctl"),
    ];
    for (arguments, code, words) in cases {
        let said = run(FDPASSCTL, arguments);
        assert_eq!((said.code, said.out.as_str()), (Some(code), ""), "{arguments:?}: {}", said.err);
        assert!(said.err.contains(words), "{arguments:?}: {words:?} is not in {:?}", said.err);
    }
    let said = run(FDPASSCTL, &["--help"]);
    for verb in Verb::ALL.iter().filter(|verb| **verb != Verb::Metrics).map(|verb| verb.as_str()).chain(["call"]) {
        assert!(said.code == Some(0) && said.out.contains(&format!("\n  {verb} ")), "{verb}: {}", said.out);
    }
}

#[test]
fn what_is_no_reply_or_none_in_time_is_4() {
    let directory = tempfile::tempdir().expect("a directory");
    let mute = directory.path().join("mute.sock");
    let listener = UnixListener::bind(&mute).expect("the path is free");
    let mute = mute.display().to_string();
    let said = run(FDPASSCTL, &["status", "-s", &mute, "--timeout", "0.2"]);
    assert_eq!((said.code, said.err.as_str()), (Some(4), "fdpassctl: no reply within 200ms\n"));
    drop(listener.accept().expect("it has connected"));

    let answers: [&[u8]; 5] = [b"", b"\x05\0\0\0hello", b"\xff\xff\xff\xff", b"\x02\0\0\0{}", b"\x09\0\0\0{\"out\":1"];
    for answer in answers {
        let said = thread::scope(|threads| {
            threads.spawn(|| listener.accept().expect("it connects").0.write_all(answer));
            run(FDPASSCTL, &["status", "-s", &mute])
        });
        assert_eq!((said.code, said.out.as_str()), (Some(4), ""), "{answer:?}: {}", said.err);
    }
}

#[test]
fn the_socket_may_be_told_by_the_environment_and_is_found_at_its_usual_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = directory.path().join("run");
    std::fs::create_dir(&runtime).expect("it is our directory");
    let config = directory.path().join("config.toml");
    std::fs::write(&config, "listen = [\"127.0.0.1:0\"]").expect("it is our directory");
    let mut daemon = Program::start(Command::new(FDPASSD).arg("-c").arg(&config).env("RUNTIME_DIRECTORY", &runtime));
    assert!(daemon.line().contains(" listens on "));
    let ask = |key: &str, value: &Path| {
        let mut command = Command::new(FDPASSCTL);
        let said = Program::start(command.arg("version").arg("--json").env(key, value)).finish();
        serde_json::from_str::<Value>(&said.out).expect("JSON")["daemon"]["pid"].clone()
    };
    assert_eq!(ask("RUNTIME_DIRECTORY", &runtime), daemon.pid());
    assert_eq!(ask("FDPASSD_SOCKET", &runtime.join("control.sock")), daemon.pid());
}

#[test]
fn the_line_that_the_daemon_prints_can_be_taken_and_run() {
    let directory = tempfile::tempdir().expect("a directory");
    for (listen, reachable) in [("127.0.0.1:0", "127.0.0.1:"), ("0.0.0.0:0", "127.0.0.1:"), ("[::]:0", "[::1]:")] {
        let config = directory.path().join("config.toml");
        let text = format!("listen = [\"{listen}\"]\ncontrol.socket = {:?}", directory.path().join("control.sock"));
        std::fs::write(&config, text).expect("it is our directory");
        let mut daemon = Program::start(Command::new(FDPASSD).arg("-c").arg(&config));
        let line = daemon.line();
        let (begin, call) = line.trim_end().split_once("; call it: ").expect("it says how to be called");
        let bound = begin.strip_prefix(&format!("fdpassd {} listens on ", env!("CARGO_PKG_VERSION")));
        let port = bound.and_then(|bound| bound.rsplit_once(':')).expect("it says where it listens").1;

        let (ctl, arguments) = call.split_once(" call ").expect("it is a call");
        let ways = ["cargo run --bin fdpassctl --", "cargo run --release --bin fdpassctl --", "fdpassctl"];
        assert!(ways.contains(&ctl), "{ctl}");
        assert_eq!(arguments, format!("ping '{{\"hello\":1}}' --to {reachable}{port}"));
        // As a shell reads it, but without building anything.
        let said = run("/bin/sh", &["-c", &format!("exec \"$0\" call {arguments}"), FDPASSCTL]);
        assert_eq!((said.code, said.out.as_str()), (Some(0), "{\"hello\":1}\n"), "{}", said.err);
    }
}
