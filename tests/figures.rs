//! What the daemon counts is what happened: once each, over the end of workers and of masters.

mod common;

use std::collections::BTreeMap;

use common::faulty;
use common::start;
use common::strace::Traced;
use fdpassd::testing::{Client, Running};

#[test]
fn failed_starts_are_no_deaths() {
    let daemon = faulty::start_with("exit:1", "workers.count = 2").expect("the other worker serves");
    let status = daemon.wait_until("several workers have failed to start", |status| status.failed_starts_total >= 3);
    assert_eq!(status.deaths_total, 0);
    daemon.kill_worker(0);
    assert_eq!(daemon.status().deaths_total, 1);
    let figures = figures(&daemon);
    assert!(figures["fdpassd_worker_failed_starts_total"] >= 3.0);
    assert_eq!(sum(&figures, "fdpassd_worker_deaths_total"), 1.0);
}

#[test]
fn clients_that_a_worker_cannot_watch_are_lost_and_counted() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let worker = daemon.worker_pids()[0];
    let Some(traced) = Traced::attach(worker, "epoll_ctl", "epoll_ctl:error=ENOSPC:when=1") else { return };
    daemon.connect().expect_end();
    drop(traced);
    daemon.wait_until("the client is counted", |status| (status.clients, status.lost_total) == (0, 1));
    assert_eq!(figures(&daemon)["fdpassd_clients_lost_total{reason=\"worker\"}"], 1.0);
    // What a worker has counted stays when it is gone.
    daemon.kill_worker(0);
    assert_eq!(figures(&daemon)["fdpassd_clients_lost_total{reason=\"worker\"}"], 1.0);
    let mut client: Client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    assert_eq!(daemon.status().lost_total, 1);
}

/// Each sample by its name and labels.
#[track_caller]
fn figures(daemon: &Running) -> BTreeMap<String, f64> {
    let told = daemon.ctl("metrics").expect("they are told");
    let samples = told["text"].as_str().expect("a text").lines().filter(|line| !line.starts_with('#'));
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        (name.to_owned(), value.parse().expect("a number"))
    };
    samples.map(value).collect()
}

fn sum(figures: &BTreeMap<String, f64>, family: &str) -> f64 {
    figures.iter().filter(|(name, _)| name.starts_with(family)).map(|(_, value)| value).sum()
}
