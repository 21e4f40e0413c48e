//! The connection outlives the master: a restart under a service manager, and a master that is killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fdpassd::proto::control::{Origin, Status};
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use serde_json::json;

use crate::common::faulty::{Execution, example};
use crate::common::load::Load;
use crate::common::program::ctl;
use crate::common::restart::{How, restart, wait_for_confirmed_store};
use crate::common::upgrade::{Programs, upgrade};
use crate::common::{FDPASSD, http, kernel, metrics, ping_all, ping_of, pong_of};

/// Some tests last longer than a frame may by default.
const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n\
                    limits.frame-timeout = \"none\"\n";

#[test]
fn a_restart_keeps_every_client_in_any_state() {
    for how in [How::Term, How::Kill] {
        let manager = ServiceManager::new();
        let daemon = start(&manager, FDPASSD, BOTH);
        let mut idle: Vec<Client> = (0..200)
            .map(|i| Client::connect(&daemon.addresses()[i % 2]))
            .collect();
        ping_all(&mut idle);
        // Half a frame in shared memory, unread complete frames after it, and unread replies.
        let mut halfway: Vec<Client> = daemon.addresses().iter().map(Client::connect).collect();
        let large = ping_of(300_000);
        for client in &mut halfway {
            let frame = client.frame(&large);
            client.send(&frame[..200_000]);
        }
        let mut deaf: Vec<Client> = daemon.addresses().iter().map(Client::connect).collect();
        for client in &mut deaf {
            (0..4).for_each(|_| client.send_frame(ping_of(100_000)));
        }
        let load = Load::start(&daemon, 6, 4);
        load.wait_for(20);

        let daemon = restart(&manager, daemon, how, Path::new(FDPASSD));
        load.wait_for(20);
        for client in &mut halfway {
            let frame = client.frame(&large);
            client.send(&frame[200_000..]);
            assert!(
                client.receive() == pong_of(300_000),
                "the reply is another one"
            );
        }
        for client in &mut deaf {
            (0..4).for_each(|_| {
                assert!(
                    client.receive() == pong_of(100_000),
                    "the reply is another one"
                )
            });
        }
        ping_all(&mut idle);
        load.finish();
        drop((idle, halfway, deaf));
        let status = daemon.wait_until("all clients have left", |status| status.clients == 0);
        assert_eq!(
            (
                status.lost_total,
                status.errors_total,
                status.accepted_total
            ),
            (0, 0, 210),
            "{how:?}"
        );
    }
}

#[test]
fn a_restart_keeps_counters_ids_and_changes() {
    for how in [How::Term, How::Kill] {
        let manager = ServiceManager::new();
        let daemon = start(&manager, FDPASSD, "workers.count = 2");
        let mut client = daemon.connect();
        (0..10).for_each(|i| drop(client.call("ping", i).expect("a pong")));
        daemon.kill_worker(0);
        daemon.reload().expect("it is applied");
        daemon
            .ctl_with("scale", json!({ "count": 3 }))
            .expect("it is done");
        daemon
            .ctl_with("log-level", json!({ "level": "debug" }))
            .expect("it is done");
        let before = daemon.status();
        let (events, id) = (last_event(&daemon), client_id(&daemon));

        let daemon = restart(&manager, daemon, how, Path::new(FDPASSD));
        daemon.wait_for_workers();
        let after = daemon.status();
        assert_eq!((after.count, after.count_origin), (3, Origin::Runtime));
        assert_eq!(
            daemon.ctl("log-level").expect("it is told")["level"],
            "debug"
        );
        assert_eq!(
            (after.requests_total, after.accepted_total),
            (10, 1),
            "{how:?}"
        );
        assert_eq!(
            (after.deaths_total, after.clients),
            (before.deaths_total, 1)
        );
        assert_eq!(after.last_reload, before.last_reload);
        assert!(
            after.generation > before.generation,
            "each master has its own"
        );
        let oldest = |status: &Status| status.workers.iter().filter_map(|worker| worker.id).min();
        let newest = |status: &Status| status.workers.iter().filter_map(|worker| worker.id).max();
        assert!(
            oldest(&after) > newest(&before),
            "no worker has the number of another one"
        );
        assert!(last_event(&daemon) > events);
        assert_eq!(
            client_id(&daemon),
            id,
            "the client has the number that it had"
        );
        client.call("ping", 1).expect("a pong");
        let mut next = daemon.connect();
        next.call("ping", 1).expect("a pong");
        assert_eq!(daemon.status().accepted_total, 2);
        let metrics = metrics::text(&daemon);
        assert!(
            metrics.contains("\nfdpassd_requests_total{method=\"ping\",result=\"ok\"} 12\n"),
            "{metrics}"
        );
    }
}

