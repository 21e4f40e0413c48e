//! Requests of the RPC.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::status::listener;
use super::*;

/// Serves one request at a listener and returns it.
fn rpc(order: ByteOrder, reply: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    let serving = thread::spawn(move || {
        let (mut client, _): (TcpStream, _) = listener.accept().expect("accept");
        let request = receive(&mut client, order).expect("a request");
        send(&mut client, order, reply).expect("it is read");
        request
    });
    (address, serving)
}

/// Returns an address where nothing listens: it was bound a moment ago.
fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("bind")
}

#[test]
fn a_call_carries_params_and_result_byte_for_byte() {
    for order in [ByteOrder::Little, ByteOrder::Big] {
        let name = if order == ByteOrder::Big {
            "big"
        } else {
            "little"
        };
        let (address, serving) = rpc(order, r#"{"out":"pong","result":[ 1e400,"\u00b5" ]}"#);
        let to = address.to_string();
        let ran = ctl(
            &[
                "call",
                "pi\n\"ng",
                r#"{"a":1,"a": 2}"#,
                "--to",
                &to,
                "--byte-order",
                name,
            ],
            &[],
        );
        assert_eq!(
            (ran.exit, ran.out.as_str()),
            (ExitStatus::Done, "[ 1e400,\"\\u00b5\" ]\n"),
            "{}",
            ran.err
        );
        assert_eq!(
            serving.join().expect("served"),
            r#"{"in":"pi\n\"ng","params":{"a":1,"a": 2}}"#
        );
    }
}

#[test]
fn a_call_goes_to_the_first_listener_in_its_byte_order() {
    let (address, serving) = rpc(ByteOrder::Big, r#"{"out":"pong","result":null}"#);
    let mut status = status();
    status.listeners[0] = listener(
        &format!("0.0.0.0:{}", address.port()),
        OrderRule::Big,
        Some(0),
    );
    let ran = Daemon::that_replies([reply("status", &status)]).asked(&["call", "ping"]);
    assert_eq!(
        (ran.exit, ran.out.as_str()),
        (ExitStatus::Done, "null\n"),
        "{}",
        ran.err
    );
    assert_eq!(serving.join().expect("served"), r#"{"in":"ping"}"#);
}

#[test]
fn a_failed_call_has_its_error_and_exit_code() {
    let (address, serving) = rpc(
        ByteOrder::Little,
        r#"{"out":"error","result":{"code":"forbidden","message":"no\n"}}"#,
    );
    let ran = ctl(&["call", "x", "--to", &address.to_string()], &[]);
    serving.join().expect("served");
    // This code is the method's own, not a refusal of the daemon.
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (ExitStatus::Failed, "fdpassctl: forbidden: no\\n\n")
    );

    let to = unused_address().to_string();
    let ran = ctl(&["call", "x", "--to", &to], &[]);
    assert_eq!(
        (ran.exit, ran.err),
        (
            ExitStatus::NotRunning,
            format!("fdpassctl: nothing listens at {to}\n")
        )
    );
}
