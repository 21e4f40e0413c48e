//! A process that is still the same one: its pid together with its start, and a descriptor of it (pidfd_open(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::libc;

use super::app::open_pidfd;
use super::proc_files::stat;
use crate::sys::poll::{self, Interest};

/// A process. The kernel reuses pids, but no two processes of one pid start in the same tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// The pid.
    pub pid: u32,
    /// When the process started, in clock ticks since boot; not 0.
    pub started: u64,
}

impl ProcessIdentity {
    /// Returns the process that has this pid now, by /proc/PID/stat (proc(5)), if it is a child of `parent` or in the
    /// session that `parent` leads. A process that has ended is found until it is collected.
    #[must_use]
    pub fn of_descendant(pid: u32, parent: u32) -> Option<ProcessIdentity> {
        let stat = stat(&pid.to_string())?;
        let is_parent = |field| number(&stat, field) == Some(parent.into());
        let identity = ProcessIdentity::from_stat(pid, &stat)?;
        (is_parent(PARENT) || is_parent(SESSION)).then_some(identity)
    }

    fn from_stat(pid: u32, stat: &str) -> Option<ProcessIdentity> {
        let started = number(stat, STARTED)?;
        Some(ProcessIdentity { pid, started })
    }
}

/// Returns a field of /proc/PID/stat, by its index after the name.
fn number(stat: &str, field: usize) -> Option<u64> {
    stat.split_whitespace().nth(field)?.parse().ok()
}

const PARENT: usize = 1;
const SESSION: usize = 3;
const STARTED: usize = 19;

/// A running process, or one that has ended; never another one with its pid.
#[derive(Debug)]
pub struct ProcessHandle {
    pidfd: OwnedFd,
    identity: ProcessIdentity,
}

impl ProcessHandle {
    /// Opens a process. Returns `None` if it has ended.
    ///
    /// # Errors
    /// Those of pidfd_open(2) except ESRCH.
    pub fn open(identity: ProcessIdentity) -> io::Result<Option<ProcessHandle>> {
        let pidfd = match open_pidfd(identity.pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // The descriptor is of the process that has the pid now: compared afterwards, it is the wanted one or none.
        let handle = ProcessHandle { pidfd, identity };
        let now = stat(&identity.pid.to_string());
        let is_it =
            now.and_then(|stat| ProcessIdentity::from_stat(identity.pid, &stat)) == Some(identity);
        Ok((is_it && !handle.has_ended()).then_some(handle))
    }

    /// Returns whether all threads of the process have ended: it runs nothing any more, and its files are closed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // Without an answer it is taken for running.
        poll::wait_for(&self.pidfd, Interest::Read, Duration::ZERO).unwrap_or(false)
    }

    /// Kills the process, and the process group that it leads.
    pub fn kill(&self) {
        super::kill_with_group(self.identity.pid, self.pidfd.as_raw_fd());
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_found_until_its_end_and_never_another() {
        let mut child = Command::new("sleep")
            .arg("1000")
            .process_group(0)
            .spawn()
            .expect("sleep");
        let own = std::process::id();
        let identity = ProcessIdentity::of_descendant(child.id(), own).expect("it is a child");
        assert_eq!(ProcessIdentity::of_descendant(1, own), None, "no child");
        let other = ProcessIdentity {
            started: identity.started + 1,
            ..identity
        };
        let open = |identity| ProcessHandle::open(identity).expect("a pidfd");
        assert!(open(other).is_none(), "it has the pid, but another start");
        let handle = open(identity).expect("it runs");
        assert!(!handle.has_ended());
        handle.kill();
        let is_over = poll::wait_for(&handle, Interest::Read, Duration::from_secs(10));
        assert!(is_over.expect("poll") && handle.has_ended());
        assert!(open(identity).is_none(), "ended, but not collected");
        child.wait().expect("it is ours");
        assert!(handle.has_ended() && open(identity).is_none());
    }
}
