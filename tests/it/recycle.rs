//! Workers are replaced after max-requests or max-lifetime, and no client notices.

use std::collections::HashSet;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, eventually};

use crate::common::faulty::{self, Server};
use crate::common::load::Load;
use crate::common::{kernel, let_pass, ping_of, pong_of, start};

#[test]
fn max_requests_of_1_gives_each_request_its_own_process() {
    const CLIENTS: usize = 50;
    for workers in [1, 3] {
        let listen = r#"listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock"]"#;
        let daemon = faulty::start(&format!(
            "{listen}\nworkers = {{ count = {workers}, max-requests = 1 }}"
        ));
        let connect = |i: usize| Client::connect(&daemon.addresses()[i % 2]);
        let mut clients: Vec<Client> = (0..CLIENTS).map(connect).collect();
        // Every fifth sends all at once, some others one by one, and most of them nothing.
        let (in_line, one_by_one) = (
            |i: &usize| i.is_multiple_of(5),
            |i: &usize| !i.is_multiple_of(5) && i.is_multiple_of(7),
        );
        for i in (0..CLIENTS).filter(in_line) {
            let frame = clients[i].frame(r#"{"in":"whoami","params":null}"#);
            clients[i].send(frame.repeat(8));
        }
        let mut servers: Vec<Server> = Vec::new();
        for i in (0..CLIENTS).filter(one_by_one) {
            servers.extend((0..4).map(|_| faulty::whoami(&mut clients[i])));
        }
        for i in (0..CLIENTS).filter(in_line) {
            servers.extend((0..8).map(|_| faulty::server(&mut clients[i])));
        }
        let own: HashSet<u32> = servers.iter().map(|server| server.pid).collect();
        assert_eq!(own.len(), servers.len(), "with {workers} workers");
        assert!(
            servers.iter().all(|server| server.calls == 1),
            "{servers:?}"
        );
        // And who has not asked is still there.
        for client in &mut clients {
            assert_eq!(faulty::whoami(client).calls, 1);
        }
        let status = daemon.status();
        assert_eq!(
            (status.clients, status.errors_total, status.lost_total),
            (CLIENTS as u64, 0, 0)
        );
        assert_eq!(status.deaths_total, 0, "they end as they are to");
    }
}

#[test]
fn every_request_is_answered_at_any_max_requests() {
    for most in [1, 2, 20, 300] {
        let listen = r#"listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock"]"#;
        let daemon = start(&format!(
            "{listen}\nlimits.stall-timeout = \"1h\"\nworkers = {{ count = 2, max-requests = {most} }}"
        ));
        daemon.wait_for_workers();
        let mut idle: Vec<Client> = (0..20).map(|_| daemon.connect()).collect();
        let load = Load::start(&daemon, 6, 5);
        let status = daemon.wait_until("both were replaced several times", |status| {
            status.workers.iter().all(|worker| worker.restarts >= 3)
        });
        // One that answered its last request before its successor was ready is gone for a moment, and that is all.
        assert_eq!(status.count, 2);
        load.wait_for(5);
        for (client, number) in idle.iter_mut().zip(0..) {
            assert_eq!(client.call("ping", number).expect("a result"), number);
        }
        let answered: u64 = load.finish().iter().sum();
        let status = daemon.wait_until("the load has left", |status| status.clients == 20);
        assert_eq!(
            (status.errors_total, status.lost_total, status.deaths_total),
            (0, 0, 0),
            "at {most}"
        );
        assert_eq!(
            status.requests_total,
            answered + 20,
            "each is counted once, at {most}"
        );
        let processes: u64 = status
            .workers
            .iter()
            .map(|worker| worker.restarts + 1)
            .sum();
        assert!(
            status.requests_total <= processes * most,
            "{} by {processes}",
            status.requests_total
        );
        assert!(
            !daemon.stderr().contains(" warn "),
            "replacing is nothing to be warned of, at {most}"
        );
    }
}

#[test]
fn workers_that_are_old_enough_are_replaced_one_by_one() {
    let daemon =
        start("limits.stall-timeout = \"1h\"\nworkers = { count = 2, max-lifetime = \"300ms\" }");
    daemon.wait_for_workers();
    let mut idle: Vec<Client> = (0..20).map(|_| daemon.connect()).collect();
    let load = Load::start(&daemon, 4, 5);
    // Two workers always serve: a leaving one has a ready successor.
    daemon.wait_until("both were replaced several times", |status| {
        assert_eq!(
            status
                .workers
                .iter()
                .filter(|worker| worker.state == WorkerState::Ready)
                .count(),
            2
        );
        status.workers.iter().all(|worker| worker.restarts >= 4)
    });
    for (client, number) in idle.iter_mut().zip(0..) {
        assert_eq!(client.call("ping", number).expect("a result"), number);
    }
    load.wait_for(5);
    load.finish();
    let status = daemon.wait_until("the load has left", |status| status.clients == 20);
    assert_eq!(
        (status.errors_total, status.lost_total, status.deaths_total),
        (0, 0, 0)
    );
    assert!(
        !daemon.stderr().contains(" warn "),
        "replacing is nothing to be warned of"
    );
}

#[test]
fn half_frames_and_unread_replies_go_from_process_to_process() {
    let listen = r#"listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock"]"#;
    let daemon = start(&format!(
        "{listen}\nworkers = {{ count = 1, max-requests = 1 }}\n\
         limits = {{ frame-timeout = \"none\", send-timeout = \"none\" }}"
    ));
    let mut halfway = Vec::new();
    for (length, sent) in [
        (100, 2),
        (100, 50),
        (5_000, 3_000),
        (300_000, 280_000),
        (1_000_000, 900_000),
    ] {
        for address in daemon.addresses() {
            let mut client = Client::connect(address);
            let frame = client.frame(ping_of(length));
            client.send(&frame[..sent]);
            halfway.push((client, length, frame, sent));
        }
    }
    // Unread replies of 300 kB: of each a Unix socket takes a part.
    const REPLIES: usize = 40;
    let mut lazy = Client::connect(&daemon.addresses()[1]);
    let mut writer = lazy.writer();
    let requests: Vec<u8> = (0..REPLIES)
        .flat_map(|i| lazy.frame(ping_of(300_000 + i)))
        .collect();
    let writing = thread::spawn(move || writer.write_all(&requests));
    daemon.wait_until("a reply does not fit any more", |s| {
        s.workers.iter().any(|w| w.parked_bytes > 0)
    });
    let load = Load::start(&daemon, 2, 3);
    load.wait_for(10);
    for (client, length, frame, sent) in &mut halfway {
        client.send(&frame[*sent..]);
        assert!(client.receive() == pong_of(*length), "of {length} bytes");
    }
    for i in 0..REPLIES {
        assert!(lazy.receive() == pong_of(300_000 + i), "reply {i}");
    }
    writing
        .join()
        .expect("no panic")
        .expect("the daemon reads all");
    load.finish();
    let status = daemon.status();
    assert_eq!(
        (status.errors_total, status.lost_total, status.deaths_total),
        (0, 0, 0)
    );
}

#[test]
fn moves_do_not_prolong_the_idle_timeout() {
    let daemon = start("limits.idle-timeout = \"4s\"\nworkers = { count = 1, max-requests = 1 }");
    let began = Instant::now();
    let mut idle = daemon.connect();
    let load = Load::start(&daemon, 2, 2);
    idle.expect_end();
    assert!(
        began.elapsed() >= Duration::from_secs(4),
        "after {:?}",
        began.elapsed()
    );
    load.wait_for(5);
    load.finish();
    let status = daemon.status();
    assert_eq!(
        (status.errors_total, status.lost_total, status.deaths_total),
        (0, 0, 0)
    );
}

/// Clients that send as many requests as they can get equal shares of the workers, and idle clients cost little. Prints
/// the cost of a process per request. Runs for a second, or for `RECYCLE_SECONDS`, with 100 idle clients, or
/// `RECYCLE_IDLE`.
#[test]
fn equally_greedy_clients_get_equal_shares() {
    let number = |name: &str, usual: u64| {
        std::env::var(name)
            .ok()
            .map_or(usual, |n| n.parse().expect("a number"))
    };
    let (seconds, idle) = (number("RECYCLE_SECONDS", 1), number("RECYCLE_IDLE", 100));
    for (workers, pipelined) in [(1, 1), (3, 1), (3, 8)] {
        let daemon = start(&format!(
            "workers = {{ count = {workers}, max-requests = 1 }}"
        ));
        daemon.wait_for_workers();
        let _idle: Vec<Client> = (0..idle).map(|_| daemon.connect()).collect();
        daemon.wait_until("they are there", |status| status.clients == idle);
        let load = Load::start(&daemon, 8, pipelined);
        load.wait_for(1);
        let (before, moved, ticks) = (
            load.answered(),
            daemon.status().moved_total,
            kernel::cpu_ticks(daemon.pid()),
        );
        let began = Instant::now();
        let_pass(Duration::from_secs(seconds));
        let of_each = |after: &[u64]| -> Vec<u64> {
            let pairs = after.iter().zip(&before);
            pairs.map(|(after, before)| after - before).collect()
        };
        let sum = || of_each(&load.answered()).iter().sum::<u64>();
        eventually("each client can have had ten, and none is behind", || {
            let mine = of_each(&load.answered());
            let (least, most) = (mine.iter().min()?, mine.iter().max()?);
            (sum() >= 80 && *most <= 4 * least).then_some(())
        });
        let after = load.answered();
        let took = began.elapsed().as_secs_f64();
        let (ticks, moved) = (
            kernel::cpu_ticks(daemon.pid()) - ticks,
            daemon.status().moved_total - moved,
        );
        let mine = of_each(&after);
        let sum: u64 = mine.iter().sum();
        let (least, most) = (
            mine.iter().min().expect("eight"),
            mine.iter().max().expect("eight"),
        );
        println!(
            "max-requests = 1, {workers} workers, 8 clients of {pipelined} requests, {idle} idle: {:.0} requests/s, of \
             each client {least} to {most}, {} moves a request, master {:.0}% of a CPU",
            sum as f64 / took,
            moved / sum.max(1),
            ticks as f64 / took
        );
        load.finish();
        let status = daemon.status();
        assert_eq!(
            (status.errors_total, status.lost_total, status.deaths_total),
            (0, 0, 0)
        );
    }
}
