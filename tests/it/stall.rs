//! Stuck workers: their other clients are served elsewhere, and a worker stuck for too long is replaced.

mod checks;
mod substitutes;
mod timeouts;

use fdpassd::proto::control::{Status, WorkerState};
use fdpassd::testing::{Client, Running, eventually};

use crate::common::kernel;

#[track_caller]
fn connect(daemon: &Running, count: usize) -> Vec<Client> {
    (0..count).map(|_| daemon.connect()).collect()
}

#[track_caller]
fn ping_all(clients: &mut [Client]) {
    clients
        .iter_mut()
        .for_each(|client| client.request("ping", 1));
    for client in clients {
        assert_eq!(client.reply().value().expect("a result"), 1);
    }
}

/// Waits until the log, after its first bytes, reports a stuck worker with these words, and returns its id. On a busy
/// machine another worker may be taken for stuck as well, and its clients move.
#[track_caller]
fn stuck_worker(daemon: &Running, told: usize, words: &str) -> u64 {
    eventually("the worker is stuck", || {
        let log = daemon.stderr();
        let line = log[told..]
            .lines()
            .find(|line| line.contains(words) && line.contains(" has been stuck for "))?;
        let (_, id) = line.split_once(" worker ")?;
        id.split_once(' ')?.0.parse().ok()
    })
}

/// The workers that are stuck, or are taken for it.
fn stalled(status: &Status) -> Vec<u64> {
    let stalled = status
        .workers
        .iter()
        .filter(|worker| worker.state == WorkerState::Stalled);
    stalled.filter_map(|worker| Some(worker.id?.0)).collect()
}

/// Returns those of them that are executing.
fn stuck_in_requests(status: &Status) -> Vec<u64> {
    let executing = status.workers.iter().filter(|worker| worker.executing > 0);
    let executing: Vec<u64> = executing.filter_map(|worker| Some(worker.id?.0)).collect();
    stalled(status)
        .into_iter()
        .filter(|id| executing.contains(id))
        .collect()
}

/// Stops the worker in this seat when it sleeps, in a method or because it has nothing to do: one that has sent a reply
/// may not have ended the turn yet, and the client of that turn would wait. Its number and its process.
#[track_caller]
fn stop_worker(daemon: &Running, seat: u32) -> (u64, u32) {
    let worker = daemon.status().workers.swap_remove(seat as usize);
    let (id, pid) = worker.id.zip(worker.pid).expect("it has a process");
    eventually("the worker sleeps", || {
        (kernel::state(pid) == Some('S')).then_some(())
    });
    kernel::stop(pid);
    (id.0, pid)
}
