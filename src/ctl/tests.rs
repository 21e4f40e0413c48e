//! fdpassctl against daemons and listeners of a test.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use tempfile::TempDir;

mod calls;
mod changes;
mod daemon;
mod events;
mod inspect;
mod status;
mod tables;
mod watching;

use self::daemon::*;
pub(super) use self::status::status;
use super::*;
use crate::proto::control::{
    self, ListenerStatus, MovedLoad, Origin, Rebalanced, Refusal, RefusalCode, Reloaded, Settled,
    Status, Stopped, WorkerState, WorkerStatus,
};
use crate::proto::frame::{ByteOrder, OrderRule, PREFIX};
use crate::proto::names::{Generation, WorkerId};

/// The result of a run of fdpassctl.
#[derive(Debug)]
struct Ran {
    exit: ExitStatus,
    out: String,
    err: String,
}

fn ctl(arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    ctl_seen(arguments, environment, Seen::default())
}

fn ctl_seen(arguments: &[&str], environment: &[(&str, &str)], seen: Seen) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let var = |key: &str| {
        environment
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, value)| OsString::from(value))
    };
    let arguments = ["fdpassctl"].iter().chain(arguments).map(OsString::from);
    let exit = run(FDPASSCTL, arguments, var, seen, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran {
        exit,
        out: text(out),
        err: text(err),
    }
}

#[test]
fn status_is_a_table_or_the_daemons_own_json() {
    let ran = Daemon::that_replies([reply("status", &status())]).asked(&["status"]);
    assert_eq!((ran.exit, ran.err.as_str()), (ExitStatus::Done, ""));
    assert!(
        ran.out
            .starts_with("fdpassd 0.1.0, pid 4711, up 3 days 4 hours"),
        "{}",
        ran.out
    );

    // The daemon may be newer, with unknown members.
    let result = r#"{ "name":"x", "future" : 1e400 }"#;
    let ran = Daemon::that_replies([format!(r#"{{"out":"status","result":{result}}}"#)])
        .asked(&["--json", "status"]);
    assert_eq!(
        (ran.exit, ran.out),
        (ExitStatus::Done, format!("{result}\n"))
    );
}

#[test]
fn an_error_reply_has_exit_code_1_or_that_of_forbidden() {
    let ran = Daemon::that_replies([fault("busy", r"too \u001b[1mmany")]).asked(&["status"]);
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (ExitStatus::Failed, "fdpassctl: busy: too \\x1b[1mmany\n")
    );
    let ran = Daemon::that_replies([daemons_version(), fault("forbidden", "stop needs root")])
        .asked(&["stop"]);
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (
            ExitStatus::Forbidden,
            "fdpassctl: forbidden: stop needs root\n"
        )
    );
    let ran = Daemon::that_replies([fault("of_the_future", "x")]).asked(&["status"]);
    assert_eq!(ran.exit, ExitStatus::Failed);
}

#[test]
fn an_invalid_reply_has_its_own_exit_code() {
    for garbage in [
        "",
        "garbage",
        "[\"status\",{}]",
        "{}",
        r#"{"out":"status","result":{}}"#,
        r#"{"out":"x","result":1}"#,
    ] {
        let ran = Daemon::that_replies([garbage.to_owned()]).asked(&["status"]);
        assert_eq!(ran.exit, ExitStatus::NoReply, "{garbage}: {}", ran.err);
    }
}

#[test]
fn a_connection_that_ends_early_has_no_reply() {
    let ran = Daemon::start(drop).asked(&["status"]);
    assert_eq!(ran.exit, ExitStatus::NoReply, "{}", ran.err);
    let ran = Daemon::start(|mut client| {
        asked_for(&mut client);
        client.write_all(b"\x09\0\0\0{\"out\"").expect("taken");
    })
    .asked(&["status"]);
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (
            ExitStatus::NoReply,
            "fdpassctl: the connection was closed before the reply\n"
        )
    );
}

#[test]
fn a_daemon_that_does_not_answer_is_a_timeout() {
    let until_closed = |mut client: UnixStream| drop(client.read_to_end(&mut Vec::new()));
    let ran = Daemon::start(until_closed).asked(&["status", "--timeout", "1s"]);
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (ExitStatus::NoReply, "fdpassctl: no reply within 1s\n")
    );
    // The same for a reply that has no end.
    let ran = Daemon::start(|mut client| {
        let _ = client.write_all(&[8, 0, 0, 0, b' ']);
        let _ = client.read_to_end(&mut Vec::new());
    })
    .asked(&["status", "--timeout", "1s"]);
    assert_eq!(ran.exit, ExitStatus::NoReply);
}

#[test]
fn a_reply_above_the_limit_is_not_read() {
    let ran = Daemon::start(|mut client| {
        asked_for(&mut client);
        client
            .write_all(&(control::MAX_REPLY + 1).to_le_bytes())
            .expect("taken");
        let _ = client.read_to_end(&mut Vec::new());
    })
    .asked(&["status"]);
    assert_eq!(ran.exit, ExitStatus::NoReply);
    assert!(
        ran.err.contains("67108865 bytes is announced"),
        "{}",
        ran.err
    );
}