#[test]
fn no_connection_is_refused_and_socket_paths_stay() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD, BOTH);
    let path = daemon.directory().join("rpc.sock");
    let inode = fs::metadata(&path).expect("it is there").ino();
    let addresses = daemon.addresses().to_vec();
    daemon.signal("TERM");
    let mut daemon = daemon;
    daemon.wait();
    // There is no daemon now.
    let mut early: Vec<Client> = (0..40)
        .map(|i| Client::connect(&addresses[i % 2]))
        .collect();
    early
        .iter_mut()
        .for_each(|client| client.request("ping", 7));
    assert_eq!(fs::metadata(&path).expect("it is there").ino(), inode);
    let daemon = manager
        .setup(FDPASSD, "")
        .start_after(daemon)
        .expect("it serves");
    early
        .iter_mut()
        .for_each(|client| assert_eq!(client.reply().value().expect("a pong"), 7));
    assert_eq!(daemon.addresses(), addresses);
    assert_eq!(fs::metadata(&path).expect("it is there").ino(), inode);
    // A listener that is not wanted any more goes, and is not kept.
    daemon
        .reload_with("listen = [\"127.0.0.1:0\"]")
        .expect("it is applied");
    eventually("its socket is not kept any more", || {
        (manager
            .stored()
            .iter()
            .filter(|name| name.starts_with("fdpassd-listener"))
            .count()
            == 1)
            .then_some(())
    });
    eventually("its path is gone", || (!path.exists()).then_some(()));
}

#[test]
fn an_executing_request_gets_restart_grace() {
    for (how, grace) in [(How::Term, "60s"), (How::Term, "50ms"), (How::Kill, "50ms")] {
        let manager = ServiceManager::new();
        let faulty = example("faulty");
        let config = format!(
            "workers.count = 2\nlimits.restart-grace = \"{grace}\"\nlimits.stall-timeout = \"10m\""
        );
        let daemon = manager.setup(&faulty, &config).start().expect("it serves");
        daemon.wait_for_workers();
        let mut beside: Vec<Client> = (0..20).map(|_| daemon.connect()).collect();
        ping_all(&mut beside);
        let blocked = Execution::start(&daemon);
        // Some wait behind it, in the channel.
        let mut behind: Vec<Client> = (0..20).map(|_| daemon.connect()).collect();
        behind
            .iter_mut()
            .for_each(|client| client.request("ping", 7));
        daemon.wait_until("all are accepted", |status| status.clients == 41);
        if grace == "60s" {
            daemon.signal("TERM");
            daemon.wait_for_log(" for the next master; running requests get ");
            let mut client = blocked.finish();
            let daemon = manager
                .setup(&faulty, "")
                .start_after(daemon)
                .expect("it serves");
            client.call("ping", 1).expect("a pong");
            ping_all(&mut beside);
            behind
                .iter_mut()
                .for_each(|client| assert_eq!(client.reply().value().expect("a pong"), 7));
            assert_eq!(daemon.status().lost_total, 0);
            continue;
        }
        // Without an end of the grace this would not return.
        let daemon = restart(&manager, daemon, how, &faulty);
        let mut client = blocked.into_client();
        let fault = client.reply().value().expect_err("its worker is gone");
        assert_eq!(fault.code(), "crashed", "{how:?}: {fault}");
        client.call("ping", 1).expect("a pong");
        ping_all(&mut beside);
        behind
            .iter_mut()
            .for_each(|client| assert_eq!(client.reply().value().expect("a pong"), 7));
        assert_eq!(daemon.status().lost_total, 0);
    }
}

