//! Apps with many requests: what an app's death means for the others, and what the status shows of a full app.

use std::fs;

use fdpassd::testing::{Client, Running};
use serde_json::json;

use crate::app_deaths::{config, end};
use crate::common::metrics::samples;
use crate::common::program::ctl;
use crate::common::start;

/// A file that never exists.
const NEVER: &str = "/none";

fn wait_for_away(daemon: &Running, requests: u64) {
    daemon.wait_until("they are away", |status| {
        status.workers.iter().map(|worker| worker.away).sum::<u64>() == requests
    });
}

#[test]
fn a_method_that_ends_ten_apps_with_others_is_quarantined() {
    let Some(config) = config(1, 8, "") else {
        return;
    };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for number in 1..=10 {
        assert!(daemon.status().quarantined.is_empty(), "{number}");
        client.request("price", json!({"n": number, "until": NEVER}));
        wait_for_away(&daemon, 1);
        let fault = daemon.call("exit", json!({"status": 3}));
        assert_eq!(fault.expect_err("it ends its app").code(), "crashed");
        assert_eq!(client.reply().value().expect("it runs again"), number);
    }
    daemon.wait_for_log("method \"exit\" was executing at each of the last 10 deaths within 600s");
    let status = daemon.status();
    assert_eq!(status.quarantined, ["exit"]);
    assert_eq!((status.deaths_total, status.reruns_total), (10, 10));
    let fault = daemon.call("exit", json!({"status": 3}));
    let fault = fault.expect_err("it does not run");
    assert!(fault.to_string().contains("quarantined"), "{fault}");
    assert_eq!(daemon.status().deaths_total, 10);
    assert!(
        daemon
            .ctl_with("release", json!({"method": "exit"}))
            .is_ok()
    );
    end(daemon, 11);
}

#[test]
fn requests_that_wait_for_a_permit_are_shown() {
    let Some(config) = config(1, 1, "metrics.listen = \"127.0.0.1:0\"\n") else {
        return;
    };
    let daemon = start(&format!("{config}limits.stall-timeout = \"1h\"\n"));
    let file = daemon.directory().join("end");
    let mut clients: Vec<Client> = (0..4).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("order", json!({"n": number, "until": &file}));
    }
    let status = daemon.wait_until("three wait", |status| status.workers[0].waiting == 3);
    assert_eq!(status.workers[0].away, 1);
    let figures = samples(&daemon);
    let figure = |name: &str| figures[&format!("fdpassd_worker_requests_{name}{{worker=\"0\"}}")];
    assert_eq!((figure("away"), figure("waiting")), (1.0, 3.0));
    let shown = ctl(&daemon, &["status"]).out;
    assert!(shown.contains(" AWAY MOST WAIT "), "{shown}");
    // One that leaves does not wait any more.
    clients.pop();
    daemon.wait_until("two wait", |status| status.workers[0].waiting == 2);
    fs::write(&file, "").expect("it is ours");
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value().expect("it is its turn"), number);
    }
    daemon.wait_until("none waits", |status| status.workers[0].waiting == 0);
    end(daemon, 4);
}
