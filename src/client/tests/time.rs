//! Deadlines, waits, and hosts that are silent.

use std::sync::mpsc;
use std::time::Instant;

use super::server::{Peer, Server, script};
use super::*;
use crate::sys::socket::drop_everything;

#[test]
fn a_call_ends_at_its_deadline() {
    let server = Server::start_unix([script(Peer::discard)]);
    let client = client(&[&server], options_without_rounds().timeout(SHORT));
    let began = Instant::now();
    // Those that are not sent have surely not run.
    let outcomes = client.call_all((0..100).map(|n| request(n, n % 2 == 0)));
    assert!(began.elapsed() >= SHORT);
    let unknown = format!(
        "add was sent to {} and may have run: no reply within 3s",
        server.address()
    );
    let unavailable = format!(
        "add was not executed within 3s: {}: no reply within 3s",
        server.address()
    );
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let expected = if n < 64 { &unknown } else { &unavailable };
        assert_eq!(&text(outcome), expected, "{n}");
    }
    drop(client);
    server.finish();
}

#[test]
fn a_request_that_is_not_taken_was_not_executed() {
    let (leave, may_leave) = mpsc::channel::<()>();
    let server = Server::start_unix([script(move |peer| {
        peer.read_bytes(4);
        // Until the client gives up.
        let _ = may_leave.recv();
    })]);
    let client = client(&[&server], options_without_rounds().timeout(SHORT));
    let error = client
        .send::<u32>(request("x".repeat(LARGE), false))
        .expect_err("it is not read");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    drop((client, leave));
    server.finish();
}

#[test]
fn an_endless_timeout_is_possible() {
    let server = Server::start([script(Peer::echo)]);
    let client = client(&[&server], options().timeout(Duration::MAX));
    assert_eq!(client.send::<u32>(request(1, false)).expect("a reply"), 1);
    drop(client);
    server.finish();
}

#[test]
fn a_host_that_acknowledges_nothing_is_gone() {
    let silence = Duration::from_millis(500);
    let (leave, may_leave) = mpsc::channel::<()>();
    let server = Server::start([script(move |peer| {
        peer.read();
        peer.reply("1");
        drop_everything(&peer.stream).expect("a filter");
        let _ = may_leave.recv();
    })]);
    let client = client(&[&server], options_without_rounds().silence(silence));
    assert_eq!(client.send::<u32>(request(1, false)).expect("a reply"), 1);
    let error = client
        .send::<u32>(request(2, false))
        .expect_err("the host is gone");
    assert!(
        error
            .to_string()
            .ends_with("the host has acknowledged nothing for 500ms"),
        "{error}"
    );
    assert!(error.may_have_run());
    drop((client, leave));
    server.finish();
}

#[test]
fn a_host_that_is_only_slow_is_not_gone() {
    let silence = Duration::from_millis(100);
    let server = Server::start([script(move |peer| {
        peer.read();
        let (_never, nothing) = mpsc::channel::<()>();
        assert!(nothing.recv_timeout(silence * 10).is_err());
        peer.reply("1");
    })]);
    let client = client(&[&server], options().silence(silence));
    assert_eq!(client.send::<u32>(request(1, false)).expect("a reply"), 1);
    drop(client);
    server.finish();
}
