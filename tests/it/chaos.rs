//! Everything at once, at random: and every request of every client is answered once, in order.

mod apps;
mod havoc;
mod load;
mod plan;
mod witness;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use fdpassd::proto::control::{Status, WorkerState};
use fdpassd::testing::Running;

use self::havoc::Havoc;
use self::load::{Load, Seen, Shared};
use self::plan::Plan;
use self::witness::Witness;
use crate::common::metrics::assert_counted;
use crate::common::random::Random;
use crate::common::{faulty, kernel, while_idle};

const CLIENTS: u64 = 12;

/// Reloads to other counts, byte orders, limits and listeners, scaling, recycling, holding, rebalancing, draining,
/// kills, faults, stops for less and more than `stall-timeout` and `request-timeout`, bad files: all at random, under
/// clients of both byte orders over TCP and Unix. They pipeline frames of no byte to `max-frame` in pieces of all
/// sizes, read with pauses, half close, break off in a frame, send one that is too large, or vanish.
///
/// Idempotent requests are answered right, once and in order, and no connection is closed; but for one that was
/// executing at two deaths, which has crashed. Others are answered with their result or `crashed`, and have had their
/// effect at most once, and once if there is a result. The daemon has counted the same; nothing is left behind.
///
/// Runs for six seconds, or for `CHAOS_SECONDS`, with the seed `CHAOS_SEED`, or another one each time. The seed
/// determines the actions and the data; the timing differs from run to run. An hour: `CHAOS_SECONDS=3600 cargo test
/// --release --test it chaos:: -- --nocapture`, after `cargo build --release --examples`.
#[test]
fn every_request_is_answered_once_in_order_under_random_faults() {
    let seed = variable("CHAOS_SEED").unwrap_or_else(|| {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970");
        now.as_nanos() as u64 ^ u64::from(std::process::id())
    });
    println!("CHAOS_SEED={seed}");
    let duration = Duration::from_secs(variable("CHAOS_SECONDS").unwrap_or(6));
    let mut random = Random(seed);
    let plan = Plan::new(&mut random);
    // Under which workers stay, so that descriptors can be counted.
    let first = plan.config(&mut random).replace("700ms", "none");
    let daemon = faulty::start(&first);
    let mut witness = Witness::new(seed, &daemon.directory().join("log"));
    witness.note(
        "start",
        first.split_whitespace().collect::<Vec<_>>().join(" "),
    );
    daemon.wait_for_workers();
    let descriptors = while_idle(&daemon, || kernel::descriptors(daemon.pid()).len());

    let counts = daemon.directory().join("counts");
    let shared = Shared {
        addresses: daemon.addresses(),
        plan,
        counts: &counts,
        over: AtomicBool::new(false),
        requests: AtomicU64::new(0),
    };
    let seen = thread::scope(|threads| {
        let load = |number| {
            let load = Load {
                number,
                random: random.part(number),
                shared: &shared,
                seen: Seen::default(),
                made: 0,
                has_slept: false,
            };
            threads.spawn(|| load.run())
        };
        let loads: Vec<_> = (0..CLIENTS).map(load).collect();
        // Also if this panics.
        let over = Over(&shared.over);
        let mut havoc = Havoc::new(&daemon, plan, random.part(CLIENTS), &mut witness);
        let mut minutes = 0;
        while havoc.witness.elapsed() < duration && !loads.iter().any(|load| load.is_finished()) {
            havoc.act();
            let elapsed = havoc.witness.elapsed().as_secs();
            if elapsed / 60 > minutes {
                minutes = elapsed / 60;
                println!(
                    "{elapsed} s: {} requests",
                    shared.requests.load(Ordering::Relaxed)
                );
            }
        }
        havoc.finish();
        drop(over);
        let mut seen = Seen::default();
        let mut failed = 0;
        for load in loads {
            load.join()
                .map_or_else(|_| failed += 1, |of_load| seen.add(of_load));
        }
        assert_eq!(
            failed, 0,
            "clients of {CLIENTS} were answered wrongly, or were not: see above"
        );
        seen
    });

    // One that vanished at once may still be in a listener's queue.
    let status = daemon.wait_until("all clients have come and left", |status| {
        (status.accepted_total, status.clients) == (seen.connections, 0)
    });
    witness.log.read();
    println!("{:?}", witness.done);
    println!(
        "{} connections, {} requests, {} of them counted, {} abandoned; {:?} crashed, {} timeouts, {} run again; {} deaths, \
         {} stalls, {} moves",
        seen.connections,
        seen.requests,
        seen.counted.len(),
        seen.abandoned,
        seen.crashed,
        seen.timeouts,
        status.reruns_total,
        status.deaths_total,
        status.stalls_total,
        status.moved_total
    );
    compare(&seen, &status, &witness);
    assert_counted(&daemon, status.requests_total, status.errors_total);
    check_counts(&counts, &seen.counted);
    check_rest(
        &daemon,
        &plan.config(&mut random.part(CLIENTS + 1)),
        &first,
        descriptors,
    );
}

