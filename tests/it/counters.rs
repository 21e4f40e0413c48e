//! Counters: each fact is counted once, across the end of workers and of masters.

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::control::WorkerState;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager};
use serde_json::json;

use crate::common::faulty::{self, example};
use crate::common::metrics::{assert_counted, samples, sum};
use crate::common::random::Random;
use crate::common::restart::{How, restart};
use crate::common::start;
use crate::common::strace::Traced;
use crate::common::upgrade::Programs;

#[test]
fn failed_starts_are_no_deaths() {
    let daemon =
        faulty::start_with("exit:1", "workers.count = 2").expect("the other worker serves");
    let status = daemon.wait_until("several workers have failed to start", |status| {
        status.failed_starts_total >= 3
    });
    assert_eq!(status.deaths_total, 0);
    daemon.kill_worker(0);
    assert_eq!(daemon.status().deaths_total, 1);
    let samples = samples(&daemon);
    assert!(samples["fdpassd_worker_failed_starts_total"] >= 3.0);
    assert_eq!(sum(&samples, "fdpassd_worker_deaths_total"), 1.0);
}

#[test]
fn a_worker_killed_while_it_starts_is_a_failed_start() {
    let (daemon, switch) = faulty::start_with_switch("workers.count = 2");
    daemon.wait_for_workers();
    switch.set("hang:1");
    daemon.signal_worker(1, "KILL");
    daemon.wait_until("its successor is starting", |status| {
        status.deaths_total == 1 && status.workers[1].state == WorkerState::Starting
    });
    // The switch stays: the successor may not have read it yet.
    daemon.signal_worker(1, "KILL");
    let status = daemon.wait_until("its end is counted", |status| {
        status.deaths_total + status.failed_starts_total > 1
    });
    assert_eq!((status.deaths_total, status.failed_starts_total), (1, 1));
}

#[test]
fn clients_that_a_worker_cannot_write_to_are_lost_and_counted() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let worker = daemon.worker_pids()[0];
    let Some(traced) = Traced::attach(worker, "sendto", "sendto:error=EIO:when=1") else {
        return;
    };
    let mut client = daemon.connect();
    client.request("ping", 1);
    client.expect_end();
    drop(traced);
    daemon.wait_until("the client is counted", |status| {
        (status.clients, status.lost_total) == (0, 1)
    });
    assert_eq!(
        samples(&daemon)["fdpassd_clients_lost_total{reason=\"worker\"}"],
        1.0
    );
    // A worker's counts stay after its end.
    daemon.kill_worker(0);
    assert_eq!(
        samples(&daemon)["fdpassd_clients_lost_total{reason=\"worker\"}"],
        1.0
    );
    let mut client: Client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    assert_eq!(daemon.status().lost_total, 1);
}

