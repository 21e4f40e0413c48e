//! Workers that a zygote forks: they are like those that are executed, whatever becomes of the zygote.

mod births;
mod by_hand;
mod lives;
mod preload;
mod processes;

use std::fs;

use fdpassd::testing::{Running, eventually};

use crate::common::kernel;

/// Workers that are forked.
const FORK: &str = "workers = { count = 2, start = \"fork\" }\n";

/// Workers that are executed, also where tests of all kinds run with forked ones.
const EXEC: &str = "workers = { count = 2, start = \"exec\" }\n";

/// Number of the parent in proc_pid_stat(5).
const PARENT: usize = 4;

/// Starts the shipped daemon with two forked workers.
#[track_caller]
fn start() -> Running {
    let daemon = crate::common::start(FORK);
    daemon.wait_for_workers();
    daemon
}

/// Returns the pid of the zygote once there is one other than `before`.
#[track_caller]
fn zygote(daemon: &Running, before: Option<u32>) -> u32 {
    eventually("there is a zygote", || {
        let zygote = daemon.status().zygote;
        zygote.filter(|pid| Some(*pid) != before)
    })
}

/// Returns the arguments of a process.
fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("the process is there");
    let arguments = line.strip_suffix('\0').expect("the last one ends as well");
    arguments.split('\0').map(str::to_owned).collect()
}

/// Returns a field of /proc/PID/stat by its number in proc_pid_stat(5), from 3 on.
fn stat(pid: u32, number: usize) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let (_, after_name) = stat.rsplit_once(')').expect("the name is in brackets");
    let field = after_name.split_whitespace().nth(number - 3);
    field.expect("the kernel has this field").to_owned()
}

/// Returns the children of the master that are zygotes.
fn zygotes(daemon: &Running) -> Vec<u32> {
    let is_zygote = |pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').nth(1) == Some("zygote") && !kernel::is_over(*pid)
    };
    let children = kernel::all_children(daemon.pid()).into_iter();
    children.filter(is_zygote).collect()
}
