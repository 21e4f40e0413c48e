//! Frames in, replies out.

use std::io::Write;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::frame::ByteOrder;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Reply, eventually};
use serde_json::json;

use crate::common::{kernel, let_pass, ping_of, pong_of, start};

#[test]
fn tcp_over_both_families_and_unix_sockets_are_served() {
    let daemon = start(r#"listen = ["127.0.0.1:0", "[::1]:0", "unix:{dir}/rpc.sock"]"#);
    let [Address::Tcp(v4), Address::Tcp(v6), Address::Unix(path)] = daemon.addresses() else {
        panic!(
            "these are not the listeners of the configuration: {:?}",
            daemon.addresses()
        )
    };
    assert!(v4.is_ipv4() && v4.port() != 0 && v6.is_ipv6() && v6.port() != 0);
    assert_eq!(path, &daemon.directory().join("rpc.sock"));
    for address in daemon.addresses() {
        let mut client = Client::connect(address);
        assert_eq!(client.call("ping", "over").expect("a result"), "over");
        assert_eq!(
            client.call("ping", "and over").expect("a result"),
            "and over"
        );
    }
}

#[test]
fn each_listener_has_its_byte_order_and_auto_detects_it() {
    let daemon = start(
        r#"
        listen = [
            { address = "127.0.0.1:0", byte-order = "little" },
            { address = "127.0.0.1:0", byte-order = "big" },
            { address = "127.0.0.1:0", byte-order = "auto" },
        ]
        limits.max-frame = 65535
        "#,
    );
    let [little, big, auto] = daemon.addresses() else {
        panic!("there are three listeners")
    };
    for length in [26, 255, 256, 257, 4096, 65_535] {
        for (address, order) in [
            (little, ByteOrder::Little),
            (big, ByteOrder::Big),
            (auto, ByteOrder::Little),
            (auto, ByteOrder::Big),
        ] {
            let mut client = Client::connect(address).in_order(order);
            for _ in 0..2 {
                client.send_frame(ping_of(length));
                assert_eq!(client.reply().name, "pong", "{order:?}, {length} bytes");
            }
        }
    }
}

#[test]
fn a_byte_order_is_decided_by_the_first_frame_that_is_not_empty() {
    let daemon = start(r#"listen = [{ address = "127.0.0.1:0", byte-order = "auto" }]"#);
    let mut client = daemon.connect().in_order(ByteOrder::Big);
    client.send_frame("");
    // The reply is little-endian as long as the order is not known.
    let mut client = client.in_order(ByteOrder::Little);
    assert_eq!(fault(&client.reply()).0, "bad_request");
    client = client.in_order(ByteOrder::Big);
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
}

#[test]
fn thousands_of_pipelined_requests_are_answered_in_their_order() {
    const REQUESTS: usize = 20_000;
    let daemon = start("workers.count = 1");
    let mut client = daemon.connect();
    let frames: Vec<u8> = (0..REQUESTS)
        .flat_map(|i| client.frame(format!(r#"{{"in":"ping","params":{i}}}"#)))
        .collect();
    let mut writer = client.writer();
    thread::scope(|threads| {
        threads.spawn(move || writer.write_all(&frames).expect("the daemon reads on"));
        for i in 0..REQUESTS {
            assert_eq!(
                client.receive(),
                format!(r#"{{"out":"pong","result":{i}}}"#).into_bytes()
            );
        }
    });
    // A reply is counted when it is sent, which is a moment before or after it is read.
    daemon.wait_until("all are counted", |status| {
        status.requests_total == REQUESTS as u64
    });
}

#[test]
fn a_half_closed_client_gets_all_its_replies_before_the_end() {
    let daemon = start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]");
    for address in daemon.addresses() {
        let mut client = Client::connect(address);
        // In one piece: a thousand small replies may be more than a socket holds, and none is read before the end.
        let frame = |i| client.frame(format!(r#"{{"in":"ping","params":{i}}}"#));
        let frames: Vec<u8> = (0..1000).flat_map(frame).collect();
        client.send(frames);
        client.finish();
        for i in 0..1000 {
            assert_eq!(client.reply().value().expect("a result"), i);
        }
        client.expect_end();
    }
}

/// A client that has sent all, half a frame at the end, and reads a little at a time: whichever reply fills its socket,
/// none is lost and none overwritten by the last one.
#[test]
fn a_half_closed_client_that_reads_slowly_gets_every_reply() {
    const LONG: usize = 160_000;
    let daemon = start("listen = [\"unix:{dir}/rpc.sock\"]");
    for small in (1000..2600).step_by(40) {
        let mut client = daemon.connect();
        // While this is calculated the rest arrives, to be read at once.
        client.request("pi", 1_000_000);
        let last = client.frame(ping_of(LONG));
        client.send(
            [
                &client.frame(r#"{"in":"methods"}"#).repeat(small),
                &last,
                &last[..50],
            ]
            .concat(),
        );
        client.finish();
        assert_eq!(client.reply().name, "pi_r");
        for i in 0..small {
            if i % 400 == 0 {
                let_pass(Duration::from_millis(5));
            }
            assert_eq!(client.reply().name, "methods_r", "reply {i} of {small}");
        }
        assert!(
            client.receive() == pong_of(LONG),
            "the reply after {small} others"
        );
        assert_eq!(fault(&client.reply()).0, "bad_request");
        client.expect_end();
    }
}

#[test]
fn clients_are_served_and_closed_while_the_master_is_stopped() {
    let daemon = start("");
    let mut clients = [daemon.connect(), daemon.connect()];
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.call("ping", 1).expect("a result"), 1));
    kernel::stop(daemon.pid());
    for client in &mut clients {
        assert_eq!(client.call("ping", 2).expect("a result"), 2);
        client.finish();
        client.expect_end();
    }
}

#[test]
fn a_connection_that_ends_in_a_frame_gets_an_error() {
    let daemon = start("");
    let mut client = daemon.connect();
    let frame = client.frame(ping_of(100));
    client.request("ping", 1);
    client.send(&frame[..50]);
    client.finish();
    assert_eq!(client.reply().name, "pong");
    assert_eq!(
        fault(&client.reply()),
        (
            "bad_request".into(),
            "the connection ended in the middle of a frame".into()
        )
    );
    client.expect_end();
}

#[test]
fn requests_cut_into_random_pieces_are_all_answered() {
    let daemon = start("workers.count = 2");
    for seed in 1..=8 {
        let mut random = Random(seed);
        let lengths: Vec<usize> = (0..200).map(|_| 26 + random.below_a_power(3..20)).collect();
        let mut client = daemon.connect().without_delay();
        let stream: Vec<u8> = lengths
            .iter()
            .flat_map(|length| client.frame(ping_of(*length)))
            .collect();
        let mut writer = client.writer();
        thread::scope(|threads| {
            threads.spawn(move || {
                let mut rest = &stream[..];
                while !rest.is_empty() {
                    let (piece, others) =
                        rest.split_at(rest.len().min(1 + random.below_a_power(0..16)));
                    writer.write_all(piece).expect("the daemon reads on");
                    rest = others;
                }
            });
            for (i, length) in lengths.into_iter().enumerate() {
                // Not assert_eq!, which would show all of it.
                assert!(
                    client.receive() == pong_of(length),
                    "request {i} of seed {seed} has its reply"
                );
            }
        });
    }
}

#[test]
fn params_of_a_ping_come_back_byte_for_byte() {
    let daemon = start("");
    let mut client = daemon.connect();
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    for params in [
        "null",
        "1e400",
        "-0.0",
        "1.000",
        "1234567890123456789012345678901234567890",
        r#""\u0041\/\ud83d\ude00 \u0000""#,
        r#""\ud800""#,
        "\"µ 漢 \u{202e}\"",
        r#"{"a":1,"a":2,"":{}}"#,
        "[ 1 ,\t2 , { \"in\" : \"x\" } ]",
        r#"{"$serde_json::private::RawValue":"[1]"}"#,
        &deep,
    ] {
        client.send_frame(format!(r#"{{"in":"ping","params":{params}}}"#));
        let reply = client.reply();
        assert_eq!((reply.name.as_str(), reply.result.get()), ("pong", params));
    }
}

#[test]
fn members_may_come_in_any_order_with_others_and_no_params() {
    let daemon = start("");
    let mut client = daemon.connect();
    for (request, result) in [
        (r#"{"in":"ping"}"#, "null"),
        (r#" { "params" : 1 , "in" : "ping" } "#, "1"),
        (
            r#"{"id":7,"in":"p\u0069ng","jsonrpc":{"in":"x"},"params":"p"}"#,
            "\"p\"",
        ),
    ] {
        client.send_frame(request);
        assert_eq!(client.reply().result.get(), result, "{request}");
    }
}

#[test]
fn an_invalid_request_gets_an_error_and_the_connection_stays() {
    let daemon = start("");
    let mut client = daemon.connect();
    let cases: [(&[u8], &str, &str); 16] = [
        (b"", "bad_request", "the frame is empty"),
        (b"{}", "bad_request", "there is no \"in\""),
        (b"garbage", "bad_request", "expected"),
        (b"\x00\x01\x02", "bad_request", "expected"),
        (b"{\"in\":\"ping\"", "bad_request", "EOF"),
        (
            b"{\"in\":\"ping\"} {\"in\":\"ping\"}",
            "bad_request",
            "trailing",
        ),
        (b"[\"ping\",1]", "bad_request", "an object"),
        (b"\"ping\"", "bad_request", "an object"),
        (b"{\"params\":1}", "bad_request", "there is no \"in\""),
        (b"{\"in\":7}", "bad_request", "expected a string"),
        (
            b"{\"in\":\"ping\",\"in\":\"ping\"}",
            "bad_request",
            "duplicate \"in\"",
        ),
        (
            b"{\"in\":\"ping\",\"params\":1,\"params\":1}",
            "bad_request",
            "duplicate \"params\"",
        ),
        (
            b"{\"in\":\"ping\",\"params\":\"\xff\"}",
            "bad_request",
            "not UTF-8",
        ),
        (
            b"{\"in\":\"ping\",\"x\":\"\xc3\x28\"}",
            "bad_request",
            "not UTF-8",
        ),
        (b"{\"in\":\"nope\"}", "unknown_method", "\"nope\""),
        (b"{\"in\":\"error\"}", "unknown_method", "\"error\""),
    ];
    for (request, code, words) in cases {
        client.send_frame(request);
        let (said, message) = fault(&client.reply());
        assert!(
            said == code && message.contains(words),
            "{:?}: {said}: {message}",
            String::from_utf8_lossy(request)
        );
        assert_eq!(client.call("ping", "on").expect("a result"), "on");
    }
    daemon.wait_until("all are counted", |status| {
        (status.requests_total, status.errors_total) == (32, 16)
    });
}

#[test]
fn the_shipped_methods_follow_the_protocol() {
    let daemon = start("");
    let mut client = daemon.connect();
    client.request("pi", 1_000_000);
    let reply = client.reply();
    assert_eq!(reply.name, "pi_r");
    assert!(
        (reply.value().expect("a result").as_f64().expect("a number") - std::f64::consts::PI).abs()
            < 1e-6
    );

    client.request("methods", ());
    let reply = client.reply();
    assert_eq!(reply.name, "methods_r");
    let names = reply.value().expect("a result");
    for name in ["methods", "pi", "ping"] {
        let method = names
            .as_array()
            .expect("a list")
            .iter()
            .find(|method| method["name"] == name);
        assert_eq!(method.expect("it is there")["idempotent"], true, "{name}");
    }
}

#[test]
fn params_that_a_method_does_not_take_are_bad_params() {
    let daemon = start("");
    let mut client = daemon.connect();
    for params in [
        json!(null),
        json!("7"),
        json!(-1),
        json!(1.5),
        json!([7]),
        json!({}),
        json!(u64::MAX),
    ] {
        assert_eq!(
            client
                .call("pi", &params)
                .expect_err("it takes a number")
                .code(),
            "bad_params",
            "{params}"
        );
    }
    assert_eq!(client.call("pi", 0).expect("a result"), 0.0);
}

#[test]
fn frames_of_every_size_up_to_max_frame_are_served() {
    let daemon = start("limits.max-frame = \"64KiB\"");
    let mut client = daemon.connect();
    client.send_frame("{}");
    assert_eq!(fault(&client.reply()).0, "bad_request");
    let powers = (5..16).map(|power| 1usize << power);
    for length in powers
        .flat_map(|power| power - 6..power + 6)
        .chain(65_530..=65_536)
    {
        client.send_frame(ping_of(length));
        assert!(
            client.receive() == pong_of(length),
            "a frame of {length} bytes"
        );
    }
    let daemon = start("");
    let mut client = daemon.connect();
    client.send_frame(ping_of(1 << 20));
    assert!(
        client.receive() == pong_of(1 << 20),
        "the longest frame by default"
    );
}

#[test]
fn one_byte_over_max_frame_is_too_large_and_the_end() {
    let daemon = start("limits.max-frame = \"64KiB\"");
    for length in [65_537u32, (1 << 24) + 1, u32::MAX] {
        let mut client = daemon.connect();
        client.request("ping", "before");
        client.send(length.to_le_bytes());
        assert_eq!(client.reply().value().expect("a result"), "before");
        let (code, message) = fault(&client.reply());
        assert_eq!(code, "too_large");
        assert_eq!(
            message,
            format!("a frame of {length} bytes is longer than max-frame, 65536 bytes")
        );
        client.expect_end();
    }
}

#[test]
fn a_client_that_sends_megabytes_first_reads_too_large() {
    let daemon = start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]");
    for address in daemon.addresses() {
        // The daemon reads what is sent too much for one second. It may have closed a client that took longer.
        let mut client = eventually("a client has sent all within a second", || {
            let client = Client::connect(address);
            let begin = Instant::now();
            let mut writer = client.writer();
            let sent = writer.write_all(&(5u32 << 20).to_le_bytes());
            let sent = sent.and_then(|()| writer.write_all(&vec![b' '; 5 << 20]));
            let is_in_time = begin.elapsed() < Duration::from_secs(1);
            assert!(sent.is_ok() || !is_in_time, "{sent:?}");
            is_in_time.then_some(client)
        });
        assert_eq!(fault(&client.reply()).0, "too_large");
        client.expect_end();
    }
}

/// Code and message of an error reply.
fn fault(reply: &Reply) -> (String, String) {
    let fault = reply.value().expect_err("an error reply was expected");
    (fault.code().to_owned(), fault.message().to_owned())
}

/// Numbers by Marsaglia's xorshift: the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }

    /// Below two to the power of one of these, so that small ones are as frequent as large ones.
    fn below_a_power(&mut self, powers: Range<usize>) -> usize {
        let power = powers.start + self.below(powers.len());
        self.below(1 << power)
    }
}
