//! The listeners of the configuration.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, eventually};

use crate::common::namespace::{is_inside, this_test};
use crate::common::needs::skip;
use crate::common::port::Reserved;
use crate::common::program::{ctl, run};
use crate::common::strace::Traced;
use crate::common::{FDPASSD, kernel, start};

/// A user and a group that every system has.
const NOBODY: u32 = 65_534;

#[test]
fn a_flood_at_one_listener_leaves_capacity_for_the_others() {
    let daemon = start(
        r#"
        listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock"]
        workers.count = 1
        limits.stall-timeout = "1h"
        log.level = "debug"
        "#,
    );
    daemon.wait_for_workers();
    let worker = daemon.worker_pids()[0];
    // The worker picks no client up, so most of them wait in the queue of the first listener.
    kernel::stop(worker);
    let flood: Vec<Client> = (0..100).map(|_| daemon.connect()).collect();
    daemon.wait_until("the rest of the flood waits", |status| {
        status.listeners[0].queue >= Some(60)
    });
    let mut other = Client::connect(&daemon.addresses()[1]);
    other.request("ping", 1);
    kernel::send(worker, nix::sys::signal::Signal::SIGCONT);
    assert_eq!(other.reply().value().expect("a result"), 1);
    daemon.wait_until("all are accepted", |status| status.clients == 101);
    let log = daemon.stderr();
    let of_other = log
        .lines()
        .filter(|line| line.contains(") accepted on "))
        .position(|line| line.contains("rpc.sock"));
    assert!(of_other < Some(50), "it was accepted after {of_other:?}");
    drop(flood);
}

#[test]
fn one_iteration_of_the_loop_accepts_at_most_253_clients() {
    let daemon = start(
        r#"
        listen = ["127.0.0.1:0", "127.0.0.1:0"]
        workers.count = 20
        limits.stall-timeout = "1h"
        "#,
    );
    daemon.wait_for_workers();
    // None is picked up, so 16 can be leased to each worker.
    daemon.worker_pids().into_iter().for_each(kernel::stop);
    kernel::stop(daemon.pid());
    let clients: Vec<Client> = daemon
        .addresses()
        .iter()
        .flat_map(|address| (0..160).map(|_| Client::connect(address)))
        .collect();
    let calls = "accept4,epoll_wait,epoll_pwait,epoll_pwait2";
    let Some(traced) = Traced::attach(daemon.pid(), calls, "accept4:delay_exit=1") else {
        return;
    };
    kernel::send(daemon.pid(), nix::sys::signal::Signal::SIGCONT);
    daemon.wait_until("all are accepted", |status| status.clients == 320);
    let trace = traced.text();
    let accepted = trace.split("epoll_").map(|calls| {
        // Control clients are of AF_UNIX.
        let calls = calls.lines().filter(|call| call.contains("AF_INET"));
        calls.filter(|call| !call.contains(" = -1 ")).count()
    });
    let accepted: Vec<usize> = accepted.collect();
    assert_eq!(accepted.iter().sum::<usize>(), 320, "{accepted:?}");
    assert!(accepted.iter().all(|&number| number <= 253), "{accepted:?}");
    drop(clients);
}

#[test]
fn the_backlog_is_configured_and_the_status_shows_its_queue() {
    let daemon = start(
        r#"
        listen = [{ address = "127.0.0.1:0", backlog = 7 }, "unix:{dir}/rpc.sock"]
        limits.max-clients = 1
        "#,
    );
    let mut first = daemon.connect();
    first.call("ping", 1).expect("a result");
    let queue = |waiting: u32| {
        daemon.wait_until("clients wait", |status| {
            status.listeners[0].queue == Some(waiting)
        })
    };
    queue(0);
    let waiting: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
    queue(3);
    let status = daemon.status();
    assert_eq!(status.listeners[0].queue_max, Some(7));
    assert_eq!(
        (status.listeners[1].queue, status.listeners[1].queue_max),
        (None, None)
    );
    assert!(
        status
            .paused
            .is_some_and(|reason| reason.contains("max-clients"))
    );
    drop(first);
    for mut client in waiting {
        client.call("ping", 2).expect("its turn has come");
    }
    queue(0);
}

#[test]
fn silent_clients_are_probed_after_tcp_keepalive() {
    for (keepalive, probed_within) in [("\"100s\"", Some(100)), ("\"none\"", None)] {
        let daemon = start(&format!("limits.tcp-keepalive = {keepalive}"));
        let mut client = daemon.connect();
        client.call("ping", 1).expect("a result");
        let found = eventually("no other timer of the connection is running", || {
            let timer = kernel::timer(port(&daemon));
            timer
                .is_none_or(|(kind, _)| kind == kernel::KEEPALIVE)
                .then_some(timer)
        });
        assert_eq!(
            found.is_some(),
            probed_within.is_some(),
            "{keepalive}: {found:?}"
        );
        if let (Some((_, seconds)), Some(most)) = (found, probed_within) {
            assert!(
                (most - 20..=most).contains(&seconds),
                "the first probe comes after {seconds} s"
            );
        }
    }
}

