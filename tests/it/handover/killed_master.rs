//! A master that is killed between the death of a worker and the next leases of its clients.

use fdpassd::testing::{ServiceManager, eventually};

use super::{BOTH, Halfway, clients_of, start};
use crate::app_deaths::kill_9;
use crate::common::restart::{terminate, wait_for_confirmed_store};
use crate::common::strace::Traced;
use crate::common::{FDPASSD, kernel, ping_all};

/// System calls that start a process.
const STARTS: &str = "?clone,?clone3,?fork,?vfork";

/// Messages that pack the clients of a dead worker: its shared memory, and their sockets.
const PACKED: usize = 2;

/// Kills one worker, and the master when it makes this one of these system calls. If the clients are packed by then,
/// the next master has them all. Returns whether they were.
#[track_caller]
fn kill_worker_and_master(workers: usize, calls: &str, number: usize) -> Option<bool> {
    let manager = ServiceManager::new();
    let config = BOTH.replace(
        "workers.count = 2",
        // A master that asks a zygote makes no call that starts a process.
        &format!("workers = {{ count = {workers}, start = \"exec\" }}"),
    );
    // No check for stuck workers sends a message.
    let config = format!("{config}limits.stall-timeout = \"1h\"\n");
    let daemon = start(&manager, &config);
    let mut clients = clients_of(&daemon, 8);
    let mut halfway = Halfway::start(&daemon);
    wait_for_confirmed_store(&daemon);
    let (master, pids) = (daemon.pid(), daemon.worker_pids());
    let inject = format!("{calls}:signal=KILL:when={number}");
    let traced = Traced::attach(master, calls, &inject)?;
    kill_9(pids[0]);
    eventually("the master is killed", || {
        kernel::is_over(master).then_some(())
    });
    pids.into_iter().for_each(terminate);
    // Only then it shows which call has not returned.
    let trace = eventually("strace reports that", || {
        Some(traced.text()).filter(|trace| trace.contains("+++ killed by SIGKILL"))
    });
    let is_sent = |line: &&str| line.contains("SCM_RIGHTS") && !line.contains(") = ?");
    let are_packed = calls == STARTS || trace.lines().filter(is_sent).count() >= PACKED;
    if are_packed {
        let next = manager.setup(FDPASSD, "").start_after(daemon);
        let daemon = next.expect("the next master serves");
        ping_all(&mut clients);
        halfway.finish();
        let status = daemon.status();
        assert_eq!((status.clients, status.lost_total), (10, 0), "{trace}");
    }
    Some(are_packed)
}

#[test]
fn a_master_packs_clients_before_it_starts_another_worker() {
    for workers in [1, 2] {
        kill_worker_and_master(workers, STARTS, 1);
    }
}

/// The messages: two that pack, the first one to the successor, the status for the service manager, the leases. Another
/// worker gets the leases before the status is sent.
#[test]
fn a_master_killed_at_its_leases_leaves_all_clients() {
    for (workers, last) in [(1, PACKED + 3), (2, PACKED + 2)] {
        let mut tries = 0;
        for number in PACKED + 1..=last {
            match kill_worker_and_master(workers, "sendmsg", number) {
                Some(are_packed) => tries += usize::from(are_packed),
                None => return,
            }
        }
        assert!(tries > 0, "{workers}: other messages came first");
    }
}
