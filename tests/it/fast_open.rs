//! Clients by TCP Fast Open, whose first request comes with their SYN and is served before the handshake is complete.
//!
//! The loopback of a network namespace of the test's own is stopped after the SYN, so the handshake lasts as long as
//! the test wants. Where no such namespace can be made, or tc(8) is missing, the tests are skipped.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use fdpassd::testing::{Running, TIMEOUT, eventually};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, sendto, socket};
use serde_json::json;

use crate::common::namespace::{is_inside, this_test};
use crate::common::{faulty, frame, let_pass, metrics, tcp_address};

/// Fast Open for clients and listeners, by data in a SYN without a cookie, on every listener (ip-sysctl.rst).
const ALWAYS: &str = "1543";

/// `MSG_FASTOPEN` of linux/socket.h.
const FAST_OPEN: MsgFlags = MsgFlags::from_bits_retain(0x2000_0000);

/// Bytes that go over the link at once when it is stopped: the SYN with its data, and hardly more.
const BURST: usize = 1000;

/// `TCP_SYN_RECV` as /proc/net/tcp has it.
const SYN_RECV: &str = "03";

/// Runs a test of this file in a namespace of its own, see [`is_inside`].
fn is_prepared(test: &str) -> bool {
    let prepare = format!(
        "ip link set lo up && echo {ALWAYS} >/proc/sys/net/ipv4/tcp_fastopen && \
         tc qdisc add dev lo root tbf rate 1gbit burst 100k limit 1m && tc qdisc del dev lo root"
    );
    is_inside(test, &prepare)
}

fn tc(arguments: &str) {
    let status = Command::new("tc").args(arguments.split(' ')).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "tc {arguments}"
    );
}

/// Connects with these bytes in the SYN, after which the link is stopped.
fn connect_and_stop(to: SocketAddr, data: &[u8]) -> TcpStream {
    let client = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
    .expect("socket");
    let SocketAddr::V4(v4) = to else {
        panic!("{to} is not of IPv4")
    };
    tc(&format!(
        "qdisc add dev lo root tbf rate 8bit burst {BURST} limit 1m"
    ));
    let sent = sendto(client.as_raw_fd(), data, &SockaddrIn::from(v4), FAST_OPEN).expect("sendto");
    assert_eq!(sent, data.len());
    let client = TcpStream::from(client);
    client.set_nonblocking(false).expect("fcntl");
    client.set_read_timeout(Some(TIMEOUT)).expect("SO_RCVTIMEO");
    client
}

/// Lets all pass from now on, also what was held back: the next packet sets it going.
fn open(to: SocketAddr) {
    tc("qdisc change dev lo root tbf rate 1gbit burst 100k limit 1m");
    drop(TcpStream::connect_timeout(&to, TIMEOUT));
}

/// States of the server's side of all connections to this port.
fn states(port: u16) -> Vec<String> {
    let sockets = fs::read_to_string("/proc/net/tcp").expect("proc is mounted");
    let local = format!(":{port:04X}");
    let fields = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_port = fields.filter(|fields| fields[1].ends_with(&local) && fields[3] != "0A");
    of_port.map(|fields| fields[3].to_owned()).collect()
}

fn receive(client: &mut TcpStream) -> String {
    let mut prefix = [0; 4];
    client.read_exact(&mut prefix).expect("a reply");
    let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
    client.read_exact(&mut body).expect("the whole reply");
    String::from_utf8(body).expect("JSON")
}

