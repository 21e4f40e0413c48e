//! Facts about processes from /proc (proc(5)).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{SysconfVar, sysconf};

use super::pid_of;

/// A child of this process, its own or adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// The child's number.
    pub pid: u32,
    /// The child's process group.
    pub group: u32,
    /// The child's session.
    pub session: u32,
}

/// The children of this process, by /proc/PID/task/TID/children.
#[derive(Debug)]
pub struct ChildList {
    /// The list of the first thread, which a process with one thread has only. It stays open: to open a file in /proc
    /// takes longer than to read it.
    first: Option<File>,
}

impl ChildList {
    /// Opens the list of this process, if there is one.
    #[must_use]
    pub fn open() -> ChildList {
        let pid = std::process::id();
        let first = File::open(format!("/proc/{pid}/task/{pid}/children"));
        ChildList { first: first.ok() }
    }

    /// Returns the children except those that are known, including those that have ended and are not collected. None
    /// where the kernel does not list them (CONFIG_PROC_CHILDREN).
    #[must_use]
    pub fn except(&self, is_known: impl Fn(u32) -> bool) -> Vec<Child> {
        let child = |pid: u32| {
            let stat = stat(&pid.to_string())?;
            // state, parent, group, session
            let mut fields = stat.split_whitespace().skip(2).map(str::parse);
            let (group, session) = (fields.next()?.ok()?, fields.next()?.ok()?);
            Some(Child {
                pid,
                group,
                session,
            })
        };
        self.read()
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .filter(|pid| !is_known(*pid))
            .filter_map(child)
            .collect()
    }

    fn read(&self) -> String {
        // A directory has a link from each of its own, and two more.
        let has_one_thread = fs::metadata("/proc/self/task").is_ok_and(|found| found.nlink() == 3);
        if has_one_thread && let Some(list) = self.read_first() {
            return list;
        }
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
        let lists = tasks.flatten().filter_map(|task| {
            let list = fs::read_to_string(task.path().join("children"));
            list.ok()
        });
        lists.collect::<Vec<String>>().concat()
    }

