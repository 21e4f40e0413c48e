//! Passed descriptors that take long to close delay no other client.

use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, Setup, eventually};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use serde_json::json;

use crate::common::http::{get, metrics_address};
use crate::common::needs::skip;
use crate::common::program::control_socket;
use crate::common::upgrade::upgrade;
use crate::common::{FDPASSD, frame, kernel, start};

const CONFIG: &str = "
listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]
workers.count = 1
metrics.listen = \"unix:{dir}/metrics.sock\"
";

/// A kernel that cannot refuse descriptors, as it is before Linux 6.16.
const WITHOUT: (&str, &str) = ("FDPASSD_PASSRIGHTS", "unavailable");

/// A connection with bytes that its peer never takes: its last close waits for a minute.
struct Lingering {
    socket: TcpStream,
    peer: Peer,
}

/// The other end: as long as it is open, and reads nothing, a close waits.
#[derive(Debug)]
struct Peer {
    _stream: TcpStream,
}

impl Lingering {
    fn new() -> Lingering {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        setsockopt(&listener, sockopt::RcvBuf, &4096).expect("SO_RCVBUF");
        let mut socket =
            TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (peer, _) = listener.accept().expect("it waits");
        socket.set_nonblocking(true).expect("a socket takes it");
        while socket.write(&[0; 65_536]).is_ok() {}
        let minute = libc::linger {
            l_onoff: 1,
            l_linger: 60,
        };
        setsockopt(&socket, sockopt::Linger, &minute).expect("SO_LINGER");
        Lingering {
            socket,
            peer: Peer { _stream: peer },
        }
    }

    /// Passes it along with these bytes, and has no copy any more; or the receiver takes none.
    fn pass(self, to: &UnixStream, bytes: &[u8], copies: usize) -> Result<Peer, Errno> {
        let numbers = vec![self.socket.as_raw_fd(); copies];
        let parts = [IoSlice::new(bytes)];
        let sent = sendmsg::<()>(
            to.as_raw_fd(),
            &parts,
            &[ControlMessage::ScmRights(&numbers)],
            MsgFlags::empty(),
            None,
        );
        if sent.is_err() {
            // So that we do not wait ourselves.
            setsockopt(
                &self.socket,
                sockopt::Linger,
                &libc::linger {
                    l_onoff: 0,
                    l_linger: 0,
                },
            )
            .expect("SO_LINGER");
        }
        sent.map(|_| self.peer)
    }
}

fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).expect("it listens")
}

struct Sockets {
    rpc: PathBuf,
    control: PathBuf,
    metrics: PathBuf,
}

fn sockets(daemon: &Running) -> Sockets {
    let Address::Unix(metrics) = metrics_address(daemon) else {
        panic!("a Unix socket")
    };
    Sockets {
        rpc: daemon.directory().join("rpc.sock"),
        control: control_socket(daemon),
        metrics,
    }
}

/// Everybody is served: new clients by the master, requests by the only worker, HTTP by the exporter. None of them
/// waits for longer than the patience of the tests, which is far below a minute.
#[track_caller]
fn assert_all_served(daemon: &Running) {
    for address in daemon.addresses() {
        assert_eq!(
            Client::connect(address).call("ping", 1).expect("a result"),
            1
        );
    }
    assert_eq!(daemon.status().workers.len(), 1);
    assert_eq!(get(&metrics_address(daemon), "/healthz").status, 200);
}

#[test]
fn sockets_refuse_descriptors_where_the_kernel_can() {
    if !kernel::can_refuse_descriptors() {
        return skip("linux-6.16", "SO_PASSRIGHTS needs Linux 6.16");
    }
    let daemon = start(CONFIG);
    let to = sockets(&daemon);
    let before = connect(&to.rpc);
    for path in [&to.rpc, &to.control, &to.metrics] {
        match Lingering::new().pass(&connect(path), b"x", 1) {
            Err(Errno::EPERM) => {}
            other => panic!("{}: {other:?}", path.display()),
        }
    }
    upgrade(&daemon, None).expect("it is fit");
    let refused = Lingering::new()
        .pass(&before, b"x", 1)
        .expect_err("nor after an upgrade");
    assert_eq!(refused, Errno::EPERM);
    assert_all_served(&daemon);
}

