//! Clients that send nothing: neither they nor their apps wake a process.

use std::time::{Duration, Instant};

use fdpassd::testing::{Client, Running, eventually};
use serde_json::json;

use super::{app_of, start, start_app};
use crate::common::needs::room_for;
use crate::common::{kernel, let_pass, while_idle};

/// Returns how often each process of the daemon wakes up in two seconds in which nothing happens, and their length:
/// the master, then the workers, then the apps.
fn wake_ups(daemon: &Running) -> (Vec<u64>, f64) {
    let workers = daemon.worker_pids();
    let apps = workers.iter().map(|worker| app_of(*worker));
    let processes: Vec<u32> = [daemon.pid()]
        .into_iter()
        .chain(workers.iter().copied())
        .chain(apps)
        .collect();
    let sleeps = || -> Vec<u64> { processes.iter().map(|pid| kernel::sleeps(*pid)).collect() };
    // An app on a busy machine may still have to end its turn after its last answer.
    let (began, before) = eventually("the apps are idle as well", || {
        while_idle(daemon, || {
            Some((Instant::now(), kernel::all_idle(&processes)?))
        })
    });
    let_pass(Duration::from_secs(2));
    let after = sleeps();
    let seconds = began.elapsed().as_secs_f64();
    let pairs = after.iter().zip(before);
    (
        pairs.map(|(after, before)| after - before).collect(),
        seconds,
    )
}

/// Connects `count` clients. An app serves each of them once.
fn serve_each_once(daemon: &Running, count: u64) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("echo", number);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value(), Ok(json!(number)));
    }
    clients
}

#[test]
fn ten_thousand_idle_clients_of_apps_cause_no_wake_ups() {
    // Without checks for stuck workers, and without rebalancing.
    let config = "listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 2\nworkers.rebalance = \"manual\"\n\
         limits = { stall-timeout = \"1h\", request-timeout = \"none\" }";
    let count = room_for(10_000);
    let Some(daemon) = start(config) else {
        return;
    };
    let mut clients = serve_each_once(&daemon, count);
    assert_eq!(daemon.status().clients, count);
    let (wake_ups, _) = wake_ups(&daemon);
    assert_eq!(wake_ups, [0; 5]);
    for (number, client) in clients.iter_mut().enumerate().step_by(1000) {
        assert_eq!(client.call("echo", number), Ok(json!(number)));
    }
}

#[test]
fn idle_clients_of_apps_cost_the_checks_that_are_documented() {
    let config = "workers.count = 2\nlimits.stall-timeout = \"1s\"";
    let Some(daemon) = start_app(config, "max-memory = \"1GiB\"") else {
        return;
    };
    let _clients = serve_each_once(&daemon, 100);
    eventually("only the checks wake processes up", || {
        let (wake_ups, seconds) = wake_ups(&daemon);
        // The master looks every half second, and once a second for the balance. Workers are asked at every other look,
        // and measure the memory of their apps once a second.
        let looks = (3.0 * seconds) as u64 + 2;
        let checks = 2 * (seconds as u64 + 1);
        let of_workers = wake_ups[1].max(wake_ups[2]);
        let is_so = wake_ups[0] <= looks && of_workers <= checks && wake_ups[3..] == [0; 2];
        println!("{wake_ups:?} in {seconds} s");
        (is_so && wake_ups[1] >= 1).then_some(())
    });
}
