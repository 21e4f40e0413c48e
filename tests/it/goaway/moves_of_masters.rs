//! The wish for a goaway, and the moves of a drain, outlive the worker and the master.

use std::path::Path;
use std::time::{Duration, Instant};

use fdpassd::testing::{Client, ServiceManager};
use serde_json::json;

use super::{BOTH, expect_goaway, ids, kick, opted_in};
use crate::common::FDPASSD;
use crate::common::restart::{How, restart, wait_for_confirmed_store};

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
        let begin = Instant::now();
        let period = Duration::from_secs(4);
        let moves = json!({ "move": period.as_secs_f64() });
        daemon.ctl_with("drain", moves).expect("it is drained");
        let daemon = restart(&manager, daemon, how, Path::new(FDPASSD));
        let over = daemon.status().drain.and_then(|drain| drain.over);
        let passed = begin.elapsed().as_secs_f64();
        let left = over.expect("the moves continue");
        // The period continues.
        assert!(
            left <= (period.as_secs_f64() - passed).max(0.0) + 1.0,
            "{how:?}: {left} {passed}"
        );
        for client in &mut clients {
            expect_goaway(client, 1, "draining");
        }
        drop(clients);
        let status = daemon.wait_until("all have left", |status| status.clients == 0);
        assert_eq!(status.lost_total, 0, "{how:?}");
    }
}
