//! A state file, a store or a queue of which something is lost.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;

use fdpassd::proto::control::Status;
use fdpassd::testing::{Client, ServiceManager, eventually};
use serde_json::json;

use crate::common::faulty::example;
use crate::common::restart::{self as common_restart, How, wait_for_confirmed_store};
use crate::common::{metrics, ping_all};

use super::{BOTH, Halfway, STATE_FILE, clients_of, end, end_by, restart, start};

#[test]
fn clients_and_listeners_outlive_an_unreadable_state_file() {
    let write = |at, bytes: &'static [u8]| {
        move |manager: &ServiceManager| {
            manager.with_stored(STATE_FILE, |file| {
                let file = File::from(file);
                file.write_all_at(bytes, at).expect("it is a file");
                // Only that version can read it.
                if at == 0 {
                    file.write_all_at(bytes, 40).expect("it is a file");
                }
            });
        }
    };
    type Damage = Box<dyn Fn(&ServiceManager)>;
    let damages: [(&str, Damage); 5] = [
        ("it is of version 99", Box::new(write(0, b"fdpassd\x63"))),
        (
            "it has no version of fdpassd",
            Box::new(write(0, &[0xff; 8])),
        ),
        ("its length is not valid", Box::new(write(8, &[0xff; 8]))),
        ("expected value", Box::new(write(4096, b"fdpassd"))),
        (
            "the state file is missing",
            Box::new(|manager| manager.forget_those(|name| name == STATE_FILE)),
        ),
    ];
    for (why, damage) in damages {
        let manager = ServiceManager::new();
        let daemon = start(&manager, BOTH);
        let mut clients = clients_of(&daemon, 20);
        let mut halfway = Halfway::start(&daemon);
        // Both halves of it, whichever counts.
        daemon.reload().expect("it is applied");
        let (addresses, before) = (daemon.addresses().to_vec(), daemon.status());
        let daemon = end(daemon);
        damage(&manager);
        let daemon = restart(&manager, daemon);
        assert_eq!(daemon.addresses(), addresses, "{why}");
        if why != "expected value" {
            daemon.wait_for_log(why);
        }
        ping_all(&mut clients);
        halfway.finish();
        let after = daemon.status();
        assert_eq!((after.clients, after.lost_total), (22, 0), "{why}");
        assert!(
            after.generation > before.generation && newest(&after) > newest(&before),
            "{why}"
        );
        // New descriptors are stored again.
        let daemon = restart(&manager, end(daemon));
        ping_all(&mut clients);
        clients_of(&daemon, 2);
        assert_eq!(
            (daemon.status().lost_total, daemon.status().config_stale),
            (0, None),
            "{why}"
        );
    }
}

#[test]
fn long_reasons_of_many_workers_leave_space_for_the_state() {
    const WORKERS: usize = 24;
    let manager = ServiceManager::new();
    let fault = tempfile::NamedTempFile::new().expect("a file");
    let program = example("faulty");
    let daemon = manager
        // The program finds the channel of an executed worker only.
        .setup(&program, "workers = { count = 1, start = \"exec\" }")
        .variable("FAULTY", format!("file:{}", fault.path().display()))
        .start()
        .expect("it serves");
    let mut clients = clients_of(&daemon, 3);
    std::fs::write(fault.path(), "long-failure").expect("it is ours");
    // The reply would come when all are ready.
    let _scaling = daemon.ctl_request("scale", json!({ "count": WORKERS }));
    daemon.wait_until("each has failed", |status| {
        let failed = status.workers.iter().filter(|worker| {
            let death = worker.last_death.as_deref();
            death.is_some_and(|death| death.contains("why why "))
        });
        failed.count() == WORKERS - 1
    });
    let daemon = common_restart::restart(&manager, daemon, How::Kill, &program);
    let status = daemon.status();
    assert_eq!((status.workers.len(), status.lost_total), (WORKERS, 0));
    ping_all(&mut clients);
}

