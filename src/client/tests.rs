//! A client against scripts of daemons: each way in which a connection can fail.

mod goaway;
mod hostile;
mod losses;
mod server;
mod sharing;
mod time;
mod walk;

use self::server::{Server, script};
use super::*;
use crate::proto::frame::ByteOrder;

/// A time that no test needs.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A timeout that a test waits for: enough for a request to be sent by a busy machine.
const SHORT: Duration = Duration::from_secs(3);

/// The length of params that no Unix socket takes completely while the other end does not read.
const LARGE: usize = 1_000_000;

fn options() -> ClientOptions {
    ClientOptions::new()
        .timeout(TIMEOUT)
        .backoff(Duration::from_millis(1), Duration::from_millis(10))
        .shuffle(false)
}

/// Options of a client that never tries a second round.
fn options_without_rounds() -> ClientOptions {
    let mut options = options().backoff(TIMEOUT * 10, TIMEOUT * 10);
    options.jitter = |bound| bound;
    options
}

fn client(servers: &[&Server], options: ClientOptions) -> Client {
    let addresses = servers.iter().map(|server| server.address());
    Client::with_options(addresses, options).expect("the addresses are valid")
}

/// A request for a method that is declared idempotent, or not.
fn request(params: impl Serialize, is_idempotent: bool) -> ClientRequest {
    ClientRequest::new("add", params).idempotent(is_idempotent)
}

