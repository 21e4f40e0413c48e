//! fdpassctl against daemons and listeners that say what a test wants to hear.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use super::*;
use crate::proto::control::{
    Code, ListenerStatus, MovedLoad, Origin, Rebalanced, Refusal, Reloaded, Settled, Stopped, WorkerState, WorkerStatus,
};
use crate::proto::frame::PREFIX;
use crate::proto::names::{Generation, WorkerId};

/// A status as a daemon with three workers would tell it.
pub(super) fn status() -> Status {
    let ready = WorkerStatus {
        seat: 0,
        id: Some(WorkerId(1)),
        pid: Some(4712),
        generation: Generation(3),
        state: WorkerState::Ready,
        clients: 617,
        executing: 2,
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
        panics_total: 0,
        log_errors_total: 0,
        parked_bytes: 0,
        requests_per_second: Some(0.5),
        p50_seconds: Some(0.25),
        p99_seconds: Some(12.0),
        uptime_seconds: Some(754.0),
        restarts: 3,
        rss_bytes: Some(8_900_000),
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
        panics_total: 0,
        log_errors_total: 0,
        parked_bytes: 0,
        requests_per_second: None,
        p50_seconds: None,
        p99_seconds: None,
        uptime_seconds: None,
        restarts: 5,
        rss_bytes: None,
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
        count: 3,
        count_origin: Origin::Config,
        reloading: false,
        last_reload: None,
        config_stale: None,
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
    ListenerStatus { address: address.to_owned(), byte_order, queue, queue_max, accepted_total: 1 }
}

/// What one run of fdpassctl left behind.
#[derive(Debug)]
struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

fn ctl(arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let var = |key: &str| environment.iter().find(|(k, _)| *k == key).map(|(_, value)| OsString::from(value));
    let arguments = ["fdpassctl"].iter().chain(arguments).map(OsString::from);
    let exit = run(arguments, var, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { exit, out: text(out), err: text(err) }
}

/// A daemon's control socket, for one connection.
struct Daemon {
    socket: String,
    serving: JoinHandle<()>,
    _place: TempDir,
}

impl Daemon {
    fn start(serve: impl FnOnce(UnixStream) + Send + 'static) -> Daemon {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("control.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let serving = thread::spawn(move || serve(listener.accept().expect("accept").0));
        Daemon { socket: path.display().to_string(), serving, _place: place }
    }

    /// Answers each request with the next of `replies`, then closes.
    fn that_says(replies: impl IntoIterator<Item = String>) -> Daemon {
        let replies: Vec<_> = replies.into_iter().collect();
        Daemon::start(move |mut client| {
            for reply in replies {
                receive(&mut client, ByteOrder::Little);
                send(&mut client, ByteOrder::Little, &reply);
            }
        })
    }

    fn asked(self, arguments: &[&str]) -> Ran {
        let ran = ctl(arguments, &[("FDPASSD_SOCKET", &self.socket)]);
        self.serving.join().expect("the daemon went as expected");
        ran
    }
}

fn receive(from: &mut impl Read, order: ByteOrder) -> String {
    let mut prefix = [0; PREFIX];
    from.read_exact(&mut prefix).expect("a prefix");
    let mut body = vec![0; order.length(prefix) as usize];
    from.read_exact(&mut body).expect("a body");
    String::from_utf8(body).expect("UTF-8")
}

fn send(to: &mut impl Write, order: ByteOrder, body: &str) {
    to.write_all(&order.prefix(body.len() as u32)).expect("the prefix is taken");
    to.write_all(body.as_bytes()).expect("the body is taken");
}

fn reply(name: &str, result: &impl serde::Serialize) -> String {
    format!(r#"{{"out":"{name}","result":{}}}"#, serde_json::to_string(result).expect("plain data"))
}

fn fault(code: &str, message: &str) -> String {
    format!(r#"{{"out":"error","result":{{"code":"{code}","message":"{message}"}}}}"#)
}

fn daemons_version() -> String {
    reply("version", &Version { name: "fdpassd".to_owned(), version: "0.1.0".to_owned(), pid: 4711 })
}

/// A client's listener, for one request; gives back what was asked.
fn rpc(order: ByteOrder, reply: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    let serving = thread::spawn(move || {
        let (mut client, _): (TcpStream, _) = listener.accept().expect("accept");
        let request = receive(&mut client, order);
        send(&mut client, order, reply);
        request
    });
    (address, serving)
}

/// An address where nothing listens: it was bound a moment ago.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("bind")
}

#[test]
fn status_is_a_table_or_the_daemons_own_json() {
    let ran = Daemon::that_says([reply("status", &status())]).asked(&["status"]);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""));
    assert!(ran.out.starts_with("fdpassd 0.1.0, pid 4711, up 3 days 4 hours"), "{}", ran.out);

    // Also one of another version, with members that this program does not know.
    let result = r#"{ "name":"x", "future" : 1e400 }"#;
    let ran = Daemon::that_says([format!(r#"{{"out":"status","result":{result}}}"#)]).asked(&["--json", "status"]);
    assert_eq!((ran.exit, ran.out), (Exit::Done, format!("{result}\n")));
}

#[test]
fn an_error_reply_is_said_and_its_exit_code_is_one_or_that_of_forbidden() {
    let ran = Daemon::that_says([fault("busy", r"too \u001b[1mmany")]).asked(&["status"]);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Failed, "fdpassctl: busy: too \\x1b[1mmany\n"));
    let ran = Daemon::that_says([daemons_version(), fault("forbidden", "stop needs root")]).asked(&["stop"]);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Forbidden, "fdpassctl: forbidden: stop needs root\n"));
    let ran = Daemon::that_says([fault("of_the_future", "x")]).asked(&["status"]);
    assert_eq!(ran.exit, Exit::Failed);
}

