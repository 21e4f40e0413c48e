//! Clients behind a load balancer that reports their addresses by the PROXY protocol.

mod ends;
mod headers;
mod keys;
mod limit;
mod refused;
mod survival;

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;

use fdpassd::proto::control::{ClientState, ClientStatus, ClientsPage};
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use crate::common::faulty;
use crate::common::root;

/// A TCP and a Unix listener whose clients come through a balancer on this machine.
const BOTH: &str = r#"
    listen = [
        { address = "127.0.0.1:0", proxy = "any", proxy-from = ["127.0.0.0/8"] },
        { address = "unix:{dir}/rpc.sock", proxy = "any" },
    ]
    workers.count = 2
"#;

/// Returns a header of version 2 with this command and family, and with these addresses and TLVs.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [
        b"\r\n\r\n\0\r\nQUIT\n",
        &[command, family][..],
        &length,
        rest,
    ]
    .concat()
}

/// Returns a header of version 2 for the client of this number, and the client's address.
fn client_v2(number: u8) -> (Vec<u8>, String) {
    let rest = [
        198, 51, 100, number, 192, 0, 2, 20, 0x12, number, 0x1f, 0x90,
    ];
    let port = 0x1200 + u16::from(number);
    (
        binary(0x21, 0x11, &rest),
        format!("198.51.100.{number}:{port}"),
    )
}

/// Returns a header of version 1 for the client of this number, and the client's address.
fn client_v1(number: u8) -> (Vec<u8>, String) {
    let line = format!("PROXY TCP4 198.51.100.{number} 192.0.2.20 {number} 8080\r\n");
    (line.into_bytes(), format!("198.51.100.{number}:{number}"))
}

/// Returns the header of a connection of the balancer itself, such as a check.
fn local() -> Vec<u8> {
    binary(0x20, 0, &[])
}

/// Connects so that each write is sent at once.
#[track_caller]
fn open(address: &Address) -> Client {
    let client = Client::connect(address);
    match address {
        Address::Tcp(_) => client.without_delay(),
        Address::Unix(_) => client,
    }
}

/// Connects as a balancer would for a client with this header.
#[track_caller]
fn connect(address: &Address, header: &[u8]) -> Client {
    let mut client = open(address);
    client.send(header);
    client
}

/// Connects from another address of this machine.
fn connect_from(from: Ipv4Addr, to: &Address) -> TcpStream {
    let Address::Tcp(to) = to else {
        panic!("{to} is not a TCP address")
    };
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    );
    let socket = socket.expect("a socket");
    let raw = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let at = |address: std::net::SocketAddr| nix::sys::socket::SockaddrStorage::from(address);
    nix::sys::socket::bind(raw, &at((from, 0).into())).expect("an address of loopback");
    nix::sys::socket::connect(raw, &at(*to)).expect("it listens");
    TcpStream::from(socket)
}

#[track_caller]
fn whoami(client: &mut Client) -> Value {
    client.call("whoami", ()).expect("it is served")
}

#[track_caller]
fn ping(client: &mut Client) {
    assert_eq!(client.call("ping", 7).expect("it is served"), 7);
}

#[track_caller]
fn clients(daemon: &Running) -> Vec<ClientStatus> {
    let page = daemon.ctl("clients").expect("they are shown");
    let page: ClientsPage = serde_json::from_value(page).expect("a page");
    page.clients
}

/// Waits until the daemon shows clients with exactly these addresses, in any order, and none is in a turn: during a
/// turn an address is shown before the master has counted it.
#[track_caller]
fn wait_for_peers(daemon: &Running, expected: &[String]) -> Vec<ClientStatus> {
    let mut expected = expected.to_vec();
    expected.sort();
    let mut found = Vec::new();
    eventually(&format!("the clients are {expected:?}"), || {
        found = clients(daemon);
        let mut peers: Vec<String> = found.iter().map(|client| client.peer.clone()).collect();
        peers.sort();
        let is_busy = |client: &ClientStatus| client.state == Some(ClientState::Busy);
        (peers == expected && !found.iter().any(is_busy)).then_some(())
    });
    found
}

/// Returns the headers in `tests/formats/proxy`: the name of each file, its line `source` and its bytes.
fn samples() -> Vec<(String, String, Vec<u8>)> {
    let directory: PathBuf = root().join("tests/formats/proxy");
    let mut samples = Vec::new();
    for entry in fs::read_dir(directory).expect("the samples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "hex") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a text");
        let source = text.lines().find_map(|line| line.strip_prefix("# source "));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let digits: String = lines.flat_map(|line| line.chars()).collect();
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
        let bytes = (0..digits.len()).step_by(2).map(byte).collect();
        let name = path.file_stem().expect("a name").to_string_lossy();
        samples.push((
            name.into_owned(),
            source.expect("a source").to_owned(),
            bytes,
        ));
    }
    samples.sort();
    samples
}

/// Starts the daemon of `examples/faulty.rs`, whose method `whoami` returns the addresses of its caller.
#[track_caller]
fn start(config: &str) -> Running {
    let daemon = faulty::start(config);
    daemon.wait_for_workers();
    daemon
}

/// Returns a frame with a request of this method.
fn request(method: &str) -> Vec<u8> {
    crate::common::frame(&json!({ "in": method }).to_string())
}

/// Returns the number of connections that ended without becoming clients, for this reason.
#[track_caller]
fn without_client(daemon: &Running, reason: &str) -> f64 {
    let name = format!("fdpassd_proxy_connections_without_client_total{{reason=\"{reason}\"}}");
    crate::common::metrics::samples(daemon)[&name]
}

#[track_caller]
fn wait_for_without_client(daemon: &Running, reason: &str, count: f64) {
    eventually(&format!("{count} connections ended: {reason}"), || {
        (without_client(daemon, reason) >= count).then_some(())
    });
    assert_eq!(without_client(daemon, reason), count, "{reason}");
}
