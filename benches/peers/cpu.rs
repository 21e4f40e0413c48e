//! CPU: pinning this program and all it starts to one CPU, and the time that a server has used.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::failure::{Context, Result};
use crate::interrupt;

/// Pins this process, and whatever it starts from now on, to one CPU: the one asked for, or the last
/// it may use. Returns its number.
pub(crate) fn pin(wanted: Option<usize>) -> Result<usize> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("cannot ask for the CPUs allowed")?;
    let last = || {
        (0..CpuSet::count())
            .rev()
            .find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
    };
    let cpu = wanted.or_else(last).context("no CPU is allowed")?;
    let mut one = CpuSet::new();
    one.set(cpu).context(format!("CPU {cpu}"))?;
    sched_setaffinity(this, &one).context(format!("cannot pin to CPU {cpu}"))?;
    Ok(cpu)
}

/// A process and everything it started that still is its descendant.
pub(crate) fn family(root: Pid) -> Result<Vec<Pid>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let Some(pid) = entry
            .ok()
            .and_then(|e| e.file_name().to_str()?.parse::<i32>().ok())
        else {
            continue;
        };
        // A process may be gone by now.
        let Some(parent) = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|s| parent(&s))
        else {
            continue;
        };
        children.entry(parent).or_default().push(pid);
    }
    let mut found = vec![root.as_raw()];
    let mut next = 0;
    while next < found.len() {
        found.extend(children.remove(&found[next]).unwrap_or_default());
        next += 1;
    }
    Ok(found.into_iter().map(Pid::from_raw).collect())
}

/// The fourth field of /proc/PID/stat; the second is a name that may contain anything.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// The CPU time, user and system, that each process of a server had used at some moment.
pub(crate) struct Reading(HashMap<Pid, Duration>);

impl Reading {
    /// Now. The clock of a process counts all its threads, those that ended too, in nanoseconds.
    pub(crate) fn now(root: Pid) -> Result<Self> {
        let mut times = HashMap::new();
        for pid in family(root)? {
            if let Ok(time) = ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now) {
                times.insert(pid, time.into());
            }
        }
        if times.contains_key(&root) {
            Ok(Reading(times))
        } else {
            Err(format!("process {root} is gone").into())
        }
    }

    /// As soon as the server has come to rest: its time no longer grows. Half a second at most.
    pub(crate) fn at_rest(root: Pid) -> Result<Self> {
        const LOOK: Duration = Duration::from_millis(10);
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut before = Reading::now(root)?;
        loop {
            interrupt::check()?;
            std::thread::sleep(LOOK);
            let after = Reading::now(root)?;
            if after.0 == before.0 || Instant::now() > deadline {
                return Ok(after);
            }
            before = after;
        }
    }

    /// What was used since `before`, by processes started since then too.
    pub(crate) fn since(&self, before: &Reading) -> Result<Duration> {
        if let Some(gone) = before.0.keys().find(|pid| !self.0.contains_key(*pid)) {
            return Err(
                format!("process {gone} of the server ended, and its CPU time is lost").into(),
            );
        }
        Ok(self
            .0
            .iter()
            .map(|(pid, time)| *time - before.0.get(pid).copied().unwrap_or_default())
            .sum())
    }
}