#[test]
fn what_is_no_reply_is_never_taken_for_one() {
    for garbage in
        ["", "garbage", "[\"status\",{}]", "{}", r#"{"out":"status","result":{}}"#, r#"{"out":"x","result":1}"#]
    {
        let ran = Daemon::that_says([garbage.to_owned()]).asked(&["status"]);
        assert_eq!(ran.exit, Exit::NoReply, "{garbage}: {}", ran.err);
    }
}

#[test]
fn a_connection_that_ends_early_is_no_reply() {
    let ran = Daemon::start(drop).asked(&["status"]);
    assert_eq!(ran.exit, Exit::NoReply, "{}", ran.err);
    let ran = Daemon::start(|mut client| {
        receive(&mut client, ByteOrder::Little);
        client.write_all(b"\x09\0\0\0{\"out\"").expect("taken");
    })
    .asked(&["status"]);
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (Exit::NoReply, "fdpassctl: the connection was closed before the reply\n")
    );
}

#[test]
fn a_daemon_that_never_answers_is_not_waited_for() {
    let until_closed = |mut client: UnixStream| drop(client.read_to_end(&mut Vec::new()));
    let ran = Daemon::start(until_closed).asked(&["status", "--timeout", "20ms"]);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::NoReply, "fdpassctl: no reply within 20ms\n"));
    // Nor is one that begins a reply and does not end it.
    let ran = Daemon::start(|mut client| {
        let _ = client.write_all(&[8, 0, 0, 0, b' ']);
        let _ = client.read_to_end(&mut Vec::new());
    })
    .asked(&["status", "--timeout", "20ms"]);
    assert_eq!(ran.exit, Exit::NoReply);
}

#[test]
fn a_reply_over_the_limit_is_not_read() {
    let ran = Daemon::start(|mut client| {
        receive(&mut client, ByteOrder::Little);
        client.write_all(&(control::MAX_REPLY + 1).to_le_bytes()).expect("taken");
        let _ = client.read_to_end(&mut Vec::new());
    })
    .asked(&["status"]);
    assert_eq!(ran.exit, Exit::NoReply);
    assert!(ran.err.contains("67108865 bytes is announced"), "{}", ran.err);
}

