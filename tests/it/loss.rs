//! No byte is lost or sent twice while workers are killed: on a link that drops packets, and over Unix sockets
//! under full load. `LOSS_SECONDS` sets the length of each test, `LOSS_SEED` the seed.
//!
//! The link is the loopback of a network namespace that the test enters by running itself again under `unshare -rn`.
//! Where that is not allowed, or tc(8) is missing, the test is skipped.

use std::env;
use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, TIMEOUT};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::common::namespace::{is_inside, this_test};
use crate::common::random::Random;
use crate::common::{faulty, let_pass, start};

const CLIENTS: u64 = 12;

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

#[test]
fn on_a_lossy_link_no_byte_is_lost_or_doubled_at_deaths() {
    let lossy = "ip link set lo mtu 1500 up && tc qdisc add dev lo root tbf rate 400mbit burst 16k limit 40k";
    if !is_inside(this_test!(), lossy) {
        return;
    }
    let daemon = start(
        r#"
        listen = ["127.0.0.1:0"]
        workers.count = 2
        limits.max-frame = 400000
        "#,
    );
    let told = run(&daemon, &[("kill", 6), ("reload", 1)], &PINGS, || {
        dropped() > 20
    });
    println!(
        "{told}; {} packets dropped, {} sent again",
        dropped(),
        retransmitted()
    );
}

/// Packets that the link has dropped.
fn dropped() -> u64 {
    let output = Command::new("tc")
        .args(["-s", "qdisc", "show", "dev", "lo"])
        .output()
        .expect("tc ran before");
    let shown = String::from_utf8_lossy(&output.stdout);
    shown
        .split("dropped ")
        .nth(1)
        .and_then(|rest| rest.split(',').next()?.parse().ok())
        .expect("tc shows it")
}

#[test]
fn over_unix_sockets_no_byte_is_lost_or_doubled_at_deaths() {
    let daemon = start(
        r#"
        listen = ["unix:{dir}/rpc.sock"]
        workers.count = 2
        limits.max-frame = 400000
        "#,
    );
    let told = run(&daemon, &[("kill", 4), ("recycle", 2)], &PINGS, || true);
    println!("{told}");
}

/// If a worker dies in the middle of a write, the kernel's account of the thread that wrote, and of no other, has the
/// bytes.
#[test]
fn over_unix_sockets_another_thread_may_write_while_workers_die() {
    let config = r#"
        listen = ["unix:{dir}/rpc.sock"]
        workers.count = 2
    "#;
    let daemon = faulty::start_with("writer", config).expect("the daemon serves");
    let told = run(
        &daemon,
        &[("kill", 1)],
        &Asks {
            longest: 900_000,
            ..PINGS
        },
        || true,
    );
    println!("{told}");
}

/// Requests of the clients.
#[derive(Clone, Copy)]
struct Asks {
    /// Requests ahead of their replies.
    batch: u64,
    /// Bytes of the longest, about; every sixth is up to that long.
    longest: u64,
}

const PINGS: Asks = Asks {
    batch: 8,
    longest: 300_000,
};

/// TCP segments that were sent once more, in this namespace.
fn retransmitted() -> u64 {
    let text = fs::read_to_string("/proc/net/snmp").expect("proc is mounted");
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let index = names
        .split(' ')
        .position(|name| name == "RetransSegs")
        .expect("the kernel counts them");
    values
        .split(' ')
        .nth(index)
        .and_then(|value| value.parse().ok())
        .expect("a number")
}

/// Observations of the clients.
#[derive(Default)]
struct Seen {
    requests: AtomicU64,
    bytes: AtomicU64,
    /// Requests that were executing at two deaths.
    crashed: AtomicU64,
}

