//! Exact accounting while workers are killed and daemons are killed, stopped and started again: each outcome is true.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, thread};

use fdpassd::client::{Client, ClientRequest, Error};
use fdpassd::testing::{Running, Setup, eventually};

use super::{client, options};
use crate::common::faulty::{self, example};
use crate::common::random::Random;

const THREADS: usize = 8;

/// Requests by their lines, each with a line of the same name if it was executed.
#[derive(Default)]
struct Outcomes(Mutex<BTreeMap<String, String>>);

impl Outcomes {
    fn len(&self) -> usize {
        self.0.lock().expect("no panic").len()
    }

    /// Calls `count` until the end, some at a time.
    fn collect(&self, client: &Client, thread: usize, path: &Path, is_over: &AtomicBool) {
        for round in 0.. {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            let lines = (0..=round % 7).map(|n| format!("{thread}.{round}.{n}"));
            let lines: Vec<String> = lines.collect();
            let requests = lines.iter();
            let requests = requests.map(|line| ClientRequest::new("count", (path, line)));
            let outcomes = client.call_all(requests);
            let mut all = self.0.lock().expect("no panic");
            all.extend(lines.into_iter().zip(outcomes.iter().map(kind)));
        }
    }

    /// Compares the outcomes with the lines in the file.
    #[track_caller]
    fn check(&self, path: &Path) {
        let mut runs: BTreeMap<String, usize> = BTreeMap::new();
        for line in fs::read_to_string(path).expect("lines").lines() {
            *runs.entry(line.to_owned()).or_default() += 1;
        }
        let all = self.0.lock().expect("no panic");
        let is_true = |line: &str, kind: &str| {
            matches!(
                (kind, runs.get(line)),
                ("result", Some(1)) | ("unknown", None | Some(1)) | ("not executed", None)
            )
        };
        let wrong: Vec<_> = all
            .iter()
            .filter(|(line, kind)| !is_true(line, kind))
            .map(|(line, kind)| (line, kind, runs.get(line)))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let of_nothing: Vec<_> = runs
            .keys()
            .filter(|line| !all.contains_key(*line))
            .collect();
        assert!(of_nothing.is_empty(), "{of_nothing:?}");
        let results = all.values().filter(|kind| *kind == "result").count();
        assert!(results * 2 > all.len(), "{results} of {}", all.len());
    }
}

fn kind<R>(outcome: &Result<R, Error>) -> String {
    match outcome {
        Ok(_) => "result".to_owned(),
        Err(Error::UnknownOutcome { .. }) => "unknown".to_owned(),
        Err(error) if error.code() == Some("crashed") => "unknown".to_owned(),
        Err(error) if !error.may_have_run() => "not executed".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Performs `disturb` again and again while threads that share these clients count lines.
fn account(clients: &[Client], path: &Path, times: u32, mut disturb: impl FnMut()) {
    fs::write(path, "").expect("it is our directory");
    let (outcomes, is_over) = (Outcomes::default(), AtomicBool::new(false));
    thread::scope(|threads| {
        let counting: Vec<_> = (0..THREADS)
            .map(|thread| {
                let client = &clients[thread % clients.len()];
                let (outcomes, is_over) = (&outcomes, &is_over);
                threads.spawn(move || outcomes.collect(client, thread, path, is_over))
            })
            .collect();
        for _ in 0..times {
            let enough = outcomes.len() + 200;
            eventually("more requests have outcomes", || {
                let has_failed = counting.iter().any(|thread| thread.is_finished());
                (has_failed || outcomes.len() >= enough).then_some(())
            });
            disturb();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    outcomes.check(path);
}

#[test]
fn kills_of_workers_execute_no_request_twice() {
    let daemon = faulty::start("workers.count = 2");
    daemon.wait_for_workers();
    let path = daemon.directory().join("lines");
    let mut seat = 0;
    let clients = [client(&[&daemon], options())];
    account(&clients, &path, 8, || {
        daemon.kill_worker(seat);
        seat = 1 - seat;
    });
    let status = daemon.status();
    assert_eq!((status.accepted_total, status.lost_total), (1, 0));
}

#[test]
fn kills_of_hosts_leave_no_outcome_that_is_not_true() {
    let config = "listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 1";
    let start = || Running::start(example("faulty"), config).expect("it serves");
    let mut daemons = [start(), start()].map(Some);
    let both: Vec<&Running> = daemons.iter().flatten().collect();
    let clients = [
        client(&both, options()),
        client(&both, options().shuffle(true)),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    let mut random = Random::new("CLIENT_SEED");
    account(&clients, &directory.path().join("lines"), 6, || {
        let victim = &mut daemons[random.below(2) as usize];
        let daemon = victim.take().expect("it runs");
        if random.once_in(3) {
            daemon.ctl("stop").expect("it stops");
        } else {
            daemon.signal("KILL");
        }
        let next = Setup::new(example("faulty"), "").start_after(daemon);
        *victim = Some(next.expect("it serves again"));
    });
}