    fn read_first(&self) -> Option<String> {
        let file = self.first.as_ref()?;
        let (mut list, mut buffer) = (Vec::new(), [0; 1024]);
        loop {
            match file.read_at(&mut buffer, list.len() as u64) {
                Ok(0) => break,
                Ok(count) => list.extend(&buffer[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        String::from_utf8(list).ok()
    }
}

/// Returns the number of threads of this process, including those that are about to end, by /proc/self/task.
pub(super) fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Returns whether a process has this pid and has not ended. False if it is hidden, as one of another user may be.
pub(in crate::sys) fn is_running(pid: u32) -> bool {
    stat(&pid.to_string()).is_some_and(|stat| !stat.trim_start().starts_with(['Z', 'X']))
}

/// Returns whether a process is ending or has ended (PF_EXITING among its flags in /proc/PID/stat): the kernel marks it
/// before it closes its files. True if it is gone or hidden.
#[must_use]
pub fn is_ending(pid: u32) -> bool {
    const PF_EXITING: u32 = 4;
    let flags = |stat: String| stat.split_whitespace().nth(6)?.parse::<u32>().ok();
    let flags = stat(&pid.to_string()).and_then(flags);
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Returns the fields of /proc/PID/stat after the name, which may contain anything. `pid` may also be `PID/task/TID`.
pub(super) fn stat(pid: &str) -> Option<String> {
    // The kernel returns the whole line at once.
    let mut line = [0; 1024];
    let length = File::open(format!("/proc/{pid}/stat"))
        .and_then(|mut file| file.read(&mut line))
        .ok()?;
    let name_end = line[..length].iter().rposition(|byte| *byte == b')')?;
    let fields = str::from_utf8(&line[name_end + 1..length]).ok()?;
    Some(fields.to_owned())
}

/// The identity of an open file, the same for every process that has it open. Both ends of a pipe are one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    number: u64,
}

impl FileId {
    /// Returns the identity of an open file.
    ///
    /// # Errors
    /// Those of stat(2) on /proc/self/fd.
    pub fn from_fd(file: impl AsFd) -> io::Result<FileId> {
        FileId::from_path(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
    }

    pub(super) fn from_path(path: impl AsRef<Path>) -> io::Result<FileId> {
        fs::metadata(path).map(|found| FileId {
            device: found.dev(),
            number: found.ino(),
        })
    }
}

/// Kills all other processes that have this file as their standard output or error.
///
/// # Errors
/// Those of reading /proc.
pub fn kill_writers(file: FileId) -> io::Result<()> {
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.filter(|pid| *pid != std::process::id()) {
        let is_it =
            |fd| FileId::from_path(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|found| found == file);
        if is_it(1) || is_it(2) {
            // It may have ended since.
            let _ = kill(pid_of(pid), Signal::SIGKILL);
        }
    }
    Ok(())
}

/// Returns the resident memory of a process in bytes, by /proc/PID/statm, which takes no lock of the process.
#[must_use]
pub fn resident_memory(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    pages.checked_mul(page)
}

/// The CPU time of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// Whether it runs, or would if it had a CPU.
    pub is_runnable: bool,
    /// How long it has run in all; up to a tick less than the truth while it runs.
    pub ran: Duration,
}

/// Returns the CPU time of the first thread of a process by /proc/PID/stat and /proc/PID/schedstat (sched-stats.rst).
/// None where the kernel does not count it, or if the process is gone.
#[must_use]
pub fn scheduling(pid: u32) -> Option<Scheduling> {
    scheduling_in(&pid.to_string())
}

/// Does the same as [`scheduling`] for another thread of the process, by /proc/PID/task/TID.
#[must_use]
pub fn thread_scheduling(pid: u32, thread: u32) -> Option<Scheduling> {
    scheduling_in(&format!("{pid}/task/{thread}"))
}

fn scheduling_in(directory: &str) -> Option<Scheduling> {
    let stat = stat(directory)?;
    let schedstat = fs::read_to_string(format!("/proc/{directory}/schedstat")).ok()?;
    let ran = Duration::from_nanos(schedstat.split_whitespace().next()?.parse().ok()?);
    (!ran.is_zero()).then(|| Scheduling {
        is_runnable: stat.trim_start().starts_with('R'),
        ran,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread;

    use crate::sys::fork;
    use nix::time::{ClockId, clock_gettime};

    use super::*;

    #[test]
    fn children_are_listed_with_group_and_session() {
        let mut sleep = Command::new("sleep");
        let mut child = sleep.arg("1000").process_group(0).spawn().expect("sleep");
        let session = nix::unistd::getsid(None).expect("a session").as_raw();
        let wanted = Child {
            pid: child.id(),
            group: child.id(),
            session: session.unsigned_abs(),
        };
        let list = ChildList::open();
        let children = || list.except(|_| false);
        assert!(children().contains(&wanted), "{wanted:?}: {:?}", children());
        assert!(
            !ChildList::open()
                .except(|pid| pid == wanted.pid)
                .contains(&wanted)
        );
        child.kill().expect("it is ours");
        assert!(children().contains(&wanted), "it is not collected yet");
        child.wait().expect("it is ours");
        assert!(!children().contains(&wanted));
    }

    #[test]
    fn the_cpu_time_of_this_process_is_found() {
        let found = scheduling(std::process::id()).expect("the kernel counts it");
        assert!(!found.ran.is_zero());
        assert_eq!(scheduling(u32::MAX >> 1), None);
    }

    #[test]
    fn the_cpu_time_of_a_thread_is_its_own() {
        const RUN: Duration = Duration::from_millis(20);
        let (report, started) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let spawned = thread::spawn(move || {
            let has_run = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
            while has_run().expect("it has a clock") < RUN {}
            report.send(fork::thread_id()).expect("it is awaited");
            ended.recv()
        });
        let pid = std::process::id();
        let id = started.recv().expect("it runs");
        let found = loop {
            let found = thread_scheduling(pid, id).expect("the kernel counts it");
            if !found.is_runnable {
                break found;
            }
            thread::yield_now();
        };
        assert!(found.ran >= RUN, "{found:?}");
        drop(end);
        spawned.join().expect("no panic").expect_err("it has ended");
        assert_eq!(thread_scheduling(pid, u32::MAX >> 1), None);
        assert_eq!(thread_scheduling(pid, 1), None, "it is of another process");
    }
}
