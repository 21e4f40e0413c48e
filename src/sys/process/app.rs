//! Apps: programs that run with a socket as descriptor 3.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getpid, getppid, setgid, setgroups, setuid};

use super::executable::MANAGER_VARIABLES;
use super::pid_of;
use crate::sys::cgroup::AppCgroups;
use crate::sys::limit;

/// The program of an app and its circumstances.
#[derive(Clone, Copy, Debug)]
pub struct AppProgram<'a> {
    /// The program, found by `PATH` unless it has a slash, and its arguments.
    pub command: &'a [String],
    /// The working directory.
    pub directory: Option<&'a Path>,
    /// Variables besides those of this process.
    pub environment: &'a BTreeMap<String, String>,
    /// User, group and supplementary groups, if they are not those of this process.
    pub identity: Option<(u32, u32, &'a [u32])>,
    /// The file mode creation mask, if it is not that of this process.
    pub umask: Option<u32>,
    /// Where the app gets a cgroup of its own, if it does.
    pub cgroups: Option<&'a AppCgroups>,
    /// The signal of the kernel when the thread that starts the app ends.
    pub parent_death: ParentDeathSignal,
}

/// A signal that a process gets when its parent ends (PR_SET_PDEATHSIG of prctl(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentDeathSignal {
    /// SIGKILL.
    Kill,
    /// SIGUSR1, which ends the process as well, unless that ignores it.
    User1,
}

/// Standard output and standard error of an app.
#[derive(Debug)]
pub enum AppStdio {
    /// The writing ends of two pipes.
    Pipes(OwnedFd, OwnedFd),
    /// The streams of this process.
    Inherit,
    /// /dev/null.
    Null,
}

/// A running app.
#[derive(Debug)]
pub struct AppProcess {
    /// The app's pid, which leads a process group. It stays the app's, because this process does not collect it.
    pub pid: u32,
    /// Becomes readable when the app has ended (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// Returns a stream socket pair: this process's end, which does not block, and the app's end, which does.
///
/// # Errors
/// Those of socketpair(2) and fcntl(2).
pub fn wire() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, theirs.into()))
}

/// Starts an app: descriptor 3 is `wire`, and 0 is /dev/null.
///
/// # Errors
/// Those of fork(2), of the steps before execve(2), and of execve(2) itself.
pub fn spawn_app(
    program: AppProgram<'_>,
    wire: OwnedFd,
    stdio: AppStdio,
) -> io::Result<AppProcess> {
    let [name, arguments @ ..] = program.command else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // In the child, std's own pipe must not get the number of the wire.
    let _numbers = occupy_numbers()?;
    let mut command = Command::new(name);
    for variable in MANAGER_VARIABLES {
        command.env_remove(variable);
    }
    command
        .args(arguments)
        .envs(program.environment)
        .stdin(Stdio::null())
        .process_group(0);
    if let Some(directory) = program.directory {
        command.current_dir(directory);
    }
    match stdio {
        AppStdio::Inherit => {}
        AppStdio::Null => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        AppStdio::Pipes(output, error) => {
            command.stdout(output).stderr(error);
        }
    }
    prepare_child(&mut command, program, wire.as_raw_fd());
    let pid = command.spawn().map_err(limit::named)?.id();
    match open_pidfd(pid) {
        Ok(pidfd) => Ok(AppProcess { pid, pidfd }),
        Err(e) => {
            let _ = super::kill_child(pid);
            Err(e)
        }
    }
}

/// Sets what the child does before it executes the program. `wire_number` must stay open until then.
fn prepare_child(command: &mut Command, program: AppProgram<'_>, wire_number: RawFd) {
    let identity = program.identity.map(|(uid, gid, groups)| {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        (Uid::from_raw(uid), Gid::from_raw(gid), groups)
    });
    let mask = program.umask.map(Mode::from_bits_truncate);
    let cgroups = program.cgroups.cloned();
    let (parent, signal) = (getpid(), program.parent_death);
    let signal = match signal {
        ParentDeathSignal::Kill => Signal::SIGKILL,
        ParentDeathSignal::User1 => Signal::SIGUSR1,
    };
    // SAFETY: the closure makes system calls only, on memory that exists before the fork.
    unsafe {
        command.pre_exec(move || {
            place_wire(wire_number)?;
            // Before the user changes, who may not do this.
            if let Some(cgroups) = &cgroups {
                cgroups.enter();
            }
            if let Some(mask) = mask {
                umask(mask);
            }
            if let Some((uid, gid, groups)) = &identity {
                setgroups(groups)?;
                setgid(*gid)?;
                setuid(*uid)?;
            }
            // Last, because a change of the user clears it.
            prctl::set_pdeathsig(signal)?;
            if getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
            Ok(())
        });
    }
}