#[test]
fn an_ipv6_listener_leaves_ipv4_to_others() {
    let reserved = Reserved::of_both_families();
    let port = reserved.address.port();
    let daemon = start(&format!("listen = [\"{}\"]", reserved.address));
    let mut client = Client::connect(&Address::Tcp(SocketAddr::from((
        [0, 0, 0, 0, 0, 0, 0, 1],
        port,
    ))));
    assert_eq!(client.call("ping", 6).expect("a result"), 6);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    let other = start(&format!("listen = [\"0.0.0.0:{port}\"]"));
    let mut client = Client::connect(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
    assert_eq!(client.call("ping", 4).expect("a result"), 4);
    drop((daemon, other));
}

#[test]
fn a_port_with_connections_in_time_wait_can_be_bound_again() {
    let reserved = Reserved::new();
    let config = format!("listen = [\"{}\"]", reserved.address);
    let mut daemon = start(&config);
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a result");
    // The side that closes first has the connection in TIME_WAIT: here the daemon's.
    daemon.signal("TERM");
    client.expect_end();
    drop(client);
    assert!(daemon.wait().success());
    start(&config).connect().call("ping", 2).expect("a result");
}

#[test]
fn a_unix_socket_gets_the_configured_owner_and_group() {
    if kernel::user() != 0 {
        return skip("root", "only root can give a file away");
    }
    let daemon = start(&format!(
        "listen = [{{ address = \"unix:{{dir}}/rpc.sock\", owner = \"{NOBODY}\", group = \"{NOBODY}\", mode = \"0600\" }}]"
    ));
    let found = fs::metadata(daemon.directory().join("rpc.sock")).expect("it is there");
    assert_eq!(
        (found.uid(), found.gid(), found.mode() & 0o777),
        (NOBODY, NOBODY, 0o600)
    );
    daemon.connect().call("ping", 1).expect("root may");
}

#[test]
fn freebind_listens_on_an_address_that_no_interface_has() {
    let elsewhere = |more: &str| format!("{{ address = \"192.0.2.1:0\"{more} }}");
    let error = Running::start(FDPASSD, &format!("listen = [{}]", elsewhere("")))
        .expect_err("no interface has it");
    assert_eq!(error.code(), Some(69));
    assert!(
        error
            .stderr()
            .contains("192.0.2.1:0: Cannot assign requested address"),
        "{}",
        error.stderr()
    );
    let six = "{ address = \"[2001:db8::1]:0\", freebind = true }";
    let daemon = start(&format!(
        "listen = [{}, {six}]",
        elsewhere(", freebind = true")
    ));
    let listeners = daemon.status().listeners;
    assert!(
        listeners.iter().all(|listener| listener.outage.is_none()),
        "{listeners:?}"
    );
    let is_at = |index: usize, host: &str| {
        let address = &listeners[index].address;
        address.starts_with(host) && !address.ends_with(":0")
    };
    assert!(
        is_at(0, "192.0.2.1:") && is_at(1, "[2001:db8::1]:"),
        "{listeners:?}"
    );
}

#[test]
fn an_address_that_comes_after_the_start_is_listened_on() {
    if !is_inside(this_test!(), "ip link set lo up") {
        return;
    }
    let daemon = start(r#"listen = ["127.0.0.1:0", "192.0.2.1:4242"]"#);
    daemon
        .connect()
        .call("ping", 1)
        .expect("the other listener serves");
    let outage = daemon.status().listeners[1]
        .outage
        .clone()
        .expect("no interface has the address");
    assert!(
        outage.contains("192.0.2.1:4242: Cannot assign requested address"),
        "{outage}"
    );
    let added = Command::new("ip")
        .args(["addr", "add", "192.0.2.1/32", "dev", "lo"])
        .status();
    assert!(added.expect("it ran before").success());
    daemon.wait_until("it is bound", |status| status.listeners[1].outage.is_none());
    let address = "192.0.2.1:4242".parse().expect("an address");
    Client::connect(&address)
        .call("ping", 2)
        .expect("it serves");
    daemon.reload().expect("it is a listener like any other");
    Client::connect(&address)
        .call("ping", 3)
        .expect("it serves");
}

#[test]
fn a_link_local_address_has_its_zone_by_name() {
    let prepare = "ip link set lo up && ip -6 addr add fe80::1/64 dev lo nodad";
    if !is_inside(this_test!(), prepare) {
        return;
    }
    // The kernel adds the route after ip(8) has ended.
    eventually("the address has a route", || {
        let route = run(
            Path::new("ip"),
            &["-6", "route", "get", "fe80::1", "oif", "lo"],
        );
        (route.code == Some(0)).then_some(())
    });
    let daemon = start("listen = [\"[fe80::1%lo]:4242\"]");
    assert_eq!(daemon.status().listeners[0].address, "[fe80::1%1]:4242");
    let done = ctl(&daemon, &["call", "ping", "7", "--to", "[fe80::1%lo]:4242"]);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "7\n"),
        "{}",
        done.err
    );
    daemon.reload().expect("the name is the same interface");
    assert_eq!(daemon.status().listeners.len(), 1);
}

fn port(daemon: &Running) -> u16 {
    match daemon.address() {
        Address::Tcp(address) => address.port(),
        Address::Unix(path) => panic!("{} is not TCP", path.display()),
    }
}
