//! More clients than there may be, than there were, and none.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, Setup};
use serde_json::json;

use crate::common::namespace::{is_inside, this_test};
use crate::common::needs::skip;
use crate::common::program::control_client;
use crate::common::{FDPASSD, kernel, let_pass, start, tcp_address, while_idle};

#[test]
fn clients_beyond_the_limit_on_open_files_wait() {
    let daemon = Setup::new("sh", "workers.count = 2")
        .argument("-c")
        .argument("ulimit -n 64; exec \"$0\" \"$@\"")
        .argument(FDPASSD)
        .start()
        .expect("64 descriptors are enough to serve");
    let max = usize::try_from(daemon.wait_for_workers().max_clients).expect("it is small");
    assert!(
        (10..64).contains(&max),
        "with 64 descriptors there may be {max} clients"
    );
    wait_for_room(&daemon, max, 20);
}

/// Machines with 39 bits of an address have few addresses without a limit.
#[test]
fn a_small_address_space_has_room_for_fewer_clients() {
    // The threads of a debug build, and its program, need some hundred MiB.
    let daemon = Setup::new("sh", "workers.count = 1\nlimits.max-frame = '16MiB'")
        .argument("-c")
        .argument("ulimit -v 4000000; exec \"$0\" \"$@\"")
        .argument(FDPASSD)
        .start()
        .expect("4 GB of addresses are enough to serve");
    let max = usize::try_from(daemon.wait_for_workers().max_clients).expect("it is small");
    assert!((10..100).contains(&max), "there may be {max} clients");
    wait_for_room(&daemon, max, 5);

    let failed = Setup::new("sh", "workers.count = 1\nlimits.max-frame = '256MiB'")
        .argument("-c")
        .argument("ulimit -v 500000; exec \"$0\" \"$@\"")
        .argument(FDPASSD)
        .start()
        .expect_err("not even one client has room");
    let text = format!("{failed:?}");
    assert!(
        text.contains("the free address space of a process"),
        "{text}"
    );
}

#[test]
fn clients_beyond_max_clients_wait() {
    let daemon = start("limits.max-clients = 5");
    assert_eq!(daemon.wait_for_workers().max_clients, 5);
    wait_for_room(&daemon, 5, 1);
}

fn has_prlimit() -> bool {
    let is_there = Command::new("prlimit").arg("--version").output().is_ok();
    if !is_there {
        skip("prlimit", "there is no prlimit(1) of util-linux");
    }
    is_there
}

/// Sets the soft limit only: the hard one cannot be raised again by everybody.
fn set_descriptors(daemon: &Running, limit: usize) {
    let limit = format!("--nofile={limit}:");
    let set = Command::new("prlimit")
        .args(["--pid", &daemon.pid().to_string(), &limit])
        .status();
    assert!(
        set.expect("prlimit(1) of util-linux runs").success(),
        "{limit}"
    );
}

/// A client that cannot be accepted cannot be closed either.
#[test]
fn out_of_descriptors_a_drain_closes_clients_later() {
    if !has_prlimit() {
        return;
    }
    let daemon =
        start("listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 1\nlimits.max-clients = 2");
    daemon.wait_for_workers();
    let mut served: Vec<Client> = (0..2).map(|_| daemon.connect()).collect();
    served.iter_mut().for_each(ping);
    let mut waiting: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
    let mut control = control_client(&daemon);
    assert!(control.call("version", ()).is_ok());
    // Below all that are open, so that none is free.
    set_descriptors(&daemon, 3);
    control.request("drain", json!({}));
    daemon.wait_for_log("cannot accept clients: ");
    served.iter_mut().for_each(ping);
    assert!(!waiting.iter_mut().any(Client::has_something));
    set_descriptors(&daemon, 1_000);
    waiting.iter_mut().for_each(Client::expect_end);
    daemon.wait_for_log("3 clients waited at ");
    assert!(control.reply().value().is_ok());
    assert_eq!(daemon.status().lost_total, 0);
}

