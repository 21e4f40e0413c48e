//! The wish for a goaway, and the moves of a drain, outlive the worker and the master.

use std::path::Path;
use std::thread;
use std::time::Duration;

use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use serde_json::json;

use super::{BOTH, expect_goaway, ids, kick, opted_in};
use crate::common::metrics::samples;
use crate::common::restart::{How, restart, wait_for_confirmed_store};
use crate::common::{FDPASSD, faulty, let_pass};

#[test]
fn a_client_has_asked_all_later_workers_and_masters() {
    for how in How::ALL {
        let manager = ServiceManager::new();
        let setup = manager.setup(FDPASSD, &format!("{BOTH}workers.count = 2\n"));
        let daemon = setup.start().expect("it serves");
        daemon.wait_for_workers();
        let mut clients: Vec<Client> = daemon.addresses().iter().map(opted_in).collect();
        daemon.ctl("recycle").expect("successors serve");
        for seat in 0..2 {
            daemon.kill_worker(seat);
            daemon.wait_for_workers();
        }
        daemon.ctl("reload").expect("it is applied");
        let daemon = restart(&manager, daemon, how, Path::new(FDPASSD));
        daemon.wait_for_workers();
        for (client, id) in clients.iter_mut().zip(ids(&daemon)) {
            assert_eq!(client.call("ping", 1), Ok(json!(1)), "{how:?}");
            assert!(kick(&daemon, id), "{how:?}");
            expect_goaway(client, 2, "kicked");
        }
    }
}

#[test]
fn the_moves_continue_in_the_next_master() {
    for how in How::ALL {
        let manager = ServiceManager::new();
        let setup = manager.setup(FDPASSD, &format!("{BOTH}workers.count = 2\n"));
        let daemon = setup.start().expect("it serves");
        daemon.wait_for_workers();
        wait_for_confirmed_store(&daemon);
        let mut clients: Vec<Client> = (0..10)
            .map(|number| opted_in(&daemon.addresses()[number % 2]))
            .collect();
        let drained = daemon.ctl_with("drain", json!({ "move": 4 }));
        drained.expect("it is drained");
        // Longer than a new master usually needs to answer: if it began the period again, more would be left.
        let_pass(Duration::from_secs(1));
        let left = |daemon: &Running| {
            let over = daemon.status().drain.and_then(|drain| drain.over);
            over.expect("the moves continue")
        };
        let before = left(&daemon);
        let daemon = restart(&manager, daemon, how, Path::new(FDPASSD));
        let after = left(&daemon);
        assert!(after <= before, "{how:?}: {before}, {after}");
        for client in &mut clients {
            expect_goaway(client, 1, "draining");
        }
        drop(clients);
        let status = daemon.wait_until("all have left", |status| status.clients == 0);
        assert_eq!(status.lost_total, 0, "{how:?}");
    }
}

/// The requests of these clients execute for an hour. The next master closes one client at once, as it is kicked again,
/// and the other one when its time is over.
#[test]
fn kicked_clients_are_closed_by_the_next_master() {
    thread::scope(|threads| {
        for how in [How::Term, How::TermAll, How::Upgrade] {
            threads.spawn(move || kicked_clients_are_closed_after(how));
        }
    });
}

fn kicked_clients_are_closed_after(how: How) {
    let manager = ServiceManager::new();
    // The workers execute for long, and must not count as stuck.
    let limits = "limits.request-timeout = \"none\"\nlimits.stall-timeout = \"1h\"\n";
    let config = format!("{BOTH}workers.count = 2\n{limits}");
    let program = faulty::example("faulty");
    let daemon = manager.setup(&program, &config).start();
    let daemon = daemon.expect("it serves");
    daemon.wait_for_workers();
    wait_for_confirmed_store(&daemon);
    let mut clients: Vec<Client> = daemon.addresses().iter().map(opted_in).collect();
    for client in &mut clients {
        client.request("sleep_again", 3_600_000);
    }
    daemon.wait_until("both requests execute", |status| {
        status.workers.iter().all(|worker| worker.executing == 1)
    });
    let ids = ids(&daemon);
    for id in &ids {
        assert!(kick(&daemon, *id), "{how:?}");
    }
    let daemon = restart(&manager, daemon, how, &program);
    // It is gone already if the restart took longer than the time of the first kick.
    if let Ok(kicked) = daemon.ctl_with("kick", json!({ "client": ids[0] })) {
        assert_eq!(kicked["goaway"], json!(false), "{how:?}");
    }
    clients.iter_mut().for_each(Client::expect_end);
    eventually("both are counted", || {
        let kicked = "fdpassd_clients_closed_total{reason=\"kicked\"}";
        (samples(&daemon)[kicked] == 2.0).then_some(())
    });
}
