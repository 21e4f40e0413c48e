//! The keys of `[metrics]` and `[agent]`.

use std::os::unix::net::UnixStream;

use fdpassd::proto::names::Address;
use fdpassd::testing::eventually;

use crate::common::http;

use super::{Row, check};

pub(super) const METRICS: &[Row] = &[
    Row {
        key: "metrics.listen",
        configs: ["", "metrics.listen = \"unix:{dir}/metrics.sock\""],
        probe: |daemon, _, _| {
            let path = daemon.directory().join("metrics.sock");
            let is_there = UnixStream::connect(&path).is_ok();
            let answer = is_there.then(|| http::get(&Address::Unix(path), "/healthz"));
            answer.map_or("nobody".to_owned(), |answer| answer.body)
        },
        shows: ["nobody", "ok\n"],
    },
    Row {
        key: "agent.listen",
        configs: ["", "agent.listen = \"unix:{dir}/agent.sock\""],
        probe: |daemon, _, _| {
            let path = daemon.directory().join("agent.sock");
            let is_there = UnixStream::connect(&path).is_ok();
            let line = is_there.then(|| {
                let mut balancer = http::HttpClient::connect(&Address::Unix(path));
                balancer.receive().expect("a line")
            });
            line.map_or("nobody".to_owned(), |line| line[..3].to_owned())
        },
        shows: ["nobody", "up "],
    },
    Row {
        key: "hosts",
        configs: [
            "metrics.listen = \"127.0.0.1:0\"",
            "metrics = { listen = \"127.0.0.1:0\", hosts = [\"node1.example.org\"] }",
        ],
        probe: |daemon, _, _| {
            let request = http::request("/healthz").replace("localhost", "node1.example.org:9464");
            // The row before had a Unix socket, whose line may be the last one still.
            let address = eventually("it is logged where TCP clients get metrics", || {
                let address = http::metrics_address(daemon);
                matches!(address, Address::Tcp(_)).then_some(address)
            });
            http::ask(&address, request).status.to_string()
        },
        shows: ["403", "200"],
    },
];

#[test]
fn each_key_of_the_metrics_has_its_effect() {
    check(METRICS);
}
