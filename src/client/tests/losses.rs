//! Connections that are refused, or end.

use super::server::{Peer, Refusing, Seen, Server, script};
use super::*;

/// Reads a request, and closes the connection.
fn reading() -> server::Script {
    script(|peer| drop(peer.read()))
}

fn echoing() -> server::Script {
    script(Peer::echo)
}

#[track_caller]
fn assert_unknown(outcome: Result<u32, Error>, address: &str, why: &str) {
    let error = outcome.expect_err("its outcome is unknown");
    assert!(matches!(error, Error::UnknownOutcome { .. }) && error.may_have_run());
    let expected = format!("add was sent to {address} and may have run: {why}");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn refused_by_all_addresses_is_not_executed() {
    let refusing = [Refusing::new(), Refusing::new()];
    let addresses = refusing.each_ref().map(Refusing::address);
    let client = Client::with_options(&addresses, options().timeout(SHORT)).expect("valid");
    let error = client
        .send::<u32>(request(1, true))
        .expect_err("nothing listens");
    let expected = format!(
        "add was not executed within 3s: {}: Connection refused (os error 111); {}: Connection refused (os error 111)",
        addresses[0], addresses[1]
    );
    assert_eq!((error.to_string(), error.may_have_run()), (expected, false));
}

#[test]
fn the_next_address_is_tried_at_once() {
    let refusing = Refusing::new();
    let server = Server::start([echoing()]);
    let addresses = [refusing.address(), server.address()];
    let client = Client::with_options(addresses, options_without_rounds()).expect("valid");
    assert_eq!(client.send::<u32>(request(7, false)).expect("a reply"), 7);
    drop(client);
    server.finish();
}

#[test]
fn a_request_that_was_not_sent_completely_is_repeated() {
    let first = Server::start_unix([script(|peer| drop(peer.read_bytes(4)))]);
    let second = Server::start([script(|peer| {
        let request = peer.read().expect("a request");
        peer.reply(&request.len().to_string());
    })]);
    let client = client(&[&first, &second], options());
    let length: usize = client
        .send(request("x".repeat(LARGE), false))
        .expect("it is executed once");
    assert_eq!(length, LARGE + r#"{"in":"add","params":""}"#.len());
    drop(client);
    first.finish();
    second.finish();
}

#[test]
fn a_request_that_was_sent_has_an_unknown_outcome() {
    let first = Server::start([reading()]);
    let second = Server::start([echoing()]);
    let client = client(&[&first, &second], options());
    let outcome = client.send(request(1, false));
    assert_unknown(
        outcome,
        &first.address(),
        "the connection was closed before the reply",
    );
    // The client continues at the other address.
    assert_eq!(client.send::<u32>(request(2, false)).expect("a reply"), 2);
    drop(client);
    first.finish();
    second.finish();
}

#[test]
fn half_a_reply_is_no_reply() {
    let first = Server::start([script(|peer| {
        peer.read();
        peer.write(b"\x1b\0\0\0{\"out\"");
    })]);
    let second = Server::start([script(|peer| {
        peer.read();
        peer.write(b"\x1b\0");
    })]);
    let client = client(&[&first, &second], options());
    for (server, received) in [(&first, 10), (&second, 2)] {
        let why =
            format!("the connection was closed in the middle of a reply, after {received} bytes");
        assert_unknown(client.send(request(1, false)), &server.address(), &why);
    }
    drop(client);
    first.finish();
    second.finish();
}

#[test]
fn an_idempotent_request_is_repeated_twice() {
    let first = Server::start([reading(), reading()]);
    let second = Server::start([reading(), echoing()]);
    let to_both = client(&[&first, &second], options());
    // Three runs: at the first, the second, and the first again.
    let outcome = to_both.send(request(1, true));
    let why = "the connection was closed before the reply";
    assert_unknown(outcome, &first.address(), why);
    assert_eq!(to_both.send::<u32>(request(2, true)).expect("a reply"), 2);
    drop(to_both);
    first.finish();
    second.finish();

    let server = Server::start([reading(), reading(), echoing(), reading()]);
    let to_one = client(&[&server], options());
    assert_eq!(to_one.send::<u32>(request(3, true)).expect("a reply"), 3);
    drop(to_one);
    let hasty = client(&[&server], options().retries(0));
    assert_unknown(hasty.send(request(4, true)), &server.address(), why);
    drop(hasty);
    server.finish();
}

#[test]
fn a_code_of_a_repeated_request_leaves_the_doubt() {
    let server = Server::start([
        reading(),
        script(|peer| {
            peer.read();
            peer.error("unknown_method");
        }),
    ]);
    let client = client(&[&server], options());
    let error = client
        .send::<u32>(request(1, true))
        .expect_err("it is an error");
    assert_eq!(
        (error.code(), error.may_have_run()),
        (Some("unknown_method"), true)
    );
    drop(client);
    server.finish();
}

#[test]
fn the_daemon_is_asked_which_methods_are_idempotent() {
    for (is_idempotent, expected) in [(true, "1"), (false, "unknown")] {
        let seen = Seen::default();
        let asked = seen.clone();
        let server = Server::start([
            reading(),
            script(move |peer| {
                asked.add(peer.read().expect("a question"));
                peer.send(&format!(
                    r#"{{"out":"methods_r","result":[{{"name":"add","idempotent":{is_idempotent}}}]}}"#
                ));
                while let Some(request) = peer.read() {
                    asked.add(request);
                    peer.reply("1");
                }
            }),
        ]);
        let client = client(&[&server], options());
        let outcome = client.call::<u32>("add", 1);
        match expected {
            "unknown" => assert_unknown(
                outcome,
                &server.address(),
                "the connection was closed before the reply",
            ),
            _ => assert_eq!(outcome.expect("it is repeated"), 1),
        }
        drop(client);
        server.finish();
        let mut all = vec![r#"{"in":"methods"}"#];
        if is_idempotent {
            all.push(r#"{"in":"add","params":1}"#);
        }
        assert_eq!(seen.all(), all);
    }
}

#[test]
fn the_option_declares_methods_instead_of_the_daemon() {
    let server = Server::start([reading(), echoing(), reading()]);
    let declared = || options().idempotent(["add"]);
    let first = client(&[&server], declared());
    assert_eq!(first.call::<u32>("add", 1).expect("it is repeated"), 1);
    drop(first);
    let second = client(&[&server], declared());
    let error = second.call::<u32>("other", 1).expect_err("it is not");
    assert!(matches!(error, Error::UnknownOutcome { .. }));
    drop(second);
    server.finish();
}

#[test]
fn a_connection_that_is_closed_at_rest_is_replaced() {
    let (closing, closed) = std::sync::mpsc::channel();
    let server = Server::start([
        script(move |peer| {
            peer.read();
            peer.reply("1");
            peer.stream
                .shutdown(std::net::Shutdown::Both)
                .expect("it is connected");
            closing.send(()).expect("the test waits");
        }),
        echoing(),
    ]);
    let client = client(&[&server], options());
    assert_eq!(client.send::<u32>(request(1, false)).expect("a reply"), 1);
    closed.recv().expect("the script ends");
    assert_eq!(client.send::<u32>(request(2, false)).expect("a reply"), 2);
    drop(client);
    server.finish();
}

#[test]
fn what_a_lost_connection_has_not_answered_keeps_its_order() {
    let first = Server::start([script(|peer| {
        for _ in 0..6 {
            peer.read();
        }
        peer.reply("0");
        peer.reply("1");
    })]);
    let seen = Seen::default();
    let received = seen.clone();
    let second = Server::start([script(move |peer| {
        while let Some(request) = peer.read() {
            received.add(&request);
            peer.reply(&request[r#"{"in":"add","params":"#.len()..request.len() - 1]);
        }
    })]);
    let client = client(&[&first, &second], options());
    let requests = (0..6).map(|n| request(n, n != 3));
    let texts: Vec<String> = client.call_all(requests).into_iter().map(text).collect();
    let unknown = format!(
        "add was sent to {} and may have run: the connection was closed before the reply",
        first.address()
    );
    assert_eq!(texts, ["0", "1", "2", unknown.as_str(), "4", "5"]);
    drop(client);
    first.finish();
    second.finish();
    let expected = [2, 4, 5].map(|n| format!(r#"{{"in":"add","params":{n}}}"#));
    assert_eq!(seen.all(), expected);
}
