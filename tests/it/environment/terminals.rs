//! Terminals and pipes that programs write to.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use fdpassd::testing::eventually;

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, Program, ctl_command, run};
use crate::common::{faulty, let_pass, start};

#[test]
fn a_terminal_with_tostop_neither_blocks_nor_counts() {
    if Command::new("script").arg("--version").output().is_err() {
        return skip("script", "there is no script(1) of util-linux");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (config, control) = (
        directory.path().join("c.toml"),
        directory.path().join("c.sock"),
    );
    let log = "[log]\ntarget = \"stderr\"\nlevel = \"debug\"\n[workers]\ncount = 3\n";
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\n{log}[control]\nsocket = \"{}\"\n",
        control.display()
    );
    fs::write(&config, text).expect("it is our directory");
    let faulty = faulty::example("faulty");
    // A job in the background, which may not write there but by this.
    let line = format!(
        "stty tostop; set -m; {} -c {} & wait",
        faulty.display(),
        config.display()
    );
    let mut command = Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .env("SHELL", "/bin/sh");
    let terminal = Program::start(&mut command);
    let control = control.display().to_string();
    let tool = |arguments: &[&str]| run(FDPASSCTL, &[&["-s", &control], arguments].concat());
    eventually("three workers are there", || {
        (tool(&["status", "--json"])
            .out
            .matches("\"state\":\"ready\"")
            .count()
            == 3)
            .then_some(())
    });
    // The line about the panic is a worker's, that about the level the master's.
    let said = tool(&["call", "panic", "\"words\""]);
    assert!(said.err.contains("crashed"), "{said:?}");
    let said = tool(&["call", "anything", "1"]);
    assert_eq!(said.out, "1\n", "{said:?}");
    assert_eq!(tool(&["log-level", "info"]).code, Some(0));
    let status: serde_json::Value =
        serde_json::from_str(&tool(&["status", "--json"]).out).expect("JSON");
    assert_eq!(
        status["workers"].as_array().map(Vec::len),
        Some(3),
        "{status}"
    );
    assert_eq!(tool(&["stop"]).code, Some(0));
    terminal.finish();
}

#[test]
fn fdpassctl_waits_for_room_in_a_non_blocking_pipe() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let (mut here, there) = UnixStream::pair().expect("a socket pair");
    there.set_nonblocking(true).expect("it is a socket");
    let mut filled = 0;
    loop {
        match (&there).write(&[b'x'; 1024]) {
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
    }
    let mut command = ctl_command(&daemon, &["metrics"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(there))
        .spawn()
        .expect("it starts");
    drop(command);
    // One that does not wait ends until then.
    let_pass(Duration::from_millis(300));
    let reader = thread::spawn(move || {
        here.read_exact(&mut vec![0; filled])
            .expect("what was written first");
        let mut text = String::new();
        here.read_to_string(&mut text).expect("text");
        text
    });
    assert!(eventually("it ends", || child.try_wait().expect("it is our child")).success());
    let text = reader.join().expect("it reads");
    assert!(
        text.contains("fdpassd_clients") && text.ends_with('\n'),
        "{text}"
    );
}
