//! Two daemons: what one of them does not serve any more, the other one does.

use std::fs;
use std::thread;

use fdpassd::client::{ClientRequest, Error};
use fdpassd::testing::{Running, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::crowd::Crowd;
use super::{client, options};
use crate::common::faulty;
use crate::common::fifo::Fifo;
use crate::common::program::ctl;
use crate::common::start;

#[test]
fn calls_continue_at_the_other_daemon_when_one_stops() {
    let (mut first, second) = (start("workers.count = 1"), start("workers.count = 1"));
    let client = client(&[&first, &second], options());
    let crowd = Crowd::start(&client);
    crowd.wait_for(200);
    assert_eq!(client.address(), Some(first.address().to_string()));
    first.ctl("stop").expect("it stops");
    first.wait();
    crowd.wait_for(200);
    crowd.finish();
    assert_eq!(client.address(), Some(second.address().to_string()));
}

#[test]
fn a_stop_executes_each_request_at_most_once() {
    let (mut first, second) = (
        faulty::start("workers.count = 1"),
        faulty::start("workers.count = 1"),
    );
    let client = client(&[&first, &second], options());
    let path = second.directory().join("lines");
    let count = |line: &str| client.call::<()>("count", (&path, line));
    count("0").expect("the first daemon executes it");
    first.ctl("stop").expect("it stops");
    first.wait();
    count("1").expect("the second daemon executes it");
    assert_eq!(client.address(), Some(second.address().to_string()));
    assert_eq!(fs::read_to_string(&path).expect("lines"), "0\n1\n");
}

#[test]
fn a_drained_daemon_keeps_its_clients_and_no_other() {
    let (first, second) = (start(""), start(""));
    let old = client(&[&first, &second], options());
    let new = client(&[&first, &second], options());
    assert_eq!(old.call::<u32>("ping", 1).expect("a pong"), 1);
    let said = ctl(&first, &["drain"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    first.wait_until("its listeners refuse clients", |status| {
        status.listeners.iter().all(|listener| listener.refuses)
    });
    assert_eq!(old.call::<u32>("ping", 2).expect("a pong"), 2);
    assert_eq!(new.call::<u32>("ping", 3).expect("a pong"), 3);
    assert_eq!(old.address(), Some(first.address().to_string()));
    assert_eq!(new.address(), Some(second.address().to_string()));
}

#[test]
fn clients_of_a_drained_daemon_move_to_the_other() {
    let (first, second) = (start(""), start(""));
    let client = client(&[&first, &second], options());
    assert_eq!(client.call::<u32>("ping", 1).expect("a pong"), 1);
    let said = ctl(&first, &["drain", "--move", "0", "--wait"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(client.call::<u32>("ping", 2).expect("a pong"), 2);
    assert_eq!(client.address(), Some(second.address().to_string()));
}

#[test]
fn a_polite_end_amid_many_requests_costs_none() {
    for verb in ["drain", "stop"] {
        let daemons = [
            faulty::start("workers.count = 1"),
            faulty::start("workers.count = 1"),
        ];
        let [first, second] = &daemons;
        let client = client(&[first, second], options());
        let path = second.directory().join("lines");
        let other = Some(second.address().to_string());
        // Sends requests until they are executed by the other daemon. Returns their number.
        let call = || {
            let mut sent = 0;
            while client.address() != other {
                let requests = (sent..sent + 100).map(|number| {
                    ClientRequest::new("count", (&path, number.to_string())).idempotent(false)
                });
                for outcome in client.call_all(requests) {
                    outcome.expect("it is executed");
                }
                sent += 100;
            }
            sent
        };
        let sent = thread::scope(|threads| {
            let caller = threads.spawn(call);
            eventually("some are executed", || {
                let lines = fs::read_to_string(&path).unwrap_or_default();
                (lines.lines().count() >= 20).then_some(())
            });
            match verb {
                "drain" => first.ctl_with("drain", json!({ "move": 0 })),
                _ => first.ctl("stop"),
            }
            .expect("it is done");
            caller.join().expect("no panic")
        });
        let executed = fs::read_to_string(&path).expect("lines");
        let lines: Vec<String> = (0..sent).map(|number: u32| number.to_string()).collect();
        assert!(
            executed.lines().eq(&lines),
            "{verb}: each once, in their order"
        );
    }
}

#[test]
fn a_client_that_was_idle_for_too_long_connects_again() {
    let daemon = faulty::start("limits.idle-timeout = \"2s\"");
    let client = client(&[&daemon], options());
    let path = daemon.directory().join("lines");
    for n in 0..3 {
        client
            .call::<()>("count", (&path, n.to_string()))
            .expect("it is counted");
        daemon.wait_until("the client was closed", |status| status.clients == 0);
    }
    assert_eq!(fs::read_to_string(&path).expect("lines"), "0\n1\n2\n");
}

/// Kills all processes of a daemon while it executes this method, which waits for a line. Returns the outcome.
fn killed(method: &'static str) -> (Running, Result<String, Error>) {
    // Each has only the worker that executes the request.
    let config = "workers.count = 1\nlimits.stall-timeout = \"1h\"";
    let (mut first, second) = (faulty::start(config), faulty::start(config));
    let client = client(&[&first, &second], options());
    let mut fifo = Fifo::new(second.directory());
    let is_executing = |daemon: &Running| {
        daemon.wait_until("the request is being executed", |status| {
            status.workers.iter().any(|worker| worker.executing > 0)
        });
    };
    let outcome = thread::scope(|threads| {
        let (path, client) = (fifo.path().to_owned(), &client);
        let caller = threads.spawn(move || client.call(method, json!(path)));
        is_executing(&first);
        let workers = first.worker_pids();
        first.signal("KILL");
        first.wait();
        // Without its master, a worker executes the method to its end.
        for worker in workers {
            let worker = Pid::from_raw(worker.cast_signed());
            kill(worker, Signal::SIGKILL).expect("it executes the request");
        }
        if method == "read_line_once" {
            is_executing(&second);
            fifo.let_go();
        }
        caller.join().expect("no panic")
    });
    (first, outcome)
}

#[test]
fn an_idempotent_method_runs_again_on_another_host() {
    let (_, outcome) = killed("read_line_once");
    assert_eq!(outcome.expect("the second host executes it"), "done\n");
}

#[test]
fn another_method_does_not_run_again() {
    let (first, outcome) = killed("read_line");
    let error = outcome.expect_err("it may have run");
    assert!(matches!(error, Error::UnknownOutcome { .. }), "{error}");
    let expected = format!(
        "read_line was sent to {} and may have run: ",
        first.address()
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
}