pub fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is not a number")),
    )
}

/// Ends the clients when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The daemon's counters match the clients' observations.
fn compare(seen: &Seen, status: &Status, witness: &Witness) {
    assert_eq!(
        (
            status.lost_total,
            status.refused_total,
            status.closed_for_crashes_total
        ),
        (0, 0, 0)
    );
    assert_eq!(
        (&status.quarantined, status.log_errors_total),
        (&Vec::new(), 0)
    );
    // The replies to vanished clients are unknown.
    let log = &witness.log;
    let [idempotent, others] = seen.crashed;
    let answered = |daemon: u64, seen_by_clients: u64, what: &str| {
        let most = seen_by_clients + seen.abandoned.min(status.deaths_total);
        assert!(
            (seen_by_clients..=most).contains(&daemon),
            "{daemon} {what} logged, {seen_by_clients} to {most} seen"
        );
    };
    answered(log.crashed, idempotent + others, "crashed");
    answered(log.timeouts, seen.timeouts, "timeouts");
    assert_eq!(log.reruns, status.reruns_total);
    // Each of these was executing at two deaths, and was run again after the first.
    assert!(
        idempotent <= log.reruns && log.crashed + log.timeouts + log.reruns <= status.deaths_total,
        "{idempotent} crashed, {} run again, {} late, at {} deaths",
        log.reruns,
        log.timeouts,
        status.deaths_total
    );
    // Each reply that was read was counted once. Some requests whose clients left were answered as well.
    let requests = seen.requests..=seen.requests + seen.abandoned;
    assert!(
        requests.contains(&status.requests_total),
        "{} requests, not {requests:?}",
        status.requests_total
    );
    let errors = seen.errors..=seen.errors + seen.abandoned;
    assert!(
        errors.contains(&status.errors_total),
        "{} errors, not {errors:?}",
        status.errors_total
    );
}

/// Every request that was answered with its result had its effect once, and those that were not at most once.
fn check_counts(path: &Path, counted: &HashMap<String, bool>) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines: HashMap<&str, u64> = HashMap::new();
    text.lines()
        .for_each(|line| *lines.entry(line).or_default() += 1);
    for (number, is_result) in counted {
        let times = lines.remove(number.as_str()).unwrap_or(0);
        assert!(
            times == 1 || (times == 0 && !is_result),
            "{number} was done {times} times, result: {is_result}"
        );
    }
    assert!(lines.is_empty(), "nobody asked for {lines:?}");
}

/// The daemon still works: it takes another configuration and the first one again, and holds no more than at first.
fn check_rest(daemon: &Running, another: &str, first: &str, descriptors: usize) {
    daemon.reload_with(another).expect("nobody disturbs it");
    daemon.reload_with(first).expect("nobody disturbs it");
    let status = daemon.wait_until("nobody is on the way out", |status| {
        status.leaving.is_empty()
            && status
                .workers
                .iter()
                .all(|worker| worker.state == WorkerState::Ready)
    });
    assert_eq!(status.workers.len(), status.count as usize);
    let now = while_idle(daemon, || kernel::descriptors(daemon.pid()).len());
    assert_eq!(now, descriptors, "{:?}", kernel::descriptors(daemon.pid()));
    let mut workers = daemon.worker_pids();
    let mut children = while_idle(daemon, || kernel::children(daemon.pid()));
    workers.sort_unstable();
    children.sort_unstable();
    assert_eq!(children, workers, "every child is a worker");
    assert_eq!(daemon.connect().call("ping", 1).expect("a result"), 1);
}
