//! Workers that die at each point between the handover of a request to the app and its answer. Each worker dies when it
//! reaches the point for the fourth time.

use std::collections::HashMap;
use std::thread;

use fdpassd::testing::Running;
use serde_json::json;

use super::{counted, start_process};

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

const POINTS: [(&str, Executing); 9] = [
    ("before-away", Executing::Nothing),
    ("after-away-exec", Executing::Away),
    ("before-app-write", Executing::Away),
    ("after-app-write", Executing::Away),
    ("after-app-read", Executing::Away),
    ("after-handler", Executing::AwayOrPing),
    ("before-commit", Executing::AwayOrPing),
    ("after-commit", Executing::Nothing),
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
    let mut client = daemon.connect();
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
        "workers.count = 2",
        "",
        &[],
        &[("FDPASSD_DIE_AT", &format!("{point}:4"))],
    ) else {
        return;
    };
    let daemon = &daemon;
    let is_executing = executing != Executing::Nothing;
    let replies: Replies = thread::scope(|scope| {
        let clients = if is_executing { 4 } else { 1 };
        let talks: Vec<_> = (0..clients)
            .map(|name| scope.spawn(move || talk(daemon, name, executing)))
            .collect();
        let replies = talks.into_iter().map(|talk| talk.join());
        replies
            .map(|replies| replies.expect("its checks hold"))
            .fold(Replies::default(), Replies::merge)
    });
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
