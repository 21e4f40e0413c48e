//! Listeners and clients at a reload: none is refused, none is lost.

use std::fs;
use std::iter;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::frame::{ByteOrder, OrderRule};
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, eventually};

use crate::common::load::Load;
use crate::common::needs::room_for;
use crate::common::port::Reserved;
use crate::common::program::ctl;
use crate::common::{kernel, metrics, start};

fn connects(address: &Address) -> bool {
    match address {
        Address::Tcp(to) => TcpStream::connect(to).is_ok(),
        Address::Unix(path) => UnixStream::connect(path).is_ok(),
    }
}

#[track_caller]
fn ping(client: &mut Client, value: u64) {
    assert_eq!(client.call("ping", value).expect("a result"), value);
}

#[test]
fn queued_clients_of_kept_listeners_are_served_after_a_reload() {
    let listen = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n";
    let daemon = start(listen);
    let before = daemon.wait_for_workers();
    assert_eq!(ctl(&daemon, &["drain", "--queue"]).code, Some(0));
    let mut waiting: Vec<Client> = (0..100)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    for (client, i) in waiting.iter_mut().zip(0_u64..) {
        client.request("ping", i);
    }
    for more in ["", "limits.max-frame = \"64KiB\""] {
        daemon
            .reload_with(&format!("{listen}{more}"))
            .expect("it is applied");
    }
    let status = daemon.status();
    assert_eq!(
        (status.accepted_total, status.listeners[0].queue),
        (0, Some(50))
    );
    let addresses = |status: &fdpassd::proto::control::Status| -> Vec<String> {
        status
            .listeners
            .iter()
            .map(|listener| listener.address.clone())
            .collect()
    };
    assert_eq!(
        addresses(&status),
        addresses(&before),
        "port 0 is still the same one"
    );
    assert!(!waiting.iter_mut().any(Client::has_something));
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    for (client, i) in waiting.iter_mut().zip(0_u64..) {
        assert_eq!(client.reply().value().expect("a result"), i);
    }
    assert_eq!(
        (daemon.status().accepted_total, daemon.status().lost_total),
        (100, 0)
    );
}

#[test]
fn no_connection_is_refused_during_twenty_reloads() {
    let config = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2";
    let daemon = start(config);
    daemon.wait_for_workers();
    let over = AtomicBool::new(false);
    let served = thread::scope(|threads| {
        let come_and_go = |address| {
            let over = &over;
            threads.spawn(move || {
                let until_over = iter::repeat(()).take_while(|()| !over.load(Ordering::Relaxed));
                until_over
                    .zip(0..)
                    .map(|((), i)| ping(&mut Client::connect(address), i))
                    .count() as u64
            })
        };
        let comers: Vec<_> = daemon.addresses().iter().map(come_and_go).collect();
        for i in 0..20 {
            let more = ["", "\nlimits.tcp-keepalive = \"9s\""][i % 2];
            let served = daemon.status().requests_total;
            if let Err(fault) = daemon.reload_with(&format!("{config}{more}")) {
                over.store(true, Ordering::Relaxed);
                panic!("{fault}");
            }
            daemon.wait_until("clients come", |status| status.requests_total > served + 20);
        }
        over.store(true, Ordering::Relaxed);
        comers
            .into_iter()
            .map(|comer| comer.join().expect("nobody is refused"))
            .sum::<u64>()
    });
    let status = daemon.wait_until("all have left", |status| status.clients == 0);
    assert_eq!(
        (status.accepted_total, status.requests_total),
        (served, served)
    );
    assert_eq!(
        (status.errors_total, status.lost_total, status.refused_total),
        (0, 0, 0)
    );
}

