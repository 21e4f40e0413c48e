//! Workers die with bytes of clients in their hands, and no client notices.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::control::{WorkerState, WorkerStatus};
use fdpassd::proto::frame::ByteOrder;
use fdpassd::testing::{Client, TIMEOUT};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::faulty::{self, Execution, whoami};
use crate::common::random::Random;
use crate::common::{kernel, ping_of, pong_of, start};

#[test]
fn half_a_frame_outlives_every_worker_that_holds_it() {
    let daemon = start(
        r#"
        listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock", { address = "127.0.0.2:0", byte-order = "auto" }]
        workers.count = 2
        limits.frame-timeout = "none"
        "#,
    );
    daemon.wait_for_workers();
    let orders = [ByteOrder::Little, ByteOrder::Little, ByteOrder::Big];
    let mut clients = Vec::new();
    for (address, order) in daemon.addresses().iter().zip(orders) {
        for (length, sent) in [
            (100, 2),
            (100, 50),
            (5_000, 3_000),
            (300_000, 280_000),
            (1_000_000, 900_000),
        ] {
            let mut client = Client::connect(address).in_order(order);
            let frame = client.frame(ping_of(length));
            client.send(&frame[..sent]);
            clients.push((client, length, frame, sent));
        }
    }
    // `parked_bytes` does not count the first 4 KiB of each client.
    let parked: u64 = clients
        .iter()
        .map(|(.., sent)| sent.saturating_sub(4096) as u64)
        .sum();
    daemon.wait_until("all large ones have been read", |status| {
        status
            .workers
            .iter()
            .map(|worker| worker.parked_bytes)
            .sum::<u64>()
            == parked
    });
    // Wherever a frame is, at least two of its holders are killed: after each kill the successor or the other worker
    // holds it.
    for seat in [0, 1, 0, 1] {
        daemon.kill_worker(seat);
    }
    for (client, length, frame, sent) in &mut clients {
        client.send(&frame[*sent..]);
        assert!(client.receive() == pong_of(*length), "of {length} bytes");
        assert_eq!(client.call("ping", *length).expect("a result"), *length);
    }
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn unread_replies_survive_every_worker_that_holds_them() {
    // Of a Unix socket a fifth of a mebibyte is taken; of TCP it may be all, by the kernel's settings.
    let daemon = start(
        "listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 2\nlimits.send-timeout = \"none\"",
    );
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    const REPLIES: usize = 80;
    let length = |number: usize| 300_000 + number;
    let mut writer = client.writer();
    let requests: Vec<Vec<u8>> = (0..REPLIES)
        .map(|number| client.frame(ping_of(length(number))))
        .collect();
    let writing = thread::spawn(move || {
        requests
            .iter()
            .try_for_each(|frame| writer.write_all(frame))
    });
    daemon.wait_until("a reply does not fit any more", |s| {
        s.workers.iter().any(|w| w.parked_bytes > 0)
    });
    for seat in [0, 1, 0, 1, 0, 1] {
        daemon.kill_worker(seat);
    }
    for number in 0..REPLIES {
        assert!(
            client.receive() == pong_of(length(number)),
            "reply {number}"
        );
    }
    writing
        .join()
        .expect("no panic")
        .expect("the daemon reads all");
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn an_unread_reply_survives_reloads_with_a_smaller_max_frame() {
    let config = |max_frame: &str| {
        format!(
            "listen = [\"unix:{{dir}}/rpc.sock\"]\nworkers.count = 2\n\
             limits = {{ max-frame = \"{max_frame}\", send-timeout = \"none\" }}"
        )
    };
    let daemon = start(&config("1MiB"));
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    client.send_frame(ping_of(1_000_000));
    daemon.wait_until("the reply does not fit any more", |s| {
        s.requests_total == 1 && s.workers.iter().any(|w| w.parked_bytes > 500_000)
    });
    for _ in 0..3 {
        daemon.reload_with(&config("64KiB")).expect("it is applied");
    }
    daemon.wait_until("the workers of the first configuration are gone", |s| {
        s.leaving.is_empty()
    });
    assert_eq!(daemon.status().lost_total, 0);
    assert!(client.receive() == pong_of(1_000_000));
    client.send_frame(ping_of(100_000));
    assert_eq!(
        client.reply().value().expect_err("now it is").code(),
        "too_large"
    );
}

#[test]
fn half_a_frame_survives_the_rollback_of_its_configuration() {
    let (daemon, switch) =
        faulty::start_with_switch("workers.count = 2\nlimits.max-frame = \"64KiB\"");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    // The third worker is not ready for as long as the test wants, and then never.
    switch.set("hang:2");
    daemon.write_config(
        "workers = { count = 3, start-timeout = \"5m\" }\nlimits.max-frame = \"1MiB\"",
    );
    let mut reload = daemon.ctl_request("reload", ());
    daemon.wait_until("two new workers have all clients", |s| {
        let is_new = |w: &&WorkerStatus| w.generation.0 == 2 && w.state == WorkerState::Ready;
        s.workers.iter().filter(is_new).count() == 2 && s.leaving.is_empty()
    });
    daemon.wait_for_log("hangs");
    let frame = client.frame(ping_of(1_000_000));
    client.send(&frame[..900_000]);
    let status = daemon.wait_until("it is half there", |s| {
        s.workers.iter().any(|w| w.parked_bytes > 800_000)
    });
    switch.set("exit:2");
    let mut hanging = kernel::children(daemon.pid());
    hanging.retain(|pid| {
        let is_ready =
            |worker: &WorkerStatus| worker.pid == Some(*pid) && worker.state == WorkerState::Ready;
        !status.workers.iter().any(is_ready)
            && !status.leaving.iter().any(|worker| worker.pid == *pid)
    });
    assert_eq!(hanging.len(), 1);
    kernel::send(hanging[0], Signal::SIGKILL);
    assert_eq!(
        reload
            .reply()
            .value()
            .expect_err("one is never ready")
            .code(),
        "rolled_back"
    );
    // It is not lost, but from now on it is too large.
    client.send(&frame[900_000..900_001]);
    assert_eq!(
        client.reply().value().expect_err("it is").code(),
        "too_large"
    );
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn only_the_executing_request_is_answered_with_crashed() {
    let daemon = faulty::start("workers.count = 2");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    for round in 0..6 {
        // A client whose requests kill three workers is closed, so each connects again after two.
        if round % 2 == 0 {
            client = daemon.connect();
        }
        (0..5).for_each(|i| client.request("ping", json!([round, i])));
        client.request("exit", 7);
        (5..10).for_each(|i| client.request("ping", json!([round, i])));
        for i in 0..10 {
            if i == 5 {
                let fault = client.reply().value().expect_err("its worker died in it");
                assert_eq!(fault.code(), "crashed", "{fault}");
            }
            assert_eq!(client.reply().value().expect("a result"), json!([round, i]));
        }
    }
    let status = daemon.status();
    assert_eq!(
        (
            status.lost_total,
            status.deaths_total,
            status.closed_for_crashes_total
        ),
        (0, 6, 0)
    );
    daemon.wait_for_log("exited with status 7 in method \"exit\" of client");
    daemon.wait_for_log(
        " moved, 0 closed, 1 request answered with crashed; its successor starts now",
    );
}

#[test]
fn an_idempotent_request_is_run_at_most_twice() {
    let daemon = faulty::start("workers.count = 2");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    assert_eq!(
        client
            .call("exit_until", 2)
            .expect("the second attempt succeeds"),
        2
    );
    assert_eq!(
        client
            .call("exit_until", 3)
            .expect_err("there is no third")
            .code(),
        "crashed"
    );
    assert_eq!(
        client
            .call("exit_until", 2)
            .expect("faults are of one request"),
        2
    );
    // The limit is per request, also if one is run again and the next one crashes in the same turn.
    let frames: Vec<u8> = (0..4)
        .flat_map(|_| client.frame(r#"{"in":"exit_until","params":2}"#))
        .collect();
    client.send(frames);
    for _ in 0..4 {
        assert_eq!(client.reply().value().expect("each has one fault"), 2);
    }
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn a_worker_killed_in_a_method_costs_no_client_its_connection() {
    let daemon = faulty::start("workers.count = 1");
    let mut idle = daemon.connect();
    let mut halfway = daemon.connect();
    let whole = halfway.frame(r#"{"in":"ping"}"#);
    halfway.send([&whole[..], &whole[..9]].concat());
    assert_eq!(halfway.reply().name, "pong");
    let first = whoami(&mut idle);
    let mut waiting = daemon.connect();
    whoami(&mut waiting);
    let execution = Execution::start(&daemon);
    waiting.request("whoami", ());
    daemon.kill_worker(0);
    let mut caller = execution.into_client();
    assert_eq!(
        caller
            .reply()
            .value()
            .expect_err("its worker was killed")
            .code(),
        "crashed"
    );
    assert_eq!(caller.call("ping", 1).expect("a result"), 1);
    assert_ne!(faulty::server(&mut waiting).pid, first.pid);
    halfway.send(&whole[9..]);
    assert_eq!(halfway.reply().name, "pong");
    assert_ne!(whoami(&mut idle).pid, first.pid);
    assert_eq!(
        (daemon.status().clients, daemon.status().lost_total),
        (4, 0)
    );
}

#[test]
fn moving_prolongs_no_timeout() {
    let daemon = start("limits.frame-timeout = \"1s\"\nworkers.count = 2");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    let frame = client.frame(ping_of(1_000));
    client.send(&frame[..500]);
    let began = Instant::now();
    while !client.has_something() {
        daemon.kill_worker(0);
        daemon.kill_worker(1);
        assert!(began.elapsed() < TIMEOUT, "each move prolongs the timeout");
    }
    assert_eq!(
        client.reply().value().expect_err("it is late").code(),
        "timeout"
    );
    client.expect_end();
}

/// Every request is numbered and every reply compared: under random kills none is lost, doubled or out of order. One
/// that was executing at two deaths has crashed, as it should; all others are answered. Runs for four seconds, or
/// for `CHAOS_SECONDS`.
#[test]
fn under_random_kills_requests_are_answered_once_in_order() {
    let daemon = start(
        r#"
        listen = ["127.0.0.1:0", { address = "127.0.0.2:0", byte-order = "big" }, "unix:{dir}/rpc.sock"]
        workers.count = 2
        "#,
    );
    daemon.wait_for_workers();
    let seconds = std::env::var("CHAOS_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let duration = Duration::from_secs(seconds.unwrap_or(4));
    let over = AtomicBool::new(false);
    let (requests, crashed): (u64, u64) = thread::scope(|threads| {
        let over = &over;
        let load = |client: usize| {
            let address = &daemon.addresses()[client % 3];
            let order = if client % 3 == 1 {
                ByteOrder::Big
            } else {
                ByteOrder::Little
            };
            let client_of = Client::connect(address).in_order(order);
            threads.spawn(move || pipeline(client_of, client as u64, over))
        };
        let loads: Vec<_> = (0..9).map(load).collect();
        let began = Instant::now();
        let mut kills = 0;
        while began.elapsed() < duration || kills < 20 {
            daemon.kill_worker(kills % 2);
            kills += 1;
        }
        over.store(true, Ordering::Relaxed);
        let counts: Vec<(u64, u64)> = loads
            .into_iter()
            .map(|load| load.join().expect("no request is lost"))
            .collect();
        let (requests, crashed) = (
            counts.iter().map(|c| c.0).sum(),
            counts.iter().map(|c| c.1).sum(),
        );
        println!("{kills} kills, {requests} requests, {crashed} of them executing at two deaths");
        assert!(
            2 * crashed <= kills.into(),
            "{crashed} requests have crashed in {kills} kills"
        );
        (requests, crashed)
    });
    let status = daemon.status();
    assert_eq!(
        (status.lost_total, status.errors_total),
        (0, crashed),
        "of {requests} requests"
    );
    daemon.wait_until("all clients have left", |status| status.clients == 0);
}

/// Sends numbered pings of all sizes in pieces of all sizes, eight at a time, until it is over; how many, and how many
/// of them have crashed.
fn pipeline(mut client: Client, seed: u64, over: &AtomicBool) -> (u64, u64) {
    let mut random = Random(seed);
    let (mut answered, mut crashed) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let size = |n: u64| match n % 20 {
            0 => 200_000,
            1..4 => 20_000,
            _ => 30,
        };
        let sizes: Vec<u64> = (0..8)
            .map(|_| random.below(1 << 40))
            .map(|n| n % size(n) + 1)
            .collect();
        let bodies: Vec<String> = sizes
            .iter()
            .zip(answered..)
            .map(|(size, number)| {
                format!(
                    r#"{{"in":"ping","params":[{number},"{}"]}}"#,
                    "z".repeat(*size as usize)
                )
            })
            .collect();
        let bytes: Vec<u8> = bodies.iter().flat_map(|body| client.frame(body)).collect();
        let mut writer = client.writer();
        thread::scope(|threads| {
            let pieces = random.below(60_000) as usize + 1;
            let bytes = &bytes;
            threads.spawn(move || {
                bytes
                    .chunks(pieces)
                    .for_each(|piece| writer.write_all(piece).expect("it is read"))
            });
            for body in &bodies {
                let expected =
                    body.replace("\"in\":\"ping\",\"params\"", "\"out\":\"pong\",\"result\"");
                let reply = client.receive();
                if reply.starts_with(br#"{"out":"error","result":{"code":"crashed""#) {
                    crashed += 1;
                } else {
                    assert!(
                        reply == expected.into_bytes(),
                        "client {seed}: a reply near {answered} is another"
                    );
                }
            }
        });
        answered += 8;
    }
    (answered, crashed)
}
