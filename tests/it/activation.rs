//! Sockets that systemd has bound and hands over, by a shell in the place of systemd.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, Setup, eventually};

use crate::common::{FDPASSD, kernel};

/// A listener of systemd's, and one more owner of it: systemd.
struct Bound {
    systemds: OwnedFd,
    address: Address,
}

impl Bound {
    fn tcp(to: &str) -> Bound {
        let listener = TcpListener::bind(to).expect("a free port");
        let address = Address::Tcp(listener.local_addr().expect("it is bound"));
        Bound {
            systemds: listener.into(),
            address,
        }
    }

    fn unix(path: &Path) -> Bound {
        let listener = UnixListener::bind(path).expect("the path is free");
        Bound {
            systemds: listener.into(),
            address: Address::Unix(path.to_owned()),
        }
    }

    fn copy(&self) -> OwnedFd {
        self.systemds
            .try_clone()
            .expect("there is a descriptor left")
    }
}

fn addresses(daemon: &Running) -> Vec<String> {
    daemon
        .status()
        .listeners
        .into_iter()
        .map(|listener| listener.address)
        .collect()
}

#[track_caller]
fn refused(setup: Setup) -> (Option<i32>, String) {
    let error = setup.start().expect_err("it does not serve");
    (error.code(), error.stderr().to_owned())
}

#[test]
fn a_socket_of_a_unit_named_after_the_daemon_is_served() {
    // systemd's default name of a socket is that of its unit; the second is also the beginning of a name in the store.
    for name in ["fdpassd-rpc.socket", "fdpassd-listener.socket"] {
        let bound = Bound::tcp("127.0.0.1:0");
        let config = format!("listen = [\"systemd:{name}\"]\nworkers.count = 1");
        let setup = Setup::new(FDPASSD, &config).activated(name, bound.copy());
        let daemon = setup.start().expect("the daemon serves");
        assert_eq!(addresses(&daemon), [bound.address.to_string()]);
        let mut client = Client::connect(&bound.address);
        assert_eq!(client.call("ping", 1).expect("a result"), 1);
        let log = daemon.stderr();
        assert!(!log.contains("state file"), "{log}");
    }
}

#[test]
fn sockets_of_one_name_are_all_served_like_own_listeners() {
    let directory = tempfile::tempdir().expect("a directory");
    let (v4, v6) = (Bound::tcp("127.0.0.1:0"), Bound::tcp("[::1]:0"));
    let unix = Bound::unix(&directory.path().join("rpc"));
    let config = r#"
        listen = [{ address = "systemd:local", byte-order = "big" }, "127.0.0.1:0", "systemd:rpc"]
        limits.tcp-keepalive = "100s"
        workers.count = 2
    "#;
    let setup = Setup::new(FDPASSD, config)
        .activated("rpc", v4.copy())
        .activated("local", unix.copy());
    let daemon = setup
        .activated("rpc", v6.copy())
        .start()
        .expect("the daemon serves");
    let bound = addresses(&daemon);
    let expected = [&unix, &v4, &v6].map(|bound| bound.address.to_string());
    assert_eq!(
        [&bound[0], &bound[2], &bound[3]],
        [&expected[0], &expected[1], &expected[2]]
    );
    assert_eq!(bound.len(), 4);

    let mut client = Client::connect(&v4.address);
    assert_eq!(client.call("ping", 4).expect("a result"), 4);
    let Address::Tcp(at) = v4.address else {
        panic!("it is TCP")
    };
    // Until the reply is acknowledged, the timer is another one.
    let seconds = eventually("its connection is probed", || {
        let (kind, seconds) = kernel::timer(at.port())?;
        (kind == kernel::KEEPALIVE).then_some(seconds)
    });
    assert!((80..=100).contains(&seconds), "{seconds} s");
    assert_eq!(
        Client::connect(&v6.address)
            .call("ping", 6)
            .expect("a result"),
        6
    );
    let Address::Unix(path) = &unix.address else {
        panic!("it is a Unix socket")
    };
    let mut big = UnixStream::connect(path).expect("it listens");
    let body = b"{\"in\":\"ping\"}";
    std::io::Write::write_all(
        &mut big,
        &[&(body.len() as u32).to_be_bytes()[..], body].concat(),
    )
    .expect("it is read");
    let mut length = [0; 4];
    std::io::Read::read_exact(&mut big, &mut length).expect("a reply");
    assert!((1..100).contains(&u32::from_be_bytes(length)), "{length:?}");
    let status = daemon.status();
    assert_eq!(
        status.listeners[2].queue_max,
        Some(4096),
        "the backlog is that of the entry"
    );
}