#[test]
fn without_a_daemon_every_place_is_named() {
    let place = tempfile::tempdir().expect("a directory");
    let here = place.path().display().to_string();
    let ran = ctl(&["status"], &[("RUNTIME_DIRECTORY", &here)]);
    assert_eq!(ran.exit, Exit::NotRunning);
    let expected = format!("fdpassctl: fdpassd is not running (no socket at {here}/control.sock, ");
    assert!(ran.err.starts_with(&expected), "{}", ran.err);

    // A socket whose daemon is gone, and one that was said to be there.
    let path = format!("{here}/old.sock");
    drop(UnixListener::bind(&path).expect("bind"));
    let ran = ctl(&["status", "-i", "no one's"], &[("FDPASSD_SOCKET", "/elsewhere")]);
    let words = "fdpassctl: fdpassd is not running (no socket at /run/fdpassd-no one's/control.sock)\n";
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::NotRunning, words));
    let ran = ctl(&["status", "-s", &path], &[("FDPASSD_SOCKET", "/elsewhere")]);
    assert_eq!(ran.exit, Exit::NotRunning);
    assert_eq!(ran.err, format!("fdpassctl: fdpassd is not running (no socket at {path})\n"));
}

#[test]
fn a_socket_that_is_out_of_bounds_is_forbidden() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("control.sock");
    let _listener = UnixListener::bind(&path).expect("bind");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("chmod");
    if UnixStream::connect(&path).is_ok() {
        return; // Root may connect to everything.
    }
    let path = path.display();
    for ran in
        [ctl(&["status", "-s", &path.to_string()], &[]), ctl(&["call", "ping", "--to", &format!("unix:{path}")], &[])]
    {
        assert_eq!(ran.exit, Exit::Forbidden);
        assert!(ran.err.starts_with(&format!("fdpassctl: forbidden: {path} is for root")), "{}", ran.err);
    }
}

#[test]
fn stop_waits_for_the_end() {
    let stopped = |killed| reply("stop", &Stopped { pid: 4711, killed });
    let ran = Daemon::that_says([daemons_version(), stopped(0)]).asked(&["stop"]);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "fdpassd (pid 4711) stopped\n"));
    let ran = Daemon::that_says([daemons_version(), stopped(2)]).asked(&["stop"]);
    assert_eq!(ran.out, "fdpassd (pid 4711) stopped; 2 workers did not finish in time and were killed\n");
    let ran = Daemon::that_says([daemons_version(), stopped(0)]).asked(&["stop", "--json"]);
    assert_eq!(ran.out, "{\"pid\":4711,\"killed\":0}\n");

    let ran = Daemon::start(move |mut client| {
        receive(&mut client, ByteOrder::Little);
        send(&mut client, ByteOrder::Little, &daemons_version());
        receive(&mut client, ByteOrder::Little);
        send(&mut client, ByteOrder::Little, &stopped(0));
        let _ = client.read_to_end(&mut Vec::new()); // still there until fdpassctl gives up
    })
    .asked(&["stop", "--timeout", "500ms"]);
    let said = "fdpassctl: fdpassd (pid 4711) is still stopping; it goes on, see \"fdpassctl status\"\n";
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::StillGoing, said));
}

/// What fdpassctl asks after the version, what it makes of `result`, and how it ends.
fn asked(arguments: &[&str], verb: &str, result: &impl serde::Serialize) -> (String, Ran) {
    let (tell, told) = mpsc::channel();
    let reply = reply(verb, result);
    let ran = Daemon::start(move |mut client| {
        receive(&mut client, ByteOrder::Little);
        send(&mut client, ByteOrder::Little, &daemons_version());
        tell.send(receive(&mut client, ByteOrder::Little)).expect("it is listened to");
        send(&mut client, ByteOrder::Little, &reply);
    })
    .asked(arguments);
    (told.recv().expect("it told before"), ran)
}

