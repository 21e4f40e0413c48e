//! Processes: how they end, are collected and killed; sessions, names, signals.

mod app;
mod executable;
mod identity;
mod lookup;
mod oom_score;
mod proc_files;

use std::ffi::CString;
use std::{fmt, io};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, geteuid, getpgrp, setsid};

pub use app::{AppProcess, AppProgram, AppStdio, end_of, kill_app, open_pidfd, spawn_app, wire};
pub use executable::{Executable, is_parents_program, program_path, unblock_signals};
pub use identity::{ProcessHandle, ProcessIdentity};
pub use lookup::find_program;
pub use oom_score::{protect_from_oom, raise_oom_score};
pub(in crate::sys) use proc_files::is_running;
pub use proc_files::{
    Child, FileId, Scheduling, children, kill_writers, resident_memory, scheduling,
    thread_scheduling,
};

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
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let (pid, exit) = match waitid(Id::All, flags) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, Exit::Status(status)),
            Ok(WaitStatus::Signaled(pid, signal, core)) => {
                let number = signal as i32;
                (pid, Exit::Signal { number, core })
            }
            Ok(_) | Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        };
        return Ok(Some((pid.as_raw().unsigned_abs(), exit)));
    }
}

/// Collects a child that has ended. The kernel may give its pid to another process from then on.
///
/// # Errors
/// Those of waitpid(2).
pub fn collect(pid: u32) -> io::Result<()> {
    waitpid(pid_of(pid), Some(WaitPidFlag::WNOHANG))?;
    Ok(())
}

/// Waits for the end of a child, and collects it. Returns whether its status is 0.
///
/// # Errors
/// Those of waitpid(2): ECHILD if it is no child of this process, or was collected.
pub fn wait_for_child(pid: u32) -> io::Result<bool> {
    loop {
        match waitpid(pid_of(pid), None) {
            Err(Errno::EINTR) => {}
            Ok(status) => return Ok(matches!(status, WaitStatus::Exited(_, 0))),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills a child that has not been collected yet, so that the pid can only be its own.
///
/// # Errors
/// Those of kill(2).
pub fn kill_child(pid: u32) -> io::Result<()> {
    Ok(kill(pid_of(pid), Signal::SIGKILL)?)
}

/// Kills a child that leads a process group, and all processes in the group, at once: none can fork out of it in between.
///
/// # Errors
/// Those of killpg(3).
pub fn kill_group(leader: u32) -> io::Result<()> {
    Ok(killpg(pid_of(leader), Signal::SIGKILL)?)
}

/// Makes this process the leader of a new session, and of a process group in it, without a terminal.
///
/// # Errors
/// Those of setsid(2): EPERM when it leads a process group already.
pub fn begin_session() -> io::Result<()> {
    Ok(setsid().map(drop)?)
}

/// Kills the process group that this process leads, and with it this process. Does nothing if it leads none.
pub fn end_group_with_its_leader() {
    if getpgrp() == Pid::this() {
        // It fails for a bad argument only.
        let _ = killpg(Pid::this(), Signal::SIGKILL);
    }
}

/// Makes this process the parent of its descendants' orphans (PR_SET_CHILD_SUBREAPER of prctl(2)). It must collect them.
///
/// # Errors
/// Those of prctl(2).
pub fn adopt_orphans() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Makes the kernel end this process when its parent ends (PR_SET_PDEATHSIG of prctl(2)).
pub fn end_with_parent() {
    // It fails for a bad signal only.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
}

/// Sends a signal by its name in kill(1), such as `TERM`.
///
/// # Errors
/// Those of kill(2); EINVAL also for an unknown name.
pub fn send(pid: u32, signal: &str) -> io::Result<()> {
    let signal: Signal = format!("SIG{signal}").parse()?;
    Ok(kill(pid_of(pid), signal)?)
}

/// Returns the effective user of this process.
#[must_use]
pub fn user() -> u32 {
    geteuid().as_raw()
}

/// Sets the name that ps(1) and top(1) show, of which the kernel keeps 15 bytes. The default is the last part of the
/// path, which for a program run by its descriptor is a number.
pub fn set_name(name: &str) {
    let short: Vec<u8> = name.bytes().filter(|b| *b != 0).take(15).collect();
    if let Ok(short) = CString::new(short) {
        // It fails for a bad pointer only.
        let _ = prctl::set_name(&short);
    }
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
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