#[test]
fn without_a_daemon_every_place_is_named() {
    let place = tempfile::tempdir().expect("a directory");
    let here = place.path().display().to_string();
    // Not that of fdpassd, which may run on this machine.
    let ran = ctl(&["status", "-n", "absent"], &[("RUNTIME_DIRECTORY", &here)]);
    assert_eq!(ran.exit, ExitStatus::NotRunning);
    let expected = format!("fdpassctl: absent is not running (no socket at {here}/control.sock, ");
    assert!(ran.err.starts_with(&expected), "{}", ran.err);

    // A given place, and a socket whose daemon has ended.
    let path = format!("{here}/old.sock");
    drop(UnixListener::bind(&path).expect("bind"));
    let ran = ctl(
        &["status", "-i", "no one's"],
        &[("FDPASSD_SOCKET", "/elsewhere")],
    );
    let words =
        "fdpassctl: fdpassd is not running (no socket at /run/fdpassd-no one's/control.sock)\n";
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (ExitStatus::NotRunning, words)
    );
    let ran = ctl(
        &["status", "-s", &path],
        &[("FDPASSD_SOCKET", "/elsewhere")],
    );
    assert_eq!(ran.exit, ExitStatus::NotRunning);
    assert_eq!(
        ran.err,
        format!("fdpassctl: fdpassd is not running (no socket at {path})\n")
    );
}

#[test]
fn a_place_that_is_no_control_socket_is_described() {
    let place = tempfile::tempdir().expect("a directory");
    let path = |name: &str| place.path().join(name).display().to_string();
    fs::write(path("file"), "").expect("it is written");
    let _datagrams = UnixDatagram::bind(path("datagrams")).expect("bind");
    for (name, what) in [
        ("file", "it is a regular file, not a socket"),
        ("", "it is a directory, not a socket"),
        ("datagrams", "it is a socket of another type"),
    ] {
        let ran = ctl(&["status", "-s", &path(name)], &[]);
        let expected = format!("fdpassctl: cannot connect to unix:{}: {what}\n", path(name));
        assert_eq!((ran.exit, ran.err), (ExitStatus::Failed, expected));
    }
}

#[test]
fn a_socket_without_permission_is_forbidden() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("control.sock");
    let _listener = UnixListener::bind(&path).expect("bind");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("chmod");
    if UnixStream::connect(&path).is_ok() {
        return; // Root may connect to everything.
    }
    let path = path.display();
    for ran in [
        ctl(&["status", "-s", &path.to_string()], &[]),
        ctl(&["call", "ping", "--to", &format!("unix:{path}")], &[]),
    ] {
        assert_eq!(ran.exit, ExitStatus::Forbidden);
        assert!(
            ran.err
                .starts_with(&format!("fdpassctl: forbidden: {path} is for root")),
            "{}",
            ran.err
        );
    }
}

#[test]
fn version_needs_no_daemon() {
    let own = env!("CARGO_PKG_VERSION");
    let ran = ctl(&["version", "-s", "/nonexistent/control.sock"], &[]);
    assert_eq!(
        (ran.exit, ran.out),
        (
            ExitStatus::Done,
            format!("fdpassctl {own}\nfdpassd: not running\n")
        )
    );
    let ran = ctl(
        &["version", "--json", "-s", "/nonexistent/control.sock"],
        &[],
    );
    assert_eq!(
        ran.out,
        format!("{{\"fdpassctl\":\"{own}\",\"daemon\":null}}\n")
    );
    let ran = Daemon::that_replies([daemons_version()]).asked(&["version"]);
    assert_eq!(
        (ran.exit, ran.out),
        (
            ExitStatus::Done,
            format!("fdpassctl {own}\nfdpassd 0.1.0, pid 4711\n")
        )
    );
}

#[test]
fn wrong_usage_exits_with_64_and_help_with_0() {
    for arguments in [
        &[][..],
        &["fly"],
        &["status", "now"],
        &["call"],
        &["call", "ping", "{"],
        &["--timeout", "x", "stop"],
        &["reload", "now"],
        &["scale"],
        &["scale", "0"],
        &["scale", "257"],
        &["scale", "two"],
        &["recycle"],
        &["recycle", "some"],
        &["hold"],
        &["hold", "all"],
        &["release"],
        &["drain", "1"],
        &["rebalance", "--wait"],
    ] {
        let ran = ctl(arguments, &[]);
        assert_eq!(
            (ran.exit, ran.out.as_str()),
            (ExitStatus::Usage, ""),
            "{arguments:?}"
        );
        assert!(!ran.err.is_empty());
    }
    for arguments in [&["--help"][..], &["--version"], &["call", "--help"]] {
        let ran = ctl(arguments, &[]);
        assert_eq!(
            (ran.exit, ran.err.as_str()),
            (ExitStatus::Done, ""),
            "{arguments:?}"
        );
        assert!(ran.out.contains("fdpassctl"));
    }
}

/// A standard output that fails.
struct Broken(ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_pipe_is_silent_and_a_full_disk_is_reported() {
    for (kind, said) in [
        (ErrorKind::BrokenPipe, ""),
        (
            ErrorKind::StorageFull,
            "fdpassctl: cannot write the result: ",
        ),
    ] {
        let mut err = Vec::new();
        let exit = run(
            FDPASSCTL,
            ["fdpassctl", "--version"].map(OsString::from),
            |_| None,
            Seen::default(),
            &mut Broken(kind),
            &mut err,
        );
        assert_eq!(exit, ExitStatus::Failed);
        let err = String::from_utf8(err).expect("UTF-8");
        assert!(
            err.starts_with(said) && err.is_empty() == said.is_empty(),
            "{err}"
        );
    }
}