/// The limit is lowered while it runs, below what the daemon has counted on: the system refuses, not the daemon.
#[test]
fn out_of_descriptors_new_clients_wait_and_nothing_spins() {
    if !has_prlimit() {
        return;
    }
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let mut served: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
    served.iter_mut().for_each(ping);
    let most = while_idle(&daemon, || kernel::descriptors(daemon.pid()).len());
    // One is left for us, to ask how it goes.
    set_descriptors(&daemon, most + 1);
    let mut waiting: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    waiting
        .iter_mut()
        .for_each(|client| client.request("ping", 1));
    daemon.wait_for_log("cannot accept clients: ");
    kernel::assert_waits(&[daemon.pid()], Duration::from_secs(1), 0.1);
    served.iter_mut().for_each(ping);
    assert_eq!(
        daemon.stderr().matches("cannot accept clients: ").count(),
        1,
        "it is said once"
    );

    set_descriptors(&daemon, 1_000);
    for client in &mut waiting {
        assert_eq!(client.reply().value().expect("its turn has come"), 1);
    }
    served.iter_mut().for_each(ping);
    assert_eq!(daemon.status().lost_total, 0);
}

/// As many clients as there may be, and some more.
fn wait_for_room(daemon: &Running, max: usize, more: usize) {
    let mut served: Vec<Client> = (0..max).map(|_| daemon.connect()).collect();
    served.iter_mut().for_each(ping);
    let mut waiting: Vec<Client> = (0..more).map(|_| daemon.connect()).collect();
    waiting
        .iter_mut()
        .for_each(|client| client.request("ping", 1));
    let status = daemon.wait_until("nothing is accepted any more", |status| {
        status.paused.is_some()
    });
    assert_eq!(
        (status.clients, status.accepted_total),
        (max as u64, max as u64)
    );

    let processes: Vec<u32> = daemon
        .worker_pids()
        .into_iter()
        .chain([daemon.pid()])
        .collect();
    kernel::assert_waits(&processes, Duration::from_secs(1), 0.05);

    assert!(
        !waiting.iter_mut().any(Client::has_something),
        "nobody is served beyond the limit"
    );
    served.iter_mut().for_each(ping);
    served.truncate(max - more.min(max));
    for client in &mut waiting {
        assert_eq!(client.reply().name, "pong");
    }
    served.iter_mut().chain(&mut waiting).for_each(ping);
    drop((served, waiting));
    daemon.wait_until("all clients have left and new ones are accepted", |s| {
        s.clients == 0 && s.paused.is_none()
    });
    ping(&mut daemon.connect());
}

