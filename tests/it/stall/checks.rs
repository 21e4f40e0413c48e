//! The checks for stuck workers: what they cost and what they must not report.

use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::testing::{Client, Running};

use crate::common::faulty::{self, Execution, whoami};
use crate::common::{kernel, let_pass, start, while_idle};

use super::{connect, ping_all, stalled, stop_worker, stuck_in_requests, stuck_worker};

#[test]
fn the_return_of_a_stuck_worker_without_clients_is_noticed() {
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"20ms\"");
    daemon.wait_for_workers();
    let others = connect(&daemon, 5);
    let execution = Execution::start(&daemon);
    stuck_worker(&daemon, 0, " in method \"read_line\" of client ");
    let end = execution.hang_up();
    drop(others);
    daemon.wait_until("it is left alone with its request", |status| {
        status.clients <= 1 && stuck_in_requests(status).len() == 1
    });
    end();
    daemon.wait_for_log("responds again; back in rotation");
    daemon.wait_until("all clients have left", |status| status.clients == 0);
    assert_no_wake_up(&daemon);

    // One without any client.
    let mut client = daemon.connect();
    let place = whoami(&mut client);
    stop_worker(&daemon, place.seat);
    daemon.wait_until("it is stuck", |status| stalled(status) == [place.worker]);
    drop(client);
    daemon.wait_until("all clients have left", |status| status.clients == 0);
    daemon.signal_worker(place.seat, "CONT");
    daemon.wait_until("it is back", |status| stalled(status).is_empty());
    assert_no_wake_up(&daemon);
}

#[test]
fn idle_clients_cause_no_wake_ups_but_those_of_the_checks() {
    let daemon = start("workers.count = 2\nlimits.stall-timeout = \"1s\"");
    daemon.wait_for_workers();
    let mut clients = connect(&daemon, 50);
    ping_all(&mut clients);
    let processes: Vec<u32> = [daemon.pid()]
        .into_iter()
        .chain(daemon.worker_pids())
        .collect();
    let sleeps = || -> Vec<u64> { processes.iter().map(|pid| kernel::sleeps(*pid)).collect() };
    let (began, before) = while_idle(&daemon, || (Instant::now(), sleeps()));
    let_pass(Duration::from_secs(3));
    let after = sleeps();
    let seconds = began.elapsed().as_secs_f64();
    let wake_ups: Vec<u64> = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    // A look every half second, and one a second for the balance; workers are asked at every other look.
    assert!(
        wake_ups[0] <= (3.0 * seconds) as u64 + 2
            && wake_ups[1].max(wake_ups[2]) <= seconds as u64 + 1,
        "{wake_ups:?} in {seconds} s"
    );
    assert!(wake_ups[1] >= 1, "they are looked at: {wake_ups:?}");
    assert_eq!(daemon.status().stalls_total, 0);
    ping_all(&mut clients);
}

/// With more work than CPUs, workers that are only waiting for theirs are taken for stuck. Runs for two seconds, or for
/// `STALL_SECONDS`.
#[test]
fn workers_wrongly_taken_for_stuck_cause_no_error() {
    let daemon = start("workers.count = 2\nlimits.stall-timeout = \"10ms\"");
    daemon.wait_for_workers();
    let seconds = std::env::var("STALL_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let is_over = AtomicBool::new(false);
    let asked: u64 = thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        let loads: Vec<_> = (0..4)
            .map(|_| threads.spawn(|| ask_until(&daemon, end)))
            .collect();
        let asked = loads
            .into_iter()
            .map(|load| load.join())
            .collect::<Vec<_>>();
        is_over.store(true, Ordering::Relaxed);
        asked
            .into_iter()
            .map(|asked| asked.expect("every reply is right"))
            .sum()
    });
    let status = daemon.status();
    assert_eq!((status.requests_total, status.errors_total), (asked, 0));
    assert_eq!((status.lost_total, status.deaths_total), (0, 0));
}

/// Ten clients that ask many things at a time, each numbered; how many in all.
fn ask_until(daemon: &Running, end: Instant) -> u64 {
    let mut clients = connect(daemon, 10);
    let mut asked = 0;
    while Instant::now() < end {
        for client in &mut clients {
            let frames: Vec<u8> = (asked..asked + 50)
                .flat_map(|number| client.frame(format!(r#"{{"in":"ping","params":{number}}}"#)))
                .collect();
            client.send(frames);
        }
        for client in &mut clients {
            for number in asked..asked + 50 {
                assert_eq!(client.reply().value().expect("a result"), number);
            }
        }
        asked += 50;
    }
    assert!(!clients.iter_mut().any(Client::has_something));
    asked * clients.len() as u64
}

#[track_caller]
fn assert_no_wake_up(daemon: &Running) {
    let processes: Vec<u32> = [daemon.pid()]
        .into_iter()
        .chain(daemon.worker_pids())
        .collect();
    let sleeps = || -> Vec<u64> { processes.iter().map(|pid| kernel::sleeps(*pid)).collect() };
    let before = while_idle(daemon, sleeps);
    let_pass(Duration::from_millis(1_500));
    assert_eq!(sleeps(), before);
}