fn text(outcome: Result<Box<RawValue>, Error>) -> String {
    match outcome {
        Ok(result) => result.get().to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn params_and_results_are_those_of_the_types() {
    let server = Server::start([script(|peer| {
        peer.expect(r#"{"in":"price","params":{"item":"tea"}}"#);
        peer.reply(" 3.5 ");
        peer.expect(r#"{"in":"ping","params":null}"#);
        peer.reply("null");
        peer.expect(r#"{"in":"ping"}"#);
        peer.reply("[ 1e400 ]");
        peer.expect(r#"{"in":"ping","params":1}"#);
        peer.reply(r#""one""#);
    })]);
    let client = client(&[&server], options());
    assert_eq!(client.address(), None);
    let params = serde_json::json!({"item": "tea"});
    let price: f64 = client.call("price", params).expect("a number");
    assert!((price - 3.5).abs() < f64::EPSILON);
    assert_eq!(client.address(), Some(server.address()));
    client.call::<()>("ping", ()).expect("null");
    let raw: Box<RawValue> = client
        .send(ClientRequest::without_params("ping"))
        .expect("JSON");
    assert_eq!(raw.get(), "[ 1e400 ]");
    let error = client.call::<u32>("ping", 1).expect_err("a string");
    assert!(matches!(error, Error::Result(_)) && error.may_have_run());
    drop(client);
    server.finish();
}

#[test]
fn the_byte_order_is_that_of_the_option() {
    let server = Server::start_big([script(server::Peer::echo)]);
    let client = client(&[&server], options().byte_order(ByteOrder::Big));
    assert_eq!(client.call::<u32>("ping", 7).expect("a reply"), 7);
    drop(client);
    server.finish();
}

#[test]
fn an_argument_that_is_not_valid_is_named() {
    let one = ["127.0.0.1:1"];
    let made = |options| Client::with_options(one, options).map(drop);
    for (made, why) in [
        (Client::new([""; 0]).map(drop), "a client needs an address"),
        (
            Client::new(["x"]).map(drop),
            "\"x\" is not a valid address: expected HOST:PORT or unix:/PATH",
        ),
        (
            made(options().max_frame(0)),
            "max_frame is from 1 to 256 MiB",
        ),
        (
            made(options().max_frame((256 << 20) + 1)),
            "max_frame is from 1 to 256 MiB",
        ),
        (
            made(options().max_frame(256 << 20).timeout(Duration::ZERO)),
            "timeout is a time above 0",
        ),
    ] {
        let error = made.expect_err("it is not valid");
        assert!(matches!(error, Error::Usage(_)) && !error.may_have_run());
        assert_eq!(error.to_string(), why);
    }
}

#[test]
fn a_request_that_cannot_be_sent_is_its_own_outcome() {
    let server = Server::start([script(server::Peer::echo)]);
    let client = client(&[&server], options().max_frame(100));
    let unordered = std::collections::BTreeMap::from([((1, 2), 3)]);
    let outcomes = client.call_all([
        request(1, false),
        request("x".repeat(100), false),
        request(unordered, false),
        request(4, false),
    ]);
    let texts: Vec<String> = outcomes.into_iter().map(text).collect();
    assert_eq!(
        texts,
        [
            "1",
            "the request add has 124 bytes, at most 100 are possible",
            "the params cannot be written as JSON: key must be a string",
            "4"
        ]
    );
    drop(client);
    server.finish();
}

#[test]
fn errors_keep_the_connection_or_are_its_end() {
    let codes = [
        "bad_request",
        "unknown_method",
        "crashed",
        "timeout",
        "mine",
    ];
    let first = Server::start([script(move |peer| {
        for code in codes {
            peer.read();
            peer.error(code);
        }
        for _ in 0..3 {
            peer.read();
        }
        peer.reply("1");
        peer.error("too_large");
        peer.finish();
    })]);
    let second = Server::start([script(server::Peer::echo)]);
    let client = client(&[&first, &second], options());
    for code in codes {
        let error = client
            .send::<u32>(request(1, true))
            .expect_err("it is an error");
        assert_eq!(error.code(), Some(code));
        assert_eq!(error.to_string(), format!("{code}: a reason"));
        let may_have_run = !["bad_request", "unknown_method"].contains(&code);
        assert_eq!(error.may_have_run(), may_have_run, "{code}");
    }
    // The daemon discards what it receives after a request that is too large.
    let outcomes = client.call_all([request(1, false), request(2, false), request(3, false)]);
    let texts: Vec<String> = outcomes.into_iter().map(text).collect();
    assert_eq!(texts, ["1", "too_large: a reason", "3"]);
    assert_eq!(client.address(), Some(second.address()));
    drop(client);
    first.finish();
    second.finish();
}

#[test]
fn a_refusal_to_execute_is_repeated_elsewhere() {
    for code in ["overloaded", "shutting_down"] {
        let first = Server::start([script(move |peer| {
            peer.read();
            peer.error(code);
            peer.finish();
        })]);
        let second = Server::start([script(server::Peer::echo)]);
        let to_both = client(&[&first, &second], options());
        let result: u32 = to_both
            .send(request(7, false))
            .expect("the second executes it");
        assert_eq!(result, 7);
        drop(to_both);
        first.finish();
        second.finish();

        let server = Server::start([script(move |peer| {
            peer.read();
            peer.error(code);
            peer.finish();
        })]);
        let to_one = client(&[&server], options_without_rounds().timeout(SHORT));
        let error = to_one
            .send::<u32>(request(7, false))
            .expect_err("it is not executed");
        let expected = format!(
            "add was not executed within 3s: {}: {code}: a reason",
            server.address()
        );
        assert_eq!((error.to_string(), error.may_have_run()), (expected, false));
        server.finish();
    }
}

#[test]
fn a_client_that_fails_fast_tries_each_address_once() {
    let refusing = server::Refusing::new();
    let server = Server::start([script(|peer| {
        peer.read();
        peer.error("overloaded");
        peer.finish();
    })]);
    let addresses = [refusing.address(), server.address()];
    let client = Client::with_options(&addresses, options().fail_fast()).expect("valid");
    let error = client
        .send::<u32>(request(7, true))
        .expect_err("it is not executed");
    let expected = format!(
        "add was not executed: {}: Connection refused (os error 111); {}: overloaded: a reason",
        addresses[0], addresses[1]
    );
    assert_eq!(error.to_string(), expected);
    drop(client);
    server.finish();
}