/// A worker that is killed in a turn has made replies, sent some of them and recorded none of the last ones.
#[test]
fn answers_of_a_killed_worker_are_counted() {
    const ANSWERS: u64 = 200;
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"10m\"");
    let mut client = daemon.connect();
    let pings = (0..ANSWERS)
        .flat_map(|number| client.frame(format!(r#"{{"in":"ping","params":{number}}}"#)));
    let mut frames: Vec<u8> = pings.collect();
    frames.extend(client.frame(r#"{"in":"sleep","params":60000}"#));
    client.send(&frames);
    daemon.wait_until("the last request executes", |status| {
        status.workers[0].executing == 1
    });
    assert_counted(&daemon, ANSWERS, 0);
    daemon.kill_worker(0);
    for number in 0..ANSWERS {
        assert_eq!(client.reply().value().expect("a pong"), number);
    }
    assert_eq!(
        client.reply().value().expect_err("its worker died").code(),
        "crashed"
    );
    assert_counted(&daemon, ANSWERS + 1, 1);
    let clients = daemon.ctl("clients").expect("they are told");
    assert_eq!(clients["clients"][0]["requests"], ANSWERS + 1);
}

#[test]
fn a_hundred_restarts_forget_no_request() {
    const RESTARTS: usize = 100;
    let manager = ServiceManager::new();
    let programs = Programs::new();
    let program = programs.copy(&example("faulty"));
    let mut daemon = manager
        .setup(&program, "workers.count = 2")
        .start()
        .expect("it serves");
    let mut client = daemon.connect();
    let (mut requests, mut errors, mut panics) = (0, 0, 0);
    let mut before = BTreeMap::new();
    for round in 0..RESTARTS {
        for (method, params) in [
            ("ping", json!(round)),
            ("whoami", json!(null)),
            ("no_such_method", json!(null)),
        ] {
            errors += u64::from(client.call(method, params).is_err());
            requests += 1;
        }
        if round % 10 == 5 {
            client.call("panic", "oh").expect_err("it panics");
            (requests, errors, panics) = (requests + 1, errors + 1, panics + 1);
        }
        let how = How::ALL[round % How::ALL.len()];
        daemon = restart(&manager, daemon, how, &program);
        assert_counted(&daemon, requests, errors);
        let now = samples(&daemon);
        assert_eq!(now["fdpassd_handler_panics_total"], panics as f64);
        for (name, value) in before
            .iter()
            .filter(|(name, _): &(&String, &f64)| is_lasting(name))
        {
            assert!(
                now.get(name).is_some_and(|now| now >= value),
                "{how:?}: {name} was {value}, is {:?}",
                now.get(name)
            );
        }
        before = now;
    }
    let ok = |method: &str| {
        before[&format!("fdpassd_requests_total{{method=\"{method}\",result=\"ok\"}}")]
    };
    assert_eq!([ok("ping"), ok("whoami")], [RESTARTS as f64; 2]);
    assert_eq!(
        before["fdpassd_requests_total{method=\"other\",result=\"error\"}"],
        RESTARTS as f64
    );
    assert_eq!(
        (
            sum(&before, "fdpassd_worker_deaths_total"),
            daemon.status().lost_total
        ),
        (0.0, 0)
    );
}

/// Returns whether a figure continues for as long as the daemon is installed. Figures of the kernel for all programs do
/// not, nor do those of a seat that may be gone.
fn is_lasting(name: &str) -> bool {
    let family = name.split('{').next().unwrap_or_default();
    let is_counter =
        family.ends_with("_total") || family.starts_with("fdpassd_request_duration_seconds");
    is_counter && family != "fdpassd_listen_overflows_total"
}

/// A worker's counters are words in its shared memory: see `shm/header.rs` for where they are.
#[test]
fn counters_that_a_worker_scribbled_are_not_believed() {
    const METHODS: u64 = 1664;
    const DURATIONS: u64 = 1504;
    let scribbles: [(u64, Vec<u64>); 5] = [
        (METHODS, vec![u64::MAX]),
        (METHODS + 2, vec![1 << 40, 1 << 40]),
        (METHODS, vec![0; 384]),
        (DURATIONS, vec![1 << 50]),
        (DURATIONS + 112, vec![u64::MAX]),
    ];
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let mut requests = 0;
    for (round, (at, words)) in (1..).zip(scribbles) {
        (0..10).for_each(|number| drop(client.call("ping", number).expect("a pong")));
        requests += 10;
        assert_counted(&daemon, requests, 0);
        client.call("scribble", (at, words)).expect("it was let");
        // A broken counter stops counting: neither this call nor later ones.
        client.call("ping", 1).expect("a pong");
        assert_counted(&daemon, requests, 0);
        assert_eq!(
            samples(&daemon)["fdpassd_worker_counters_rejected_total"],
            f64::from(round)
        );
        daemon.wait_for_log("invalid counters: ");
        daemon.kill_worker(0);
        assert_counted(&daemon, requests, 0);
        assert_eq!(
            samples(&daemon)["fdpassd_worker_counters_rejected_total"],
            f64::from(round)
        );
    }
}

/// Workers are killed, replaced and moved from, and masters end in every way, under clients that read every reply
/// before they leave. Clients and daemon must have counted the same. Runs for four seconds, or for `STORM_SECONDS`.
#[test]
fn counters_are_exact_after_random_kills() {
    const CLIENTS: usize = 8;
    let mut random = Random::new("STORM_SEED");
    let seconds =
        std::env::var("STORM_SECONDS").map_or(4, |value| value.parse().expect("a number"));
    let manager = ServiceManager::new();
    let programs = Programs::new();
    let program = programs.copy(&example("faulty"));
    let config = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 3";
    let mut daemon = manager.setup(&program, config).start().expect("it serves");
    // The daemon serves when one worker is ready. The kill of a worker that still starts is a failed start, no death.
    daemon.wait_for_workers();
    let addresses = daemon.addresses().to_vec();
    let is_over = &AtomicBool::new(false);
    // A client that no worker has yet is lost when the master is killed.
    let connecting = &RwLock::new(());
    let (mut done, mut kills) = (BTreeMap::new(), 0);
    let (daemon, seen): (Running, Vec<Seen>) = thread::scope(|threads| {
        let over = Over(is_over);
        let clients =
            (0..CLIENTS).map(|number| (&addresses[number % 2], random.part(number as u64)));
        let clients: Vec<_> = clients
            .map(|(to, random)| threads.spawn(move || ask(to, random, connecting, is_over)))
            .collect();
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until && !clients.iter().any(|client| client.is_finished()) {
            let what = random.below(10);
            match what {
                0..4 => {
                    daemon.kill_worker(random.below(3) as u32);
                    kills += 1;
                }
                4 => drop(daemon.reload().expect("it is applied")),
                5 => drop(daemon.ctl("recycle").expect("it is done")),
                _ => {
                    let how = How::ALL[what as usize - 6];
                    let none_connects = (how == How::Kill).then(|| connecting.write());
                    daemon = restart(&manager, daemon, how, &program);
                    drop(none_connects);
                }
            }
            *done.entry(what).or_insert(0) += 1;
            daemon.wait_for_workers();
            // Until it is collected, only the master has the counts of a finished worker.
            let status = daemon.wait_until("nobody is on the way out", |status| {
                status.leaving.is_empty()
            });
            let counted = (status.deaths_total, status.failed_starts_total);
            assert_eq!(counted, (kills, 0), "after {what}: {}", daemon.stderr());
        }
        drop(over);
        (
            daemon,
            clients
                .into_iter()
                .map(|client| client.join().expect("nobody is answered wrongly"))
                .collect(),
        )
    });
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let (requests, errors, connections) = (
        sum(|s| s.requests),
        sum(|s| s.errors),
        sum(|s| s.connections),
    );
    println!("{requests} requests, {errors} errors, {connections} connections; {done:?}");
    let status = daemon.wait_until("all clients have come and left", |status| {
        (status.accepted_total, status.clients) == (connections, 0)
    });
    assert_counted(&daemon, requests, errors);
    assert_eq!((status.lost_total, status.deaths_total), (0, kills));
    assert_eq!(
        (
            status.failed_starts_total,
            samples(&daemon)["fdpassd_worker_counters_rejected_total"]
        ),
        (0, 0.0)
    );
}

/// Counts of a client.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    errors: u64,
    connections: u64,
}

/// Ends the clients when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks by several at a time, in one connection after the other, until it is over.
fn ask(to: &Address, mut random: Random, connecting: &RwLock<()>, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let connects = connecting.read();
        let mut client = Client::connect(to);
        client.call("ping", 0).expect("a pong");
        drop(connects);
        seen.connections += 1;
        seen.requests += 1;
        for _ in 0..random.below(200) {
            let count = 1 + random.below(20);
            for number in 0..count {
                match random.below(8) {
                    0 => client.request("no_such_method", number),
                    1 => client.request("anything", vec![number; 500]),
                    _ => client.request("ping", number),
                }
            }
            for _ in 0..count {
                let reply = client.reply();
                seen.requests += 1;
                seen.errors += u64::from(reply.name == "error");
            }
            if over.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    seen
}