#[test]
fn a_removed_listener_is_closed_when_its_queue_is_empty() {
    let ports = [(); 3].map(|()| Reserved::new());
    let [stays, leaves, comes] = [0, 1, 2].map(|i| ports[i].address);
    let old = format!(
        "listen = [\"{stays}\", \"{leaves}\", \"unix:{{dir}}/old.sock\"]\nworkers.count = 2"
    );
    let new = format!(
        "listen = [\"unix:{{dir}}/new.sock\", \"{comes}\", \"{stays}\"]\nworkers.count = 2"
    );
    let daemon = start(&old);
    daemon.wait_for_workers();
    let unix = |name: &str| Address::Unix(daemon.directory().join(name));
    let (old_unix, new_unix) = (unix("old.sock"), unix("new.sock"));
    let leaving = [Address::Tcp(leaves), old_unix.clone()];
    let mut came_by_them: Vec<Client> = leaving
        .iter()
        .cycle()
        .take(10)
        .map(Client::connect)
        .collect();
    came_by_them.iter_mut().for_each(|client| ping(client, 1));
    ctl(&daemon, &["drain", "--queue"]);
    let mut wait_there: Vec<Client> = leaving
        .iter()
        .cycle()
        .take(40)
        .map(Client::connect)
        .collect();
    wait_there
        .iter_mut()
        .for_each(|client| client.request("ping", 2));
    assert!(!connects(&new_unix) && !connects(&Address::Tcp(comes)));

    daemon.reload_with(&new).expect("it is applied");
    let mut wait_at_new: Vec<Client> = [&new_unix, &Address::Tcp(comes)]
        .map(Client::connect)
        .into();
    wait_at_new
        .iter_mut()
        .for_each(|client| client.request("ping", 3));
    let listed = |daemon: &Running| -> Vec<String> {
        daemon
            .status()
            .listeners
            .iter()
            .map(|listener| listener.address.clone())
            .collect()
    };
    let wanted: Vec<String> = vec![new_unix.to_string(), comes.to_string(), stays.to_string()];
    assert_eq!(listed(&daemon)[..3], wanted);
    assert_eq!(
        listed(&daemon).len(),
        5,
        "somebody waits at those that are to go"
    );
    ctl(&daemon, &["undrain"]);
    for (clients, value) in [(&mut wait_there, 2), (&mut wait_at_new, 3)] {
        for client in clients {
            assert_eq!(client.reply().value().expect("a result"), value);
        }
    }
    eventually("those that are to go are closed", || {
        (listed(&daemon) == wanted).then_some(())
    });
    for address in &leaving {
        assert!(!connects(address), "{address}");
    }
    assert!(!daemon.directory().join("old.sock").exists());
    let all = came_by_them
        .iter_mut()
        .chain(&mut wait_there)
        .chain(&mut wait_at_new);
    all.for_each(|client| ping(client, 4));
    for address in [&Address::Tcp(stays), &Address::Tcp(comes), &new_unix] {
        ping(&mut Client::connect(address), 5);
    }
    // A closed address can be bound again.
    daemon.reload_with(&old).expect("it is applied");
    leaving
        .iter()
        .for_each(|address| ping(&mut Client::connect(address), 6));
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn a_leaving_listener_that_is_wanted_again_stays() {
    let reserved = Reserved::new();
    let leaves = reserved.address;
    let with = format!(
        "listen = [\"127.0.0.1:0\", \"{leaves}\", \"unix:{{dir}}/rpc.sock\"]\nworkers.count = 1"
    );
    let daemon = start(&with);
    let leaving = [
        &Address::Tcp(leaves),
        &Address::Unix(daemon.directory().join("rpc.sock")),
    ];
    ctl(&daemon, &["drain", "--queue"]);
    let mut waiting: Vec<Client> = leaving
        .iter()
        .map(|address| Client::connect(address))
        .collect();
    daemon
        .reload_with("listen = [\"127.0.0.1:0\"]\nworkers.count = 1")
        .expect("it is applied");
    daemon.reload_with(&with).expect("it is applied");
    ctl(&daemon, &["undrain"]);
    waiting.iter_mut().for_each(|client| ping(client, 1));
    for round in 0..20 {
        leaving
            .iter()
            .for_each(|address| ping(&mut Client::connect(address), round));
    }
    assert_eq!(daemon.status().listeners.len(), 3);
}

#[test]
fn an_empty_leaving_listener_is_closed_when_accepting_resumes() {
    let reserved = Reserved::new();
    let leaves = reserved.address;
    let limit = "workers.count = 1\nlimits.max-clients = 1\n";
    let daemon = start(&format!("{limit}listen = [\"127.0.0.1:0\", \"{leaves}\"]"));
    let mut client = Client::connect(&Address::Tcp(leaves));
    ping(&mut client, 1);
    daemon
        .reload_with(&format!("{limit}listen = [\"127.0.0.1:0\"]"))
        .expect("it is applied");
    ping(&mut client, 2);
    drop(client);
    // The log shows it. A control request would wake the master up.
    daemon.wait_for_log(&format!("no longer listening on {leaves}"));
    eventually("it is closed", || {
        (!connects(&Address::Tcp(leaves))).then_some(())
    });
}

#[test]
fn a_changed_byte_order_applies_to_new_clients_only() {
    let daemon = start("listen = [\"127.0.0.1:0\"]\nworkers.count = 2");
    daemon.wait_for_workers();
    let (mut little, mut halfway) = (daemon.connect(), daemon.connect());
    ping(&mut little, 1);
    let frame = halfway.frame("{\"in\":\"ping\",\"params\":2}");
    halfway.send(&frame[..3]);
    daemon.wait_until("both are accepted", |status| status.clients == 2);
    daemon
        .reload_with("listen = [{ address = \"127.0.0.1:0\", byte-order = \"big\" }]")
        .expect("it is applied");
    assert_eq!(daemon.status().listeners[0].byte_order, OrderRule::Big);
    ping(&mut daemon.connect().in_order(ByteOrder::Big), 3);
    halfway.send(&frame[3..]);
    assert_eq!(halfway.reply().value().expect("a result"), 2);
    ping(&mut little, 4);
}

#[test]
fn a_new_limit_per_address_counts_existing_clients() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    clients.iter_mut().for_each(|client| ping(client, 1));
    daemon
        .reload_with("workers.count = 2\nlimits.max-clients-per-address = 4")
        .expect("it is applied");
    clients.iter_mut().for_each(|client| ping(client, 2));
    let fault = daemon
        .connect()
        .reply()
        .value()
        .expect_err("there are too many already");
    assert_eq!(fault.code(), "overloaded");
    for left in [4, 3] {
        clients.pop();
        daemon.wait_until("one has left", |status| status.clients == left);
    }
    clients.push(daemon.connect());
    clients.iter_mut().for_each(|client| ping(client, 3));
    assert_eq!(
        daemon
            .connect()
            .reply()
            .value()
            .expect_err("it is full again")
            .code(),
        "overloaded"
    );
    daemon
        .reload_with("workers.count = 2")
        .expect("it is applied");
    clients.extend((0..5).map(|_| daemon.connect()));
    clients.iter_mut().for_each(|client| ping(client, 4));
}

