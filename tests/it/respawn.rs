//! Workers die in every way; clients stay.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};

use crate::common::faulty::{self, whoami};
use crate::common::{FDPASSD, kernel, ping_all, start};

#[test]
fn idle_clients_survive_every_kill_of_their_workers() {
    const CLIENTS: u64 = 400;
    // No client moves but by a death.
    let daemon =
        start("workers = { count = 2, rebalance = \"manual\" }\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| daemon.connect()).collect();
    let mut moved = 0;
    for round in 1..=3 {
        for seat in [0, 1] {
            ping_all(&mut clients);
            wait_for_rest(&daemon);
            moved += daemon.status().workers[seat].clients;
            daemon.kill_worker(seat as u32);
        }
        ping_all(&mut clients);
        wait_for_rest(&daemon);
        let status = daemon.status();
        assert_eq!((status.clients, status.accepted_total), (CLIENTS, CLIENTS));
        assert_eq!(
            (status.moved_total, status.lost_total),
            (moved, 0),
            "round {round}"
        );
        assert_eq!(
            (status.requests_total, status.errors_total),
            (3 * round * CLIENTS, 0)
        );
        assert!(status.workers.iter().all(|worker| worker.restarts == round));
        let death = status.workers[0].last_death.as_deref();
        assert_eq!(death, Some("killed by signal 9 (SIGKILL)"));
    }
    assert!(
        moved >= 5 * CLIENTS,
        "after the first kill all clients are on one worker: {moved} moved"
    );
    assert_no_zombies(&daemon);
}

#[test]
fn clients_in_the_channel_of_a_killed_worker_are_served() {
    let daemon =
        start("workers = { count = 2, dispatch = \"round-robin\" }\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    kernel::stop(daemon.worker_pids()[0]);
    let mut clients: Vec<Client> = (0..8).map(|_| daemon.connect()).collect();
    clients
        .iter_mut()
        .for_each(|client| client.request("ping", "here"));
    daemon.wait_until("all clients are leased", |s| {
        s.workers.iter().all(|worker| worker.clients == 4)
    });
    daemon.signal_worker(0, "KILL");
    for client in &mut clients {
        assert_eq!(client.reply().value().expect("a result"), "here");
    }
    let status = daemon.status();
    assert_eq!((status.moved_total, status.lost_total), (4, 0));
}

#[test]
fn a_worker_that_its_method_ends_is_replaced_at_once() {
    let daemon = faulty::start("workers.count = 1");
    let mut clients: Vec<Client> = (0..20).map(|_| daemon.connect()).collect();
    for (method, params, cause) in [
        ("exit", serde_json::json!(7), "exited with status 7"),
        ("abort", serde_json::json!(null), "killed by signal 6"),
    ] {
        let before = whoami(&mut clients[0]);
        ping_all(&mut clients);
        let mut caller = daemon.connect();
        let fault = caller
            .call(method, params)
            .expect_err("its worker dies in it");
        assert_eq!(fault.code(), "crashed");
        for client in &mut clients {
            assert_ne!(whoami(client).pid, before.pid);
        }
        daemon.wait_for_log(cause);
    }
    daemon.wait_for_log("its successor starts now");
    daemon.wait_for_log("in method \"abort\"");
    assert_eq!(daemon.status().lost_total, 0);
    assert_no_zombies(&daemon);
}

#[test]
fn starts_of_a_worker_that_is_never_ready_back_off() {
    let daemon =
        faulty::start_with("exit:1", "workers.count = 2").expect("the other worker serves");
    let mut client = daemon.connect();
    let pid = whoami(&mut client).pid;
    let delays = eventually("five deaths are logged", || {
        assert_eq!(whoami(&mut client).pid, pid);
        let log = daemon.stderr();
        let deaths = log
            .lines()
            .filter(|line| line.contains("exited with status 9"));
        let delays: Vec<u64> = deaths.filter_map(delay).collect();
        Some(delays).filter(|delays| delays.len() >= 5)
    });
    for (i, delay) in delays.iter().enumerate() {
        let usual = 100 << i;
        assert!(
            (usual * 3 / 4..=usual * 5 / 4).contains(delay),
            "{delays:?}"
        );
    }
    let worker = daemon
        .wait_until("it waits for its next start", |status| {
            let worker = &status.workers[1];
            worker.state == WorkerState::Waiting && worker.starts_in_seconds.is_some()
        })
        .workers
        .swap_remove(1);
    assert!(worker.pid.is_none() && worker.restarts >= 4, "{worker:?}");
    assert_eq!(worker.last_death.as_deref(), Some("exited with status 9"));
    assert_no_zombies(&daemon);
}

#[test]
fn without_any_ready_worker_the_daemon_exits_with_70() {
    for (fault, exit, reason) in [
        ("exit", "exited with status 9", ""),
        (
            "fail",
            "exited with status 70: ",
            "the model cannot be loaded",
        ),
        (
            "panic",
            "exited with status 70: the state's constructor panicked at ",
            ": the model is broken",
        ),
    ] {
        let error =
            faulty::start_with(fault, "workers.count = 2").expect_err("no worker is ever ready");
        assert_eq!(error.code(), Some(70), "{error}");
        let last = error.stderr().lines().last().expect("it says why");
        assert!(
            last.contains(&format!(
                "error no worker ever became ready; the last one {exit}"
            )),
            "{error}"
        );
        assert!(last.ends_with(reason), "{error}");
    }
}

#[test]
fn failing_starts_under_a_manager_are_spaced_out() {
    let manager = ServiceManager::new();
    let runtime = tempfile::tempdir().expect("a directory");
    let start = |config: &str| {
        let setup = manager.setup(FDPASSD, config);
        let begin = Instant::now();
        let started = setup.variable("RUNTIME_DIRECTORY", runtime.path()).start();
        (started, begin.elapsed())
    };
    let failing = "workers.count = 1\napp.command = [\"false\"]";
    let fail = || {
        let (started, took) = start(failing);
        let error = started.expect_err("its app does not start");
        assert_eq!(error.code(), Some(70), "{error}");
        (error.stderr().contains("exiting in "), took)
    };
    assert!(!fail().0, "the first failure is reported at once");
    let (waits, took) = fail();
    assert!(waits && took >= Duration::from_secs(1), "{took:?}");
    let (waits, took) = fail();
    assert!(waits && took >= Duration::from_secs(2), "{took:?}");
    let (served, _) = start("workers.count = 1");
    drop(served.expect("it serves"));
    assert!(!fail().0, "a success ends the count");
}

#[test]
fn a_state_that_cannot_be_made_is_logged_and_tried_again() {
    let daemon =
        faulty::start_with("fail:0", "workers.count = 2").expect("the other worker serves");
    daemon.wait_for_log("exited with status 70: the model cannot be loaded; 0 clients moved");
    daemon.wait_until("it was tried again", |status| {
        status.workers[0].restarts > 0
    });
    assert_eq!(whoami(&mut daemon.connect()).seat, 1);
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed() {
    let config = "workers = { count = 2, start-timeout = \"6s\" }";
    let daemon = faulty::start_with("hang:1", config).expect("the other worker serves");
    let hanging = eventually("the second worker runs", || daemon.status().workers[1].pid);
    // Its successor may start before it has ended.
    let status = daemon.wait_until("it has been replaced", |status| {
        status.workers[1].restarts >= 1 && status.workers[1].last_death.is_some()
    });
    assert_eq!(
        status.workers[1].last_death.as_deref(),
        Some("killed by signal 9 (SIGKILL): it was not ready within 6s")
    );
    assert!(kernel::is_over(hanging));
    daemon.wait_for_log("is not ready after 6s; killing it");
    assert_eq!(whoami(&mut daemon.connect()).seat, 0);
}

#[test]
fn workers_leave_when_their_master_is_killed() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..4).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    let workers = daemon.worker_pids();
    assert_eq!(workers.len(), 2);
    daemon.signal("KILL");
    clients.iter_mut().for_each(Client::expect_end);
    for worker in workers {
        eventually("the worker has left", || {
            kernel::is_over(worker).then_some(())
        });
    }
    eventually("both have said why", || {
        (daemon.stderr().matches("the master is gone").count() == 2).then_some(())
    });
}

/// Waits until nothing of any client is in a worker's hands: all of them sleep.
#[track_caller]
fn wait_for_rest(daemon: &Running) {
    for worker in daemon.worker_pids() {
        eventually("the worker sleeps", || {
            (kernel::state(worker) == Some('S')).then_some(())
        });
    }
}

/// Waits until every child of the master runs, and none of them twice in a seat.
#[track_caller]
fn assert_no_zombies(daemon: &Running) {
    eventually("the dead are collected", || {
        let children = kernel::children(daemon.pid());
        let states: HashMap<u32, char> = children
            .iter()
            .filter_map(|pid| Some((*pid, kernel::state(*pid)?)))
            .collect();
        (!states.values().any(|state| *state == 'Z') && children.len() <= 2).then_some(())
    });
}

/// How long a successor waits by this line of the log, in ms.
fn delay(line: &str) -> Option<u64> {
    let (_, end) = line.split_once("its successor starts in ")?;
    end.strip_suffix(" ms")?.parse().ok()
}
