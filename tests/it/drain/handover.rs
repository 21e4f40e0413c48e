//! Reloads, restarts, kills and upgrades of a drained daemon: the next master refuses clients until `undrain`.

use std::path::Path;
use std::time::Duration;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};

use crate::common::port::Reserved;
use crate::common::restart::{How, restart, wait_for_confirmed_store};
use crate::common::{FDPASSD, let_pass};

use super::{assert_refused, assert_served, done, wait_until_refused};

fn listener_names(manager: &ServiceManager) -> usize {
    let stored = manager.stored();
    let of_listeners = stored
        .iter()
        .filter(|name| name.starts_with("fdpassd-listener"));
    of_listeners.count()
}

/// Starts a daemon whose store the manager has confirmed, so that another master can follow.
#[track_caller]
fn start_confirmed(config: &str) -> (ServiceManager, Running) {
    let manager = ServiceManager::new();
    let daemon = manager.setup(FDPASSD, config).start().expect("it serves");
    daemon.wait_for_workers();
    wait_for_confirmed_store(&daemon);
    (manager, daemon)
}

#[track_caller]
fn next(manager: &ServiceManager, daemon: Running, how: How) -> Running {
    restart(manager, daemon, how, Path::new(FDPASSD))
}

#[track_caller]
fn assert_kept(daemon: &Running, addresses: &[Address], clients: &mut [Client]) {
    let status = daemon.status();
    let shown: Vec<String> = status
        .listeners
        .iter()
        .map(|listener| listener.address.clone())
        .collect();
    let before: Vec<String> = addresses.iter().map(Address::to_string).collect();
    assert_eq!(shown, before);
    assert!(
        status
            .listeners
            .iter()
            .all(|listener| listener.outage.is_none()),
        "{status:?}"
    );
    for client in clients {
        assert_eq!(client.call("ping", 1).expect("it stays"), 1);
    }
    assert_eq!(daemon.status().lost_total, 0);
}

/// Fails if the daemon took a listener for one that was shut down, or could not use what is in the store.
#[track_caller]
fn assert_no_fault(daemon: &Running) {
    let log = daemon.stderr();
    let has = |words: &str| log.contains(words);
    assert!(!has("binding a new one") && !has(" error "), "{log}");
    assert!(!has("rpc.sock was left by a process that is gone"), "{log}");
}

#[test]
fn the_next_master_refuses_clients_until_undrain() {
    for how in How::ALL {
        let reserved = Reserved::new();
        let port = reserved.address;
        let config = format!(
            "listen = [\"127.0.0.1:0\", \"{port}\", \"unix:{{dir}}/rpc.sock\"]\nworkers.count = 2"
        );
        let (manager, daemon) = start_confirmed(&config);
        let addresses = daemon.addresses().to_vec();
        let mut clients: Vec<Client> = addresses.iter().map(Client::connect).collect();
        assert_kept(&daemon, &addresses, &mut clients);
        done(&daemon, &["drain"]);
        wait_until_refused(&daemon);

        let mut daemon = next(&manager, daemon, how);
        // Twice: the first master also stores what it has restored.
        for _ in 0..2 {
            assert_refused(&addresses);
            let status = daemon.status();
            assert!(status.drained, "{how:?}");
            assert!(
                status.listeners.iter().all(|listener| listener.refuses),
                "{how:?}"
            );
            assert_kept(&daemon, &addresses, &mut clients);
            daemon = next(&manager, daemon, how);
        }
        assert_refused(&addresses);
        let config = config.replace("rpc.sock\"", "rpc.sock\", \"unix:{dir}/new.sock\"");
        daemon.reload_with(&config).expect("it is applied");
        let new = Address::Unix(daemon.directory().join("new.sock"));
        let addresses = [addresses, vec![new]].concat();
        assert_refused(&addresses);
        let daemon = next(&manager, daemon, how);
        assert_refused(&addresses);
        done(&daemon, &["undrain"]);
        assert_served(&addresses);
        assert_kept(&daemon, &addresses, &mut clients);

        assert_no_fault(&daemon);
        // The next one gets the sockets again.
        eventually("all listeners are stored", || {
            (listener_names(&manager) == 4).then_some(())
        });
        wait_for_confirmed_store(&daemon);
        let daemon = next(&manager, daemon, how);
        assert_served(&addresses);
        assert_kept(&daemon, &addresses, &mut clients);
        assert_no_fault(&daemon);
    }
}

#[test]
fn the_next_master_leaves_clients_in_the_queue_until_undrain() {
    for how in How::ALL {
        let (manager, daemon) = start_confirmed(super::BOTH);
        let addresses = daemon.addresses().to_vec();
        done(&daemon, &["drain", "--queue"]);
        let mut waiting: Vec<Client> = addresses.iter().map(Client::connect).collect();
        waiting
            .iter_mut()
            .for_each(|client| client.request("ping", 3));
        let daemon = next(&manager, daemon, how);
        let status = daemon.status();
        assert_eq!(
            (status.drained, status.accepted_total),
            (true, 0),
            "{how:?}"
        );
        assert!(!waiting.iter_mut().any(Client::has_something));
        done(&daemon, &["undrain"]);
        for client in &mut waiting {
            assert_eq!(client.reply().value().expect("it is served"), 3);
        }
    }
}

#[test]
fn a_notice_continues_in_the_next_master() {
    for how in How::ALL {
        let (manager, daemon) = start_confirmed(super::BOTH);
        let addresses = daemon.addresses().to_vec();
        done(&daemon, &["drain", "--notice", "1h"]);
        // Longer than a new master usually needs to answer: if it began the notice again, more would be left.
        let_pass(Duration::from_secs(1));
        let left = |daemon: &Running| daemon.status().drain.expect("it is under way").notice;
        let before = left(&daemon).expect("it is not over");
        let daemon = next(&manager, daemon, how);
        let after = left(&daemon).expect("it is not over");
        assert!(
            after > 60.0 && after <= before,
            "{how:?}: {before}, {after}"
        );
        assert_served(&addresses);
        // This notice may be over before the next master starts.
        done(&daemon, &["drain", "--notice", "100ms"]);
        let daemon = next(&manager, daemon, how);
        wait_until_refused(&daemon);
        assert_refused(&addresses);
        done(&daemon, &["undrain"]);
        assert_served(&addresses);
    }
}