#[test]
fn closing_passed_descriptors_delays_no_client() {
    let daemon = without_refusal();
    let to = sockets(&daemon);
    let mut rpc = connect(&to.rpc);
    let _rpc = Lingering::new()
        .pass(&rpc, &frame("{\"in\":\"ping\",\"params\":7}"), 1)
        .expect("it is taken");
    assert_eq!(reply(&mut rpc), "{\"out\":\"pong\",\"result\":7}");
    let mut control = connect(&to.control);
    let _control = Lingering::new()
        .pass(&control, &frame("{\"in\":\"version\"}"), 1)
        .expect("it is taken");
    let told = reply(&mut control);
    assert!(told.contains("version"), "{told}");
    let mut metrics = connect(&to.metrics);
    let _metrics = Lingering::new()
        .pass(&metrics, b"GET /healthz HTTP/1.0\r\n\r\n", 1)
        .expect("it is taken");
    let mut answer = String::new();
    metrics.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("200 OK"), "{answer}");
    assert_all_served(&daemon);
    drop((rpc, control));
    daemon.wait_until("they have left", |status| status.clients == 0);
    assert_all_served(&daemon);
}

#[test]
fn closing_unread_passed_descriptors_delays_no_client() {
    let daemon = without_refusal();
    let (to, mut peers) = (sockets(&daemon), Vec::new());
    for path in [&to.rpc, &to.control, &to.metrics] {
        let mut client = connect(path);
        // Too large a frame, or no request at all: the connection ends with the rest unread.
        let _ = client.write_all(&[0xff; 16]);
        peers.extend(Lingering::new().pass(&client, &[0; 1], 1).ok());
        let mut rest = Vec::new();
        drop(
            client
                .shutdown(std::net::Shutdown::Write)
                .and_then(|()| client.read_to_end(&mut rest)),
        );
    }
    // One that is closed by its client at once, while the master has not accepted it.
    kernel::stop(daemon.pid());
    for path in [&to.rpc, &to.control, &to.metrics] {
        let client = connect(path);
        peers.push(
            Lingering::new()
                .pass(&client, &[0; 1], 1)
                .expect("it is taken"),
        );
    }
    daemon.signal("CONT");
    assert_all_served(&daemon);
    daemon.wait_until("they have left", |status| status.clients == 0);

    // A request that is longer than what is read of it.
    let mut control = connect(&to.control);
    kernel::stop(daemon.pid());
    control.write_all(&[0xff; 80_000]).expect("there is room");
    peers.push(
        Lingering::new()
            .pass(&control, &[0; 1], 1)
            .expect("it is taken"),
    );
    daemon.signal("CONT");
    assert!(reply(&mut control).contains("too_large"));
    assert_all_served(&daemon);

    // A client that is closed while its worker does not read.
    let rpc = connect(&to.rpc);
    let status = daemon.wait_until("it is accepted", |status| status.clients == 1);
    kernel::stop(daemon.worker_pids()[0]);
    peers.push(
        Lingering::new()
            .pass(&rpc, &[0; 1], 1)
            .expect("it is taken"),
    );
    daemon
        .ctl_with("kick", json!({ "client": status.accepted_total }))
        .expect("it is closed");
    daemon.signal_worker(0, "CONT");
    // A worker that was stopped for longer than stall-timeout has a substitute for a while.
    if daemon.status().stalls_total > 0 {
        daemon.wait_until("the substitute has left", |status| {
            status.workers.len() == 1 && status.leaving.is_empty()
        });
    }
    assert_all_served(&daemon);
}

#[test]
fn a_client_that_passes_more_than_16_descriptors_is_ended() {
    let daemon = without_refusal();
    let to = sockets(&daemon);
    for path in [&to.rpc, &to.control, &to.metrics] {
        let mut client = connect(path);
        let _peer = Lingering::new()
            .pass(&client, &[0; 1], 17)
            .expect("it is taken");
        match client.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("{}: {other:?}", path.display()),
        }
    }
    assert_all_served(&daemon);
    assert_eq!(daemon.status().lost_total, 0, "it is its own doing");
    eventually("all that was passed is closed", || {
        let of_tcp = |pid| {
            let sockets = kernel::descriptors(pid)
                .into_iter()
                .filter(|(_, name)| name.starts_with("socket:"));
            sockets.count()
        };
        (of_tcp(daemon.worker_pids()[0]) <= 3).then_some(())
    });
}

fn without_refusal() -> Running {
    let setup = Setup::new(FDPASSD, CONFIG).variable(WITHOUT.0, WITHOUT.1);
    setup.start().expect("the daemon serves")
}

#[track_caller]
fn reply(client: &mut UnixStream) -> String {
    let mut length = [0; 4];
    client
        .set_read_timeout(Some(fdpassd::testing::TIMEOUT))
        .expect("a socket takes it");
    client.read_exact(&mut length).expect("a reply");
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    client.read_exact(&mut body).expect("all of it");
    String::from_utf8(body).expect("text")
}