/// 10,000 idle clients and 200 busy ones, half of them by TCP; fewer where the limit of descriptors is too low.
#[test]
fn ten_thousand_clients_do_not_notice_a_reload() {
    const BUSY: u64 = 200;
    const THREADS: u64 = 4;
    const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
    let idle = room_for(10_000);
    let config = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n\
                  limits.drain-timeout = \"30s\"";
    let daemon = start(config);
    daemon.wait_for_workers();
    let connect = |i: u64| Client::connect(&daemon.addresses()[i as usize % 2]);
    let mut idle: Vec<Client> = (0..idle).map(connect).collect();
    let all = idle.len() as u64 + BUSY;
    let over = AtomicBool::new(false);
    thread::scope(|threads| {
        let work = |_| {
            let mut clients: Vec<Client> = (0..BUSY / THREADS).map(connect).collect();
            let over = &over;
            threads.spawn(move || {
                // Two requests of each are under way.
                clients
                    .iter_mut()
                    .for_each(|client| client.request("ping", 0));
                for i in 0_u64.. {
                    let is_over = over.load(Ordering::Relaxed);
                    for client in &mut clients {
                        if !is_over {
                            client.request("ping", i + 1);
                        }
                        assert_eq!(client.reply().value().expect("a result"), i);
                    }
                    if is_over {
                        return (i + 1) * clients.len() as u64;
                    }
                }
                unreachable!("it ends when it is over")
            })
        };
        let busy: Vec<_> = (0..THREADS).map(work).collect();
        daemon.wait_until("all are there and at work", |s| {
            s.clients == all && s.requests_total > 2 * BUSY
        });
        for round in 0..3 {
            let old = daemon.worker_pids();
            let began = Instant::now();
            daemon.reload().expect("it is applied");
            let applied = began.elapsed();
            eventually("the old workers are gone", || {
                old.iter().all(|pid| kernel::is_over(*pid)).then_some(())
            });
            let gone = began.elapsed();
            println!(
                "{all} clients, {BUSY} of them busy: applied after {applied:.0?}, old workers gone after {gone:.0?}"
            );
            assert!(gone < DRAIN_TIMEOUT / 2, "reload {round} took {gone:?}");
            let status = daemon.wait_until("none is leaving", |status| status.leaving.is_empty());
            assert_eq!((status.clients, status.accepted_total), (all, all));
            let served = status.requests_total;
            daemon.wait_until("the busy ones go on", |status| {
                status.requests_total > served + 2 * BUSY
            });
        }
        over.store(true, Ordering::Relaxed);
        let requests: u64 = busy
            .into_iter()
            .map(|busy| busy.join().expect("none is lost"))
            .sum();
        assert_eq!(daemon.status().requests_total, requests);
    });
    idle.iter_mut().for_each(|client| ping(client, 7));
    let status = daemon.status();
    assert_eq!(
        (status.lost_total, status.errors_total, status.refused_total),
        (0, 0, 0)
    );
}

