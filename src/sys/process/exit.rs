//! How child processes end, and how they are collected.
//!
//! These functions call waitid(2) and waitpid(2) of libc and read numbers. nix knows the signals that have names only:
//! it returns EINVAL for a child that a real-time signal has killed.

use std::os::fd::{AsFd, AsRawFd};
use std::{fmt, io, mem, ptr};

use nix::errno::Errno;
use nix::libc::{self, siginfo_t};
use nix::sys::signal::Signal;

use super::pid_of;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By exiting with this status.
    Status(i32),
    /// By a signal.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether the process left a core file.
        core: bool,
    },
}

impl Exit {
    /// Returns whether the process caused its end itself: by exiting, or by what it executed (the signals that
    /// signal(7) calls synchronous, and abort(3)). All others, SIGKILL first, come from outside.
    #[must_use]
    pub fn is_own_doing(self) -> bool {
        use Signal::*;
        let own = [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP];
        match self {
            Exit::Status(_) => true,
            Exit::Signal { number, .. } => own.iter().any(|signal| *signal as i32 == number),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Exit::Status(status) => write!(f, "exited with status {status}"),
            Exit::Signal { number, core } => {
                write!(f, "killed by signal {number}")?;
                if let Ok(signal) = Signal::try_from(number) {
                    write!(f, " ({})", signal.as_str())?;
                }
                f.write_str(if core { ", core dumped" } else { "" })
            }
        }
    }
}

/// Returns the pid of a child that has ended, and how it ended; `None` when there is none. /proc/PID stays readable
/// until [`collect`] collects the child.
///
/// Both must be called until this returns `None`, because one SIGCHLD may report many deaths. As PID 1 of a container
/// it also returns orphans of other processes.
///
/// # Errors
/// Those of waitid(2) except ECHILD.
pub fn ended() -> io::Result<Option<(u32, Exit)>> {
    match find_ended(libc::P_ALL, 0) {
        Err(Errno::ECHILD) => Ok(None),
        found => Ok(found?),
    }
}

/// Returns whether this process has collected a child, so that its pid may be that of another process.
#[must_use]
pub fn is_collected(pidfd: impl AsFd) -> bool {
    let number = pidfd.as_fd().as_raw_fd().unsigned_abs();
    matches!(find_ended(libc::P_PIDFD, number), Err(Errno::ECHILD))
}

/// Returns how a child has ended, and leaves it uncollected; `None` while it runs.
///
/// # Errors
/// Those of waitid(2).
pub fn end_of(pidfd: impl AsFd) -> io::Result<Option<Exit>> {
    let number = pidfd.as_fd().as_raw_fd().unsigned_abs();
    Ok(find_ended(libc::P_PIDFD, number)?.map(|(_, exit)| exit))
}

/// Returns one of these children that has ended, and leaves it uncollected.
fn find_ended(kind: libc::idtype_t, id: libc::id_t) -> Result<Option<(u32, Exit)>, Errno> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        // SAFETY: a siginfo_t consists of numbers, for which 0 is a value. waitid(2) writes one. Of its union it has
        // set the pid and the status, or they are still 0.
        let (waited, pid, code, status) = unsafe {
            let mut info: siginfo_t = mem::zeroed();
            let waited = libc::waitid(kind, id, &raw mut info, flags);
            (waited, info.si_pid(), info.si_code, info.si_status())
        };
        match Errno::result(waited) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
            Ok(_) if pid == 0 => return Ok(None),
            Ok(_) => return Ok(Some((pid.unsigned_abs(), exit_of(code, status)))),
        }
    }
}

/// Returns the end that `si_code` and `si_status` of waitid(2) describe.
fn exit_of(code: i32, status: i32) -> Exit {
    match code {
        libc::CLD_EXITED => Exit::Status(status),
        _ => Exit::Signal {
            number: status,
            core: code == libc::CLD_DUMPED,
        },
    }
}

/// Returns how the process of a descriptor (pidfd_open(2)) has ended that another process has collected. `None` if it
/// was not collected yet, and on a kernel before Linux 6.15, which does not know it.
#[must_use]
pub fn end_of_collected(pidfd: impl AsFd) -> Option<Exit> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the request has the length of the struct, which the kernel fills.
    let asked = unsafe {
        libc::ioctl(
            pidfd.as_fd().as_raw_fd(),
            PIDFD_GET_INFO as _,
            &raw mut info,
        )
    };
    if asked != 0 || info.mask & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    let status = info.exit_code;
    Some(match libc::WIFSIGNALED(status) {
        false => Exit::Status(libc::WEXITSTATUS(status)),
        true => Exit::Signal {
            number: libc::WTERMSIG(status),
            core: libc::WCOREDUMP(status),
        },
    })
}

/// `struct pidfd_info` of linux/pidfd.h, in its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    pids: [u32; 3],
    ids: [u32; 8],
    exit_code: i32,
}

/// Wanted, and there if the process was collected.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `_IOWR(0xff, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: u32 = 3 << 30 | (size_of::<PidfdInfo>() as u32) << 16 | 0xff << 8 | 11;

/// Collects a child that has ended. The kernel may give its pid to another process from then on.
///
/// # Errors
/// Those of waitpid(2).
pub fn collect(pid: u32) -> io::Result<()> {
    // SAFETY: the status may be a null pointer if it is not wanted.
    let waited = unsafe { libc::waitpid(pid_of(pid).as_raw(), ptr::null_mut(), libc::WNOHANG) };
    Errno::result(waited)?;
    Ok(())
}

/// Waits for the end of a child, and collects it. Returns whether its status is 0.
///
/// # Errors
/// Those of waitpid(2): ECHILD if it is not a child of this process, or was collected.
pub fn wait_for_child(pid: u32) -> io::Result<bool> {
    let mut status = 0;
    loop {
        // SAFETY: the call writes one number, to `status`.
        let waited = unsafe { libc::waitpid(pid_of(pid).as_raw(), &raw mut status, 0) };
        match Errno::result(waited) {
            Err(Errno::EINTR) => {}
            Ok(_) => return Ok(status == 0),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_own_doing_unless_a_signal_came_from_outside() {
        use Signal::*;
        // nix has no name for 40, a real-time signal.
        let outside = [SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGUSR2, SIGPIPE, SIGALRM]
            .map(|signal| signal as i32)
            .into_iter()
            .chain([40]);
        let own = [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP];
        let core = false;
        for number in outside {
            assert!(!Exit::Signal { number, core }.is_own_doing(), "{number}");
        }
        for number in own.map(|signal| signal as i32) {
            assert!(Exit::Signal { number, core }.is_own_doing(), "{number}");
        }
        assert!([0, 1, 70].iter().all(|n| Exit::Status(*n).is_own_doing()));
    }
}
