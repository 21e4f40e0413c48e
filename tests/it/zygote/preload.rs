//! A value that is loaded once for all workers: `examples/tabled.rs`.

use std::collections::BTreeSet;
use std::fs;

use fdpassd::testing::{Running, eventually};
use serde_json::{Value, json};

use super::{zygote, zygotes};
use crate::common::faulty::example;
use crate::common::kernel;

fn config(start: &str, more: &str) -> String {
    format!(
        "workers = {{ count = 4, start = \"{start}\", start-timeout = \"20s\", dispatch = \"round-robin\" }}\n\
         limits.stall-timeout = \"1h\"\n[tabled]\nmebibytes = 32\n{more}\n"
    )
}

fn start(how: &str) -> Running {
    let daemon = Running::start(example("tabled"), &config(how, "")).expect("it serves");
    daemon.wait_for_workers();
    daemon
}

/// Asks all four workers: returns the processes that have loaded, the workers, and their numbers.
fn asked(daemon: &Running) -> (BTreeSet<u64>, BTreeSet<u64>, BTreeSet<String>) {
    let (mut loaded, mut workers, mut numbers) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut clients: Vec<_> = (0..16).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        let processes = client.call("processes", ()).expect("a result");
        let [from, pid] = [0, 1].map(|i| processes[i].as_u64().expect("a pid"));
        loaded.insert(from);
        if workers.insert(pid) {
            let number: Value = client.call("random", ()).expect("a result");
            numbers.insert(number.to_string());
        }
        let sum = client.call("sum", json!([1000, 1003])).expect("a result");
        assert_eq!(sum, json!(3003));
    }
    assert_eq!(workers.len(), 4, "{workers:?}");
    (loaded, workers, numbers)
}

/// Returns the memory of the workers in MiB, of which shared pages count in parts.
fn memory(daemon: &Running) -> u64 {
    let of_one = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it is ours");
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kibibytes = line
            .expect("the kernel has it")
            .trim()
            .trim_end_matches(" kB");
        kibibytes.parse::<u64>().expect("a number")
    };
    daemon.worker_pids().into_iter().map(of_one).sum::<u64>() >> 10
}

#[test]
fn forked_workers_share_what_their_zygote_has_loaded() {
    let daemon = start("fork");
    let zygote = u64::from(zygote(&daemon, None));
    let (loaded, workers, numbers) = asked(&daemon);
    assert_eq!(loaded, BTreeSet::from([zygote]));
    assert_eq!(numbers.len(), workers.len(), "{numbers:?}");
    // Four times 32 MiB without sharing; the zygote has a fifth of the pages.
    let memory = memory(&daemon);
    assert!(memory < 64, "{memory} MiB");
}

#[test]
fn each_executed_worker_loads_for_itself() {
    let daemon = start("exec");
    let (loaded, workers, numbers) = asked(&daemon);
    assert_eq!(loaded, workers);
    assert_eq!(numbers.len(), workers.len());
    assert!(memory(&daemon) >= 4 * 32);
}

#[test]
fn a_reload_loads_again_for_its_generation() {
    let daemon = start("fork");
    let first = zygote(&daemon, None);
    let next = config("fork", "").replace("mebibytes = 32", "mebibytes = 1");
    daemon.reload_with(&next).expect("it is good");
    let second = zygote(&daemon, Some(first));
    assert_eq!(asked(&daemon).0, BTreeSet::from([u64::from(second)]));
    let beyond = daemon.call("sum", json!([0, 200_000])).expect_err("1 MiB");
    assert_eq!(beyond.code(), "out_of_range");
}

#[test]
fn a_preload_that_fails_rolls_the_reload_back() {
    let daemon = start("fork");
    let first = zygote(&daemon, None);
    for (leaves, why) in [
        (
            "an error",
            "its zygote could not preload: the table is gone",
        ),
        (
            "a panic",
            "its zygote could not preload: panicked at examples/tabled.rs",
        ),
        (
            "a thread",
            "its zygote has 2 threads, and a forked worker would have only one",
        ),
    ] {
        let next = config("fork", &format!("leaves = \"{leaves}\""));
        let fault = daemon.reload_with(&next).expect_err(leaves);
        assert_eq!(fault.code(), "rolled_back");
        assert!(fault.to_string().contains(why), "{fault}");
    }
    let next = config("fork", "leaves = \"nothing\"").replace("\"20s\"", "\"500ms\"");
    let fault = daemon.reload_with(&next).expect_err("it is never ready");
    let why = "was not ready within 500ms: its zygote is not ready";
    assert!(fault.to_string().contains(why), "{fault}");
    eventually("the other zygotes have ended", || {
        (zygotes(&daemon) == [first]).then_some(())
    });
    assert_eq!(asked(&daemon).0, BTreeSet::from([u64::from(first)]));
}

#[test]
fn a_preload_that_fails_in_an_executed_worker_is_reported() {
    let next = config("exec", "leaves = \"an error\"");
    let error = Running::start(example("tabled"), &next).expect_err("no worker is ready");
    assert_eq!(error.code(), Some(70), "{error}");
    let why = "its preload failed: the table is gone";
    assert!(error.stderr().contains(why), "{error}");
}

#[test]
fn a_zygote_that_loads_ends_with_its_master() {
    let next = config("fork", "leaves = \"nothing\"");
    let mut daemon = start("fork");
    let first = zygotes(&daemon);
    daemon.write_config(&next);
    daemon.signal("HUP");
    let second = eventually("the next zygote is there", || {
        let mut all = zygotes(&daemon);
        all.retain(|pid| !first.contains(pid));
        all.pop()
    });
    daemon.signal("KILL");
    daemon.wait();
    eventually("it has ended", || kernel::is_over(second).then_some(()));
}
