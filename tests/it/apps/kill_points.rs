//! Workers that die at each point between the handover of a request to the app and its answer. Each worker dies when it
//! reaches the point for the fourth time.

use std::collections::HashMap;
use std::thread;

use fdpassd::proto::frame::ByteOrder;
use fdpassd::testing::{Client, Running};
use serde_json::json;

use super::{counted, start_process};

/// Clients of TCP and Unix sockets, with both byte orders.
const LISTEN: &str = "workers.count = 2\n\
    listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/big.sock\", byte-order = \"big\" }, \
    { address = \"127.0.0.1:0\", byte-order = \"auto\" }, { address = \"unix:{dir}/auto.sock\", byte-order = \"auto\" }]";

/// The byte orders of its clients.
const ORDERS: [ByteOrder; 4] = [
    ByteOrder::Little,
    ByteOrder::Big,
    ByteOrder::Big,
    ByteOrder::Little,
];

const ROUNDS: usize = 6;

/// The requests that are executing when a worker dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Executing {
    /// None. Such a point is tested with one client, because the requests of other clients would be executing.
    Nothing,
    /// Requests that are away.
    Away,
    /// The same, and the built-in ping if it is the request that reaches the point.
    AwayOrPing,
}

const POINTS: [(&str, Executing); 14] = [
    ("after-claim", Executing::Away),
    ("amid-parking", Executing::Nothing),
    ("after-parking", Executing::Nothing),
    ("before-away", Executing::Nothing),
    ("after-away-exec", Executing::Away),
    ("before-app-write", Executing::Away),
    ("after-app-write", Executing::Away),
    ("before-end", Executing::Away),
    ("after-app-read", Executing::Away),
    ("after-handler", Executing::AwayOrPing),
    ("before-commit", Executing::AwayOrPing),
    ("after-commit", Executing::Nothing),
    ("after-answered", Executing::Nothing),
    ("after-write", Executing::Nothing),
];

/// The replies of all clients.
#[derive(Default)]
struct Replies {
    /// By their numbers, whether counting requests had a result.
    results: HashMap<String, bool>,
    /// Pings that two deaths have hit.
    crashed_pings: u64,
}

impl Replies {
    fn merge(mut self, other: Replies) -> Replies {
        self.results.extend(other.results);
        self.crashed_pings += other.crashed_pings;
        self
    }
}

/// Sends requests of each kind and checks the replies.
fn talk(daemon: &Running, name: usize, executing: Executing) -> Replies {
    let mut client = Client::connect(&daemon.addresses()[name]).in_order(ORDERS[name]);
    let mut replies = Replies::default();
    for round in 0..ROUNDS {
        let number = format!("{name}.{round}");
        let long = format!("{number} {}", "z".repeat(60_000));
        client.request("count", &number);
        client.request("echo", &long);
        client.request("ping", &number);
        let is_result = match client.reply().value() {
            Ok(result) => result == json!(number),
            Err(fault) => {
                assert_eq!(fault.code(), "crashed");
                false
            }
        };
        replies.results.insert(number.clone(), is_result);
        // Two deaths may hit an idempotent request if it is executing at both.
        match client.reply().value() {
            Ok(result) => assert!(result == json!(long)),
            Err(fault) => {
                assert!(executing != Executing::Nothing, "{fault}");
                assert_eq!(fault.code(), "crashed");
            }
        }
        match client.reply().value() {
            Ok(result) => assert!(result == json!(number)),
            Err(fault) => {
                assert!(executing == Executing::AwayOrPing, "{fault}");
                assert_eq!(fault.code(), "crashed");
                replies.crashed_pings += 1;
            }
        }
    }
    client.finish();
    client.expect_end();
    replies
}

#[test]
fn requests_run_at_most_once_wherever_their_worker_dies() {
    thread::scope(|scope| {
        for (point, executing) in POINTS {
            scope.spawn(move || check(point, executing));
        }
    });
}

fn check(point: &str, executing: Executing) {
    let Some(daemon) = start_process(
        LISTEN,
        "",
        &[],
        &[("FDPASSD_DIE_AT", &format!("{point}:4"))],
    ) else {
        return;
    };
    let daemon = &daemon;
    let is_executing = executing != Executing::Nothing;
    let replies: Replies = if is_executing {
        thread::scope(|scope| {
            let talks: Vec<_> = (0..ORDERS.len())
                .map(|name| scope.spawn(move || talk(daemon, name, executing)))
                .collect();
            let replies = talks.into_iter().map(|talk| talk.join());
            replies
                .map(|replies| replies.expect("its checks hold"))
                .fold(Replies::default(), Replies::merge)
        })
    } else {
        // One after the other, of TCP and of a Unix socket.
        let replies = (0..2).map(|name| talk(daemon, name, executing));
        replies.fold(Replies::default(), Replies::merge)
    };
    let results = replies.results;
    let with_result = results.values().filter(|is_result| **is_result).count();
    let lines = counted(daemon, with_result);
    for (number, is_result) in &results {
        let count = lines.iter().filter(|line| *line == number).count();
        assert!(count <= 1, "{point}: {number} was executed {count} times");
        assert!(
            count == 1 || !is_result,
            "{point}: {number} has a result and was not executed"
        );
        assert!(
            *is_result || is_executing,
            "{point}: {number} has no result"
        );
    }
    let status = daemon.status();
    assert!(status.deaths_total > 0, "{point}: no worker has died");
    // A death hits one ping at most: the request at which the worker dies.
    let (crashed_pings, deaths) = (replies.crashed_pings, status.deaths_total);
    assert!(
        2 * crashed_pings <= deaths,
        "{point}: {crashed_pings} pings are crashed by {deaths} deaths"
    );
    assert_eq!(status.lost_total, 0, "{point}");
}

/// The worker is replaced, and dies as soon as it has given up the lease of a client.
#[test]
fn a_death_in_retirement_ends_what_is_away() {
    let die = ("FDPASSD_DIE_AT", "in-retirement:1");
    let config = LISTEN.replace("workers.count = 2", "workers.count = 1");
    let Some(daemon) = start_process(&config, "", &[], &[die]) else {
        return;
    };
    let end = daemon.directory().join("end");
    let connect = |name: usize| Client::connect(&daemon.addresses()[name]).in_order(ORDERS[name]);
    let mut once = connect(1);
    once.request("until_exists", (&end, "once"));
    let mut again = connect(2);
    again.request("idempotent_until_exists", (&end, "again"));
    counted(&daemon, 2);
    let mut idle: Vec<Client> = (0..ORDERS.len()).map(connect).collect();
    crate::common::ping_all(&mut idle);
    let mut recycling = daemon.ctl_request("recycle", ());
    let fault = once.reply().value().expect_err("it was executing");
    assert_eq!(fault.code(), "crashed");
    assert_eq!(counted(&daemon, 3)[2], "again");
    crate::common::ping_all(&mut idle);
    std::fs::write(&end, "").expect("it is ours");
    assert_eq!(again.reply().value(), Ok(json!("again")));
    for (number, client) in idle.iter_mut().enumerate() {
        assert_eq!(client.call("count", number), Ok(json!(number)));
    }
    // The worker is gone in any case.
    let _ = recycling.reply();
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (6, 0));
    assert_eq!((status.errors_total, status.reruns_total), (1, 1));
    assert_eq!(counted(&daemon, 7).len(), 7);
}
