//! Deaths of workers while requests of asynchronous methods are away: each is answered exactly, and none runs twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fdpassd::testing::Client;
use serde_json::json;

use super::{recorded, start, start_with, wait_for_away};
use crate::common::{ping_of, pong_of};

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

/// Workers die amid a write to a client of a Unix socket, for which the kernel's account of the loop's thread is used.
#[test]
fn what_futures_write_is_not_counted_as_written_to_a_client() {
    let config = "workers.count = 2\nlisten = [\"unix:{dir}/rpc.sock\"]";
    let daemon = start_with(config, &[("FDPASSD_DIE_AT", "amid-write:5")]);
    let is_over = AtomicBool::new(false);
    let write = || {
        let mut client = daemon.connect();
        while !is_over.load(Ordering::Relaxed) {
            if let Err(fault) = client.call("write", 100) {
                assert_eq!(fault.code(), "crashed");
            }
        }
    };
    let ping = &|number: usize| {
        let mut client = daemon.connect();
        for round in 0..30 {
            let length = 20_000 * (number + 1) + round;
            client.send_frame(ping_of(length));
            assert!(client.receive() == pong_of(length), "{length} bytes");
        }
    };
    thread::scope(|scope| {
        let writers = [scope.spawn(write), scope.spawn(write)];
        let pings: Vec<_> = (0..3)
            .map(|number| scope.spawn(move || ping(number)))
            .collect();
        let pings: Vec<_> = pings.into_iter().map(|ping| ping.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        for result in pings.into_iter().chain(writers.map(|writer| writer.join())) {
            result.expect("each reply is whole");
        }
    });
    let status = daemon.status();
    assert!(status.deaths_total >= 5, "{} deaths", status.deaths_total);
    assert_eq!(status.lost_total, 0);
}
