//! The polite end of clients whose requests an app executes.

use std::fs;

use fdpassd::testing::{Client, Running};
use serde_json::json;

use super::{BOTH, expect_goaway, ids, kick, opted_in};
use crate::apps::{counted, start_app};

/// Begins a request that an app executes until the file of this name exists, for each address.
fn begin(daemon: &Running, name: &str) -> Vec<Client> {
    let path = daemon.directory().join(name);
    let addresses = daemon.addresses().iter();
    let mut clients: Vec<Client> = addresses.map(opted_in).collect();
    for client in &mut clients {
        client.request("until_exists", json!([path, name]));
    }
    counted(daemon, clients.len());
    clients
}

#[test]
fn a_request_that_is_away_is_answered_before_the_goaway() {
    for how in ["kicked", "draining", "stopping"] {
        let Some(mut daemon) = start_app(&format!("{BOTH}workers.count = 1"), "") else {
            return;
        };
        let mut clients = begin(&daemon, "go");
        match how {
            "kicked" => ids(&daemon)
                .iter()
                .for_each(|id| assert!(kick(&daemon, *id))),
            "draining" => {
                let moves = json!({ "move": 0 });
                daemon.ctl_with("drain", moves).expect("it is drained");
            }
            _ => daemon.signal("TERM"),
        }
        if how == "stopping" {
            daemon.wait_until("the daemon is stopping", |status| status.stopping);
        }
        fs::write(daemon.directory().join("go"), "").expect("it is our directory");
        for client in &mut clients {
            assert_eq!(client.reply().value(), Ok(json!("go")), "{how}");
            expect_goaway(client, 2, how);
        }
        if how == "stopping" {
            assert_eq!(daemon.wait().code(), Some(0));
        }
    }
}

/// A kicked client that waits for its app has nothing executed; a client of a drained daemon keeps its place.
#[test]
fn a_client_that_waits_for_its_app_gets_a_goaway() {
    let config = format!("{BOTH}workers.count = 1\nlimits.stall-timeout = \"10m\"");
    let Some(daemon) = start_app(&config, "") else {
        return;
    };
    let path = daemon.directory().join("go");
    let mut executing: Vec<Client> = (0..8).map(|_| opted_in(daemon.address())).collect();
    for client in &mut executing {
        client.request("until_exists", json!([path, "executing"]));
    }
    counted(&daemon, 8);
    let mut kicked = opted_in(daemon.address());
    kicked.request("until_exists", json!([path, "kicked"]));
    let mut waiting = opted_in(daemon.address());
    waiting.request("until_exists", json!([path, "waiting"]));
    daemon.wait_until("two wait", |status| status.workers[0].waiting == 2);
    let id = ids(&daemon)[8];
    assert!(kick(&daemon, id));
    expect_goaway(&mut kicked, 1, "kicked");
    let drained = daemon.ctl_with("drain", json!({ "move": 0 }));
    drained.expect("it is drained");
    fs::write(&path, "").expect("it is our directory");
    for client in &mut executing {
        assert_eq!(client.reply().value(), Ok(json!("executing")));
        expect_goaway(client, 2, "draining");
    }
    assert_eq!(waiting.reply().value(), Ok(json!("waiting")));
    expect_goaway(&mut waiting, 2, "draining");
    assert!(!counted(&daemon, 9).contains(&"kicked".to_owned()));
}
