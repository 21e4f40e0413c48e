//! Workers that die at the steps of a polite end: one goaway, whole, with the right number.

use fdpassd::testing::{Client, Running, Setup};
use serde_json::{Value, json};

use super::{
    BOTH, counting, counts_of, executed, expect_closed, expect_goaway, ids, kick, opted_in,
};
use crate::common::faulty;
use crate::common::metrics::assert_counted;

fn start(point: &str, n: u32) -> Running {
    let config = format!("{BOTH}workers.count = 1\n");
    let setup = Setup::new(faulty::example("faulty"), &config)
        .variable("FDPASSD_DIE_AT", format!("{point}:{n}"));
    let daemon = setup.start().expect("the daemon serves");
    daemon.wait_for_workers();
    daemon
}

/// Kicks a client, whose last frame must be whole and right. Returns the client.
#[track_caller]
fn end(daemon: &Running, index: usize, point: &str) -> Client {
    let mut client = opted_in(&daemon.addresses()[index]);
    assert_eq!(client.call("ping", point), Ok(json!(point)), "{point}");
    let id = *ids(daemon).last().expect("it is connected");
    assert!(kick(daemon, id), "{point}");
    expect_goaway(&mut client, 2, "kicked");
    client
}

/// Each worker dies when it reaches the point for the `n`-th time. The number is such that a first client gets its
/// goaway, and the worker dies at that of the second, or such that it dies at that of the first.
#[test]
fn a_death_at_a_goaway_is_not_noticed() {
    for (point, n) in [
        ("after-goaway-begins", 1),
        ("before-goaway", 2),
        ("after-goaway", 1),
        // The third write of a worker is the goaway of its first client.
        ("before-write", 3),
        ("amid-write", 3),
        ("after-write", 3),
        ("after-closed", 1),
    ] {
        for index in 0..2 {
            let daemon = start(point, n);
            drop(end(&daemon, index, point));
            daemon.wait_until("it is closed", |status| status.clients == 0);
            drop(end(&daemon, index, point));
            let status = daemon.wait_until("it is closed", |status| status.clients == 0);
            assert!(status.deaths_total > 0, "{point}: no worker died");
            assert_eq!(status.lost_total, 0, "{point}");
            expect_closed(&daemon, "kicked", 2);
            assert_counted(&daemon, 4, 0);
        }
    }
}

/// The request of which the worker dies is answered before the goaway, and counts.
#[test]
fn a_request_that_dies_is_answered_before_the_goaway() {
    for point in ["after-exec", "after-handler", "after-commit"] {
        for index in 0..2 {
            // Not the ping before it, which is inline, nor that after it.
            let daemon = start(point, 2);
            let counts = counts_of(&daemon);
            let mut client = opted_in(&daemon.addresses()[index]);
            client.send_frame(counting(&counts, "it"));
            let reply = client.reply();
            assert!(kick(&daemon, ids(&daemon)[0]), "{point}");
            let times = executed(&counts, &["it".to_owned()])[0];
            match point {
                "after-commit" => assert_eq!(reply.value(), Ok(Value::Null)),
                _ => assert_eq!(reply.value().expect_err(point).code(), "crashed"),
            }
            assert_eq!(times, usize::from(point != "after-exec"), "{point}");
            expect_goaway(&mut client, 2, "kicked");
            let status = daemon.status();
            assert_eq!((status.deaths_total, status.lost_total), (1, 0), "{point}");
        }
    }
}

/// Workers are killed while their clients get goaways: each client gets one, with the right number.
#[test]
fn kills_of_workers_amid_many_goaways_are_not_noticed() {
    let config = format!("{BOTH}workers.count = 2\n");
    let daemon = faulty::start(&config);
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..200)
        .map(|number| opted_in(&daemon.addresses()[number % 2]))
        .collect();
    for (number, client) in clients.iter_mut().enumerate() {
        for round in 0..number % 5 {
            assert_eq!(client.call("ping", round), Ok(json!(round)));
        }
    }
    daemon
        .ctl_with("drain", json!({ "move": 0.5 }))
        .expect("it is drained");
    for round in 0..4 {
        daemon.wait_for_workers();
        daemon.kill_worker(round % 2);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        expect_goaway(client, 1 + number as u64 % 5, "draining");
    }
    drop(clients);
    let status = daemon.wait_until("all have left", |status| status.clients == 0);
    assert_eq!(status.lost_total, 0);
    expect_closed(&daemon, "goaway", 200);
}
