//! The master is killed while clients are between two of its processes: the next master has them all.

use std::time::Duration;

use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::faulty::{Execution, example};
use crate::common::restart::{terminate, wait_for_confirmed_store};
use crate::common::strace::Traced;
use crate::common::{FDPASSD, kernel, ping_all, while_idle};

const CONFIG: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n\
                      workers.dispatch = \"round-robin\"\n\
                      workers.rebalance = \"manual\"\nlimits.stall-timeout = \"1h\"\n";
const CLIENTS: u64 = 40;

/// Longer than a test lasts: the traced process is killed in it.
const HELD: Duration = Duration::from_secs(600);

/// Has workers give up clients by `act`, and kills the master as soon as those of the worker in seat 1 have been given
/// up. The master is held for so long at the end of each message: then it has neither leased nor packed them. `log` is
/// logged before the message to the worker; with it, each worker is executing a request then.
#[track_caller]
fn kill_amid(act: impl FnOnce(&Running) -> Option<Client>, log: Option<&str>, held: Duration) {
    let manager = ServiceManager::new();
    let daemon = manager
        .setup(example("faulty"), CONFIG)
        .start()
        .expect("it serves");
    daemon.wait_for_workers();
    wait_for_confirmed_store(&daemon);
    let connect = |i: u64| {
        let mut client = Client::connect(&daemon.addresses()[(i % 2) as usize]);
        assert_eq!(client.call("ping", i), Ok(json!(i)));
        client
    };
    let mut clients: Vec<_> = (0..CLIENTS).map(connect).collect();
    let turns = log.map_or(0, |_| 2);
    let mut executing: Vec<_> = (0..turns).map(|_| Execution::start(&daemon)).collect();
    let worker = daemon.worker_pids()[1];
    // The last one may have its reply before it is watched.
    eventually("the worker watches its clients", || {
        (watched(worker) as u64 > CLIENTS / 2).then_some(())
    });
    // It comes within a second of the last client, and the master would be held at the end of this message.
    let status = format!(", {} clients, ", CLIENTS + turns);
    daemon.wait_until("the service manager has the status", |_| {
        manager.told().iter().any(|told| told.contains(&status))
    });
    let inject = format!("sendmsg:delay_exit={}", held.as_micros());
    let Some(traced) = Traced::attach(daemon.pid(), "sendmsg", &inject) else {
        return;
    };
    let _asker = act(&daemon);
    if let Some(log) = log {
        daemon.wait_for_log(log);
    }
    executing.iter_mut().for_each(Execution::let_go);
    eventually("the worker watches no client", || {
        (watched(worker) <= 1).then_some(())
    });
    daemon.signal("KILL");
    drop(traced);
    let next = manager.setup(example("faulty"), CONFIG).start_after(daemon);
    let next = next.expect("the next master serves");
    ping_all(&mut clients);
    for executed in executing {
        drop(executed.finish());
    }
    let status = next.status();
    assert_eq!(status.lost_total, 0);
}

/// Returns how many descriptors a process watches by epoll(7).
fn watched(pid: u32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let texts = entries.into_iter().flatten().flatten();
    let texts = texts.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts
        .map(|text| text.lines().filter(|line| line.starts_with("tfd:")).count())
        .sum()
}

#[test]
fn clients_outlive_a_master_killed_as_a_worker_retires() {
    let scale = |daemon: &Running| Some(daemon.ctl_request("scale", json!({ "count": 1 })));
    kill_amid(scale, Some("retires"), HELD);
}

#[test]
fn clients_outlive_a_master_killed_as_a_worker_is_held() {
    let hold = |daemon: &Running| Some(daemon.ctl_request("hold", json!({ "worker": 2 })));
    kill_amid(hold, None, HELD);
}

#[test]
fn clients_outlive_a_master_killed_at_the_start_of_a_restart() {
    let terminate = |daemon: &Running| {
        daemon.signal("TERM");
        None
    };
    // The service manager gets messages first, and the handoff queues. If the kill takes longer, this test shows less.
    let held = Duration::from_millis(700);
    kill_amid(terminate, Some("for the next master"), held);
}

