//! The end: graceful, late and at once.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, TIMEOUT, eventually};

use crate::common::faulty::{self, Execution, whoami};
use crate::common::program::{Program, control_socket, ctl, ctl_command, short_timeout};
use crate::common::{frame, let_pass, start};

/// The default of `limits.drain-timeout`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn requests_sent_before_the_end_are_answered() {
    for signal in ["TERM", "INT"] {
        let mut daemon =
            faulty::start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1");
        let mut idle = daemon.connect();
        whoami(&mut idle);
        let mut halfway = daemon.connect();
        let whole = halfway.frame("{\"in\":\"ping\"}");
        halfway.send([&whole[..], &whole[..9]].concat());
        assert_eq!(halfway.reply().name, "pong");
        // Bytes sent over a Unix socket have arrived; TCP may still have them on the way, even on one machine.
        let mut pipelining = Client::connect(&daemon.addresses()[1]);
        whoami(&mut pipelining);
        let execution = Execution::start(&daemon);
        (0..50).for_each(|i| pipelining.request("ping", i));

        daemon.signal(signal);
        daemon.wait_until("the daemon is stopping", |status| status.stopping);
        expect_refused(daemon.address());
        execution.finish().expect_end();
        for i in 0..50 {
            assert_eq!(pipelining.reply().value().expect("a result"), i);
        }
        pipelining.expect_end();
        idle.expect_end();
        assert_eq!(
            halfway
                .reply()
                .value()
                .expect_err("a frame that never came")
                .code(),
            "shutting_down"
        );
        halfway.expect_end();
        assert_eq!(daemon.wait().code(), Some(0), "{signal}");
    }
}

#[test]
fn idle_workers_end_their_clients_while_another_still_executes() {
    let mut daemon = faulty::start(
        "workers = { count = 2, dispatch = \"round-robin\" }\nlimits.stall-timeout = \"1h\"",
    );
    daemon.wait_for_workers();
    let mut caller = daemon.connect();
    let busy = whoami(&mut caller).seat;
    let mut clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    clients.retain_mut(|client| whoami(client).seat != busy);
    assert_eq!(clients.len(), 5);
    let execution = Execution::start_by(&daemon, caller);
    daemon.signal("TERM");
    clients.iter_mut().for_each(Client::expect_end);
    daemon.wait_until("the idle worker is gone", |status| {
        status.workers.iter().filter_map(|w| w.pid).count() == 1
    });
    execution.finish().expect_end();
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn the_files_of_its_sockets_are_removed() {
    let mut daemon = start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]");
    let files = [daemon.directory().join("rpc.sock"), control_socket(&daemon)];
    assert!(files.iter().all(|file| file.exists()));
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!files.iter().any(|file| file.exists()));
}

#[test]
fn a_worker_that_does_not_finish_in_time_is_killed() {
    let mut daemon = faulty::start("workers.count = 2\nlimits.drain-timeout = \"1s\"");
    let mut stuck = spin(&daemon);
    let begin = Instant::now();
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(0));
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(1), "it took {took:?}");
    assert!(took < DRAIN_TIMEOUT, "{took:?} is as long as by default");
    stuck.expect_end();
    daemon.wait_for_log("did not finish in time; killing it");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for second in ["TERM", "INT"] {
        let mut daemon = faulty::start("workers.count = 2\nlimits.drain-timeout = \"1h\"");
        let mut stuck = spin(&daemon);
        daemon.signal("TERM");
        daemon.wait_until("the daemon is stopping", |status| status.stopping);
        // One that comes sooner counts as the same, by a clock that stands still while the master cannot run.
        let sentence = format!("SIG{second} again: killing the workers that are left");
        eventually("the second signal has an effect", || {
            let_pass(Duration::from_millis(250));
            let is_logged = daemon.stderr().contains(&sentence);
            if !is_logged {
                daemon.signal(second);
            }
            is_logged.then_some(())
        });
        assert_eq!(daemon.wait().code(), Some(0));
        stuck.expect_end();
    }
}

#[test]
fn a_stop_waits_for_the_end_and_reports_it() {
    let mut daemon = faulty::start("workers.count = 1");
    let execution = Execution::start(&daemon);
    let mut stop = Program::start(&mut ctl_command(&daemon, &["stop"]));
    daemon.wait_until("the daemon is stopping", |status| status.stopping);
    assert!(stop.is_running());
    execution.finish().expect_end();
    let said = stop.finish();
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("faulty (pid {}) stopped\n", daemon.pid())),
        "{}",
        said.err
    );
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(ctl(&daemon, &["stop"]).code, Some(3));
}

