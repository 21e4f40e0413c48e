//! Helpers of all tests.

pub mod cgroup;
pub mod delegation;
pub mod faulty;
pub mod fifo;
pub mod holder;
pub mod http;
pub mod kernel;
pub mod load;
pub mod metrics;
pub mod namespace;
pub mod needs;
pub mod page;
pub mod port;
pub mod program;
pub mod random;
pub mod restart;
#[cfg(feature = "tokio")]
pub mod starvation;
pub mod strace;
pub mod terminal;
pub mod upgrade;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, eventually};

use self::program::{connections_to, control_socket};

/// The shipped daemon.
pub const FDPASSD: &str = env!("CARGO_BIN_EXE_fdpassd");

/// Starts the shipped daemon with this configuration.
#[track_caller]
pub fn start(config: &str) -> Running {
    Running::start(FDPASSD, config).expect("the daemon serves")
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the text of a file of the repository.
#[track_caller]
pub fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("cannot read {file}: {e}"))
}

/// Returns the address of a daemon that listens on TCP first.
#[track_caller]
pub fn tcp_address(daemon: &Running) -> SocketAddr {
    match daemon.address() {
        Address::Tcp(address) => *address,
        Address::Unix(path) => panic!("{} is a Unix socket", path.display()),
    }
}

/// Returns a little-endian frame with this body.
pub fn frame(body: &str) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body.as_bytes()].concat()
}

/// Lets time pass: to show that something does *not* happen in it, or to send at a pace. A fact is awaited with a
/// deadline instead.
pub fn let_pass(time: Duration) {
    let (_nobody, news) = mpsc::channel::<()>();
    assert_eq!(news.recv_timeout(time), Err(RecvTimeoutError::Timeout));
}

/// Measures while master and children sleep, and no control client is connected: none has anything left to do.
///
/// Bytes that clients have sent over TCP may still be on their way: wait for a fact about them before.
#[track_caller]
pub fn while_idle<T>(daemon: &Running, measure: impl Fn() -> T) -> T {
    while_idle_with(daemon, 0, measure)
}

/// As [`while_idle`], while this number of control clients is connected. A connection that the test has closed is one
/// until every program that another test starts is executed: before that, it has copies of all descriptors of the
/// tests.
#[track_caller]
pub fn while_idle_with<T>(daemon: &Running, control_clients: usize, measure: impl Fn() -> T) -> T {
    let control = control_socket(daemon);
    eventually("the daemon is idle", || {
        if connections_to(&control) != control_clients {
            return None;
        }
        // To look for the children takes long on a busy machine, so it is not done between the two looks at them.
        let family = kernel::family(daemon.pid());
        let before = kernel::all_idle(&family)?;
        let measured = measure();
        let is_idle = kernel::all_idle(&family)? == before;
        (is_idle && kernel::family(daemon.pid()) == family).then_some(measured)
    })
}

/// Pings each client with its number.
#[track_caller]
pub fn ping_all(clients: &mut [Client]) {
    for (client, number) in clients.iter_mut().zip(0_u64..) {
        assert_eq!(client.call("ping", number).expect("a pong"), number);
    }
}

/// A ping whose body is of just that many bytes, from 26 on.
pub fn ping_of(length: usize) -> String {
    let (front, back) = ("{\"in\":\"ping\",\"params\":\"", "\"}");
    let text = "x".repeat(length - front.len() - back.len());
    format!("{front}{text}{back}")
}

/// The reply to [`ping_of`].
pub fn pong_of(length: usize) -> Vec<u8> {
    ping_of(length)
        .replace("\"in\":\"ping\",\"params\"", "\"out\":\"pong\",\"result\"")
        .into_bytes()
}