/// All clients ask while all that happens to the daemon, each thing as often as it weighs, for a time and until enough
/// has happened. Returns a summary.
fn run(
    daemon: &Running,
    happens: &[(&str, u64)],
    asks: &Asks,
    is_enough: impl Fn() -> bool,
) -> String {
    let seed = variable("LOSS_SEED").unwrap_or(1);
    let duration = Duration::from_secs(variable("LOSS_SECONDS").unwrap_or(3));
    daemon.wait_for_workers();
    let (over, seen) = (AtomicBool::new(false), Seen::default());
    let happens: Vec<&str> = happens
        .iter()
        .flat_map(|(what, weight)| vec![*what; *weight as usize])
        .collect();
    let mut random = Random(seed);
    thread::scope(|threads| {
        let start = |number: u64| {
            let (address, over, seen) = (daemon.address(), &over, &seen);
            threads.spawn(move || {
                ask(
                    address,
                    number,
                    Random(seed ^ (number + 1) << 32),
                    asks,
                    over,
                    seen,
                )
            })
        };
        let loads: Vec<_> = (0..CLIENTS).map(start).collect();
        let begin = Instant::now();
        let goes_on = || {
            let status = daemon.status();
            let has_enough =
                status.deaths_total > 2 && status.moved_total > status.deaths_total && is_enough();
            begin.elapsed() < duration || (!has_enough && begin.elapsed() < duration + TIMEOUT)
        };
        while goes_on() && !loads.iter().any(|load| load.is_finished()) {
            let_pass(Duration::from_millis(10 + random.below(60)));
            match random.pick(&happens) {
                "kill" => {
                    // One that has answered something, which is replaced without a wait.
                    let status = daemon.status();
                    let served = status
                        .workers
                        .iter()
                        .filter(|worker| worker.requests_total > 0);
                    let pids: Vec<u32> = served.filter_map(|worker| worker.pid).collect();
                    if !pids.is_empty() {
                        // It may have ended by now.
                        let _ = kill(Pid::from_raw(random.pick(&pids) as i32), Signal::SIGKILL);
                    }
                }
                "recycle" => drop(daemon.ctl_request("recycle", ())),
                _ => drop(daemon.ctl_with("reload", ())),
            }
        }
        over.store(true, Ordering::Relaxed);
        let failed = loads
            .into_iter()
            .filter_map(|load| load.join().err())
            .count();
        assert_eq!(
            failed, 0,
            "clients of {CLIENTS} were answered wrongly (LOSS_SEED={seed})"
        );
    });
    let status = daemon.wait_until("all clients have left", |status| status.clients == 0);
    let (deaths, moved) = (status.deaths_total, status.moved_total);
    let crashed = seen.crashed.into_inner();
    assert_eq!(
        (status.lost_total, status.closed_for_crashes_total),
        (0, 0),
        "LOSS_SEED={seed}"
    );
    assert!(
        2 * crashed <= deaths,
        "{crashed} of {deaths} deaths (LOSS_SEED={seed})"
    );
    assert!(
        deaths > 2 && moved > deaths && is_enough(),
        "{deaths} deaths moved {moved} clients only, or the link dropped too little"
    );
    let (requests, bytes) = (seen.requests.into_inner(), seen.bytes.into_inner());
    format!(
        "{requests} requests, {} MB, {deaths} deaths, {moved} clients moved, {crashed} crashed twice",
        bytes >> 20
    )
}

/// One client: batches of numbered requests, ahead of their replies.
fn ask(
    address: &Address,
    number: u64,
    mut random: Random,
    asks: &Asks,
    over: &AtomicBool,
    seen: &Seen,
) {
    let mut client = Client::connect(address);
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let mut params = Vec::new();
        for _ in 0..=random.below(asks.batch) {
            count += 1;
            let length = match random.below(6) {
                0 => random.below(asks.longest),
                1 => random.below(20_000),
                _ => random.below(100),
            };
            let filling: String = format!("{number}.{count}.").repeat(1 + length as usize / 8);
            params.push(json!([number, count, filling]).to_string());
        }
        let bytes: Vec<u8> = params
            .iter()
            .flat_map(|params| client.frame(format!(r#"{{"in":"ping","params":{params}}}"#)))
            .collect();
        let mut writer = client.writer();
        thread::scope(|threads| {
            threads.spawn(move || writer.write_all(&bytes).expect("the connection stays"));
            for params in &params {
                let reply = client.receive();
                if reply.starts_with(br#"{"out":"error","result":{"code":"crashed""#) {
                    seen.crashed.fetch_add(1, Ordering::Relaxed);
                } else {
                    let expected = format!(r#"{{"out":"pong","result":{params}}}"#);
                    assert!(
                        reply == expected.as_bytes(),
                        "client {number}: another reply than that of {count}"
                    );
                }
                seen.requests.fetch_add(1, Ordering::Relaxed);
                seen.bytes.fetch_add(reply.len() as u64, Ordering::Relaxed);
            }
        });
    }
}