#[test]
fn workers_inherit_no_activated_socket() {
    let (used, unused) = (Bound::tcp("127.0.0.1:0"), Bound::tcp("127.0.0.1:0"));
    let setup = Setup::new(FDPASSD, "listen = [\"systemd:rpc\"]\nworkers.count = 2")
        .activated("rpc", used.copy());
    let daemon = setup
        .activated("other", unused.copy())
        .start()
        .expect("the daemon serves");
    daemon.wait_for_log(
        "systemd has passed a socket named other, and no entry of listen is \"systemd:other\"",
    );
    daemon.wait_for_workers();
    let sockets = |pid| {
        let names = kernel::descriptors(pid).into_iter().map(|(_, name)| name);
        names
            .filter(|name| name.starts_with("socket:"))
            .collect::<Vec<_>>()
    };
    let theirs = sockets(std::process::id());
    let shared = |pid| {
        sockets(pid)
            .iter()
            .filter(|name| theirs.contains(name))
            .count()
    };
    assert_eq!(
        shared(daemon.pid()),
        3,
        "two that were passed, and the copy of a listener"
    );
    for worker in daemon.worker_pids() {
        assert_eq!(shared(worker), 0);
    }
}

#[test]
fn reloads_drop_and_reuse_an_activated_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let tcp = Bound::tcp("127.0.0.1:0");
    let unix = Bound::unix(&directory.path().join("rpc"));
    let both = "listen = [\"systemd:tcp\", \"systemd:unix\", \"127.0.0.1:0\"]\nworkers.count = 1";
    let setup = Setup::new(FDPASSD, both)
        .activated("tcp", tcp.copy())
        .activated("unix", unix.copy());
    let daemon = setup.start().expect("the daemon serves");
    let mut clients = [&tcp, &unix].map(|bound| Client::connect(&bound.address));
    for client in &mut clients {
        assert_eq!(client.call("ping", 1).expect("a result"), 1);
    }

    daemon
        .reload_with("listen = [\"127.0.0.1:0\"]")
        .expect("it is applied");
    daemon.wait_until("the others are not served any more", |status| {
        status.listeners.len() == 1
    });
    let Address::Unix(path) = &unix.address else {
        panic!("it is a Unix socket")
    };
    assert!(path.exists(), "its path is systemd's");
    // Clients that are there stay, new ones wait: systemd still listens.
    let mut waiting = [&tcp, &unix].map(|bound| Client::connect(&bound.address));
    for client in waiting.iter_mut().chain(&mut clients) {
        client.request("ping", 2);
    }
    for client in &mut clients {
        assert_eq!(client.reply().value().expect("a result"), 2);
    }
    assert!(!waiting[0].has_something() && !waiting[1].has_something());

    daemon.reload_with(both).expect("it is applied");
    for client in &mut waiting {
        assert_eq!(client.reply().value().expect("a result"), 2);
    }
    assert_eq!(
        addresses(&daemon)[..2],
        [&tcp, &unix].map(|bound| bound.address.to_string())
    );
    let kept = daemon.status().listeners;
    daemon.reload().expect("it is applied");
    let totals = |listeners: &[fdpassd::proto::control::ListenerStatus]| -> Vec<u64> {
        listeners
            .iter()
            .map(|listener| listener.accepted_total)
            .collect()
    };
    assert_eq!(
        totals(&daemon.status().listeners),
        totals(&kept),
        "they were kept, and not opened anew"
    );
}

#[test]
fn a_reload_with_a_name_that_was_not_passed_is_rejected() {
    let tcp = Bound::tcp("127.0.0.1:0");
    let setup = Setup::new(FDPASSD, "listen = [\"systemd:rpc\"]").activated("rpc", tcp.copy());
    let daemon = setup.start().expect("the daemon serves");
    let fault = daemon
        .reload_with("listen = [\"systemd:rpc\", \"systemd:web\"]")
        .expect_err("there is no such name");
    let why = "cannot listen on systemd:web: no socket of that name was passed, only systemd:rpc";
    assert_eq!((fault.code(), fault.message()), ("rejected", why));
    assert_eq!(addresses(&daemon), [tcp.address.to_string()]);
    assert_eq!(
        Client::connect(&tcp.address)
            .call("ping", 1)
            .expect("a result"),
        1
    );
}

