//! Processes: how they end, are collected and killed; sessions, names, signals.

mod app;
mod bound;
mod executable;
mod exit;
mod identity;
mod lookup;
mod oom_score;
mod proc_files;
mod sibling;
mod title;

use std::ffi::CString;
use std::io;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, geteuid, getpgrp, setsid};

pub(in crate::sys) use app::kill_with_group;
pub use app::{
    AppProcess, AppProgram, AppStdio, ParentDeathSignal, kill_app, open_pidfd, spawn_app, wire,
};
pub use bound::end_with_this_thread;
pub use executable::{Executable, is_parents_program, program_path, unblock_signals};
pub use exit::{Exit, collect, end_of, end_of_collected, ended, is_collected, wait_for_child};
pub use identity::{ProcessHandle, ProcessIdentity};
pub use lookup::find_program;
pub use oom_score::{protect_from_oom, raise_oom_score};
pub(in crate::sys) use proc_files::is_running;
pub use proc_files::{
    Child, ChildList, FileId, Scheduling, is_ending, kill_writers, resident_memory, scheduling,
    thread_scheduling,
};
pub use sibling::{Forked, SiblingForker, exit_without_destructors, flush_streams};
pub use title::ProcessTitle;

/// Kills a child that has not been collected yet, so that the pid can only be its own.
///
/// # Errors
/// Those of kill(2).
pub fn kill_child(pid: u32) -> io::Result<()> {
    Ok(kill(pid_of(pid), Signal::SIGKILL)?)
}

/// Kills a child that leads a process group, and all processes in the group, at once: none can fork out of it in
/// between.
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

/// Makes this process the parent of its descendants' orphans (PR_SET_CHILD_SUBREAPER of prctl(2)). It must collect
/// them.
///
/// # Errors
/// Those of prctl(2).
pub fn adopt_orphans() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Makes the kernel end this process when the thread of its parent ends that created it (PR_SET_PDEATHSIG of prctl(2)).
/// Its children do not inherit this.
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