#[test]
fn every_change_is_asked_for_in_the_daemons_words_and_told_in_plain_ones() {
    let settled = |workers, clients| serde_json::to_value(Settled { workers, clients }).expect("plain data");
    let reloaded = |workers, seconds| {
        serde_json::to_value(Reloaded { generation: Generation(3), workers, seconds }).expect("plain data")
    };
    let moves = |moves| serde_json::to_value(Rebalanced { moves }).expect("plain data");
    let moved = |from, to, clients, load| MovedLoad { from: WorkerId(from), to: WorkerId(to), clients, load };
    let some = || moves(vec![moved(1, 3, 12, 0.348), moved(1, 2, 1, 0.02)]);
    let cases = [
        ("reload", r#""reload""#, reloaded(4, 0.0352), "applied: generation 3, 4 workers ready, in 35 ms"),
        ("reload", r#""reload""#, reloaded(1, 61.0), "applied: generation 3, 1 worker ready, in 61 s"),
        ("scale 4", r#""scale","params":{"count":4}"#, settled(4, 0), "4 workers are ready"),
        ("scale 1", r#""scale","params":{"count":1}"#, settled(1, 0), "1 worker is ready"),
        ("recycle all", r#""recycle","params":{}"#, settled(4, 9), "all workers are replaced; 4 workers are ready"),
        (
            "recycle 17",
            r#""recycle","params":{"worker":17}"#,
            settled(1, 9),
            "worker 17 is replaced; 1 worker is ready",
        ),
        (
            "hold 17",
            r#""hold","params":{"worker":17}"#,
            settled(4, 9),
            "worker 17 is held; its clients are with the others",
        ),
        ("release 17", r#""release","params":{"worker":17}"#, settled(4, 9), "worker 17 is released"),
        (
            "release r\u{202e}",
            "\"release\",\"params\":{\"method\":\"r\u{202e}\"}",
            settled(4, 9),
            r#"method "r\u{202e}" is released and run again"#,
        ),
        (
            "drain",
            r#""drain","params":{"wait":false}"#,
            settled(4, 2),
            "nobody new is accepted; 2 clients are still there",
        ),
        (
            "drain --wait",
            r#""drain","params":{"wait":true}"#,
            settled(4, 0),
            "nobody new is accepted; the last client has left",
        ),
        ("undrain", r#""undrain""#, settled(4, 1), "clients are accepted again"),
        (
            "rebalance",
            r#""rebalance","params":{"dry_run":false}"#,
            some(),
            "12 clients moved from worker 1 to worker 3: 35% of a worker's time\n\
             1 client moved from worker 1 to worker 2: 2% of a worker's time",
        ),
        (
            "rebalance --dry-run",
            r#""rebalance","params":{"dry_run":true}"#,
            some(),
            "12 clients would move from worker 1 to worker 3: 35% of a worker's time\n\
             1 client would move from worker 1 to worker 2: 2% of a worker's time",
        ),
        ("rebalance", r#""rebalance","params":{"dry_run":false}"#, moves(vec![]), "the load is even enough"),
    ];
    for (line, request, result, said) in cases {
        let arguments: Vec<_> = line.split(' ').collect();
        let (got, ran) = asked(&arguments, arguments[0], &result);
        assert_eq!(got, format!("{{\"in\":{request}}}"));
        assert_eq!((ran.exit, ran.out, ran.err.as_str()), (Exit::Done, format!("{said}\n"), ""), "{line}");

        // Also from a daemon that has more to say than this program knows of.
        let (_, ran) =
            asked(&[&arguments[..], &["--json"]].concat(), arguments[0], &serde_json::json!({"x": [result]}));
        let json = format!("{}\n", serde_json::json!({"x": [result]}));
        assert_eq!((ran.exit, ran.out, ran.err.as_str()), (Exit::Done, json, ""), "{line}");
    }
}

/// One of each.
const CHANGES: [&[&str]; 9] = [
    &["reload"],
    &["scale", "2"],
    &["recycle", "all"],
    &["hold", "1"],
    &["drain", "--wait"],
    &["release", "1"],
    &["drain"],
    &["undrain"],
    &["rebalance"],
];

#[test]
fn a_change_that_takes_long_goes_on_when_nobody_waits_any_more() {
    let doing = ["reloading", "scaling", "replacing workers", "moving the worker's clients", "draining"];
    let try_it = |change: &[&str], doing: Option<&&str>| {
        let ran = Daemon::start(move |mut client| {
            receive(&mut client, ByteOrder::Little);
            send(&mut client, ByteOrder::Little, &daemons_version());
            let _ = client.read_to_end(&mut Vec::new());
        })
        .asked(&[change, &["--timeout", "500ms"]].concat());
        let (exit, said) = match doing {
            Some(doing) => {
                (Exit::StillGoing, format!("fdpassd (pid 4711) is still {doing}; it goes on, see \"fdpassctl status\""))
            }
            None => (Exit::NoReply, "no reply within 500ms".to_owned()),
        };
        assert_eq!((ran.exit, ran.out.as_str()), (exit, ""), "{change:?}");
        assert_eq!(ran.err, format!("fdpassctl: {said}\n"), "{change:?}");
    };
    thread::scope(|threads| {
        for (index, change) in CHANGES.into_iter().enumerate() {
            threads.spawn(move || try_it(change, doing.get(index)));
        }
    });
    // Nobody knows whether a daemon that says nothing at all goes on.
    let ran =
        Daemon::start(|mut client| drop(client.read_to_end(&mut Vec::new()))).asked(&["reload", "--timeout", "20ms"]);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::NoReply, "fdpassctl: no reply within 20ms\n"));
}

#[test]
fn a_change_that_is_refused_or_not_understood_has_the_exit_code_that_says_so() {
    for change in CHANGES {
        for (reply, exit, said) in [
            (fault("busy", "a reload is going on"), Exit::Failed, "busy: a reload is going on"),
            (fault("refused", "there is no worker 1"), Exit::Failed, "refused: there is no worker 1"),
            (fault("forbidden", "only root may"), Exit::Forbidden, "forbidden: only root may"),
            (fault("rolled_back", "worker 9 failed"), Exit::Failed, "rolled_back: worker 9 failed"),
            (self::reply(change[0], &1), Exit::NoReply, "the answer is no valid reply: "),
        ] {
            let ran = Daemon::that_says([daemons_version(), reply]).asked(change);
            assert_eq!((ran.exit, ran.out.as_str()), (exit, ""), "{change:?}");
            assert!(ran.err.starts_with(&format!("fdpassctl: {said}")), "{change:?}: {}", ran.err);
        }
        let ran = ctl(&[change, &["-s", "/nonexistent/control.sock"][..]].concat(), &[]);
        assert_eq!(ran.exit, Exit::NotRunning, "{change:?}");
    }
}

#[test]
fn a_rejected_configuration_is_shown_with_its_caret() {
    let display = "error: unknown key `listne`\n --> /etc/\x1b[1m.toml:1:1\n  |\n1 | listne = []\n  | ^^^^^^";
    let place = control::Place { file: "/etc/x".into(), line: Some(1), column: Some(1), display: display.to_owned() };
    let mut refusal = Refusal::new(Code::Rejected, "unknown key `listne`");
    refusal.place = Some(place);
    for json in [&[][..], &["--json"]] {
        let ran = Daemon::that_says([daemons_version(), reply("error", &refusal)]).asked(&[&["reload"], json].concat());
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        let shown = display.replace('\x1b', "\\x1b");
        assert_eq!(ran.err, format!("fdpassctl: rejected, and nothing was changed:\n{shown}\n"));
    }
    // Another's error may have a member of that name, too.
    for place in ["7", "{}", "[]", r#"{"display":7}"#] {
        let reply = format!(r#"{{"out":"error","result":{{"code":"x","message":"y","place":{place}}}}}"#);
        let ran = Daemon::that_says([daemons_version(), reply]).asked(&["reload"]);
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Failed, "fdpassctl: x: y\n"));
    }
}

#[test]
fn version_needs_no_daemon() {
    let own = env!("CARGO_PKG_VERSION");
    let ran = ctl(&["version", "-s", "/nonexistent/control.sock"], &[]);
    assert_eq!((ran.exit, ran.out), (Exit::Done, format!("fdpassctl {own}\nfdpassd: not running\n")));
    let ran = ctl(&["version", "--json", "-s", "/nonexistent/control.sock"], &[]);
    assert_eq!(ran.out, format!("{{\"fdpassctl\":\"{own}\",\"daemon\":null}}\n"));
    let ran = Daemon::that_says([daemons_version()]).asked(&["version"]);
    assert_eq!((ran.exit, ran.out), (Exit::Done, format!("fdpassctl {own}\nfdpassd 0.1.0, pid 4711\n")));
}

#[test]
fn a_call_carries_params_and_result_byte_for_byte() {
    for order in [ByteOrder::Little, ByteOrder::Big] {
        let name = if order == ByteOrder::Big { "big" } else { "little" };
        let (address, serving) = rpc(order, r#"{"out":"pong","result":[ 1e400,"\u00b5" ]}"#);
        let to = address.to_string();
        let ran = ctl(&["call", "pi\n\"ng", r#"{"a":1,"a": 2}"#, "--to", &to, "--byte-order", name], &[]);
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "[ 1e400,\"\\u00b5\" ]\n"), "{}", ran.err);
        assert_eq!(serving.join().expect("served"), r#"{"in":"pi\n\"ng","params":{"a":1,"a": 2}}"#);
    }
}

#[test]
fn a_call_goes_to_the_daemons_first_listener_in_its_order() {
    let (address, serving) = rpc(ByteOrder::Big, r#"{"out":"pong","result":null}"#);
    let mut status = status();
    status.listeners[0] = listener(&format!("0.0.0.0:{}", address.port()), OrderRule::Big, Some(0));
    let ran = Daemon::that_says([reply("status", &status)]).asked(&["call", "ping"]);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "null\n"), "{}", ran.err);
    assert_eq!(serving.join().expect("served"), r#"{"in":"ping"}"#);

    let loopback: Address = "[::1]:1".parse().expect("an address");
    assert_eq!(reachable("[::]:1".parse().expect("an address")), loopback);
}

#[test]
fn a_call_that_fails_says_how() {
    let (address, serving) =
        rpc(ByteOrder::Little, r#"{"out":"error","result":{"code":"forbidden","message":"no\n"}}"#);
    let ran = ctl(&["call", "x", "--to", &address.to_string()], &[]);
    serving.join().expect("served");
    // A method's own code is no permission of fdpassctl's.
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Failed, "fdpassctl: forbidden: no\\n\n"));

    let to = nobody().to_string();
    let ran = ctl(&["call", "x", "--to", &to], &[]);
    assert_eq!((ran.exit, ran.err), (Exit::NotRunning, format!("fdpassctl: nothing listens at {to}\n")));
}

#[test]
fn wrong_usage_is_64_and_help_is_not_wrong() {
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
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Usage, ""), "{arguments:?}");
        assert!(!ran.err.is_empty());
    }
    for arguments in [&["--help"][..], &["--version"], &["call", "--help"]] {
        let ran = ctl(arguments, &[]);
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""), "{arguments:?}");
        assert!(ran.out.contains("fdpassctl"));
    }
}

/// A standard output that takes nothing.
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
fn a_closed_pipe_is_left_quietly_and_a_full_disk_is_not() {
    for (kind, said) in [(ErrorKind::BrokenPipe, ""), (ErrorKind::StorageFull, "fdpassctl: cannot write the result: ")]
    {
        let mut err = Vec::new();
        let exit = run(["fdpassctl", "--version"].map(OsString::from), |_| None, &mut Broken(kind), &mut err);
        assert_eq!(exit, Exit::Failed);
        let err = String::from_utf8(err).expect("UTF-8");
        assert!(err.starts_with(said) && err.is_empty() == said.is_empty(), "{err}");
    }
}