#[test]
fn clients_at_work_do_not_notice_that_listeners_come_and_go() {
    let base = "\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"";
    let config = |more: &str| format!("listen = [{base}{more}]\nworkers.count = 2");
    let daemon = start(&config(""));
    daemon.wait_for_workers();
    let load = Load::start(&daemon, 4, 8);
    for _ in 0..5 {
        daemon
            .reload_with(&config(", \"127.0.0.2:0\", \"unix:{dir}/more.sock\""))
            .expect("it is applied");
        let more = daemon.status().listeners[2]
            .address
            .parse()
            .expect("an address");
        ping(&mut Client::connect(&more), 1);
        daemon.reload_with(&config("")).expect("it is applied");
        eventually("it is gone", || (!connects(&more)).then_some(()));
        load.wait_for(20);
    }
    load.finish();
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn a_reload_restores_removed_socket_files() {
    const CONFIG: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1\n\
        control.socket = \"{dir}/c.sock\"\nmetrics.listen = \"unix:{dir}/metrics.sock\"\n";
    let daemon = start(CONFIG);
    let unix = &daemon.addresses()[1];
    let mut client = Client::connect(unix);
    ping(&mut client, 1);
    let in_dir = |name: &str| daemon.directory().join(name);
    for name in ["rpc.sock", "metrics.sock"] {
        fs::remove_file(in_dir(name)).expect("it was bound");
    }
    let status = daemon.status();
    assert_eq!(status.listeners[0].outage, None);
    assert_eq!(
        status.listeners[1].outage.as_deref(),
        Some("its file is gone")
    );
    let metrics = format!(
        "metrics on unix:{}: its file is gone",
        in_dir("metrics.sock").display()
    );
    assert_eq!(status.missing, [metrics]);

    daemon.reload().expect("it is applied");
    let status = daemon.wait_until("the old listener has gone", |status| {
        status.listeners.len() == 2
    });
    assert_eq!(
        (&status.listeners[1].outage, &status.missing[..]),
        (&None, &[][..])
    );
    assert!(connects(&Address::Unix(in_dir("metrics.sock"))));
    ping(&mut client, 2);
    ping(&mut Client::connect(unix), 3);

    fs::remove_file(in_dir("c.sock")).expect("it was bound");
    daemon.signal("HUP");
    eventually("the control socket is there", || {
        connects(&Address::Unix(in_dir("c.sock"))).then_some(())
    });
    assert_eq!(daemon.status().missing, [] as [String; 0]);
    ping(&mut client, 4);
}

/// Clients still wait at the socket whose file is gone when another one is bound at the same path.
#[test]
fn two_listeners_of_one_path_are_one_series_of_metrics() {
    let daemon = start("listen = [\"unix:{dir}/rpc.sock\"]\nlimits.max-clients = 1");
    let mut first = daemon.connect();
    first.call("ping", 1).expect("a pong");
    let _waiting: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
    fs::remove_file(daemon.directory().join("rpc.sock")).expect("it is there");
    daemon.reload().expect("it is applied");
    assert_eq!(daemon.status().listeners.len(), 2);
    let text = metrics::text(&daemon);
    for name in ["up", "accepted_total"] {
        let start = format!("fdpassd_listener_{name}{{");
        let series: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with(&start))
            .collect();
        assert_eq!(series.len(), 1, "{series:?}");
        assert!(series[0].ends_with(" 1"), "{series:?}");
    }
}
