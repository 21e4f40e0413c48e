//! Listeners of a drained daemon: reloads, addresses that are taken, sockets of systemd.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Setup};
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};

use crate::common::holder::listener_of;
use crate::common::port::Reserved;
use crate::common::{FDPASSD, let_pass, start};

use super::{assert_refused, assert_served, done, refusal};

#[test]
fn a_reload_of_a_drained_daemon_changes_listeners_that_refuse() {
    let ports = [(); 2].map(|()| Reserved::new());
    let [stays, leaves] = [0, 1].map(|i| ports[i].address);
    let daemon = start(&format!(
        "listen = [\"{stays}\", \"{leaves}\", \"unix:{{dir}}/stays.sock\", \"unix:{{dir}}/leaves.sock\"]\n\
         workers.count = 1"
    ));
    let unix = |name: &str| Address::Unix(daemon.directory().join(name));
    let mode = || {
        let found = fs::metadata(daemon.directory().join("stays.sock")).expect("its file stays");
        found.permissions().mode() & 0o777
    };
    done(&daemon, &["drain"]);
    assert_refused(daemon.addresses());
    daemon
        .reload_with(&format!(
            "listen = [{{ address = \"unix:{{dir}}/stays.sock\", mode = \"0600\" }}, \"unix:{{dir}}/new.sock\", \
             \"127.0.0.1:0\", \"{stays}\"]\nworkers.count = 1"
        ))
        .expect("it is applied");
    daemon.wait_for_log(&format!("no longer listening on {leaves}"));
    assert!(!daemon.directory().join("leaves.sock").exists());
    let status = daemon.status();
    let now: Vec<Address> = status
        .listeners
        .iter()
        .map(|listener| listener.address.parse().expect("an address"))
        .collect();
    assert_eq!(now.len(), 4, "{now:?}");
    assert_refused(&now);
    done(&daemon, &["undrain"]);
    assert_served(&now);
    assert_eq!(mode(), 0o600);
    assert_eq!(
        refusal(&unix("leaves.sock")),
        Some(std::io::ErrorKind::NotFound)
    );
    assert_refused(&[Address::Tcp(leaves)]);
}

#[test]
fn an_address_that_is_taken_during_a_drain_is_an_outage() {
    let reserved = Reserved::new();
    let address = Address::Tcp(reserved.address);
    let daemon = start(&format!(
        "listen = [\"{address}\", \"127.0.0.1:0\"]\nworkers.count = 1"
    ));
    done(&daemon, &["drain"]);
    let taken = TcpListener::bind(reserved.address).expect("nothing listens there");
    done(&daemon, &["undrain"]);
    let status = daemon.status();
    let outage = status.listeners[0]
        .outage
        .clone()
        .expect("another one listens there");
    assert!(outage.contains("another process listens there"), "{outage}");
    assert_served(&daemon.addresses()[1..]);
    drop(taken);
    daemon.wait_until("it is open again", |status| {
        status.listeners[0].outage.is_none()
    });
    assert_served(daemon.addresses());
}

#[test]
fn a_refusing_listener_that_another_shuts_down_is_bound_again() {
    let daemon = start(super::BOTH);
    let Some(held) = listener_of(daemon.pid(), daemon.address()) else {
        return;
    };
    done(&daemon, &["drain"]);
    // The shutdown has an effect in spite of its error: clients would be shut down from the start.
    let shut_down = shutdown(held.as_raw_fd(), Shutdown::Both);
    assert_eq!(shut_down, Err(Errno::ENOTCONN));
    done(&daemon, &["undrain"]);
    assert_served(daemon.addresses());
}

#[test]
fn a_socket_file_that_is_gone_after_a_drain_is_made_again() {
    let daemon = start(super::BOTH);
    let path = daemon.directory().join("rpc.sock");
    done(&daemon, &["drain"]);
    fs::remove_file(&path).expect("its file stays");
    assert_eq!(daemon.status().listeners[1].outage, None);
    done(&daemon, &["undrain"]);
    assert_served(daemon.addresses());
}

#[test]
fn sockets_of_systemd_are_left_unaccepted() {
    let theirs = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = Address::Tcp(theirs.local_addr().expect("it is bound"));
    let config = "listen = [\"127.0.0.1:0\", \"systemd:rpc\"]\nworkers.count = 1";
    let copy = theirs.try_clone().expect("a descriptor is left");
    let setup = Setup::new(FDPASSD, config).activated("rpc", copy);
    let daemon = setup.start().expect("the daemon serves");
    assert_eq!(
        done(&daemon, &["drain"]),
        format!(
            "new clients are refused; 0 clients are still connected\n\
             new clients wait at {address}, because systemd has bound the socket\n"
        )
    );
    daemon.wait_for_log(&format!(
        "new clients are refused; 0 clients connected; new clients wait at {address}, because systemd has bound the socket"
    ));
    assert_refused(&daemon.addresses()[..1]);
    let mut waiting = Client::connect(&address);
    waiting.request("ping", 5);
    let_pass(Duration::from_millis(200));
    assert!(!waiting.has_something());
    let status = daemon.status();
    assert_eq!(
        (status.listeners[0].refuses, status.listeners[1].refuses),
        (true, false)
    );
    done(&daemon, &["undrain"]);
    assert_eq!(waiting.reply().value().expect("it is served"), 5);
    assert_served(daemon.addresses());
}
