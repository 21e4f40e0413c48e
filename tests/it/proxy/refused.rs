//! Connections without a header, with an invalid one, or from elsewhere.

use std::io::Read;

use fdpassd::proto::frame::ByteOrder;
use fdpassd::testing::Client;

use super::*;
use crate::common::kernel;

const V2: &str = r#"
    listen = [
        { address = "127.0.0.1:0", proxy = "v2", proxy-from = ["127.0.0.1"] },
        { address = "unix:{dir}/rpc.sock", proxy = "v1", byte-order = "big" },
    ]
    workers.count = 1
"#;

/// Sends these bytes, and returns the fault with which the connection ends.
#[track_caller]
fn refusal(address: &Address, order: ByteOrder, bytes: &[u8]) -> String {
    let mut client = connect(address, bytes).in_order(order);
    let fault = client.reply().value().expect_err("it is no header");
    client.expect_end();
    fault.to_string()
}

#[test]
fn a_client_without_a_header_gets_a_sentence() {
    let daemon = start(V2);
    let [tcp, unix] = daemon.addresses() else {
        panic!("there are two listeners")
    };
    let v2 = "bad_request: the listener expects a PROXY protocol header (version 2) before the first frame";
    let v1 = v2.replace("version 2", "version 1");
    let http = b"GET / HTTP/1.1\r\n\r\n";
    for (bytes, what) in [(&request("ping")[..], ""), (http, ", not an HTTP request")] {
        assert_eq!(
            refusal(tcp, ByteOrder::Little, bytes),
            format!("{v2}{what}")
        );
        assert_eq!(refusal(unix, ByteOrder::Big, bytes), format!("{v1}{what}"));
    }
    wait_for_without_client(&daemon, "missing", 4.0);
    assert_eq!(daemon.status().accepted_total, 0);
}

#[test]
fn a_header_of_the_other_version_is_refused() {
    let daemon = start(V2);
    let [tcp, unix] = daemon.addresses() else {
        panic!("there are two listeners")
    };
    assert_eq!(
        refusal(tcp, ByteOrder::Little, &client_v1(1).0),
        "bad_request: the PROXY protocol header is of version 1; the listener expects one of version 2"
    );
    assert_eq!(
        refusal(unix, ByteOrder::Big, &client_v2(1).0),
        "bad_request: the PROXY protocol header is of version 2; the listener expects one of version 1"
    );
    wait_for_without_client(&daemon, "version", 2.0);
}

#[test]
fn an_invalid_header_is_refused_and_harms_no_worker() {
    let daemon = start(BOTH);
    let workers = daemon.worker_pids();
    let address = &daemon.addresses()[0];
    let (header, _) = client_v2(1);
    let with_rest = |rest: &[u8]| binary(0x21, 0x11, &[&header[16..], rest].concat());
    for (bytes, why) in [
        (
            with_rest(&[5, 0xff, 0xff, 0]),
            "a TLV is longer than the rest of it",
        ),
        (binary(0x21, 0x12, &header[16..]), "it is of datagrams"),
        (
            binary(0x21, 0x11, &[0; 4]),
            "it is too short for its addresses",
        ),
        (
            [&header[..14], &[0xff, 0xff]].concat(),
            "it is longer than 4112 bytes",
        ),
        (
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n".to_vec(),
            "its line does not end with CR and LF",
        ),
        (
            [&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat(),
            "its line does not end within 107 bytes",
        ),
    ] {
        assert_eq!(
            refusal(address, ByteOrder::Little, &bytes),
            format!(
                "bad_request: the PROXY protocol header is not valid: {why}; the listener expects one of version 1 or 2"
            )
        );
    }
    wait_for_without_client(&daemon, "malformed", 6.0);
    let wrong_sum = with_rest(&[3, 0, 4, 1, 2, 3, 4]);
    assert_eq!(
        refusal(address, ByteOrder::Little, &wrong_sum),
        "bad_request: the checksum (CRC32c) of the PROXY protocol header is wrong; the listener expects one of \
         version 1 or 2"
    );
    wait_for_without_client(&daemon, "checksum", 1.0);
    // Seven in a few moments: one line of each worker, and the others are counted.
    let log = daemon.stderr();
    let lines = log.matches("; closing it").count();
    assert!((1..=2).contains(&lines), "{log}");
    assert_eq!(daemon.worker_pids(), workers);
    assert_eq!(daemon.status().accepted_total, 0);
    ping(&mut connect(address, &header));
}

#[test]
fn a_header_that_never_ends_is_given_up() {
    let daemon = start(&format!("{BOTH}\nlimits.frame-timeout = \"200ms\""));
    let (header, _) = client_v2(1);
    for (address, sent) in daemon.addresses().iter().zip([&header[..20], b""]) {
        assert_eq!(
            refusal(address, ByteOrder::Little, sent),
            "timeout: the PROXY protocol header was not complete within frame-timeout"
        );
    }
    wait_for_without_client(&daemon, "timeout", 2.0);
    // The time for a header begins when the connection is accepted: not before both have sent all that they send.
    kernel::stop(daemon.pid());
    // A connection that ends before its header does.
    let mut half = connect(&daemon.addresses()[0], b"PROXY TCP4 ");
    half.finish();
    // A client whose header is complete may be silent.
    let mut silent = connect(&daemon.addresses()[0], &header);
    daemon.signal("CONT");
    half.expect_end();
    wait_for_without_client(&daemon, "incomplete", 1.0);
    crate::common::let_pass(std::time::Duration::from_millis(600));
    ping(&mut silent);
}

#[test]
fn only_the_addresses_in_proxy_from_may_report_one() {
    let daemon = start(V2);
    let address = &daemon.addresses()[0];
    let mut liar = connect_from(Ipv4Addr::new(127, 0, 0, 2), address);
    let mut reply = Vec::new();
    liar.read_to_end(&mut reply).expect("a reply and the end");
    let reply = String::from_utf8_lossy(&reply[4..]).into_owned();
    assert!(
        reply.contains("the listener accepts only the load balancers in its proxy-from"),
        "{reply}"
    );
    wait_for_without_client(&daemon, "outside", 1.0);
    daemon.wait_for_log("a connection from 127.0.0.2 to 127.0.0.1:");
    for _ in 0..20 {
        let mut liar = connect_from(Ipv4Addr::new(127, 0, 0, 3), address);
        liar.read_to_end(&mut Vec::new()).expect("the end");
    }
    wait_for_without_client(&daemon, "outside", 21.0);
    let log = daemon.stderr();
    assert_eq!(
        log.matches("the address is not in its proxy-from").count(),
        1,
        "{log}"
    );
    assert_eq!(daemon.status().accepted_total, 0);
    ping(&mut connect(address, &client_v2(1).0));
}

/// The error is the same as in versions without the key.
#[test]
fn a_listener_without_the_key_refuses_headers() {
    let daemon = start("");
    for header in [client_v1(1).0, client_v2(1).0] {
        let mut client = Client::connect(daemon.address());
        client.send(header);
        let fault = client.reply().value().expect_err("it is no frame");
        assert_eq!(
            fault.to_string(),
            "too_large: the listener expects frames, not a PROXY protocol header"
        );
    }
}
