//! Configurations, logs and paths: pipes, limits of size, names that are not UTF-8.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use fdpassd::testing::Running;

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, OtherUser, Program, ctl, install, run};
use crate::common::{FDPASSD, start};

use super::make_fifo;

#[test]
fn a_pipe_as_configuration_is_read_at_start_alone() {
    let checked = |pipe: &str| {
        run(
            "/bin/sh",
            &["-c", &format!("{pipe} | {FDPASSD} -t -c /dev/stdin")],
        )
    };
    let said = checked("echo workers.count = 1");
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "/dev/stdin: the configuration is good\n"),
        "{}",
        said.err
    );
    let said = checked("echo worker.count = 1");
    assert!(
        said.code == Some(78) && said.err.contains("unknown key"),
        "{}",
        said.err
    );

    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let file = daemon.directory().join("config.toml");
    make_fifo(&file);
    let sentence = "cannot read the file: it is a pipe, whose content can be read only once: a reload needs a regular file";
    for verb in [&["config", "check"][..], &["reload"]] {
        let said = ctl(&daemon, verb);
        assert!(
            said.code == Some(1) && said.err.contains(sentence),
            "{verb:?}: {said:?}"
        );
    }
    daemon.signal("HUP");
    daemon.wait_for_log("SIGHUP: the new configuration is rejected: ");
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
    let _ = fs::remove_file(&file);
    fs::create_dir(&file).expect("it is our directory");
    assert!(
        ctl(&daemon, &["config", "check"])
            .err
            .contains("it is a directory, not a regular file")
    );
}

#[test]
fn a_log_that_is_a_pipe_is_refused_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let pipe = directory.path().join("pipe");
    make_fifo(&pipe);
    let log = format!(
        "log = {{ target = \"file\", file = \"{}\" }}",
        pipe.display()
    );
    let refused = Running::start(FDPASSD, &log).expect_err("it cannot log there");
    assert_eq!(refused.code(), Some(78));
    assert!(
        refused.stderr().contains("it is a pipe"),
        "{}",
        refused.stderr()
    );

    let daemon = start("log = { target = \"file\", file = \"{dir}/log\" }\nworkers.count = 1");
    // Each worker opens it when it starts.
    daemon.wait_for_workers();
    let file = daemon.directory().join("log");
    fs::rename(&file, daemon.directory().join("log.1")).expect("it is our directory");
    make_fifo(&file);
    for verb in [&["reopen-log"][..], &["reload"]] {
        let said = ctl(&daemon, verb);
        assert!(
            said.code != Some(0) && said.err.contains("it is a pipe"),
            "{verb:?}: {said:?}"
        );
    }
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
}

#[test]
fn standard_output_as_log_file_is_the_descriptor() {
    // Pipes here; sockets under a service manager, which open(2) refuses.
    let daemon = start("log = { target = \"file\", file = \"/dev/stderr\" }");
    daemon.wait_for_log("serves on");
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("c.toml");
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\ncontrol.socket = \"{}\"\nlog = {{ target = \"file\", file = \"/dev/stdout\" }}",
        directory.path().join("control").display()
    );
    fs::write(&config, text).expect("it is our directory");
    let (mut here, there) = UnixStream::pair().expect("a socket pair");
    let mut command = Command::new(FDPASSD);
    command
        .arg("-c")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(there))
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    drop(command);
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&text).contains(" serves on ") {
        let n = here.read(&mut buffer).expect("it can be read");
        assert!(n > 0, "{}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..n]);
    }
    let _ = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(child.wait().expect("it is our child").success());
}

