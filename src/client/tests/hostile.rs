//! Servers that break the protocol.

use super::server::{Peer, Server, script};
use super::*;

/// Expects the reason for these bytes instead of a reply, and that the next request is answered elsewhere.
#[track_caller]
fn assert_bad(raw: &'static [u8], options: ClientOptions, why: &str) {
    let first = Server::start([script(move |peer| {
        peer.read();
        peer.write(raw);
        peer.expect_end();
    })]);
    let second = Server::start([script(Peer::echo)]);
    let client = client(&[&first, &second], options);
    let error = client
        .send::<u32>(request(1, true))
        .expect_err("it is not a reply");
    let expected = format!(
        "add was sent to {} and may have run: {why}",
        first.address()
    );
    assert_eq!(error.to_string(), expected);
    assert!(matches!(
        error,
        Error::UnknownOutcome {
            cause: ConnectionError::BadReply(_),
            ..
        }
    ));
    assert_eq!(client.send::<u32>(request(2, false)).expect("a reply"), 2);
    drop(client);
    first.finish();
    second.finish();
}

#[test]
fn a_reply_that_is_too_long_is_refused_at_once() {
    assert_bad(
        b"\xe9\x13\0\0",
        options().max_frame(1000),
        "a reply of 5097 bytes is announced, at most 5096 are taken",
    );
    assert_bad(
        b"\xff\xff\xff\xff",
        options(),
        "a reply of 4294967295 bytes is announced, at most 1052672 are taken",
    );
}

#[test]
fn the_longest_reply_is_accepted() {
    let server = Server::start([script(|peer| {
        peer.read();
        let room = 5096 - r#"{"out":"any_r","result":""}"#.len();
        peer.reply(&format!("\"{}\"", "x".repeat(room)));
    })]);
    let client = client(&[&server], options().max_frame(1000));
    let result: String = client.send(request(1, false)).expect("a reply");
    assert_eq!(result.len(), 5096 - r#"{"out":"any_r","result":""}"#.len());
    drop(client);
    server.finish();
}

#[test]
fn another_protocol_is_named() {
    let cases: [(&[u8], &str); 4] = [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "the answer is an HTTP response, not a frame",
        ),
        (
            b"SSH-2.0-x\r\n",
            "the answer is the banner of an SSH server, not a frame",
        ),
        (
            b"\0\0\0\x1a",
            "a reply of 436207616 bytes is announced, at most 1052672 are taken; big-endian, the length is 26 bytes: \
             perhaps the listener has that byte order",
        ),
        (
            b"\x15\x03\x03\0\x02\x02\x46",
            "the answer is a TLS alert, not a frame",
        ),
    ];
    for (raw, why) in cases {
        let options = match raw[0] {
            // A TLS alert may have the length of a frame.
            0x15 => options().max_frame(1000),
            _ => options(),
        };
        assert_bad(raw, options, why);
    }
}

#[test]
fn what_is_not_a_reply_is_named() {
    let cases: [(&[u8], &str); 5] = [
        (b"\0\0\0\0", "EOF while parsing a value at line 1 column 0"),
        (
            b"\x06\0\0\0{\"out\"",
            "EOF while parsing an object at line 1 column 6",
        ),
        (b"\x02\0\0\0[]", "it is an array"),
        (b"\x02\0\0\0{}", "missing key `out` at line 1 column 2"),
        (
            b"\x1c\0\0\0{\"out\":\"error\",\"result\":{}} ",
            "missing key `code` at line 1 column 2",
        ),
    ];
    for (raw, why) in cases {
        let why = format!("the answer is not a valid reply: {why}");
        assert_bad(raw, options(), &why);
    }
}

#[test]
fn a_bad_reply_makes_those_after_it_unknown() {
    let first = Server::start([script(|peer| {
        for _ in 0..4 {
            peer.read();
        }
        peer.reply("0");
        peer.send("?");
        peer.reply("2");
        peer.expect_end();
    })]);
    let second = Server::start([script(Peer::echo)]);
    let client = client(&[&first, &second], options());
    let requests = [false, true, false, true].into_iter().enumerate();
    let requests = requests.map(|(n, is_idempotent)| request(n, is_idempotent));
    let texts: Vec<String> = client.call_all(requests).into_iter().map(text).collect();
    let sent = format!("add was sent to {} and may have run: ", first.address());
    let invalid = "the answer is not a valid reply: expected value at line 1 column 1";
    assert_eq!(
        texts,
        [
            "0".to_owned(),
            format!("{sent}{invalid}"),
            format!("{sent}the server broke the protocol: {invalid}"),
            "3".to_owned()
        ]
    );
    drop(client);
    first.finish();
    second.finish();
}

#[test]
fn a_reply_before_the_request_is_no_reply() {
    let early = || {
        script(|peer: &mut Peer| {
            peer.read_bytes(4);
            peer.reply("1");
            peer.finish();
        })
    };
    let first = Server::start_unix([early()]);
    let second = Server::start([script(|peer| {
        peer.read();
        peer.reply("2");
    })]);
    let to_both = client(&[&first, &second], options());
    let large = || request("x".repeat(LARGE), false);
    assert_eq!(to_both.send::<u32>(large()).expect("a reply"), 2);
    drop(to_both);
    first.finish();
    second.finish();

    let server = Server::start_unix([early()]);
    let to_one = client(&[&server], options_without_rounds().timeout(SHORT));
    let error = to_one.send::<u32>(large()).expect_err("it is not executed");
    let expected = format!(
        "add was not executed within 3s: {}: the server broke the protocol: there is a reply without a request",
        server.address()
    );
    assert_eq!((error.to_string(), error.may_have_run()), (expected, false));
    drop(to_one);
    server.finish();
}

#[test]
fn an_error_for_a_part_is_that_of_the_request() {
    for (code, is_answer) in [
        ("too_large", true),
        ("bad_request", true),
        ("timeout", false),
    ] {
        let first = Server::start_unix([script(move |peer| {
            peer.read_bytes(4);
            peer.error(code);
            peer.finish();
        })]);
        let second = Server::start(match is_answer {
            true => vec![],
            false => vec![script(|peer| {
                peer.read();
                peer.reply("2");
            })],
        });
        let client = client(&[&first, &second], options());
        let outcome = client.send::<u32>(request("x".repeat(LARGE), false));
        match is_answer {
            true => {
                let error = outcome.expect_err(code);
                assert_eq!((error.code(), error.may_have_run()), (Some(code), false));
            }
            false => assert_eq!(outcome.expect("it is repeated"), 2),
        }
        drop(client);
        first.finish();
        second.finish();
    }
}
