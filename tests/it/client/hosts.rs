//! Two daemons: what one of them does not serve any more, the other one does.

use std::fs;
use std::thread;

use fdpassd::client::Error;
use fdpassd::testing::Running;
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
    let (mut first, second) = (
        faulty::start("workers.count = 1"),
        faulty::start("workers.count = 1"),
    );
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