#[test]
fn a_limit_on_file_sizes_ends_no_process() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skip("prlimit", "there is no prlimit(1) of util-linux");
    }
    let daemon = start("workers.count = 2\nlog.level = \"debug\"");
    let limit = |pid: u32, bytes: &str| {
        let status = Command::new("prlimit")
            .args([&format!("--pid={pid}"), &format!("--fsize={bytes}:")])
            .status();
        assert!(status.expect("it is there").success());
    };
    let pids = daemon.wait_for_workers();
    assert_eq!(pids.workers.len(), 2);
    limit(daemon.pid(), "4096");
    daemon
        .worker_pids()
        .iter()
        .for_each(|pid| limit(*pid, "4096"));
    let mut client = daemon.connect();
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
    daemon.signal_worker(0, "KILL");
    daemon.wait_for_log("; the limit on the size of files (ulimit -f, LimitFSIZE=) is 4096");
    assert_eq!(client.call("ping", 2).expect("a result"), 2);
    limit(daemon.pid(), "unlimited");
    daemon.wait_for_workers();
    assert_eq!(client.call("ping", 3).expect("a result"), 3);
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn a_log_file_at_the_limit_is_like_a_full_disk() {
    let log =
        "log = { target = \"file\", file = \"{dir}/log\", level = \"debug\" }\nworkers.count = 1";
    let daemon = start(log);
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skip("prlimit", "there is no prlimit(1) of util-linux");
    }
    daemon.wait_for_workers();
    for pid in daemon.worker_pids().into_iter().chain([daemon.pid()]) {
        let status = Command::new("prlimit")
            .args([&format!("--pid={pid}"), "--fsize=100:"])
            .status();
        assert!(status.expect("it is there").success());
    }
    for i in 0..20 {
        assert_eq!(daemon.call("ping", i).expect("a result"), i);
    }
    daemon.wait_until("lines are counted as lost", |status| {
        status.log_errors_total > 0
    });
}

#[test]
fn a_configuration_path_that_is_not_utf8_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let latin = directory
        .path()
        .join(OsString::from_vec(b"conf-\xe9t\xe9".to_vec()));
    fs::create_dir(&latin).expect("any bytes are a name");
    let (config, control) = (latin.join("f.toml"), directory.path().join("c.sock"));
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\n[control]\nsocket = \"{}\"\n",
        control.display()
    );
    fs::write(&config, text).expect("it is our directory");
    let mut daemon = Program::start(Command::new(FDPASSD).arg("-c").arg(&config));
    assert!(daemon.line().contains(" listens on "));
    let control = control.display().to_string();
    for verb in [
        &["status"][..],
        &["status", "--json"],
        &["config", "show"],
        &["config", "check"],
        &["reload"],
        &["upgrade"],
        &["reload"],
    ] {
        let said = run(FDPASSCTL, &[&["-s", &control], verb].concat());
        assert_eq!(said.code, Some(0), "{verb:?}: {said:?}");
        assert!(daemon.is_running());
    }
    let said = run(FDPASSCTL, &["-s", &control, "config", "show"]);
    assert!(
        said.out.contains("/conf-\u{fffd}t\u{fffd}/f.toml"),
        "{}",
        said.out
    );
    fs::write(&config, "worker = 1").expect("it is our directory");
    let said = run(FDPASSCTL, &["-s", &control, "reload"]);
    assert!(
        said.code == Some(1) && said.err.contains("unknown key"),
        "{said:?}"
    );
    let mut upgrade = Command::new(FDPASSCTL);
    upgrade
        .args(["-s", &control, "upgrade", "--binary"])
        .arg(latin.join("program"));
    let said = Program::start(&mut upgrade).finish();
    assert!(said.err.contains("No such file"), "{said:?}");
    assert!(daemon.is_running());
}

#[test]
fn a_program_that_cannot_be_read_is_named() {
    let Some(other) = OtherUser::new() else {
        return;
    };
    let program = other.directory().join("unreadable");
    install(Path::new(FDPASSD), &program, 0o711);
    let config = other.directory().join("c.toml");
    let text = "listen = [\"127.0.0.1:0\"]\n[control]\nsocket = \"/tmp/never-made-by-fdpassd\"\n";
    fs::write(&config, text).expect("it is our directory");
    let mut command = other.command(&program, 61_234);
    let said = Program::start(command.arg("-c").arg(&config)).finish();
    assert_eq!(said.code, Some(71), "{said:?}");
    assert!(
        said.err
            .contains("unreadable must be readable for uid 61234"),
        "{}",
        said.err
    );
}
