//! Apps, workers and masters are killed while many requests are away. Each request appends a line to a file: one that
//! is not idempotent at most once, the others at most twice.

mod shoppers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::common::needs::skip;
use crate::common::program::run;
use crate::common::random::Random;
use crate::common::restart::{self, How, wait_for_confirmed_store};
use crate::common::{FDPASSD, kernel, let_pass, start};

pub use shoppers::{Habits, Shoppers};

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app_deaths/app.py");

/// Returns a configuration with this app. `None` without Python.
pub fn config(workers: usize, concurrency: usize, more: &str) -> Option<String> {
    if run("python3", &["--version"]).code != Some(0) {
        skip("python3", "there is no python3");
        return None;
    }
    Some(format!(
        "workers.count = {workers}\n\
         app.command = [\"python3\", \"{APP}\", \"{{dir}}/journal\", \"{concurrency}\"]\n{more}"
    ))
}

/// Listeners for both kinds of sockets, and for both byte orders.
pub const LISTEN: &str = "listen = [{ address = \"127.0.0.1:0\", byte-order = \"auto\" }, \
    { address = \"unix:{dir}/rpc.sock\", byte-order = \"auto\" }]\n";

/// Returns the processes of apps of the daemon in this directory.
pub fn apps(directory: &Path) -> Vec<u32> {
    let journal = directory.join("journal");
    let journal = journal.to_string_lossy().into_owned();
    let all = fs::read_dir("/proc").expect("/proc can be read").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split('\0').any(|argument| argument == journal)
    })
    .collect()
}

/// Kills a process that may have ended.
pub fn kill_9(pid: u32) {
    let sent = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    assert!(matches!(sent, Ok(()) | Err(Errno::ESRCH)), "{sent:?}");
}

/// Checks that nothing was lost, and that no app is left after the daemon.
pub fn end(mut daemon: Running, clients: u64) {
    let status = daemon.status();
    assert_eq!((status.lost_total, status.quarantined.len()), (0, 0));
    assert!(status.accepted_total >= clients && status.closed_for_crashes_total == 0);
    let directory = daemon.directory().to_owned();
    daemon.signal("INT");
    daemon.wait();
    eventually("all apps have ended", || {
        apps(&directory).is_empty().then_some(())
    });
}

pub fn journal(daemon: &Running) -> PathBuf {
    daemon.directory().join("journal")
}

/// How many kills a test makes; `FDPASSD_APP_KILLS` for long runs.
fn kills() -> u64 {
    let wanted = std::env::var("FDPASSD_APP_KILLS").ok();
    wanted.and_then(|kills| kills.parse().ok()).unwrap_or(30)
}

#[test]
fn kills_of_apps_and_workers_lose_nothing_and_keep_the_order() {
    const CLIENTS: u64 = 48;
    let Some(config) = config(2, 32, LISTEN) else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let shoppers = Shoppers::start(&daemon, CLIENTS);
    shoppers.wait_for(200);
    let mut random = Random::new("FDPASSD_APP_SEED");
    let mut most_away = 0;
    for _ in 0..kills() {
        let status = daemon.status();
        most_away = status
            .workers
            .iter()
            .fold(most_away, |most, worker| most.max(worker.away));
        let (workers, apps) = (daemon.worker_pids(), apps(daemon.directory()));
        let one = random.below(workers.len().min(apps.len()).max(1) as u64) as usize;
        match random.below(5) {
            0 => apps.get(one).copied().into_iter().for_each(kill_9),
            1 => workers.get(one).copied().into_iter().for_each(kill_9),
            2 => apps.into_iter().chain(workers).for_each(kill_9),
            3 => workers.into_iter().chain(apps).for_each(kill_9),
            _ => apps.into_iter().for_each(kill_9),
        }
        let_pass(Duration::from_millis(random.below(60)));
        daemon.wait_for_workers();
        shoppers.wait_for(100);
    }
    let outcome = shoppers.finish(&journal(&daemon));
    let status = daemon.status();
    let (deaths, reruns) = (status.deaths_total, status.reruns_total);
    println!("{outcome:?}, {deaths} deaths, {reruns} run again, {most_away} away at once");
    outcome.assert_rerun(reruns, 0);
    // A kill of one or both of a pair is one death.
    assert!(2 * deaths >= kills() && most_away > 1, "requests were away");
    assert!(reruns > 0 && outcome.crashed > 0);
    eventually("there is one app for each worker", || {
        (apps(daemon.directory()).len() == 2).then_some(())
    });
    let is_descriptor_of_app = |(_, name): &(PathBuf, String)| name.contains("[pidfd]");
    eventually("the master has no descriptor of an app", || {
        let left = kernel::descriptors(daemon.pid());
        (!left.iter().any(is_descriptor_of_app)).then_some(())
    });
    end(daemon, CLIENTS);
}

