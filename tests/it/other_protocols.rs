//! Clients of another protocol or byte order, and other servers than fdpassd.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use fdpassd::proto::frame::ByteOrder;
use fdpassd::testing::Client;

use crate::common::program::{FDPASSCTL, Said, control_client, run};
use crate::common::{ping_of, start};

const LISTENERS: &str = r#"
    listen = [
        { address = "127.0.0.1:0", byte-order = "little" },
        { address = "127.0.0.1:0", byte-order = "big" },
        { address = "127.0.0.1:0", byte-order = "auto" },
    ]
"#;

const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

/// As HAProxy sends it with `send-proxy`, and with `send-proxy-v2`.
const PROXY_V1: &[u8] = b"PROXY TCP4 192.0.2.10 192.0.2.20 44784 7101\r\n";
const PROXY_V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x0a\xc0\0\x02\x14\xae\xf0\x1b\xbd";

/// A record of 512 bytes, and the beginning of its message.
const HELLO: &[u8] = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";

/// The same of 200 bytes: 66,326 bytes, as a little-endian length.
const SHORT_HELLO: &[u8] = b"\x16\x03\x01\0\xc8\x01\0\0\xc4\x03\x03";

#[test]
fn another_protocol_gets_a_sentence_of_its_own() {
    let daemon = start(LISTENERS);
    let orders = [ByteOrder::Little, ByteOrder::Big, ByteOrder::Little];
    let methods = [
        "GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "CONNECT", "TRACE",
    ];
    let mut kinds: Vec<(Vec<u8>, &str)> = methods
        .map(|method| {
            (
                format!("{method} / HTTP/1.1\r\n\r\n").into(),
                "an HTTP request",
            )
        })
        .into();
    kinds.push((
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        "an HTTP request",
    ));
    kinds.push((PROXY_V1.to_vec(), "a PROXY protocol header"));
    kinds.push((PROXY_V2.to_vec(), "a PROXY protocol header"));
    kinds.push((HELLO.to_vec(), "a TLS handshake"));
    for (address, order) in daemon.addresses().iter().zip(orders) {
        for (bytes, what) in &kinds {
            let mut client = Client::connect(address).in_order(order);
            client.send(bytes);
            let fault = client.reply().value().expect_err("it is not a frame");
            let expected = format!("too_large: the listener expects frames, not {what}");
            assert_eq!(fault.to_string(), expected, "{bytes:?}");
            client.expect_end();
        }
    }
    let mut control = control_client(&daemon);
    control.send("GET /metrics HTTP/1.1\r\n\r\n");
    let fault = control.reply().value().expect_err("it is not a request");
    assert_eq!(
        fault.message(),
        "the control socket expects frames, not an HTTP request"
    );
    control.expect_end();
}

#[test]
fn a_length_in_the_other_order_is_named() {
    let daemon = start(LISTENERS);
    for (address, order) in daemon.addresses().iter().zip(ORDERS) {
        let mut client = Client::connect(address).in_order(order);
        client.send(order.other().prefix(26));
        client.send(ping_of(26));
        let fault = client.reply().value().expect_err("it is too long");
        let expected = format!(
            "a frame of 436207616 bytes is longer than max-frame, 1048576 bytes; {}, the length is 26 bytes, and \
             this connection is {order}",
            order.other()
        );
        assert_eq!((fault.code(), fault.message()), ("too_large", &*expected));
        client.expect_end();
    }
}

