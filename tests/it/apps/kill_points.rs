//! Workers that die at each point between the handover of a request to the app and its answer. Each worker dies when it
//! reaches the point for the fourth time.

use std::collections::HashMap;
use std::thread;

use fdpassd::testing::Running;
use serde_json::json;

use super::{counted, start_process};

const ROUNDS: usize = 6;

/// The points, and whether the request counts as executing there. A point where it does not is tested with one client,
/// because the requests of other clients would be executing.
const POINTS: [(&str, bool); 9] = [
    ("before-away", false),
    ("after-away-exec", true),
    ("before-app-write", true),
    ("after-app-write", true),
    ("after-app-read", true),
    ("after-handler", true),
    ("before-commit", true),
    ("after-commit", false),
    ("after-write", false),
];

/// Sends requests of each kind and checks the replies. Returns, by its number, whether a counting request had a result.
fn talk(daemon: &Running, name: usize, is_executing: bool) -> HashMap<String, bool> {
    let mut client = daemon.connect();
    let mut results = HashMap::new();
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
        results.insert(number.clone(), is_result);
        // Two deaths may hit an idempotent request.
        match client.reply().value() {
            Ok(result) => assert!(result == json!(long)),
            Err(fault) => assert_eq!(fault.code(), "crashed"),
        }
        match client.reply().value() {
            Ok(result) => assert!(result == json!(number)),
            Err(fault) => assert!(is_executing && fault.code() == "crashed", "{fault}"),
        }
    }
    client.finish();
    client.expect_end();
    results
}

#[test]
fn each_request_is_executed_at_most_once_wherever_its_worker_dies() {
    thread::scope(|scope| {
        for (point, is_executing) in POINTS {
            scope.spawn(move || check(point, is_executing));
        }
    });
}

fn check(point: &str, is_executing: bool) {
    let Some(daemon) = start_process(
        "workers.count = 2",
        "",
        &[],
        &[("FDPASSD_DIE_AT", &format!("{point}:4"))],
    ) else {
        return;
    };
    let daemon = &daemon;
    let results: HashMap<String, bool> = thread::scope(|scope| {
        let clients = if is_executing { 4 } else { 1 };
        let talks: Vec<_> = (0..clients)
            .map(|name| scope.spawn(move || talk(daemon, name, is_executing)))
            .collect();
        talks
            .into_iter()
            .flat_map(|talk| talk.join().expect("its checks hold"))
            .collect()
    });
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
    assert_eq!(status.lost_total, 0, "{point}");
}
