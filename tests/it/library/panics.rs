//! Methods that panic, and the state of their worker.

use fdpassd::testing::Client;

use crate::common::faulty::{self, whoami};

#[test]
fn a_panic_is_answered_with_crashed_and_rebuilds_the_state() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let mut other = daemon.connect();
    let first = whoami(&mut client);
    assert_eq!(whoami(&mut other).calls, 2);
    let fault = client.call("panic", "on purpose").expect_err("it panics");
    assert_eq!(
        fault.to_string(),
        "crashed: the method crashed while it ran this request"
    );
    for (client, calls) in [(&mut client, 1), (&mut other, 2)] {
        let then = whoami(client);
        assert_eq!(
            (then.worker, then.pid, then.calls),
            (first.worker, first.pid, calls)
        );
    }
    daemon.wait_for_log("method \"panic\" panicked at ");
    daemon.wait_for_log(": on purpose; the state is created again");
    let status = daemon.status();
    assert_eq!((status.errors_total, status.workers[0].restarts), (1, 0));
}

#[test]
fn a_panic_amid_pipelined_requests_fails_only_its_own() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    for i in 0..50 {
        client.request("anything", i);
        client.request("panic", "again");
    }
    for i in 0..50 {
        assert_eq!(client.reply().value().expect("a result"), i);
        assert_eq!(
            client.reply().value().expect_err("a panic").code(),
            "crashed"
        );
    }
}

#[test]
fn a_state_that_cannot_be_rebuilt_ends_the_worker() {
    let daemon =
        faulty::start_with("fail-again", "workers.count = 1").expect("the first state is made");
    let mut clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    let first = whoami(&mut clients[0]);
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.call("ping", 1).expect("a result"), 1));
    let fault = clients[0].call("panic", "for good").expect_err("it panics");
    assert_eq!(fault.code(), "crashed");
    for client in &mut clients[1..] {
        let then = whoami(client);
        assert_ne!((then.worker, then.pid), (first.worker, first.pid));
    }
    daemon.wait_for_log("exited with status 70: the model is gone");
}

#[test]
fn the_old_state_is_dropped_before_the_new_one_is_made() {
    let daemon = faulty::start_with("lock", "workers.count = 1").expect("it serves");
    let mut client = daemon.connect();
    let first = whoami(&mut client);
    for _ in 0..3 {
        let fault = client.call("panic", "again").expect_err("it panics");
        assert_eq!(fault.code(), "crashed");
        let then = whoami(&mut client);
        assert_eq!((then.pid, then.calls), (first.pid, 1));
    }
}

#[test]
fn a_panic_of_another_thread_is_logged_with_its_name() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let first = whoami(&mut client);
    let panicked = client.call("panic_elsewhere", "over there");
    assert_eq!(panicked.expect("a result"), true);
    daemon.wait_for_log("error thread \"fetcher\" panicked at examples/faulty.rs:");
    daemon.wait_for_log(": over there");
    // Neither the request nor the state is affected.
    assert_eq!(whoami(&mut client).calls, first.calls + 1);
}