/// With the highest max-frame both lengths of a PROXY protocol header of version 2 are those of a frame.
#[test]
fn a_frame_that_is_none_is_named_when_it_is_given_up() {
    let limits = "limits = { max-frame = '256MiB', buffers = '1GiB', max-clients = 10, frame-timeout = '100ms' }\n";
    // With such a limit, no listener may be "auto".
    let listeners = LISTENERS.replace("auto", "little");
    let daemon = start(&format!("{limits}{listeners}"));
    for (address, order) in daemon.addresses().iter().zip(ORDERS) {
        let other = [&order.other().prefix(256)[..], ping_of(256).as_bytes()].concat();
        let in_other_order = format!(
            "{}, the length is 256 bytes, and this connection is {order}",
            order.other()
        );
        let proxy = "the listener expects frames, not a PROXY protocol header";
        let hello = "the listener expects frames, not a TLS handshake";
        let mut kinds = vec![(PROXY_V2, proxy), (&other, in_other_order.as_str())];
        if order == ByteOrder::Little {
            kinds.push((SHORT_HELLO, hello));
        }
        for (bytes, what) in kinds {
            let mut late = Client::connect(address).in_order(order);
            late.send(bytes);
            let fault = late.reply().value().expect_err("it is not a frame");
            let expected =
                format!("timeout: the frame was not complete within frame-timeout; {what}");
            assert_eq!(fault.to_string(), expected);
            late.expect_end();
        }
        let mut half = Client::connect(address).in_order(order);
        half.send([&order.prefix(1000)[..], b"{"].concat());
        let fault = half.reply().value().expect_err("it is incomplete");
        let expected = "timeout: the frame was not complete within frame-timeout";
        assert_eq!(fault.to_string(), expected);
    }
}

#[test]
fn a_frame_that_is_none_is_named_when_its_client_finishes() {
    let daemon = start("");
    let mut client = daemon.connect();
    client.send(SHORT_HELLO);
    client.finish();
    let fault = client.reply().value().expect_err("it is incomplete");
    assert_eq!(
        fault.to_string(),
        "bad_request: the connection ended in the middle of a frame; the listener expects frames, not a TLS handshake"
    );
    client.expect_end();
}

#[test]
fn fdpassctl_names_a_server_that_is_no_fdpassd() {
    let answers: [(&[u8], &str); 4] = [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "the answer is an HTTP response, not a frame",
        ),
        (
            b"\x15\x03\x03\0\x02\x02\x0a",
            "the answer is a TLS alert, not a frame",
        ),
        (
            b"SSH-2.0-OpenSSH_9.2\r\n",
            "the answer is the banner of an SSH server, not a frame",
        ),
        (
            b"ICAP/1.0 400 Bad Request\r\n",
            "bytes is announced, at most 268500992 are taken",
        ),
    ];
    for (answer, expected) in answers {
        for order in ["little", "big"] {
            let said = call_server(answer, order);
            assert_eq!(said.code, Some(4), "{}", said.err);
            assert!(
                said.err.starts_with("fdpassctl: ") && said.err.contains(expected),
                "{expected:?} is not in {:?}",
                said.err
            );
        }
    }
}

#[test]
fn fdpassctl_names_a_listener_of_the_other_order() {
    let daemon = start(LISTENERS);
    for (address, order) in daemon.addresses().iter().zip(ORDERS) {
        let wrong = match order {
            ByteOrder::Little => "big",
            ByteOrder::Big => "little",
        };
        let address = address.to_string();
        let arguments = ["call", "ping", "--to", &address, "--byte-order", wrong];
        let said = run(FDPASSCTL, &arguments);
        let named = format!(" are taken; {order}, the length is ");
        let end = " bytes: perhaps the listener has that byte order\n";
        assert!(
            said.code == Some(4) && said.err.contains(&named) && said.err.ends_with(end),
            "{}",
            said.err
        );
    }
    // Read in the wrong order, this length is below the limit.
    let long = format!(
        "{{\"out\":\"pong\",\"result\":\"{}\"}}",
        "x".repeat(256 - 26)
    );
    let little = [&256u32.to_le_bytes()[..], long.as_bytes()].concat();
    assert_eq!(long.len(), 256);
    assert_eq!(
        call_server(&little, "big").err,
        "fdpassctl: the answer is a little-endian frame of 256 bytes: the listener has that byte order\n"
    );
}

/// Calls a server that reads the request, answers like this and closes the connection.
fn call_server(answer: &[u8], order: &str) -> Said {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    thread::scope(|threads| {
        threads.spawn(|| {
            let mut stream = listener.accept().expect("it connects").0;
            let mut request = [0; 4 + "{\"in\":\"ping\"}".len()];
            stream.read_exact(&mut request).expect("a request");
            stream.write_all(answer).expect("the caller reads");
        });
        let arguments = ["call", "ping", "--to", &address, "--byte-order", order];
        run(FDPASSCTL, &arguments)
    })
}