#[test]
fn unusable_activated_sockets_are_refused_with_advice() {
    let (code, said) = refused(Setup::new(FDPASSD, "listen = [\"systemd:rpc\"]"));
    let why =
        "cannot listen on systemd:rpc: systemd has passed no socket; is the socket unit started?";
    assert!(code == Some(69) && said.contains(why), "{said}");

    let tcp = Bound::tcp("127.0.0.1:0");
    let setup = Setup::new(FDPASSD, "listen = [\"systemd:rpc\"]")
        .activated("web", tcp.copy())
        .activated("api", tcp.copy());
    let (code, said) = refused(setup);
    let why = "no socket of that name was passed, only systemd:web, systemd:api";
    assert!(code == Some(69) && said.contains(why), "{said}");

    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let (code, said) =
        refused(Setup::new(FDPASSD, "listen = [\"systemd:rpc\"]").activated("rpc", datagrams));
    let why =
        "cannot listen on systemd:rpc: it is not a stream socket of TCP or Unix (ListenStream=)";
    assert!(code == Some(69) && said.contains(why), "{said}");

    let Address::Tcp(at) = tcp.address else {
        panic!("it is TCP")
    };
    let connection = TcpStream::connect(at).expect("it listens");
    let (code, said) =
        refused(Setup::new(FDPASSD, "listen = [\"systemd:rpc\"]").activated("rpc", connection));
    assert!(
        code == Some(69) && said.contains("it does not listen; its unit must not set Accept=yes"),
        "{said}"
    );

    // An enabled socket unit without a change of the configuration is reported with advice.
    let setup = Setup::new(FDPASSD, &format!("listen = [\"{at}\"]")).activated("rpc", tcp.copy());
    let (code, said) = refused(setup);
    let why = format!(
        "cannot listen on {at}: Address already in use (os error 98); systemd has bound it and passed it: \
                       write \"systemd:rpc\""
    );
    assert!(code == Some(69) && said.contains(&why), "{said}");
}

#[test]
fn failed_start_with_a_waiting_client_takes_two_seconds() {
    let bound = Bound::tcp("127.0.0.1:0");
    let Address::Tcp(address) = bound.address else {
        panic!("it is TCP")
    };
    let _waiting = TcpStream::connect(address).expect("it listens");
    let began = Instant::now();
    let config = "listen = [\"systemd:rpc\"]\nworkers.count = 0";
    let (code, said) = refused(Setup::new(FDPASSD, config).activated("rpc", bound.copy()));
    assert_eq!(code, Some(78), "{said}");
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "systemd would try it again at once"
    );
}

#[test]
fn contradictory_variables_are_refused_foreign_ones_ignored() {
    let setup = || Setup::new("sh", "").argument("-c");
    for (environment, why) in [
        (
            "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=rpc",
            "LISTEN_FDS=2, but LISTEN_FDNAMES has 1 name",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=many",
            "LISTEN_FDS=many is not a number up to 65536",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=9 LISTEN_FDNAMES=a:b:c:d:e:f:g:h:i",
            "not all of them are there: Bad file descriptor",
        ),
    ] {
        let script = format!(
            "{environment}; export LISTEN_PID LISTEN_FDS LISTEN_FDNAMES; exec {FDPASSD} \"$@\""
        );
        let (code, said) = refused(setup().argument(script).argument("sh"));
        let is_told = said.starts_with("fdpassd: cannot take over the sockets of systemd: ")
            && said.contains(why);
        assert!(code == Some(69) && is_told, "{said}");
    }
    let script =
        format!("LISTEN_PID=1 LISTEN_FDS=9; export LISTEN_PID LISTEN_FDS; exec {FDPASSD} \"$@\"");
    let daemon = setup()
        .argument(script)
        .argument("sh")
        .start()
        .expect("the daemon serves");
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
}

#[test]
fn clients_wait_for_the_next_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rpc");
    let (tcp, unix) = (Bound::tcp("127.0.0.1:0"), Bound::unix(&path));
    let start = || {
        let setup = Setup::new(FDPASSD, "listen = [\"systemd:rpc\"]").activated("rpc", tcp.copy());
        setup
            .activated("rpc", unix.copy())
            .start()
            .expect("the daemon serves")
    };
    let mut daemon = start();
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    assert!(fs::metadata(&path).is_ok(), "its path is systemd's");
    let mut clients = [&tcp, &unix].map(|bound| Client::connect(&bound.address));
    clients
        .iter_mut()
        .for_each(|client| client.request("ping", "patience"));
    let _next = start();
    for client in &mut clients {
        assert_eq!(client.reply().value().expect("a result"), "patience");
    }
}

#[test]
fn ipv4_clients_of_a_dual_stack_listener_count_as_ipv4() {
    let both = TcpListener::bind("[::]:0").expect("a free port");
    let port = both.local_addr().expect("it is bound").port();
    let config = "listen = [\"systemd:rpc\", \"127.0.0.1:0\"]\nlimits.max-clients-per-address = 1";
    let daemon = Setup::new(FDPASSD, config)
        .activated("rpc", both)
        .start()
        .expect("the daemon serves");
    let mut first = Client::connect(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
    assert_eq!(first.call("ping", 4).expect("a result"), 4);
    let mut second = Client::connect(&daemon.addresses()[1]);
    assert_eq!(
        second
            .reply()
            .value()
            .expect_err("there is one already")
            .code(),
        "overloaded"
    );
}
