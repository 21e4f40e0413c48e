//! Paths, limits, signals and terminals around the daemon.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::testing::{Running, Setup, eventually};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::needs::skip;
use crate::common::program::{
    FDPASSCTL, OtherUser, Program, control_socket, ctl, ctl_command, run,
};
use crate::common::{FDPASSD, faulty, let_pass, start};

fn make_fifo(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(
        Command::new("mkfifo")
            .arg(path)
            .status()
            .expect("coreutils are there")
            .success()
    );
}

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
fn two_sigterms_at_once_are_one() {
    let together = (0..60).any(|_| {
        let mut daemon = faulty::start("workers.count = 1\nlimits.drain-timeout = \"20s\"");
        daemon.wait_for_workers();
        let mut client = daemon.connect();
        client.request("sleep", 1000);
        daemon.wait_until("it executes", |status| {
            status.workers.iter().any(|worker| worker.executing > 0)
        });
        // As timeout(1) does: to its child, then to its group. The daemon has taken the first one by then.
        let begin = Instant::now();
        daemon.signal("TERM");
        let_pass(Duration::from_millis(30));
        daemon.signal("TERM");
        // An answer comes from a turn of the loop; the second comes from one after the signal.
        let _ = (daemon.status(), daemon.status());
        if begin.elapsed() > Duration::from_millis(180) {
            // Two signals count as one within 200 ms, which a busy machine has exceeded: another try.
            return false;
        }
        assert!(
            client.reply().value().is_ok(),
            "the reply comes: {}",
            daemon.stderr()
        );
        assert!(daemon.wait().success());
        assert!(
            !daemon.stderr().contains("SIGTERM again"),
            "{}",
            daemon.stderr()
        );
        true
    });
    assert!(together, "no two signals came within 200 ms");
}

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

#[test]
fn a_program_that_cannot_be_read_is_named() {
    let Some(other) = OtherUser::new() else {
        return;
    };
    let program = other.directory().join("unreadable");
    fs::copy(FDPASSD, &program).expect("there is room");
    fs::set_permissions(&program, Permissions::from_mode(0o711)).expect("it is ours");
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

/// Starts a daemon in a namespace of mounts, where /etc/group can become one that never answers. Skips the test where there
/// are no such namespaces.
fn start_with_names(config: &str) -> Option<(Running, TempDir)> {
    let place = tempfile::tempdir().expect("a directory");
    let namespace: &[&str] = if OtherUser::if_root().is_some() {
        &["-m"]
    } else {
        &["-m", "-U", "-r"]
    };
    if !Command::new("unshare")
        .args(namespace)
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        skip("namespaces", "there are no namespaces of mounts");
        return None;
    }
    make_fifo(&place.path().join("group"));
    make_fifo(&place.path().join("now"));
    let path = place.path().display();
    let script = format!(
        "read now <{path}/now && mount --bind {path}/group /etc/group && echo >{path}/done & exec {FDPASSD} \"$@\""
    );
    let mut setup = Setup::new("unshare", config);
    for argument in namespace.iter().chain(&["sh", "-c", &script, "sh"]) {
        setup = setup.argument(argument);
    }
    let daemon = setup.start().expect("the daemon serves");
    daemon.wait_for_workers();
    fs::write(place.path().join("now"), "\n").expect("somebody reads");
    eventually("groups do not answer any more", || {
        place.path().join("done").exists().then_some(())
    });
    Some((daemon, place))
}

#[test]
fn names_that_are_not_answered_delay_one_reload_alone() {
    let Some((daemon, _place)) =
        start_with_names("workers.count = 1\ncontrol.read-group = \"root\"")
    else {
        return;
    };
    let mut client = daemon.connect();
    let in_force = fs::read_to_string(daemon.directory().join("config.toml")).expect("it is there");
    daemon.write_config(&in_force.replace("\"root\"", "\"not-here\""));
    let mut reload = daemon.ctl_request("reload", Value::Null);
    let mut check = daemon.ctl_request("check", Value::Null);
    for i in 0..20 {
        assert_eq!(client.call("ping", i).expect("a result"), i);
        assert_eq!(daemon.connect().call("ping", i).expect("a result"), i);
        assert!(daemon.status().clients >= 1);
        let_pass(Duration::from_millis(100));
    }
    let busy = daemon.ctl("reload").expect_err("one is going on");
    assert!(
        busy.message().contains("its configuration is being read"),
        "{busy:?}"
    );
    for asked in [&mut reload, &mut check] {
        let refused = asked.reply().value().expect_err("it takes too long");
        assert_eq!(refused.code(), "rejected");
        assert!(
            refused.message().contains("could not be read within 10 s"),
            "{}",
            refused.message()
        );
    }
    daemon.wait_for_log("reload by uid ");
    // Settings in force need no new lookup.
    let before = daemon.pid();
    let upgraded = ctl(&daemon, &["upgrade"]);
    assert_eq!(
        (upgraded.code, daemon.pid()),
        (Some(0), before),
        "{upgraded:?}"
    );
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
}

#[test]
fn refused_requests_of_a_reader_are_reported_by_a_limit() {
    let Some(other) = OtherUser::new() else {
        return;
    };
    let daemon = start("workers.count = 1\ncontrol.mode = \"0666\"");
    daemon.wait_for_workers();
    let socket = control_socket(&daemon);
    for path in [daemon.directory(), &socket] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).expect("it is ours");
    }
    let tool = other.directory().join("fdpassctl");
    fs::copy(FDPASSCTL, &tool).expect("there is room");
    let script = format!(
        "for i in 1 2 3 4 5 6 7; do for j in 1 2 3 4 5 6; do {} -s {} scale 3; done; done",
        tool.display(),
        socket.display()
    );
    let begin = Instant::now();
    let mut command = other.command("/bin/sh", 61_234);
    let said = Program::start(command.args(["-c", &script])).finish();
    let most = 16 + begin.elapsed().as_secs() + 2;
    assert_eq!(
        said.err
            .matches("forbidden: changing things needs root")
            .count(),
        42,
        "{}",
        said.err
    );
    let_pass(Duration::from_millis(1100));
    Program::start(other.command(&tool, 61_234).args([
        "-s",
        &socket.display().to_string(),
        "scale",
        "3",
    ]))
    .finish();
    let events = ctl(&daemon, &["events", "--json"]).out;
    let reported = events.matches("\"forbidden\"").count() as u64;
    assert!(
        (17..=most + 2).contains(&reported),
        "{reported} reports, at most {most}: {events}"
    );
    // All are reported if they come as slowly as that.
    assert!(
        42 <= most || events.contains("earlier requests forbidden"),
        "{events}"
    );
    assert_eq!(
        daemon.stderr().matches("refused: changing things").count() as u64,
        reported
    );
}