#[test]
fn a_bad_file_or_address_ends_no_existing_client() {
    let manager = ServiceManager::new();
    let daemon = start(
        &manager,
        FDPASSD,
        "workers.count = 1\nlimits.max-frame = \"128KiB\"\nmetrics.listen = \"127.0.0.1:0\"",
    );
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    daemon.write_config("workers.\"cuo\\u001bnt\" = 1");
    let daemon = restart(&manager, daemon, How::Term, Path::new(FDPASSD));
    client.call("ping", 2).expect("a pong");
    let stale = daemon.status().config_stale.expect("it is told");
    assert!(stale.contains("unknown key `cuo\u{1b}nt`"), "{stale}");
    let health = http::get(&http::metrics_address(&daemon), "/healthz");
    assert_eq!(health.status, 200, "{health:?}");
    // Nothing in it acts in a terminal.
    assert!(
        health.body.contains("unknown key `cuo\\x1bnt`"),
        "{health:?}"
    );
    let shown = ctl(&daemon, &["status", "--json"]);
    assert!(shown.out.contains("config_stale"), "{shown:?}");
    let programs = Programs::new();
    upgrade(&daemon, Some(&programs.copy(Path::new(FDPASSD)))).expect("it is fit");
    assert_eq!(daemon.status().config_stale, Some(stale));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it has one");
    daemon.write_config(&format!(
        "listen = [\"127.0.0.1:0\", \"{address}\"]\nworkers.count = 1\nlimits.max-clients = 1"
    ));
    let daemon = restart(&manager, daemon, How::Kill, Path::new(FDPASSD));
    client.call("ping", 3).expect("a pong");
    let stale = daemon.status().config_stale.expect("it is told");
    assert!(stale.contains(&address.to_string()), "{stale}");
    assert!(daemon.status().max_clients > 1, "it is in force as a whole");
    let metrics = metrics::text(&daemon);
    assert!(metrics.contains("\nfdpassd_config_stale 1\n"), "{metrics}");

    daemon
        .reload_with("workers.count = 1")
        .expect("it is applied");
    assert_eq!(daemon.status().config_stale, None);
    client.call("ping", 4).expect("a pong");
    drop(client);
    daemon.wait_until("it has left", |status| status.clients == 0);
    // Without clients it is as for every other start.
    daemon.write_config("workers.cuont = 1");
    daemon.signal("TERM");
    let error = manager
        .setup(FDPASSD, "")
        .start_after(daemon)
        .expect_err("the file is bad");
    assert_eq!(error.code(), Some(78), "{error}");
}

#[test]
fn a_stop_and_a_lost_store_end_all_clients() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD, "workers.count = 1");
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    let said = ctl(&daemon, &["stop"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    client.expect_end();
    drop(daemon);

    let manager = ServiceManager::new();
    let mut daemon = start(&manager, FDPASSD, "workers.count = 1");
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!client.has_something(), "the manager still has it");
    manager.forget();
    client.expect_end();
}

#[test]
fn repeated_restarts_and_kills_lose_no_client() {
    let manager = ServiceManager::new();
    let mut daemon = start(&manager, FDPASSD, BOTH);
    let mut idle: Vec<Client> = (0..50)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    let load = Load::start(&daemon, 4, 2);
    load.wait_for(5);
    wait_for_confirmed_store(&daemon);
    let kept = manager.stored().len();
    for round in 0..20 {
        daemon = restart(
            &manager,
            daemon,
            if round % 2 == 0 { How::Term } else { How::Kill },
            Path::new(FDPASSD),
        );
        load.wait_for(5);
    }
    ping_all(&mut idle);
    load.finish();
    wait_for_confirmed_store(&daemon);
    eventually("nothing piles up", || {
        (manager.stored().len() == kept).then_some(())
    });
    let status = daemon.wait_until("the load has left", |status| status.clients == 50);
    assert_eq!(
        (
            status.lost_total,
            status.errors_total,
            status.accepted_total
        ),
        (0, 0, 54)
    );
    let descriptors = kernel::descriptors(daemon.pid()).len();
    assert!(descriptors < 150, "{descriptors}");
}

#[test]
fn without_a_descriptor_store_sigterm_ends_all_clients() {
    let mut daemon = Running::start(FDPASSD, "workers.count = 1").expect("it serves");
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(0));
    client.expect_end();
}

#[track_caller]
fn start(manager: &ServiceManager, program: &str, config: &str) -> Running {
    let daemon = manager.setup(program, config).start().expect("it serves");
    daemon.wait_for_workers();
    // A master that is killed before that leaves an incomplete store.
    wait_for_confirmed_store(&daemon);
    daemon
}

fn last_event(daemon: &Running) -> u64 {
    daemon.ctl("events").expect("they are told")["last"]
        .as_u64()
        .expect("a number")
}

fn client_id(daemon: &Running) -> u64 {
    daemon.ctl("clients").expect("they are told")["clients"][0]["id"]
        .as_u64()
        .expect("a number")
}