#[test]
fn clients_beyond_max_clients_per_address_are_rejected() {
    let daemon = start(
        r#"
        listen = ["127.0.0.1:0", "[::1]:0", "unix:{dir}/rpc.sock"]
        limits.max-clients-per-address = 3
        "#,
    );
    let [v4, v6, unix] = daemon.addresses() else {
        panic!("there are three listeners")
    };
    let connect = |address: &Address| {
        let mut client = Client::connect(address);
        ping(&mut client);
        client
    };
    let turned_away = |address: &Address| {
        let mut client = Client::connect(address);
        let fault = client.reply().value().expect_err("it is one too many");
        assert_eq!(
            fault.to_string(),
            "overloaded: there are too many connections from this address"
        );
        client.expect_end();
    };
    let mut clients: Vec<Client> = (0..3).map(|_| connect(v4)).collect();
    turned_away(v4);
    assert_eq!(daemon.status().refused_total, 1);
    let _others: Vec<Client> = [v6, v6, v6, unix, unix, unix, unix].map(connect).into();
    turned_away(v6);

    clients.iter_mut().for_each(ping);
    clients.pop();
    daemon.wait_until("one has left", |status| status.clients == 9);
    clients.push(connect(v4));
    clients.iter_mut().for_each(ping);
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    const AT_A_TIME: usize = 4;
    const CLIENTS: usize = 20_000;
    let daemon = start("workers.count = 2\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    let processes: Vec<u32> = daemon
        .worker_pids()
        .into_iter()
        .chain([daemon.pid()])
        .collect();
    let descriptors = || -> Vec<Vec<(PathBuf, String)>> {
        let processes = processes.iter();
        processes.map(|pid| kernel::descriptors(*pid)).collect()
    };
    let come_and_go = |clients: usize| {
        thread::scope(|threads| {
            for _ in 0..AT_A_TIME {
                threads
                    .spawn(|| (0..clients / AT_A_TIME).for_each(|_| ping(&mut daemon.connect())));
            }
        });
        daemon.wait_until("all clients have left", |status| status.clients == 0);
    };
    // Opens the descriptors that are opened once.
    come_and_go(AT_A_TIME);
    let before = while_idle(&daemon, descriptors);

    come_and_go(CLIENTS);
    let after = while_idle(&daemon, descriptors);
    let counts = |all: &[Vec<_>]| all.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(counts(&after), counts(&before), "{before:?}\n{after:?}");
    let address = tcp_address(&daemon);
    assert_eq!(kernel::close_waits(address.port()), 0);
    let status = daemon.status();
    let total = (CLIENTS + AT_A_TIME) as u64;
    assert_eq!(
        (
            status.accepted_total,
            status.requests_total,
            status.errors_total
        ),
        (total, total, 0)
    );
    assert_eq!(
        (status.moved_total, status.lost_total, status.refused_total),
        (0, 0, 0)
    );
}

#[test]
fn without_clients_no_process_wakes_up() {
    let daemon = start("workers.count = 2\nlimits.idle-timeout = \"4s\"");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..20).map(|_| daemon.connect()).collect();
    clients.iter_mut().for_each(ping);
    drop(clients);
    daemon.wait_until("all clients have left", |status| status.clients == 0);

    let processes: Vec<u32> = daemon
        .worker_pids()
        .into_iter()
        .chain([daemon.pid()])
        .collect();
    let sleeps = || -> Vec<u64> { processes.iter().map(|pid| kernel::sleeps(*pid)).collect() };
    let before = while_idle(&daemon, sleeps);
    let_pass(Duration::from_secs(5));
    assert_eq!(sleeps(), before);
}

fn ping(client: &mut Client) {
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
}

#[test]
fn clients_of_an_ipv6_network_share_a_limit() {
    let prepare = "ip link set lo up && for ip in 1::1 1:ffff::2 2::1; do \
                   ip -6 addr add fd00:0:0:$ip/128 dev lo nodad; done";
    if !is_inside(this_test!(), prepare) {
        return;
    }
    let config = "listen = [\"[::]:0\"]\nworkers.count = 1\nlimits.max-clients-per-address = 1\n";
    let daemon = start(config);
    let bound = tcp_address(&daemon);
    // A client of a local address has that address itself.
    let connect = |ip: &str| {
        Client::connect(&Address::Tcp(std::net::SocketAddr::new(
            ip.parse().expect("an address"),
            bound.port(),
        )))
    };
    let is_served = |client: &mut Client| client.call("ping", 1).is_ok();
    let mut first = connect("fd00:0:0:1::1");
    assert!(is_served(&mut first));
    assert!(
        connect("fd00:0:0:1:ffff::2").reply().value().is_err(),
        "the same /64"
    );
    let mut other = connect("fd00:0:0:2::1");
    assert!(is_served(&mut other));

    daemon
        .reload_with(&format!("{config}limits.ipv6-prefix = 128"))
        .expect("it is applied");
    assert!(
        is_served(&mut connect("fd00:0:0:1:ffff::2")),
        "each address for itself"
    );
    assert!(
        connect("fd00:0:0:1::1").reply().value().is_err(),
        "the clients that were there are counted"
    );
    assert!(is_served(&mut first) && is_served(&mut other));
}