#[test]
fn a_stop_reports_killed_workers() {
    // An idle worker would have as little time to end, and so would a substitute for a stuck one.
    let limits = "{ drain-timeout = \"200ms\", stall-timeout = \"1h\" }";
    let mut daemon = faulty::start(&format!("workers.count = 1\nlimits = {limits}"));
    let _stuck = spin(&daemon);
    let said = ctl(&daemon, &["stop"]);
    let sentence = format!(
        "faulty (pid {}) stopped; killed 1 worker that did not finish in time\n",
        daemon.pid()
    );
    assert_eq!((said.code, said.out), (Some(0), sentence), "{}", said.err);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_stop_continues_without_its_requester() {
    let mut daemon = faulty::start("workers.count = 1");
    let execution = Execution::start(&daemon);
    let timeout = short_timeout(&daemon);
    let said = ctl(&daemon, &["stop", "--quiet", "--timeout", &timeout]);
    assert_eq!((said.code, said.out.as_str()), (Some(75), ""));
    let still = format!(
        "fdpassctl: faulty (pid {}) is still stopping; it continues, ",
        daemon.pid()
    );
    assert!(said.err.starts_with(&still), "{}", said.err);
    execution.finish().expect_end();
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn two_stops_at_once_are_both_answered() {
    let mut daemon = faulty::start("workers.count = 1");
    let execution = Execution::start(&daemon);
    let first = Program::start(&mut ctl_command(&daemon, &["stop"]));
    daemon.wait_until("the daemon is stopping", |status| status.stopping);
    let mut second = Client::connect(&Address::Unix(control_socket(&daemon)));
    second.send_frame("{\"in\":\"stop\"}");
    assert!(
        daemon.status().stopping,
        "who asks later is answered later, so the second one is heard now"
    );
    execution.finish().expect_end();
    let stopped = second.reply().value().expect("it is stopped");
    assert_eq!(
        stopped,
        serde_json::json!({"pid": daemon.pid(), "killed": 0})
    );
    second.expect_end();
    assert_eq!(first.finish().code, Some(0));
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_daemon_can_be_stopped_while_its_workers_start() {
    let config = "workers.count = 2\nlimits.drain-timeout = \"1h\"";
    let mut daemon = faulty::start_with("hang:1", config).expect("the other worker serves");
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn two_sigterms_at_once_are_one() {
    let together = (0..60).any(|_| {
        let mut daemon = faulty::start("workers.count = 1\nlimits.drain-timeout = \"20s\"");
        daemon.wait_for_workers();
        let mut execution = Execution::start(&daemon);
        // As timeout(1) does: to its child, then to its group. The daemon has taken the first one by then.
        let begin = Instant::now();
        daemon.signal("TERM");
        let_pass(Duration::from_millis(30));
        daemon.signal("TERM");
        // An answer comes from an iteration of the loop; the second comes from one after the signal.
        (0..2).for_each(|_| wait_for_answer_or_end(&daemon));
        if begin.elapsed() > Duration::from_millis(180) {
            // Two signals count as one within 200 ms, which a busy machine has exceeded: another try.
            return false;
        }
        execution.let_go();
        let reply = execution.into_client().reply().value();
        assert!(reply.is_ok(), "the reply comes: {}", daemon.stderr());
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

/// Returns when the daemon has answered a control client, or has ended.
fn wait_for_answer_or_end(daemon: &Running) {
    let Ok(mut control) = UnixStream::connect(control_socket(daemon)) else {
        return;
    };
    let timeout = control.set_read_timeout(Some(TIMEOUT));
    timeout.expect("a socket takes a timeout");
    let sent = control.write_all(&frame("{\"in\":\"version\"}"));
    let _ = sent.and_then(|()| control.read_exact(&mut [0; 4]));
}

/// A client whose request never ends.
#[track_caller]
fn spin(daemon: &Running) -> Client {
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    client.request("spin", u64::MAX);
    daemon.wait_until("the request is being executed", |s| {
        s.workers.iter().any(|worker| worker.executing > 0)
    });
    client
}

#[track_caller]
fn expect_refused(address: &Address) {
    let Address::Tcp(address) = address else {
        panic!("{address} is not a TCP address")
    };
    let error = eventually("new clients are refused", || {
        TcpStream::connect(address).err()
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}