#[test]
fn the_remains_of_a_store_are_taken_over() {
    for lost in [
        "fdpassd-listener",
        "fdpassd-listener.1",
        "fdpassd-boat.1-into",
        "fdpassd-boat.0-into",
        STATE_FILE,
    ] {
        let manager = ServiceManager::new();
        let daemon = start(&manager, BOTH);
        let mut clients = clients_of(&daemon, 20);
        wait_for_confirmed_store(&daemon);
        let daemon = end(daemon);
        let stored = manager.stored().len();
        manager.forget_after_end(|name| name.starts_with(lost));
        let daemon = restart(&manager, daemon);
        ping_all(&mut clients);
        clients_of(&daemon, 2);
        assert_eq!(daemon.status().lost_total, 0, "{lost}");
        // A listener that is bound again has another number.
        eventually("the manager has all of it again", || {
            (manager.stored().len() == stored).then_some(())
        });
        let daemon = restart(&manager, end(daemon));
        ping_all(&mut clients);
        assert_eq!(daemon.status().lost_total, 0, "{lost}");
    }
}

#[test]
fn clients_in_a_lost_queue_are_counted() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, "workers.count = 1");
    let mut clients = clients_of(&daemon, 7);
    let daemon = end(daemon);
    manager.forget_those(|name| name.starts_with("fdpassd-boat"));
    let daemon = restart(&manager, daemon);
    clients.iter_mut().for_each(Client::expect_end);
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (0, 7));
    daemon.wait_for_log("took over 0 clients from the previous master; 7 lost: store 7");
    assert!(metrics::text(&daemon).contains("\nfdpassd_clients_lost_total{reason=\"store\"} 7\n"));
    let mut clients = clients_of(&daemon, 3);
    let _daemon = restart(&manager, end(daemon));
    ping_all(&mut clients);
}

#[test]
fn clients_without_room_in_the_queue_are_counted() {
    for (how, room) in [("TERM", 0), ("KILL", 0), ("TERM", 2), ("KILL", 2)] {
        let manager = ServiceManager::new();
        let daemon = start(&manager, "workers.count = 1");
        let mut clients = clients_of(&daemon, 600);
        wait_for_confirmed_store(&daemon);
        // All of it is full except for this number of datagrams.
        for name in manager
            .stored()
            .iter()
            .filter(|name| name.ends_with("-into"))
        {
            manager.with_stored(name, |queue| fill(&UnixDatagram::from(queue)));
        }
        manager.with_stored("fdpassd-boat.0-out", |queue| {
            let queue = UnixDatagram::from(queue);
            for _ in 0..room {
                queue.recv(&mut [0; 8192]).expect("it is full");
            }
        });
        let daemon = restart(&manager, end_by(daemon, how));
        let status = daemon.status();
        assert!(
            status.clients + status.lost_total == 600 && status.lost_total > 0,
            "{how} {room}: {} and {}",
            status.clients,
            status.lost_total
        );
        assert_eq!(status.clients > 0, room > 0, "{how} {room}");
        let mut served = 0;
        for client in &mut clients {
            if !client.has_something() {
                ping_all(std::slice::from_mut(client));
                served += 1;
            }
        }
        assert_eq!(served, status.clients, "{how} {room}");
    }
}

/// Until it takes nothing more. The kernel accepts one more datagram, of any length, as long as any space is left
/// (unix(7), SO_SNDBUF): the space of two of these is that of the shared memory and of one datagram of clients.
fn fill(queue: &UnixDatagram) {
    queue.set_nonblocking(true).expect("set");
    for length in [3000, 1] {
        while queue.send(&vec![99; length]).is_ok() {}
    }
}

fn newest(status: &Status) -> Option<u64> {
    status
        .workers
        .iter()
        .filter_map(|worker| worker.id)
        .map(|id| id.0)
        .max()
}