/// Occupies all descriptor numbers up to that of the wire.
fn occupy_numbers() -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    loop {
        let file = File::open("/dev/null")?;
        let number = file.as_raw_fd();
        files.push(file);
        if number > WIRE {
            return Ok(files);
        }
    }
}

/// The number of the app's end of the wire.
const WIRE: RawFd = 3;

/// Gives the wire its number, and lets the program inherit it.
fn place_wire(number: RawFd) -> io::Result<()> {
    // SAFETY: `occupy_numbers` has taken number 3 in the parent, so it is not a descriptor that std uses in the child.
    let placed = unsafe { libc::dup2(number, WIRE) };
    Errno::result(placed)?;
    if number == WIRE {
        // SAFETY: it changes a flag of a descriptor of this process.
        Errno::result(unsafe { libc::fcntl(WIRE, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

/// Returns a descriptor of a child that has not been collected (pidfd_open(2)), close-on-exec.
///
/// # Errors
/// Those of pidfd_open(2).
pub fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call has no pointers, and returns a new descriptor, which nothing else owns.
    unsafe {
        let opened = libc::syscall(libc::SYS_pidfd_open, pid_of(pid).as_raw(), 0);
        let number = Errno::result(opened)?;
        Ok(OwnedFd::from_raw_fd(number as RawFd))
    }
}

/// Kills an app and the process group that it leads.
///
/// An app that a zygote has forked may be collected by another process, after which its pid may be that of another
/// process or group: nothing is killed by its pid then.
pub fn kill_app(app: &AppProcess) {
    kill_with_group(app.pid, app.pidfd.as_raw_fd());
}

/// Kills the process of a descriptor (pidfd_open(2)) and the process group that it leads. Safe in a signal handler.
pub(in crate::sys) fn kill_with_group(pid: u32, pidfd: RawFd) {
    let send = |signal: libc::c_int, flags: libc::c_uint| {
        // SAFETY: a null pointer stands for the usual information, and the rest are numbers.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd,
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                flags,
            )
        };
        sent == 0
    };
    // Before Linux 6.9 a group has only its number. That is the app's at least until the app is collected, which signal
    // 0 finds out.
    if !send(libc::SIGKILL, PIDFD_SIGNAL_PROCESS_GROUP) && pid > 1 && send(0, 0) {
        // SAFETY: its arguments are numbers.
        unsafe { libc::kill(-pid_of(pid).as_raw(), libc::SIGKILL) };
    }
    // In case it has left its group.
    send(libc::SIGKILL, 0);
}

/// A flag of pidfd_send_signal(2), since Linux 6.9: the signal is for the process group.
const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    fn leader(program: &str, argument: &str) -> Child {
        let mut command = Command::new(program);
        command.arg(argument).process_group(0);
        command.spawn().expect("it is started")
    }

    /// The pid of an app that was collected belongs to another group now.
    #[test]
    fn no_other_group_is_killed_by_a_pid() {
        let mut app = leader("true", "");
        let pidfd = open_pidfd(app.id()).expect("it is not collected");
        app.wait().expect("it ends");
        let mut other = leader("sleep", "1000");
        kill_app(&AppProcess {
            pid: other.id(),
            pidfd,
        });
        // The signal that was sent first is the one that it ends by.
        super::super::send(other.id(), "TERM").expect("it is ours");
        let ended = other.wait().expect("it ends");
        assert_eq!(ended.signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn the_processes_of_the_group_are_killed() {
        let mut app = leader("sleep", "1000");
        let mut member = Command::new("sleep");
        let member = member.arg("1000").process_group(pid_of(app.id()).as_raw());
        let mut member = member.spawn().expect("it is started");
        let pidfd = open_pidfd(app.id()).expect("it is not collected");
        kill_app(&AppProcess {
            pid: app.id(),
            pidfd,
        });
        for child in [&mut app, &mut member] {
            let ended = child.wait().expect("it has ended");
            assert_eq!(ended.signal(), Some(libc::SIGKILL));
        }
    }
}
