//! `fdpassd::client` against real daemons.

mod accounting;
mod crowd;
mod hosts;
mod moves;
#[cfg(feature = "srv")]
mod srv;

use std::f64::consts::PI;
use std::time::Duration;

use fdpassd::client::{Client, ClientOptions, ClientRequest, Error};
use fdpassd::proto::frame::ByteOrder;
use fdpassd::testing::{Running, TIMEOUT};
use serde_json::{Value, json};

use crate::common::faulty::{self, example};
use crate::common::program::run;
use crate::common::{start, tcp_address};

fn options() -> ClientOptions {
    ClientOptions::new()
        .timeout(TIMEOUT)
        .backoff(Duration::from_millis(10), Duration::from_millis(100))
        .shuffle(false)
}

/// Returns a client of the first listeners of these daemons.
#[track_caller]
fn client(daemons: &[&Running], options: ClientOptions) -> Client {
    let addresses = daemons.iter().map(|daemon| daemon.address().to_string());
    Client::with_options(addresses, options).expect("the addresses are valid")
}

#[test]
fn the_methods_of_a_daemon_are_called_over_every_listener() {
    let daemon = start(
        r#"
        listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock", { address = "127.0.0.1:0", byte-order = "auto" }]
        "#,
    );
    for address in daemon.addresses() {
        let client = Client::with_options([address.to_string()], options()).expect("valid");
        let value = json!({"hello": ["1", 2.5, null, "é\u{1f600}"]});
        let echoed: Value = client.call("ping", &value).expect("a pong");
        assert_eq!(echoed, value);
        let pi: f64 = client.call("pi", 1000).expect("a number");
        assert!((pi - PI).abs() < 0.001, "{pi}");
        let methods: Vec<Value> = client.call("methods", ()).expect("a list");
        let ping = json!({"name": "ping", "idempotent": true});
        assert!(methods.contains(&ping), "{methods:?}");
    }
    let port = tcp_address(&daemon).port();
    let named = Client::new([format!("localhost:{port}")]).expect("valid");
    assert_eq!(named.call::<u32>("ping", 7).expect("a pong"), 7);
}

#[test]
fn the_byte_order_must_be_that_of_the_listener() {
    let daemon = start("listen = [{ address = \"127.0.0.1:0\", byte-order = \"big\" }]");
    let big = client(&[&daemon], options().byte_order(ByteOrder::Big));
    assert_eq!(big.call::<u32>("ping", 7).expect("a pong"), 7);
    let error = client(&[&daemon], options())
        .call::<u32>("ping", 7)
        .expect_err("it is little-endian");
    let text = error.to_string();
    assert!(
        text.contains("big-endian, the length is ")
            && text.ends_with("perhaps the listener has that byte order"),
        "{text}"
    );
}

#[test]
fn errors_of_methods_have_their_codes() {
    let daemon = faulty::start("workers.count = 1\nlimits.request-timeout = \"3s\"");
    let client = client(&[&daemon], options());
    for (method, params, code, may_have_run) in [
        ("nope", json!(1), "unknown_method", false),
        ("sleep", json!("x"), "bad_params", true),
        ("fault", json!(["mine", "words"]), "mine", true),
        ("exit", json!(3), "crashed", true),
        ("spin", json!(60_000), "timeout", true),
    ] {
        let error = client
            .call::<Value>(method, params)
            .expect_err("it is an error");
        assert_eq!(
            (error.code(), error.may_have_run()),
            (Some(code), may_have_run),
            "{method}: {error}"
        );
    }
    assert_eq!(daemon.status().accepted_total, 1);
}

#[test]
fn a_request_above_the_daemons_limit_is_too_large() {
    let daemon = start("limits.max-frame = \"64KiB\"");
    let client = client(&[&daemon], options());
    let params = [1, 100_000, 2, 3].map(|length| "x".repeat(length));
    let requests = params.map(|text| ClientRequest::new("ping", text));
    let outcomes = client.call_all(requests);
    let codes: Vec<Option<&str>> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().and_then(Error::code))
        .collect();
    assert_eq!(codes, [None, Some("too_large"), None, None]);
}

#[test]
fn the_example_adds_each_number_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = format!("counterd.directory = {:?}", directory.path());
    let daemon = Running::start(example("counterd"), &config).expect("it serves");
    let address = daemon.address().to_string();
    for total in [5, 10] {
        // The first address has no listener.
        let said = run(example("caller"), &["5", "127.0.0.1:1", &address]);
        assert_eq!(
            (said.code, said.out.as_str(), said.err.as_str()),
            (Some(0), format!("the total is {total}\n").as_str(), "")
        );
    }
    let said = run(example("caller"), &["5", "127.0.0.1:1"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(
        said.err
            .starts_with("nothing was added: add was not executed"),
        "{}",
        said.err
    );
}
