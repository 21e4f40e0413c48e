//! Drain and undrain with `--queue`: new clients wait, and those that are there are served.

use std::time::Duration;

use fdpassd::proto::control::Status;
use fdpassd::testing::{Client, Running};
use serde_json::json;

use crate::common::load::Load;
use crate::common::program::{Program, ctl, ctl_command, short_timeout};
use crate::common::{kernel, let_pass, ping_all, start};

use super::{BOTH, end};

#[test]
fn a_drained_daemon_serves_only_existing_clients() {
    let daemon = start(&format!("{BOTH}workers.count = 2"));
    daemon.wait_for_workers();
    let load = Load::start(&daemon, 4, 4);
    load.wait_for(1);
    let said = ctl(&daemon, &["drain", "--queue"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (
            Some(0),
            "new clients are not accepted; 4 clients are still connected\n"
        )
    );
    let knock = || -> Vec<Client> {
        let mut waiting: Vec<Client> = (0..10)
            .map(|i| Client::connect(&daemon.addresses()[i % 2]))
            .collect();
        waiting
            .iter_mut()
            .zip(0..)
            .for_each(|(client, i)| client.request("ping", i));
        waiting
    };
    let mut waiting = knock();
    // Neither workers that come nor those that go open the door.
    assert_eq!(ctl(&daemon, &["recycle", "all"]).code, Some(0));
    assert_eq!(ctl(&daemon, &["scale", "3"]).code, Some(0));
    let_pass(Duration::from_millis(300));
    load.wait_for(20);
    let status = daemon.status();
    assert_eq!((status.accepted_total, status.clients), (4, 4));
    assert_eq!(
        (status.drained, status.paused.as_deref()),
        (true, Some("the daemon is drained"))
    );
    assert_eq!(status.listeners[0].queue, Some(5));
    assert!(!waiting.iter_mut().any(Client::has_something));
    let said = ctl(&daemon, &["undrain"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "clients are accepted again\n")
    );
    assert!(!daemon.status().drained);
    for (client, i) in waiting.iter_mut().zip(0..) {
        assert_eq!(client.reply().value().expect("a result"), i);
    }
    ping_all(&mut knock());
    load.wait_for(20);
    end(&daemon, load, 10);
}

#[test]
fn a_listener_that_a_reload_brings_is_drained_like_the_others() {
    let daemon = start("workers.count = 1");
    assert_eq!(ctl(&daemon, &["drain", "--queue"]).code, Some(0));
    daemon
        .reload_with("listen = [\"127.0.0.1:0\", \"unix:{dir}/new.sock\"]\nworkers.count = 1")
        .expect("it is applied");
    let mut waiting: Vec<Client> = addresses(&daemon)
        .iter()
        .map(|address| Client::connect(address))
        .collect();
    assert_eq!(waiting.len(), 2);
    waiting
        .iter_mut()
        .for_each(|client| client.request("ping", 1));
    let_pass(Duration::from_millis(300));
    assert_eq!(daemon.status().accepted_total, 0);
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    for client in &mut waiting {
        assert_eq!(client.reply().value().expect("a result"), 1);
    }
}

#[test]
fn drain_wait_ends_with_the_last_client() {
    let daemon = start("workers.count = 2");
    let (mut first, second) = (daemon.connect(), daemon.connect());
    daemon.wait_until("both are there", |status| status.clients == 2);
    let mut drain = Program::start(&mut ctl_command(&daemon, &["drain", "--wait", "--queue"]));
    daemon.wait_until("it is drained", |status| {
        status.paused.as_deref() == Some("the daemon is drained")
    });
    drop(second);
    daemon.wait_until("one has left", |status| status.clients == 1);
    assert_eq!(first.call("ping", 1).expect("a result"), 1);
    let mut waiting = daemon.connect();
    waiting.request("ping", 2);
    let_pass(Duration::from_millis(200));
    assert!(drain.is_running(), "one client is there");
    drop(first);
    let said = drain.finish();
    assert_eq!(
        (said.code, said.out.as_str()),
        (
            Some(0),
            "new clients are not accepted; the last client has left\n"
        )
    );
    assert!(!waiting.has_something(), "it goes on being drained");
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    assert_eq!(waiting.reply().value().expect("a result"), 2);
    // Those who wait for it and give up leave it as it is; with --timeout that has a code of its own.
    let timeout = short_timeout(&daemon);
    let said = ctl(&daemon, &["drain", "--wait", "--timeout", &timeout]);
    assert_eq!(said.code, Some(75), "{}", said.err);
    daemon.wait_until("it is drained", |status| {
        status.paused.as_deref() == Some("the daemon is drained")
    });
}

#[test]
fn a_request_is_carried_out_after_its_client_has_hung_up() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    kernel::stop(daemon.pid());
    drop(daemon.ctl_request("drain", json!({ "wait": true })));
    drop(daemon.ctl_request("scale", json!({ "count": 2 })));
    daemon.signal("CONT");
    let is_drained = |status: &Status| status.paused.as_deref() == Some("the daemon is drained");
    daemon.wait_until("both are done", |status| {
        is_drained(status) && status.workers.len() == 2
    });
}

#[test]
fn an_undrain_answers_a_pending_drain() {
    let daemon = start("workers.count = 1");
    let mut client = daemon.connect();
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
    let drain = Program::start(&mut ctl_command(&daemon, &["drain", "--wait"]));
    daemon.wait_until("it is drained", |status| {
        status.paused.as_deref() == Some("the daemon is drained")
    });
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    let said = drain.finish();
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(
        said.err.contains("refused: clients are accepted again"),
        "{}",
        said.err
    );
}

#[track_caller]
fn addresses(daemon: &Running) -> Vec<fdpassd::proto::names::Address> {
    let parse = |address: &String| address.parse().expect("an address");
    daemon
        .status()
        .listeners
        .iter()
        .map(|listener| parse(&listener.address))
        .collect()
}
