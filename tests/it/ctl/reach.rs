//! The socket of the daemon, and the call that the daemon prints.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::FDPASSD;
use crate::common::program::{FDPASSCTL, Program, run};

#[test]
fn the_socket_comes_from_the_environment_or_the_default_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = directory.path().join("run");
    std::fs::create_dir(&runtime).expect("it is our directory");
    let config = directory.path().join("config.toml");
    std::fs::write(&config, "listen = [\"127.0.0.1:0\"]").expect("it is our directory");
    let mut daemon = Program::start(
        Command::new(FDPASSD)
            .arg("-c")
            .arg(&config)
            .env("RUNTIME_DIRECTORY", &runtime),
    );
    assert!(daemon.line().contains(" listens on "));
    let ask = |key: &str, value: &Path| {
        let mut command = Command::new(FDPASSCTL);
        let said = Program::start(command.arg("version").arg("--json").env(key, value)).finish();
        serde_json::from_str::<Value>(&said.out).expect("JSON")["daemon"]["pid"].clone()
    };
    assert_eq!(ask("RUNTIME_DIRECTORY", &runtime), daemon.pid());
    assert_eq!(
        ask("FDPASSD_SOCKET", &runtime.join("control.sock")),
        daemon.pid()
    );
}

#[test]
fn without_cargo_the_call_has_the_path_of_fdpassctl() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("config.toml");
    std::fs::write(&config, "listen = [\"127.0.0.1:0\"]").expect("it is our directory");
    let mut command = Command::new(FDPASSD);
    command
        .arg("-c")
        .arg(&config)
        .env("RUNTIME_DIRECTORY", directory.path())
        .env_remove("CARGO_MANIFEST_DIR");
    let line = Program::start(&mut command).line();
    let call = format!("; call it: {FDPASSCTL} call ping ");
    assert!(line.contains(&call), "{line}");
}

#[test]
fn the_call_that_the_daemon_prints_can_be_run() {
    let directory = tempfile::tempdir().expect("a directory");
    for (listen, reachable) in [
        ("127.0.0.1:0", "127.0.0.1:"),
        ("0.0.0.0:0", "127.0.0.1:"),
        ("[::]:0", "[::1]:"),
    ] {
        let config = directory.path().join("config.toml");
        let text = format!(
            "listen = [\"{listen}\"]\ncontrol.socket = {:?}",
            directory.path().join("control.sock")
        );
        std::fs::write(&config, text).expect("it is our directory");
        let mut command = Command::new(FDPASSD);
        command
            .arg("-c")
            .arg(&config)
            .env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"));
        let mut daemon = Program::start(&mut command);
        let line = daemon.line();
        let (begin, call) = line
            .trim_end()
            .split_once("; call it: ")
            .expect("it says how to be called");
        let bound = begin.strip_prefix(&format!(
            "fdpassd {} listens on ",
            env!("CARGO_PKG_VERSION")
        ));
        let port = bound
            .and_then(|bound| bound.rsplit_once(':'))
            .expect("it says where it listens")
            .1;

        let (ctl, arguments) = call.split_once(" call ").expect("it is a call");
        let ways = [
            "cargo run --bin fdpassctl --",
            "cargo run --release --bin fdpassctl --",
            "fdpassctl",
        ];
        assert!(ways.contains(&ctl), "{ctl}");
        assert_eq!(
            arguments,
            format!("ping '{{\"hello\":1}}' --to {reachable}{port}")
        );
        // As a shell reads it, but without building anything.
        let said = run(
            "/bin/sh",
            &["-c", &format!("exec \"$0\" call {arguments}"), FDPASSCTL],
        );
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(0), "{\"hello\":1}\n"),
            "{}",
            said.err
        );
    }
}
