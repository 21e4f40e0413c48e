//! Apps with many requests: what an app's death means for the others, and what the status shows of a full app.

use std::fs;

use fdpassd::testing::Client;
use serde_json::json;

use crate::app_deaths::{config, end};
use crate::common::metrics::samples;
use crate::common::program::ctl;
use crate::common::start;

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
