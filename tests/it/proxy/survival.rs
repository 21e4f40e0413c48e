//! Headers and addresses outlive workers and masters.

use std::path::Path;

use fdpassd::testing::{ServiceManager, Setup};

use super::*;
use crate::common::FDPASSD;
use crate::common::faulty::example;
use crate::common::restart::{How, restart, wait_for_confirmed_store};

/// Connections in each state: a part of the header, the whole header, a part of a frame, and idle after a request.
struct Connections {
    partial: Vec<(Client, Vec<u8>, String)>,
    silent: Vec<(Client, String)>,
    amid_frame: Vec<(Client, String)>,
    idle: Vec<(Client, String)>,
}

impl Connections {
    fn open(daemon: &Running) -> Connections {
        let mut number = 0;
        let mut next = || {
            number += 1;
            if number % 2 == 0 {
                client_v1(number)
            } else {
                client_v2(number)
            }
        };
        let mut all = Connections {
            partial: Vec::new(),
            silent: Vec::new(),
            amid_frame: Vec::new(),
            idle: Vec::new(),
        };
        let whoami = request("whoami");
        for address in daemon.addresses() {
            for at in [1, 7, 20] {
                let (header, peer) = next();
                let client = connect(address, &header[..at]);
                all.partial.push((client, header[at..].to_vec(), peer));
            }
            for _ in 0..2 {
                let (header, peer) = next();
                all.silent.push((connect(address, &header), peer));
                let (header, peer) = next();
                let client = connect(address, &[&header[..], &whoami[..9]].concat());
                all.amid_frame.push((client, peer));
                let (header, peer) = next();
                let mut client = connect(address, &header);
                ping(&mut client);
                all.idle.push((client, peer));
            }
        }
        let parts = all.partial.len() + all.amid_frame.len();
        eventually("all parts are parked", || {
            let parked = clients(daemon);
            let parked = parked.iter().filter(|client| client.bytes > 0);
            (parked.count() == parts).then_some(())
        });
        all
    }

    fn count(&self) -> usize {
        self.partial.len() + self.silent.len() + self.amid_frame.len() + self.idle.len()
    }

    /// Checks that all clients are served, and that their addresses are known.
    #[track_caller]
    fn check(mut self, daemon: &Running, what: &str) {
        let mut peers = Vec::new();
        let mut expect = |client: &mut Client, peer: String| {
            let caller = client
                .reply()
                .value()
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(caller["peer"], *peer, "{what}");
            assert!(caller["via"].is_string(), "{what}");
            peers.push(peer);
        };
        let whoami = request("whoami");
        for (client, rest, peer) in &mut self.partial {
            client.send([&rest[..], &whoami].concat());
            expect(client, peer.clone());
        }
        for (client, peer) in &mut self.amid_frame {
            client.send(&whoami[9..]);
            expect(client, peer.clone());
        }
        for (client, peer) in self.silent.iter_mut().chain(&mut self.idle) {
            client.send(&whoami);
            expect(client, peer.clone());
        }
        wait_for_peers(daemon, &peers);
        let count = self.count() as u64;
        daemon.wait_until("all clients are counted", |status| {
            status.accepted_total == count
        });
        assert_eq!(daemon.status().lost_total, 0, "{what}");
    }
}

/// Without a limit of time for a header, because the machine may be busy.
fn config() -> String {
    format!("{BOTH}\nlimits.frame-timeout = \"none\"")
}

#[test]
fn kill_9_of_workers_amid_headers_costs_nothing() {
    let daemon = start(&config());
    let all = Connections::open(&daemon);
    for seat in 0..2 {
        let before = daemon.worker_pids();
        daemon.kill_worker(seat);
        daemon.wait_until("another worker is ready", |status| {
            let pids: Vec<u32> = status
                .workers
                .iter()
                .filter_map(|worker| worker.pid)
                .collect();
            pids.len() == 2 && pids.iter().any(|pid| !before.contains(pid))
        });
    }
    daemon.wait_for_workers();
    all.check(&daemon, "kill -9");
}

