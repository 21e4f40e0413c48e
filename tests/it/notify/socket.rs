//! The socket of the manager: full, gone, abstract, and hidden from workers.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use fdpassd::testing::Setup;

use super::Manager;
use crate::common::strace::Traced;
use crate::common::upgrade::upgrade;
use crate::common::{FDPASSD, kernel};

#[test]
fn a_manager_that_does_not_read_delays_no_client() {
    let manager = Manager::new();
    let stuffing = UnixDatagram::unbound().expect("a socket");
    stuffing.set_nonblocking(true).expect("it is a socket");
    let mut stuffed = 0;
    while stuffing.send_to(b"stuffing", manager.path()).is_ok() {
        stuffed += 1;
    }
    let mut daemon = manager.start("workers.count = 1");
    let mut client = daemon.connect();
    for number in 0..100 {
        client.call("ping", number).expect("a result");
    }
    daemon.reload().expect("it is applied");
    daemon
        .reload_with("listne = []")
        .expect_err("it is rejected");
    assert_eq!(daemon.status().generation.0, 2);
    // It looks from time to time whether it is read, and does nothing else.
    kernel::assert_waits(&[daemon.pid()], Duration::from_secs(1), 0.2);

    (0..stuffed).for_each(|_| assert_eq!(manager.next(), "stuffing"));
    assert!(manager.next_but_statuses().starts_with("READY=1\n"));
    assert!(manager.next_but_statuses().starts_with("RELOADING=1\n"));
    assert!(manager.next_but_statuses().starts_with("READY=1\n"));
    assert!(
        manager
            .next_but_statuses()
            .contains("; last reload rejected: unknown key `listne`")
    );
    daemon.signal("TERM");
    assert!(manager.next_but_statuses().starts_with("STOPPING=1\n"));
    assert!(daemon.wait().success());
}

#[test]
fn an_upgrade_keeps_messages_that_the_manager_has_not_read() {
    let manager = Manager::new();
    let stuffing = UnixDatagram::unbound().expect("a socket");
    stuffing.set_nonblocking(true).expect("it is a socket");
    let mut stuffed = 0;
    while stuffing.send_to(b"stuffing", manager.path()).is_ok() {
        stuffed += 1;
    }
    let daemon = manager.start("workers.count = 1");
    daemon.wait_for_workers();
    upgrade(&daemon, None).expect("it is the same program");
    (0..stuffed).for_each(|_| assert_eq!(manager.next(), "stuffing"));
    assert!(manager.next_but_statuses().starts_with("READY=1\n"));
}

/// Too many descriptors are in flight, of this daemon or another process of its user.
#[test]
fn messages_that_the_kernel_refuses_are_sent_later() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    assert!(manager.next_but_statuses().starts_with("READY=1\n"));
    let inject = "sendmsg:error=ETOOMANYREFS:when=1..3";
    let Some(traced) = Traced::attach(daemon.pid(), "sendmsg", inject) else {
        return;
    };
    daemon.reload().expect("it is applied");
    assert!(manager.next_but_statuses().starts_with("RELOADING=1\n"));
    assert!(manager.next_but_statuses().starts_with("READY=1\n"));
    assert!(traced.text().contains("RELOADING=1") && traced.text().contains("INJECTED"));
}

#[test]
fn a_manager_that_is_gone_is_logged_once() {
    let manager = Manager::new();
    fs::remove_file(manager.path()).expect("it is there");
    let daemon = manager.start("workers.count = 1");
    daemon.wait_for_log("cannot notify the service manager: No such file or directory");
    daemon.reload().expect("it is applied");
    assert_eq!(
        daemon
            .stderr()
            .matches("cannot notify the service manager")
            .count(),
        1
    );
    for bad in ["relative", "@", "vsock:2:1"] {
        let daemon = Setup::new(FDPASSD, "")
            .variable("NOTIFY_SOCKET", bad)
            .start()
            .expect("the daemon serves");
        daemon.wait_for_log(&format!(
            "cannot notify the service manager: NOTIFY_SOCKET={bad}: "
        ));
    }
}

#[test]
fn an_abstract_address_is_as_good_as_a_path() {
    let name = format!("fdpassd-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let manager = Manager {
        socket: UnixDatagram::bind_addr(&address).expect("bind"),
        directory: tempfile::tempdir().expect("a directory"),
    };
    let setup =
        Setup::new(FDPASSD, "workers.count = 1").variable("NOTIFY_SOCKET", format!("@{name}"));
    let _daemon = setup.start().expect("the daemon serves");
    assert_eq!(
        manager.next(),
        "READY=1\nSTATUS=1 worker, 0 clients, generation 1"
    );
}

#[test]
fn workers_have_no_variables_of_the_service_manager() {
    let manager = Manager::new();
    let setup = manager
        .setup("workers.count = 2")
        .variable("WATCHDOG_USEC", "30000000")
        .variable("WATCHDOG_PID", "1");
    let setup = setup
        .variable("LISTEN_PID", "1")
        .variable("LISTEN_FDS", "1")
        .variable("LISTEN_FDNAMES", "rpc");
    let daemon = setup
        .variable("KEPT", "yes")
        .start()
        .expect("the daemon serves");
    daemon.wait_for_workers();
    daemon.kill_worker(0);
    for pid in daemon.worker_pids() {
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("it is ours");
        let environment = String::from_utf8_lossy(&environment).replace('\0', "\n");
        for key in [
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "LISTEN_PID",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
        ] {
            assert!(!environment.contains(&format!("{key}=")), "{environment}");
        }
        assert!(environment.contains("KEPT=yes"), "{environment}");
    }
}
