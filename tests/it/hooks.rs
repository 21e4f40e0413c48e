//! Functions of a daemon that no request calls, and what a method knows of its caller's connection.

mod health;

use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use crate::common::faulty::{self, whoami};

fn id(client: &mut Client) -> u64 {
    whoami(client).client
}

fn keep(client: &mut Client, panics: bool) {
    let kept = client.call("keep", panics);
    assert_eq!(kept.expect("a result"), Value::Null);
}

#[track_caller]
fn wait_for_kept(client: &mut Client, expected: &[u64]) {
    eventually("the state forgets those that have left", || {
        let kept = client.call("kept", ()).expect("a result");
        (kept == json!(expected)).then_some(())
    });
}

#[test]
fn a_state_is_notified_of_clients_that_have_left() {
    let daemon =
        faulty::start("workers.count = 1\nlisten = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]");
    let mut stays = daemon.connect();
    keep(&mut stays, false);
    let mut leaving: Vec<Client> = (0..20)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    let first = id(&mut stays);
    let mut kept = vec![first];
    for client in &mut leaving {
        keep(client, false);
        kept.push(id(client));
    }
    kept.sort_unstable();
    wait_for_kept(&mut stays, &kept);
    drop(leaving);
    wait_for_kept(&mut stays, &[first]);
}

#[test]
fn a_state_is_notified_of_clients_that_move() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    keep(&mut client, false);
    let (number, before) = (id(&mut client), whoami(&mut client).worker);
    let held = daemon.ctl_with("hold", json!({ "worker": before }));
    held.expect("it is held");
    daemon.wait_for_log(&format!("worker {before} forgets client {number}"));
    eventually("it is served by another worker", || {
        (whoami(&mut client).worker != before).then_some(())
    });
    wait_for_kept(&mut client, &[]);
    // The next state knows nothing of it, and the last one was notified once.
    keep(&mut client, false);
    let released = daemon.ctl_with("release", json!({ "worker": before }));
    released.expect("it is released");
    drop(client);
    let after = format!("forgets client {number}");
    eventually("the next worker forgets it, too", || {
        (daemon.stderr().matches(&after).count() == 2).then_some(())
    });
}

#[test]
fn a_panic_in_on_close_rebuilds_the_state() {
    let daemon = faulty::start("workers.count = 1");
    let [mut stays, mut leaves] = [daemon.connect(), daemon.connect()];
    let first = whoami(&mut stays);
    keep(&mut stays, false);
    keep(&mut leaves, true);
    drop(leaves);
    daemon.wait_for_log("error on_close panicked at examples/faulty.rs:");
    daemon.wait_for_log(": it cannot forget; the state is created again");
    wait_for_kept(&mut stays, &[]);
    let then = whoami(&mut stays);
    assert_eq!((then.pid, then.calls), (first.pid, 1));
}

#[test]
fn a_method_knows_when_its_caller_has_left() {
    for listen in ["127.0.0.1:0", "unix:{dir}/rpc.sock"] {
        let daemon = faulty::start(&format!("workers.count = 1\nlisten = [\"{listen}\"]"));
        let mut client = daemon.connect();
        let number = id(&mut client);
        // TCP distinguishes an end from a half-close only by a reset.
        let method = match listen.starts_with("unix") {
            true => "until_left",
            false => "until_half_closed",
        };
        client.request(method, ());
        eventually("it is executing", || {
            let executing = daemon.status().workers[0].executing == 1;
            executing.then_some(())
        });
        drop(client);
        daemon.wait_for_log(&format!("client {number} "));
        assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
    }
}

#[test]
fn a_client_that_half_closes_is_connected() {
    for listen in ["127.0.0.1:0", "unix:{dir}/rpc.sock"] {
        let daemon: Running = faulty::start(&format!("listen = [\"{listen}\"]"));
        let mut client = daemon.connect();
        client.request("until_half_closed", ());
        client.finish();
        assert_eq!(client.reply().value().expect("a result"), true, "{listen}");
    }
}
