//! The page, metrics and health over HTTP: replies, streams, allowed hosts, and clients that cannot delay others.

mod health;
mod hosts;
mod live;
mod master_replies;
mod page;
mod process;
mod reload;
mod replies;
mod slow_clients;

use std::fs;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::Running;

use crate::common::http::get;

/// On a free port.
const TCP: &str =
    "workers.count = 2\nmetrics = { listen = \"127.0.0.1:0\", hosts = [\"node1.example.org\"] }";

/// Longest wait for a reply that nothing delays: two seconds, which is less than any timeout of the exporter, and more
/// on a machine that is so busy that a reply takes long anyway.
fn soon(address: &Address) -> Duration {
    let began = Instant::now();
    assert_eq!(get(address, "/healthz").status, 200);
    Duration::from_secs(2) + 20 * began.elapsed()
}

/// Measures the longest wait for a reply, up to five times, until it is below this limit. A pause of the machine makes
/// some of the measurements long; a client that delays the replies would make each of them long.
#[track_caller]
fn assert_below(limit: Duration, longest: impl FnMut() -> Duration) {
    let mut times = Vec::new();
    for time in std::iter::repeat_with(longest).take(5) {
        times.push(time);
        if time < limit {
            return;
        }
    }
    panic!("it took {times:?} instead of {limit:?}");
}

/// Threads of a process.
fn tasks(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task"))
        .expect("it is there")
        .count()
}

fn unix(daemon: &Running, name: &str) -> Address {
    Address::Unix(daemon.directory().join(name))
}
