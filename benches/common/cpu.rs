//! CPU: pinning this program and all it starts to one CPU, and the time that a server has used.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::failure::{Context, Result};
use super::interrupt;

/// Pins this process, and all that it starts, to one CPU: the wanted one, or the last that it may use. Returns its
/// number.
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

/// Returns a process and its descendants.
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

/// Returns the fourth field of /proc/PID/stat; the second is a name that may contain any characters.
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
    /// Reads the clocks, which count all threads of a process in nanoseconds, including those that ended.
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

    /// Reads the clocks once the server is idle, so that its time no longer grows, or after half a second.
    pub(crate) fn when_idle(root: Pid) -> Result<Self> {
        const INTERVAL: Duration = Duration::from_millis(10);
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut before = Reading::now(root)?;
        loop {
            interrupt::check()?;
            std::thread::sleep(INTERVAL);
            let after = Reading::now(root)?;
            if after.0 == before.0 || Instant::now() > deadline {
                return Ok(after);
            }
            before = after;
        }
    }

    /// Returns the time used since `before`, including processes started since then.
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