#[test]
fn a_recycling_keeps_headers_and_addresses() {
    let daemon = start(&config());
    let all = Connections::open(&daemon);
    daemon
        .ctl_with("recycle", json!({}))
        .expect("all are replaced");
    all.check(&daemon, "recycle");
}

/// The points at which workers die, and the number of the passing at which they do. Each successor dies at the same
/// one, so the clients must make progress in the passings before it.
const POINTS: [(&str, u32); 8] = [
    ("after-claim", 3),
    ("after-begin", 3),
    ("after-receive", 2),
    ("before-header", 2),
    ("after-header", 1),
    ("amid-parking", 2),
    ("after-parking", 2),
    ("before-end", 2),
];

/// The points for a daemon with a limit for each address, whose master counts a client before its first request.
const POINTS_WITH_LIMIT: [(&str, u32); 4] = [
    ("before-header", 2),
    ("after-header", 1),
    ("in-retirement", 1),
    ("in-retirement", 2),
];

#[track_caller]
fn die_at(point: &str, n: u32, more: &str) {
    let what = format!("{point}:{n}{more}");
    let setup = Setup::new(example("faulty"), &format!("{}{more}", config()));
    let setup = setup.variable("FDPASSD_DIE_AT", format!("{point}:{n}"));
    let daemon = setup.start().expect("the daemon serves");
    daemon.wait_for_workers();
    let (mut all, mut peers) = (Vec::new(), Vec::new());
    for number in 1..=4 {
        let (header, peer) = client_v2(number);
        let at = usize::from(number) * 4;
        let mut client = connect(&daemon.addresses()[0], &header[..at]);
        client.send(&header[at..]);
        // `ping` is idempotent, so it is executed once more after a death.
        assert_eq!(client.call("ping", number).expect(&what), number, "{what}");
        peers.push(peer);
        all.push(client);
    }
    wait_for_peers(&daemon, &peers);
    daemon.wait_until("four clients are counted", |status| {
        status.accepted_total == 4
    });
    assert_eq!(daemon.status().lost_total, 0, "{what}");
}

#[test]
fn a_worker_dies_at_each_point_around_its_header() {
    for (point, n) in POINTS {
        die_at(point, n, "");
    }
}

#[test]
fn a_worker_dies_while_the_master_counts_its_client() {
    for (point, n) in POINTS_WITH_LIMIT {
        die_at(point, n, "\nlimits.max-clients-per-address = 100");
    }
}

#[test]
fn a_restart_or_an_upgrade_keeps_headers_and_addresses() {
    for how in How::ALL {
        let manager = ServiceManager::new();
        let program = example("faulty");
        let daemon = manager
            .setup(&program, &config())
            .start()
            .expect("it serves");
        daemon.wait_for_workers();
        wait_for_confirmed_store(&daemon);
        let mut check = connect(&daemon.addresses()[0], &local());
        ping(&mut check);
        drop(check);
        wait_for_without_client(&daemon, "check", 1.0);
        let all = Connections::open(&daemon);
        let daemon = restart(&manager, daemon, how, Path::new(&program));
        all.check(&daemon, &format!("{how:?}"));
    }
}

/// Connections of the balancer itself are in no count of clients, before the restart and after it.
#[test]
fn a_restart_keeps_the_count_of_those_that_are_no_clients() {
    for how in [How::Term, How::Kill, How::Upgrade] {
        let manager = ServiceManager::new();
        let daemon = manager
            .setup(FDPASSD, &config())
            .start()
            .expect("it serves");
        daemon.wait_for_workers();
        wait_for_confirmed_store(&daemon);
        let address = daemon.addresses()[0].clone();
        for _ in 0..5 {
            drop(connect(&address, &local()));
        }
        let mut client = connect(&address, &client_v2(1).0);
        ping(&mut client);
        wait_for_without_client(&daemon, "check", 5.0);
        daemon.wait_until("it is counted", |status| status.accepted_total == 1);
        let daemon = restart(&manager, daemon, how, Path::new(FDPASSD));
        ping(&mut client);
        let after = daemon.wait_for_workers();
        assert_eq!(after.accepted_total, 1, "{how:?}");
        assert_eq!(after.clients, 1, "{how:?}");
    }
}