/// The worker has received leases, and packs when it has registered only some of them.
#[test]
fn clients_outlive_a_master_killed_as_a_worker_picks_them_up() {
    let manager = ServiceManager::new();
    let config = CONFIG.replace("count = 2", "count = 1") + "limits.restart-grace = \"5ms\"\n";
    let daemon = manager.setup(FDPASSD, &config).start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    let (master, worker) = (daemon.pid(), daemon.worker_pids()[0]);
    let inject = "getsockopt:delay_exit=1000000";
    let Some(traced) = Traced::attach(worker, "getsockopt", inject) else {
        return;
    };
    // So that their leases are in one message.
    kernel::stop(master);
    let connect = |i: u64| {
        let mut client = Client::connect(daemon.address());
        client.request("ping", i);
        client
    };
    let mut clients: Vec<_> = (0..4).map(connect).collect();
    kernel::send(master, Signal::SIGCONT);
    daemon.wait_until("they are leased", |status| {
        status.workers[0].clients == clients.len() as u64
    });
    daemon.signal("KILL");
    terminate(worker);
    eventually("the worker has ended", || {
        kernel::is_over(worker).then_some(())
    });
    drop(traced);
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let next = next.expect("the next master serves");
    for (i, client) in (0..).zip(&mut clients) {
        assert_eq!(client.reply().value(), Ok(json!(i)));
    }
    let status = next.status();
    assert_eq!((status.clients, status.lost_total), (4, 0));
}

/// The clients have left slots of a worker that does not respond.
#[test]
fn moved_clients_of_a_worker_killed_with_its_master_are_counted() {
    let manager = ServiceManager::new();
    let mut daemon = manager.setup(FDPASSD, CONFIG).start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    daemon.wait_for_workers();
    let _clients: Vec<_> = (0..CLIENTS)
        .map(|i| {
            let mut client = daemon.connect();
            assert_eq!(client.call("ping", i), Ok(json!(i)));
            client
        })
        .collect();
    let workers = daemon.worker_pids();
    // A client whose turn has not ended would stay with the stopped worker.
    while_idle(&daemon, || ());
    kernel::stop(workers[1]);
    daemon
        .ctl_with("hold", json!({ "worker": 2 }))
        .expect("it is held");
    daemon.wait_until("the clients are on one worker", |status| {
        status.workers[0].clients == CLIENTS
    });
    kernel::stop(daemon.pid());
    kernel::send(workers[0], Signal::SIGKILL);
    daemon.signal("KILL");
    kernel::send(workers[1], Signal::SIGCONT);
    daemon.wait();
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let status = next.expect("the next master serves").status();
    assert_eq!((status.clients, status.lost_total), (0, CLIENTS));
}

/// Nothing could keep the clients of that worker; one of the other worker's has left, which its master never read.
#[test]
fn clients_of_a_worker_killed_with_its_master_are_counted() {
    let manager = ServiceManager::new();
    let mut daemon = manager.setup(FDPASSD, CONFIG).start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    daemon.wait_for_workers();
    let connect = |i: u64| {
        let mut client = daemon.connect();
        assert_eq!(client.call("ping", i), Ok(json!(i)));
        client
    };
    let mut clients: Vec<_> = (0..CLIENTS).map(connect).collect();
    let [kept, lost] = [0, 1].map(|seat| daemon.status().workers[seat].clients);
    let workers = daemon.worker_pids();
    kernel::stop(daemon.pid());
    let watched_before = eventually("the worker watches its clients", || {
        Some(watched(workers[0])).filter(|watched| *watched as u64 > kept)
    });
    // Dispatched in turn, the two last ones are on different workers.
    drop(clients.split_off(clients.len() - 2));
    eventually("a worker has closed its client", || {
        (watched(workers[0]) < watched_before).then_some(())
    });
    kernel::send(workers[1], Signal::SIGKILL);
    daemon.signal("KILL");
    daemon.wait();
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let next = next.expect("the next master serves");
    let status = next.status();
    assert_eq!((status.clients, status.lost_total), (kept - 1, lost));
}
