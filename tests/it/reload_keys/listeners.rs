//! The keys of `listen`.

use std::fs;
use std::os::unix::fs::MetadataExt;

use fdpassd::proto::frame::ByteOrder;
use fdpassd::testing::{Running, eventually};

use crate::common::kernel;
use crate::common::needs::skip_part;

use super::{Row, check, mode};

pub(super) const LISTEN: &[Row] = &[
    Row {
        key: "listen",
        configs: [
            "listen = [\"127.0.0.1:0\"]",
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
        ],
        probe: |daemon, _, _| daemon.directory().join("rpc.sock").exists().to_string(),
        shows: ["false", "true"],
    },
    Row {
        key: "byte-order",
        configs: [
            "",
            "listen = [{ address = \"127.0.0.1:0\", byte-order = \"big\" }]",
        ],
        probe: |daemon, _, _| {
            let mut client = daemon.connect().in_order(ByteOrder::Big);
            client.request("ping", 1);
            // Read as little-endian the length is too much, and the refusal is not for a big-endian reader.
            eventually("there is a reply", || client.has_something().then_some(()));
            let order = daemon.status().listeners[0].byte_order;
            format!(
                "{order:?} {}",
                order == fdpassd::proto::frame::OrderRule::Big && client.reply().name == "pong"
            )
        },
        shows: ["Little false", "Big true"],
    },
    Row {
        key: "backlog",
        configs: ["", "listen = [{ address = \"127.0.0.1:0\", backlog = 7 }]"],
        probe: |daemon, _, _| (daemon.status().listeners[0].queue_max == Some(7)).to_string(),
        shows: ["false", "true"],
    },
    Row {
        key: "proxy",
        configs: [
            "listen = [\"127.0.0.1:0\"]",
            "listen = [{ address = \"127.0.0.1:0\", proxy = \"v1\", proxy-from = [\"127.0.0.1\"] }]",
        ],
        probe: |daemon, _, _| via_balancer(daemon),
        shows: ["too_large", "192.0.2.7:9"],
    },
    Row {
        key: "proxy-from",
        configs: [
            "listen = [{ address = \"127.0.0.1:0\", proxy = \"v1\", proxy-from = [\"192.0.2.1\"] }]",
            "listen = [{ address = \"127.0.0.1:0\", proxy = \"v1\", proxy-from = [\"127.0.0.1\"] }]",
        ],
        probe: |daemon, _, _| via_balancer(daemon),
        shows: ["bad_request", "192.0.2.7:9"],
    },
    Row {
        key: "mode",
        configs: [
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
            "listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/rpc.sock\", mode = \"0606\" }]",
        ],
        probe: |daemon, _, _| mode(daemon, "rpc.sock"),
        shows: ["660", "606"],
    },
];

/// Returns the address of a client that a balancer reports, or the code of the error.
fn via_balancer(daemon: &Running) -> String {
    let mut client = daemon.connect();
    // In one piece: a balancer from elsewhere is rejected when it connects, and a second write could fail.
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 9 80\r\n".as_slice();
    let request = client.frame(r#"{"in":"whoami"}"#);
    client.send([header, &request].concat());
    match client.reply().value() {
        Ok(caller) => caller["peer"].as_str().expect("an address").to_owned(),
        Err(fault) => fault.code().to_owned(),
    }
}

/// Only root can give a file away.
pub(super) const OWNERS: &[Row] = &[
    Row {
        key: "owner",
        configs: [
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
            "listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/rpc.sock\", owner = \"65534\" }]",
        ],
        probe: |daemon, _, _| {
            fs::metadata(daemon.directory().join("rpc.sock"))
                .expect("it is there")
                .uid()
                .to_string()
        },
        shows: ["0", "65534"],
    },
    Row {
        key: "group",
        configs: [
            "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]",
            "listen = [\"127.0.0.1:0\", { address = \"unix:{dir}/rpc.sock\", group = \"65534\" }]",
        ],
        probe: |daemon, _, _| {
            (fs::metadata(daemon.directory().join("rpc.sock"))
                .expect("it is there")
                .gid()
                == 65_534)
                .to_string()
        },
        shows: ["false", "true"],
    },
];

#[test]
fn each_key_of_the_listeners_has_its_effect() {
    check(LISTEN);
    if kernel::user() == 0 {
        check(OWNERS);
    } else {
        skip_part("root", "only root can give a file away");
    }
}