/// A ping that fills the SYN up together with what follows it, so that nothing else passes the link then.
fn filling(others: usize) -> (String, String) {
    // Headers of Ethernet, IPv4 and TCP with its options.
    let text = "x".repeat(BURST - 90 - others - 40);
    (
        format!(r#"{{"in":"ping","params":"{text}"}}"#),
        format!(r#"{{"out":"pong","result":"{text}"}}"#),
    )
}

/// A client in its handshake, whose worker has died in one of its requests.
struct InHandshake {
    daemon: Running,
    to: SocketAddr,
    client: TcpStream,
    /// The reply to its first request.
    pong: String,
}

impl InHandshake {
    /// Starts a daemon and connects a client: a ping comes with its SYN, and these bytes. Returns `None` outside of the
    /// namespace of this test.
    #[track_caller]
    fn start(test: &str, others: &[&[u8]]) -> Option<InHandshake> {
        if !is_prepared(test) {
            return None;
        }
        let daemon = faulty::start("workers.count = 2");
        daemon.wait_for_workers();
        let to = tcp_address(&daemon);
        let others = others.concat();
        let (ping, pong) = filling(4 + others.len());
        let client = connect_and_stop(to, &[frame(&ping), others].concat());
        let status = daemon.wait_until("its worker has died", |status| status.deaths_total == 1);
        assert_eq!(states(to.port()), [SYN_RECV]);
        assert_eq!(
            (status.lost_total, status.clients),
            (0, 1),
            "{}",
            daemon.stderr()
        );
        Some(InHandshake {
            daemon,
            to,
            client,
            pong,
        })
    }

    /// As [`InHandshake::start`], with a reply in flight when the worker ends.
    #[track_caller]
    fn with_reply_in_flight(test: &str) -> Option<InHandshake> {
        let sleep = frame(r#"{"in":"sleep","params":20}"#);
        let exit = frame(r#"{"in":"exit_until","params":2}"#);
        InHandshake::start(test, &[&sleep, &exit])
    }
}

/// Half a frame, a whole one and one whose first run ends its worker come with the SYN.
#[test]
fn a_fast_open_client_in_its_handshake_outlives_its_worker() {
    let exit = frame(r#"{"in":"exit_until","params":2}"#);
    let half = frame(r#"{"in":"ping","params":7}"#);
    let Some(InHandshake {
        daemon,
        to,
        mut client,
        pong,
    }) = InHandshake::start(this_test!(), &[&exit, &half[..10]])
    else {
        return;
    };
    daemon.wait_until("its request was run again", |status| {
        status.requests_total == 2
    });
    open(to);
    assert_eq!(receive(&mut client), pong);
    assert_eq!(receive(&mut client), r#"{"out":"exit_until_r","result":2}"#);
    std::io::Write::write_all(&mut client, &half[10..]).expect("it is connected");
    assert_eq!(receive(&mut client), r#"{"out":"pong","result":7}"#);
    eventually("the handshake is complete", || {
        (!states(to.port()).contains(&SYN_RECV.to_owned())).then_some(())
    });
    assert_eq!(daemon.status().lost_total, 0);
}

/// A reply is in flight when the worker ends in the request after it: what of it went out is not counted before the
/// handshake is complete.
#[test]
fn a_fast_open_client_with_a_reply_in_flight_survives() {
    let Some(InHandshake {
        daemon,
        to,
        mut client,
        pong,
    }) = InHandshake::with_reply_in_flight(this_test!())
    else {
        return;
    };
    let page = daemon.ctl("clients").expect("it is read-only");
    assert_eq!(page["clients"][0]["state"], "waiting", "{page}");
    let waiting = "\nfdpassd_clients{state=\"waiting\"} 1\n";
    assert!(metrics::text(&daemon).contains(waiting));
    // Others are served until then; nothing is run again before it is known what was answered.
    let_pass(Duration::from_millis(300));
    assert_eq!(
        (states(to.port()), daemon.status().requests_total),
        (vec![SYN_RECV.to_owned()], 2)
    );
    open(to);
    assert_eq!(receive(&mut client), pong);
    assert_eq!(receive(&mut client), r#"{"out":"sleep_r","result":null}"#);
    assert_eq!(receive(&mut client), r#"{"out":"exit_until_r","result":2}"#);
    let status = daemon.status();
    assert_eq!(
        (status.lost_total, status.deaths_total),
        (0, 1),
        "{}",
        daemon.stderr()
    );
}

#[test]
fn a_client_in_a_fast_open_handshake_can_be_kicked() {
    let Some(waiting) = InHandshake::with_reply_in_flight(this_test!()) else {
        return;
    };
    let daemon = &waiting.daemon;
    let page = daemon.ctl("clients").expect("it is read-only");
    let kicked = daemon.ctl_with("kick", json!({ "client": page["clients"][0]["id"] }));
    kicked.expect("there is such a client");
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (0, 0));
    open(waiting.to);
}