#[test]
fn kills_of_masters_lose_nothing_and_keep_the_order() {
    const CLIENTS: u64 = 32;
    let more = format!("limits.restart-grace = \"5ms\"\n{LISTEN}");
    let Some(config) = config(2, 16, &more) else {
        return;
    };
    let manager = ServiceManager::new();
    let daemon = manager.setup(FDPASSD, &config).start();
    let mut daemon = daemon.expect("it serves");
    wait_for_confirmed_store(&daemon);
    daemon.wait_for_workers();
    let shoppers = Shoppers::start(&daemon, CLIENTS);
    for how in [How::ALL, How::ALL].concat() {
        shoppers.wait_for(150);
        daemon = restart::restart(&manager, daemon, how, Path::new(FDPASSD));
    }
    shoppers.wait_for(150);
    let outcome = shoppers.finish(&journal(&daemon));
    let reruns = daemon.status().reruns_total;
    println!("{outcome:?}, {reruns} run again");
    // Each of the two workers ends with its master, with at most 16 requests.
    outcome.assert_rerun(reruns, 16 * 2 * 2 * How::ALL.len() as u64);
    end(daemon, CLIENTS);
}

#[test]
fn ten_kills_of_an_app_quarantine_no_method() {
    let Some(config) = config(1, 1, "") else {
        return;
    };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for number in 1..=11 {
        client.request("order", json!({"n": number, "ms": 60_000}));
        wait_until_begun(&daemon, number);
        apps(daemon.directory()).into_iter().for_each(kill_9);
        let fault = client.reply().value().expect_err("its app was killed");
        assert_eq!(fault.code(), "crashed");
    }
    let status = daemon.status();
    assert_eq!((status.quarantined.len(), status.clients), (0, 1));
    daemon.wait_for_log("ended in method \"order\" of client 1 (");
    daemon.wait_for_log("): its app was killed by signal 9 (SIGKILL); 1 client moved");
    daemon.wait_for_log("1 request answered with crashed; its successor starts now");
    // But those that end the app do.
    for _ in 0..10 {
        let fault = daemon
            .call("exit", json!({"status": 3}))
            .expect_err("it ends its app");
        assert_eq!(fault.code(), "crashed");
    }
    assert_eq!(daemon.status().quarantined, ["exit"]);
    daemon.wait_for_log("): its app exited with status 3: no more stock; ");
    end_quarantined(daemon);
}

fn end_quarantined(mut daemon: Running) {
    let directory = daemon.directory().to_owned();
    daemon.signal("INT");
    daemon.wait();
    eventually("all apps have ended", || {
        apps(&directory).is_empty().then_some(())
    });
}

/// Waits until an app has begun the request with this number. One that is away may not have been written to it yet, and
/// is executed by the next one then.
#[track_caller]
pub fn wait_until_begun(daemon: &Running, number: u64) {
    let begin = format!("{number} ");
    eventually("an app has begun the request", || {
        let lines = fs::read_to_string(journal(daemon)).unwrap_or_default();
        let is_begun = lines.lines().any(|line| line.starts_with(&begin));
        is_begun.then_some(())
    });
}

#[test]
fn an_app_killed_while_idle_costs_no_caller_an_answer() {
    // No timer notices it.
    let Some(config) = config(1, 8, "limits.stall-timeout = \"1h\"\n") else {
        return;
    };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for round in 1..4 {
        let first = client.call("pid", ()).expect("a pid");
        apps(daemon.directory()).into_iter().for_each(kill_9);
        daemon.wait_until("the death is noticed", |status| {
            status.deaths_total == round
        });
        assert_ne!(client.call("pid", ()).expect("a pid"), first);
    }
    assert_eq!(daemon.status().errors_total, 0);
    end(daemon, 1);
}

#[test]
fn requests_wait_for_a_permit_elsewhere_if_the_app_stops() {
    let more = "limits.stall-timeout = \"200ms\"\nlimits.request-timeout = \"6s\"\n";
    let Some(config) = config(2, 1, more) else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let mut stopped = daemon.connect();
    stopped.request("order", json!({"n": 1, "ms": 60_000}));
    let busy = daemon.wait_until("it is away", |status| {
        status.workers.iter().any(|worker| worker.away == 1)
    });
    assert_eq!(busy.skew.map(|skew| skew.clients), Some(2.0));
    let mut others: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    for other in &mut others {
        other.request("price", json!({"n": 2}));
    }
    for other in &mut others {
        assert_eq!(other.reply().value().expect("elsewhere"), 2);
    }
    let fault = stopped.reply().value().expect_err("it takes too long");
    assert_eq!(fault.code(), "timeout");
    daemon.wait_for_workers();
    assert_eq!(
        stopped.call("price", json!({"n": 3})).expect("it goes on"),
        3
    );
    end(daemon, 7);
}
