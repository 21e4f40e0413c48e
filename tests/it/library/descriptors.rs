//! Methods that fork, or close the descriptors of other clients.

use fdpassd::testing::Client;
use serde_json::{Value, json};

use crate::apps;
use crate::common::faulty;

/// A child of a method that neither executes a program nor exits, but returns from it.
#[test]
fn a_method_that_forks_is_answered_once() {
    let daemon =
        faulty::start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1");
    let mut clients: Vec<Client> = (0..6)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    // A child that comes back finds its parent amid the replies to others, in the buffer that both have.
    for turn in 0..6 {
        assert_eq!(
            clients[turn].call("fork", ()).expect("a result"),
            Value::Null
        );
        for round in 0..20 {
            for client in &mut clients {
                assert_eq!(client.call("ping", round).expect("a result"), round);
            }
        }
    }
    daemon.wait_for_log("a forked child returned to the worker that its parent is");
    let status = daemon.status();
    assert_eq!(
        (status.clients, status.deaths_total, status.lost_total),
        (6, 0, 0)
    );
    let requests: u64 = status
        .workers
        .iter()
        .map(|worker| worker.requests_total)
        .sum();
    assert_eq!(requests, 726);
}

/// The second close(2) of a double close: it hits what has the number by then.
#[test]
fn clients_survive_a_method_that_closes_their_descriptors() {
    for how in ["", "file", "socket"] {
        for listen in ["127.0.0.1:0", "unix:{dir}/rpc.sock"] {
            let daemon = faulty::start(&format!("listen = [\"{listen}\"]\nworkers.count = 1"));
            let mut clients: Vec<Client> = (0..12).map(|_| daemon.connect()).collect();
            for client in &mut clients {
                assert_eq!(client.call("ping", 0).expect("a result"), 0);
            }
            // Of all, its caller included, and then of some others.
            for count in [12, 5] {
                let mut caller = clients.pop().expect("there are many");
                assert_eq!(
                    caller.call("close_others", (how, count)).expect("a result"),
                    Value::Null,
                    "{how} {listen}"
                );
                for round in 0..3 {
                    for client in clients.iter_mut().chain([&mut caller]) {
                        assert_eq!(
                            client.call("ping", round).expect("a result"),
                            round,
                            "{how} {listen}"
                        );
                    }
                }
            }
            let status = daemon.wait_until("the callers have left", |status| status.clients == 10);
            assert_eq!(
                (status.deaths_total, status.lost_total),
                (2, 0),
                "{how} {listen}"
            );
        }
    }
}

/// The same by a function that is not a method, in a daemon whose requests an app executes.
#[test]
fn an_app_executes_nothing_that_came_by_a_foreign_descriptor() {
    let Some((daemon, switch)) = apps::start_without_methods() else {
        return;
    };
    let mut client = daemon.connect();
    assert_eq!(client.call("count", "first"), Ok(json!("first")));
    switch.set("{\"in\":\"count\",\"params\":\"foreign\"}");
    daemon.wait_until("the function has run", |_| !switch.is_set());
    assert_eq!(client.call("count", "second"), Ok(json!("second")));
    assert_eq!(client.call("count", "third"), Ok(json!("third")));
    assert_eq!(apps::counted(&daemon, 3), ["first", "second", "third"]);
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (1, 0));
}

/// A client whose descriptor was closed gets no reply of the next client with that number.
#[test]
fn a_reused_descriptor_number_mixes_up_no_clients() {
    let daemon = faulty::start("workers.count = 1");
    let [mut first, mut caller] = [daemon.connect(), daemon.connect()];
    for client in [&mut first, &mut caller] {
        assert_eq!(client.call("ping", 0).expect("a result"), 0);
    }
    assert_eq!(
        caller.call("close_others", ("", 1)).expect("a result"),
        Value::Null
    );
    let mut next = daemon.connect();
    first.request("ping", "first");
    next.request("ping", "next");
    for (client, words) in [
        (&mut first, "first"),
        (&mut next, "next"),
        (&mut caller, "caller"),
    ] {
        if words == "caller" {
            client.request("ping", words);
        }
        assert_eq!(client.reply().value().expect("a result"), words);
    }
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (1, 0));
}
