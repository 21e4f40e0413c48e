//! Deaths of workers while requests of asynchronous methods are away: each is answered exactly, and none runs twice.

use std::collections::BTreeMap;

use fdpassd::testing::Client;
use serde_json::json;

use super::{recorded, start, wait_for_away};

#[test]
fn a_kill_with_many_requests_away_is_answered_exactly() {
    const KILLS: usize = 4;
    let listen = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]";
    let daemon = start(&format!("workers.count = 1\n{listen}"));
    let connect = |number: usize| Client::connect(&daemon.addresses()[number % 2]);
    let mut recorders: Vec<Client> = (0..24).map(connect).collect();
    let mut waiting: Vec<Client> = (0..24).map(connect).collect();
    for kill in 0..KILLS {
        for (number, client) in recorders.iter_mut().enumerate() {
            client.request("record", (format!("{kill} {number}"), 600_000));
            client.request("ping", number);
        }
        for client in &mut waiting {
            client.request("until_rerun", ());
            client.request("ping", 7);
        }
        wait_for_away(&daemon, 48);
        recorded(&daemon, 24 * (kill + 1));
        daemon.kill_worker(0);
        for (number, client) in recorders.iter_mut().enumerate() {
            let fault = client.reply().value().expect_err("it was interrupted");
            assert_eq!(fault.code(), "crashed");
            assert_eq!(client.reply().value(), Ok(json!(number)));
        }
        for client in &mut waiting {
            assert_eq!(client.reply().value(), Ok(json!(2)), "the second attempt");
            assert_eq!(client.reply().value(), Ok(json!(7)));
        }
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in recorded(&daemon, 24 * KILLS) {
        *counts.entry(line).or_default() += 1;
    }
    let all = (0..KILLS).flat_map(|kill| (0..24).map(move |number| (kill, number)));
    let expected = all.map(|(kill, number)| (format!("begun {kill} {number}"), 1));
    assert_eq!(counts, expected.collect(), "each ran once");
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (KILLS as u64, 0));
}

#[test]
fn a_request_that_ends_its_worker_is_blamed_when_it_was_alone() {
    let daemon = start("workers.count = 1");
    let mut client = daemon.connect();
    let fault = client.call("die", 3).expect_err("the worker has died");
    assert_eq!(fault.code(), "crashed");
    daemon.wait_for_log("in method \"die\" of client");
    assert_eq!(client.call("die_once", ()), Ok(json!(2)), "it runs again");
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (2, 0));
}
