//! fdpassctl against daemons and listeners of a test.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use tempfile::TempDir;

mod calls;
mod changes;
mod events;
mod inspect;

use super::*;
use crate::proto::control::{
    self, ListenerStatus, MovedLoad, Origin, Rebalanced, Refusal, RefusalCode, Reloaded, Settled,
    Status, Stopped, WorkerState, WorkerStatus,
};
use crate::proto::frame::{ByteOrder, OrderRule, PREFIX};
use crate::proto::names::{Generation, WorkerId};

/// Returns the status of a daemon with three workers.
pub(super) fn status() -> Status {
    let ready = WorkerStatus {
        seat: 0,
        id: Some(WorkerId(1)),
        pid: Some(4712),
        generation: Generation(3),
        state: WorkerState::Ready,
        clients: 617,
        executing: 2,
        away: 0,
        app: None,
        requests_total: 12_345_678,
        errors_total: 40,
        panics_total: 0,
        log_errors_total: 0,
        parked_bytes: 0,
        requests_per_second: Some(1234.5),
        p50_seconds: Some(42e-6),
        p99_seconds: Some(1.3e-3),
        uptime_seconds: Some(273_600.0),
        restarts: 0,
        rss_bytes: Some(12 << 20),
        unhealthy: None,
        last_death: None,
    };
    let draining = WorkerStatus {
        seat: 1,
        id: Some(WorkerId(17)),
        pid: Some(9931),
        generation: Generation(2),
        state: WorkerState::Draining,
        clients: 617,
        requests_total: 98_765,
        requests_per_second: Some(0.5),
        p50_seconds: Some(0.25),
        p99_seconds: Some(12.0),
        uptime_seconds: Some(754.0),
        restarts: 3,
        rss_bytes: Some(8_900_000),
        unhealthy: None,
        last_death: Some("killed by signal 11 in method \"resize\"".to_owned()),
        ..ready.clone()
    };
    let waiting = WorkerStatus {
        seat: 2,
        id: None,
        pid: None,
        state: WorkerState::Waiting,
        clients: 0,
        executing: 0,
        requests_total: 0,
        requests_per_second: None,
        p50_seconds: None,
        p99_seconds: None,
        uptime_seconds: None,
        restarts: 5,
        rss_bytes: None,
        unhealthy: None,
        last_death: Some("exited with status 70".to_owned()),
        ..ready.clone()
    };
    Status {
        name: "fdpassd".to_owned(),
        version: "0.1.0".to_owned(),
        pid: 4711,
        uptime_seconds: 275_000.0,
        generation: Generation(3),
        config_file: Some("/etc/fdpassd.toml".into()),
        dispatch: "least-loaded".to_owned(),
        stopping: false,
        drained: false,
        paused: None,
        listeners: vec![
            listener("127.0.0.1:8080", OrderRule::Little, Some(0)),
            listener("unix:/run/fdpassd/rpc.sock", OrderRule::Auto, None),
        ],
        clients: 1234,
        max_clients: 65_536,
        accepted_total: 98_765,
        refused_total: 3,
        moved_total: 128,
        lost_total: 1,
        requests_total: 12_444_443,
        errors_total: 42,
        log_errors_total: 0,
        buffers: 64 << 20,
        memory_limit: None,
        app_cgroups: None,
        count: 3,
        count_origin: Origin::Config,
        reloading: false,
        last_reload: None,
        config_stale: None,
        missing: Vec::new(),
        restart_keeps_clients: true,
        store_outage: None,
        failed_starts_total: 0,
        deaths_total: 0,
        stalls_total: 0,
        reruns_total: 0,
        closed_for_crashes_total: 0,
        quarantined: Vec::new(),
        skew: None,
        workers: vec![ready, draining, waiting],
        leaving: Vec::new(),
    }
}

fn listener(address: &str, byte_order: OrderRule, queue: Option<u32>) -> ListenerStatus {
    let queue_max = queue.map(|_| 4096);
    ListenerStatus {
        address: address.to_owned(),
        byte_order,
        queue,
        queue_max,
        accepted_total: 1,
        outage: None,
    }
}

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

/// A daemon's control socket.
struct Daemon {
    socket: String,
    serving: JoinHandle<()>,
    is_done: Arc<AtomicBool>,
    _place: TempDir,
}

impl Daemon {
    fn listening(serve: impl FnOnce(UnixListener) + Send + 'static) -> Daemon {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("control.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let is_done = Arc::default();
        let serving = thread::spawn(move || serve(listener));
        Daemon {
            socket: path.display().to_string(),
            serving,
            is_done,
            _place: place,
        }
    }

