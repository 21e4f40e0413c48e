//! A worker with garbage in its shared memory and channel is killed; intact clients and the master stay.

use std::io::Write;

use fdpassd::testing::{Client, Running, eventually};
use serde_json::json;

use crate::common::faulty::{self, Server, whoami};
use crate::common::random::Random;
use crate::common::{kernel, while_idle};

/// Words of the header of shared memory, and of each slot after it.
const HEADER: u64 = 2048;
const SLOT: u64 = 16;

/// Writes random words to header and slots, in 12 rounds, or `GARBAGE_ROUNDS`.
#[test]
fn garbage_in_shm_costs_at_most_clients_of_its_worker() {
    let mut random = Random::new("GARBAGE_SEED");
    let rounds = std::env::var("GARBAGE_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(12);
    let daemon = faulty::start(
        r#"
        listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock"]
        workers = { count = 2, dispatch = "round-robin" }
        limits.max-clients = 40
        "#,
    );
    daemon.wait_for_workers();
    let descriptors = || while_idle(&daemon, || kernel::descriptors(daemon.pid()).len());
    let before = descriptors();
    for round in 0..rounds {
        let (mut its, mut others): (Vec<(Client, Server)>, Vec<_>) = Default::default();
        for index in 0.. {
            if index >= 8 && its.len() > 1 && !others.is_empty() {
                break;
            }
            let mut client = Client::connect(&daemon.addresses()[index / 2 % 2]);
            let server = whoami(&mut client);
            if its.first().is_none_or(|(_, first)| first.pid == server.pid) {
                its.push((client, server));
            } else {
                others.push((client, server));
            }
        }
        let deaths = daemon.status().deaths_total;
        let words: Vec<u64> = match round % 3 {
            0 => (0..8 * SLOT).map(|_| random.next()).collect(),
            // Of the kind that they usually are: small.
            1 => (0..8 * SLOT).map(|_| random.below(2048)).collect(),
            _ => (0..HEADER + 8 * SLOT).map(|_| random.next()).collect(),
        };
        let at = if round % 3 == 2 { 0 } else { HEADER };
        let pid = its[0].1.pid;
        its[0].0.request("scribble_in", (pid, at, words));
        // Requests of its other clients make the worker read their slots.
        for (client, _) in &mut its[1..] {
            // It may have been closed by now.
            let frame = client.frame(r#"{"in":"ping"}"#);
            let _ = client.writer().write_all(&frame);
        }
        daemon.wait_until("the broken worker is dead", |status| {
            status.deaths_total > deaths
        });
        for (client, server) in &mut others {
            assert_eq!(
                client.call("ping", round).expect("a result"),
                round,
                "it is another worker's"
            );
            assert_eq!(whoami(client).pid, server.pid);
        }
        drop((its, others));
        daemon.wait_until("no client is counted that is gone", |status| {
            status.clients == 0
        });
        daemon.wait_until("both serve", |s| {
            s.workers.iter().all(|w| w.pid.is_some() && w.id.is_some())
        });
        daemon.wait_for_workers();
        if daemon
            .status()
            .quarantined
            .contains(&"scribble_in".to_owned())
        {
            daemon
                .ctl_with("release", json!({ "method": "scribble_in" }))
                .expect("it is quarantined");
        }
    }
    assert_eq!(descriptors(), before);
}

#[test]
fn garbage_in_one_slot_closes_only_its_client() {
    let mut random = Random::new("GARBAGE_SEED");
    let daemon = faulty::start("workers.count = 1");
    let mut clients = in_slots(&daemon);
    let half = clients[4].frame(r#"{"in":"ping","params":4}"#);
    clients[4].send(&half[..9]);
    let words: Vec<u64> = (0..SLOT).map(|_| random.next()).collect();
    clients[0]
        .call("scribble", (HEADER + 2 * SLOT, words))
        .expect("it was let");
    clients[2].request("ping", 2);
    daemon.wait_for_log("protocol error: released slot 2, which holds no client; killing it");
    daemon.wait_for_log("which holds no client; 4 clients moved, 1 closed");
    clients.remove(2).expect_end();
    clients[3].send(&half[9..]);
    assert_eq!(
        clients[3].reply().value().expect("half a frame was whole"),
        4
    );
    for client in &mut clients {
        assert_eq!(client.call("ping", 1).expect("a result"), 1);
    }
    let status = daemon.status();
    assert_eq!(
        (status.clients, status.lost_total, status.deaths_total),
        (4, 1, 1)
    );
}

/// The next worker computes with the contents of a slot.
#[test]
fn impossible_cursors_close_their_client_and_kill_no_worker() {
    let daemon = faulty::start("workers.count = 1");
    let mut clients = in_slots(&daemon);
    // Both sets of cursors of slot 2, of an idle client.
    for cursors in [6, 11] {
        clients[0]
            .call(
                "scribble",
                (HEADER + 2 * SLOT + cursors, [u64::MAX - 40; 2]),
            )
            .expect("it was let");
    }
    daemon.kill_worker(0);
    clients.remove(2).expect_end();
    for client in &mut clients {
        for _ in 0..3 {
            let frame = client.frame(r#"{"in":"ping"}"#);
            client.send([&frame[..], &frame[..9]].concat());
            assert_eq!(client.reply().name, "pong");
            client.send(&frame[9..]);
            assert_eq!(client.reply().name, "pong");
        }
    }
    assert_eq!(
        (daemon.status().deaths_total, daemon.status().lost_total),
        (1, 1)
    );
}

#[test]
fn a_worker_that_sends_invalid_messages_is_killed() {
    let mut random = Random::new("GARBAGE_SEED");
    let numbers = |kind: u8, slots: &[u32]| -> Vec<u8> {
        [kind]
            .into_iter()
            .chain(slots.iter().flat_map(|slot| slot.to_le_bytes()))
            .collect()
    };
    let mut datagrams = vec![
        numbers(3, &[77]),
        numbers(4, &[77]),
        // Of an existing client, and of no client next to an existing one.
        numbers(3, &[1]),
        numbers(4, &[1]),
        numbers(3, &[u32::MAX]),
        numbers(3, &[0; 4097]),
        numbers(4, &(0..10_000).collect::<Vec<u32>>()),
        vec![3],
        vec![1, b'{'],
        br#"xxx"#.to_vec(),
    ];
    while datagrams.len() < 24 {
        let mut datagram: Vec<u8> = (0..1 + random.below(300))
            .map(|_| random.next() as u8)
            .collect();
        datagram[0] = random.below(8) as u8;
        // Kinds 3 and 4 have numbers of slots after them, kinds 5 and 6 nothing.
        let is_message = match datagram[0] {
            3 | 4 => datagram.len() > 1 && datagram.len() % 4 == 1,
            5 | 6 => datagram.len() == 1,
            _ => false,
        };
        if !is_message {
            datagrams.push(datagram);
        }
    }
    let daemon = faulty::start("workers.count = 1");
    let mut clients = in_slots(&daemon);
    for (deaths, datagram) in (1..).zip(datagrams) {
        clients[0].request("send_datagram", &datagram);
        let status = daemon.wait_until("it is killed", |status| status.deaths_total == deaths);
        assert_eq!(
            (status.clients, status.lost_total),
            (5, 0),
            "after {datagram:?}"
        );
        // It was still at it, or had it answered before.
        if let Err(fault) = clients[0].reply().value() {
            assert_eq!(fault.code(), "crashed", "{datagram:?}");
        }
        for client in &mut clients {
            assert_eq!(client.call("ping", deaths).expect("a result"), deaths);
        }
        assert!(daemon.stderr().matches("; killing it").count() as u64 >= deaths);
    }
}

#[test]
fn starts_of_a_worker_that_breaks_the_protocol_back_off() {
    let daemon =
        faulty::start_with("garbage:1", "workers.count = 2").expect("the other worker serves");
    daemon.wait_for_log("its successor starts in ");
    let log = daemon.stderr();
    let deaths: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("its successor starts"))
        .collect();
    assert!(
        deaths.iter().all(|death| {
            death.contains("killed by signal 9 (SIGKILL): ")
                && death.contains("its successor starts in ")
        }),
        "{deaths:?}"
    );
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
}

#[test]
fn starts_of_a_worker_that_closes_its_channel_back_off() {
    let (daemon, switch) = faulty::start_with_health("workers.count = 1");
    switch.set("unplug");
    daemon.wait_for_log("killed by signal 9 (SIGKILL): it closed its channel; ");
    // One that served for longer than a second is replaced at once.
    eventually("a successor waits", || {
        let log = daemon.stderr();
        let mut deaths = log
            .lines()
            .filter(|line| line.contains("it closed its channel; "));
        deaths
            .any(|death| death.contains("its successor starts in "))
            .then_some(())
    });
    switch.set("");
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
}

#[test]
fn a_long_text_of_a_worker_is_shortened() {
    let daemon = faulty::start_with("long-health:1", "workers.count = 2").expect("it serves");
    let status = daemon.wait_until("it is unhealthy", |status| {
        status.workers[1].unhealthy.is_some()
    });
    let reason = status.workers[1].unhealthy.as_deref().expect("a reason");
    assert!(reason.starts_with("why why why ") && reason.ends_with('…'));
    assert_eq!(reason.len(), 4096 + '…'.len_utf8());
}

#[test]
fn a_worker_that_closes_its_channel_is_killed() {
    let daemon = faulty::start("workers.count = 1");
    let mut clients = in_slots(&daemon);
    for deaths in 1..=5 {
        clients[1].request("hang_up", ());
        let status = daemon.wait_until("it is dead", |status| status.deaths_total == deaths);
        assert_eq!((status.clients, status.lost_total), (5, 0));
        if let Err(fault) = clients[1].reply().value() {
            assert_eq!(fault.code(), "crashed");
        }
        for client in &mut clients {
            assert_eq!(client.call("ping", deaths).expect("a result"), deaths);
        }
    }
}

/// Clients of the only worker, each in the slot of its index.
#[track_caller]
fn in_slots(daemon: &Running) -> Vec<Client> {
    let one = |_| {
        let mut client = daemon.connect();
        assert_eq!(client.call("ping", 1).expect("a result"), 1);
        client
    };
    (0..5).map(one).collect()
}
