//! Standard error whose reader has stalled.

use std::fs;
use std::io::{Read, pipe};
use std::os::fd::OwnedFd;
use std::process::Command;

use fdpassd::testing::eventually;
use nix::fcntl::{FcntlArg, fcntl};
use nix::pty::openpty;

use crate::common::FDPASSD;
use crate::common::program::{FDPASSCTL, Program, run};

/// Starts a daemon with this standard error, makes its master log a line that does not fit into it, and checks that
/// the daemon continues.
fn a_long_line_to(stderr: OwnedFd) {
    let directory = tempfile::tempdir().expect("a directory");
    let (config, control) = (
        directory.path().join("c.toml"),
        directory.path().join("c.sock"),
    );
    let text = |key: &str| {
        // Nothing is written at the start, so that there is room.
        format!(
            "listen = [\"127.0.0.1:0\"]\n{key}log.level = \"error\"\nlog.target = \"stderr\"\ncontrol.socket = \"{}\"\n",
            control.display()
        )
    };
    fs::write(&config, text("")).expect("it is our directory");
    let mut command = Command::new(FDPASSD);
    command.arg("-c").arg(&config);
    let daemon = Program::start_with_stderr(&mut command, stderr);
    let socket = control.display().to_string();
    let tool = |arguments: &[&str]| {
        let timeout = ["-s", &socket, "--timeout", "20s"];
        run(FDPASSCTL, &[&timeout, arguments].concat())
    };
    eventually("it serves", || {
        (tool(&["status"]).code == Some(0)).then_some(())
    });
    // The line about the error has the key twice.
    let key = format!("{} = 1\n", "k".repeat(40_000));
    fs::write(&config, text(&key)).expect("it is our directory");
    let refused = tool(&["reload"]);
    assert!(refused.err.contains("kkkk"), "{refused:?}");
    let status = tool(&["status", "--json"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    let status: serde_json::Value = serde_json::from_str(&status.out).expect("JSON");
    assert_eq!(status["log_errors_total"], 1, "{status}");
    // The command has copies of the descriptor.
    drop((daemon, command));
}

#[test]
fn a_long_line_to_a_pipe_does_not_wait_for_its_reader() {
    let (mut reader, writer) = pipe().expect("a pipe");
    // One page: poll(2) reports room when the pipe is empty.
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("it is our pipe");
    a_long_line_to(writer.into());
    let mut taken = Vec::new();
    reader
        .read_to_end(&mut taken)
        .expect("the daemon has ended");
    assert!(!taken.is_empty() && taken.len() <= 4096, "{}", taken.len());
}

#[test]
fn a_long_line_to_a_terminal_does_not_wait_for_its_reader() {
    let terminal = openpty(None, None).expect("a terminal");
    a_long_line_to(terminal.slave);
    drop(terminal.master);
}