    /// Serves any number of connections until fdpassctl has ended.
    fn serving(serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Daemon {
        let is_done = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_done);
        let daemon = Daemon::listening(move |listener| {
            let serve = &serve;
            thread::scope(|threads| {
                let clients = listener
                    .incoming()
                    .take_while(|_| !until.load(Ordering::Relaxed));
                clients
                    .for_each(|client| drop(threads.spawn(move || serve(client.expect("accept")))));
            });
        });
        Daemon { is_done, ..daemon }
    }

    /// Answers requests by verb and params on any number of connections, and closes one for whose request it has no answer.
    fn that_answers(
        answer: impl Fn(&str, &Value) -> Option<String> + Send + Sync + 'static,
    ) -> Daemon {
        Daemon::serving(move |mut client| {
            while let Some(request) = next_request(&mut client) {
                let request: Value = serde_json::from_str(&request).expect("JSON");
                let verb = request["in"].as_str().expect("a verb");
                let Some(reply) = answer(verb, &request["params"]) else {
                    return;
                };
                // fdpassctl may have ended.
                let _ = send(&mut client, ByteOrder::Little, &reply);
            }
        })
    }

    /// Serves one connection.
    fn start(serve: impl FnOnce(UnixStream) + Send + 'static) -> Daemon {
        Daemon::listening(|listener| serve(listener.accept().expect("accept").0))
    }

    /// Answers each request with the next of `replies`, then closes. It has no events, like an old daemon.
    fn that_replies(replies: impl IntoIterator<Item = String>) -> Daemon {
        let replies: Vec<_> = replies.into_iter().collect();
        Daemon::start(move |mut client| {
            for reply in replies {
                asked_for(&mut client);
                send_reply(&mut client, &reply);
            }
        })
    }

    fn asked(self, arguments: &[&str]) -> Ran {
        self.asked_seen(arguments, Seen::default())
    }

    fn asked_seen(self, arguments: &[&str], seen: Seen) -> Ran {
        let ran = ctl_seen(arguments, &[("FDPASSD_SOCKET", &self.socket)], seen);
        self.is_done.store(true, Ordering::Relaxed);
        // This ends a pending accept.
        drop(UnixStream::connect(&self.socket));
        self.serving.join().expect("the daemon went as expected");
        ran
    }
}

/// Returns the next request to a daemon; `None` at the end of the connection.
fn next_request(client: &mut UnixStream) -> Option<String> {
    receive(client, ByteOrder::Little)
}

fn receive(from: &mut impl Read, order: ByteOrder) -> Option<String> {
    let mut prefix = [0; PREFIX];
    from.read_exact(&mut prefix).ok()?;
    let mut body = vec![0; order.length(prefix) as usize];
    from.read_exact(&mut body).expect("a body");
    Some(String::from_utf8(body).expect("UTF-8"))
}

/// Returns the next request to a daemon without events.
fn asked_for(client: &mut UnixStream) -> String {
    loop {
        let request = next_request(client).expect("a request");
        if !request.starts_with(r#"{"in":"events""#) {
            return request;
        }
        send_reply(client, &fault("unknown_verb", "there is no verb"));
    }
}

fn send(to: &mut impl Write, order: ByteOrder, body: &str) -> io::Result<()> {
    to.write_all(&order.prefix(body.len() as u32))?;
    to.write_all(body.as_bytes())
}

/// Sends a daemon's reply.
fn send_reply(client: &mut UnixStream, reply: &str) {
    send(client, ByteOrder::Little, reply).expect("fdpassctl reads");
}

fn reply(name: &str, result: &impl serde::Serialize) -> String {
    format!(
        r#"{{"out":"{name}","result":{}}}"#,
        serde_json::to_string(result).expect("plain data")
    )
}

fn fault(code: &str, message: &str) -> String {
    format!(r#"{{"out":"error","result":{{"code":"{code}","message":"{message}"}}}}"#)
}

fn daemons_version() -> String {
    reply(
        "version",
        &Version {
            name: "fdpassd".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 4711,
        },
    )
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
    let ran = Daemon::start(until_closed).asked(&["status", "--timeout", "20ms"]);
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (ExitStatus::NoReply, "fdpassctl: no reply within 20ms\n")
    );
    // The same for a reply that has no end.
    let ran = Daemon::start(|mut client| {
        let _ = client.write_all(&[8, 0, 0, 0, b' ']);
        let _ = client.read_to_end(&mut Vec::new());
    })
    .asked(&["status", "--timeout", "20ms"]);
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
    let ran = ctl(&["status"], &[("RUNTIME_DIRECTORY", &here)]);
    assert_eq!(ran.exit, ExitStatus::NotRunning);
    let expected = format!("fdpassctl: fdpassd is not running (no socket at {here}/control.sock, ");
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
