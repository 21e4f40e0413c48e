//! `top` for a long time, and with many clients.

use std::fs;

use fdpassd::testing::eventually;
use serde_json::{Value, json};

use super::intermediary::{Fate, Intermediary};
use crate::common::kernel::{descriptors, memory};
use crate::common::start;
use crate::common::terminal::{End, OnTerminal};

#[test]
fn reconnections_leave_nothing_behind() {
    let daemon = start("workers.count = 1");
    // A status with as much as a long one has, which is ignored.
    let status = crate::common::program::ctl(&daemon, &["status", "--json"]).out;
    let mut status: Value = serde_json::from_str(&status).expect("JSON");
    status["later"] = "x".repeat(100_000).into();
    let reply = json!({"out": "status", "result": status}).to_string();
    let between = Intermediary::start(&daemon, move |verb, _| match verb {
        "status" => Fate::Answered(reply.clone()),
        _ => Fate::Passed,
    });
    let mut screen = OnTerminal::start(&between.top(&["--interval", "100ms"]), 80, 24);
    screen.wait_for("is ready after");
    let pid = screen.pid();
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        tasks.count()
    };
    let counts = || (descriptors(pid).len(), threads());
    let reconnect = |times: usize| {
        for _ in 0..times {
            let before = between.accepted();
            between.cut();
            eventually("both connections are made again", || {
                (between.accepted() >= before + 2).then_some(())
            });
        }
    };
    // The first ones fill buffers.
    reconnect(10);
    let (before, kept) = (counts(), memory(pid));
    reconnect(50);
    eventually(
        "there are as many descriptors and threads as before",
        || (counts() == before).then_some(()),
    );
    let grown = memory(pid).saturating_sub(kept);
    assert!(grown < 1 << 20, "{grown} bytes more");
    screen.press("q");
    assert_eq!(screen.wait_for_end(), End::Code(0));
}

/// Returns a page of a thousand clients, and the place of the next one.
fn page(number: u64) -> String {
    let client = |id: u64| json!({"id": id, "peer": format!("192.0.2.{}:{}", id % 250, 10_000 + id), "listener": "127.0.0.1:8080", "worker": 1, "state": "idle", "age_seconds": 1.0, "idle_seconds": 1.0, "requests": id, "moves": 0, "bytes": 0});
    let clients: Vec<Value> = (1..=1000).map(|id| client(1000 * number + id)).collect();
    let next = (number < 9).then(|| json!({"worker": 1, "slot": number + 1}));
    json!({"out": "clients", "result": {"clients": clients, "next": next}}).to_string()
}

#[test]
fn keys_move_through_ten_thousand_clients() {
    let daemon = start("workers.count = 1");
    let between = Intermediary::start(&daemon, |verb, params| match verb {
        "clients" => Fate::Answered(page(params["after"]["slot"].as_u64().unwrap_or(0))),
        _ => Fate::Passed,
    });
    // Nothing but keys changes the screen.
    let mut screen = OnTerminal::start(&between.top(&["--interval", "1h"]), 80, 24);
    screen.wait_for("1 of 1 ready");
    screen.press("c");
    screen.wait_for("10,000 clients");
    for (key, row) in [
        ("\x1b[F", "\n10000 192.0.2.0:20000 "),
        ("\x1b[5~", "\n 9984 192.0.2.234:19984 "),
        ("\x1b[H", "\n    1 192.0.2.1:10001 "),
        (">", "\n10000 192.0.2.0:20000 "),
        ("R", "\n    1 192.0.2.1:10001 "),
    ] {
        let before = screen.bytes();
        screen.press(key);
        screen.wait_for(row);
        let written = screen.bytes() - before;
        assert!(written < 2 * 80 * 24, "{written} bytes for {key:?}");
    }
    screen.press("q");
    assert_eq!(screen.wait_for_end(), End::Code(0));
}
