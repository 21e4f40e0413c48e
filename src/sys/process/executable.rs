//! Programs: the running one and others, run in a new process or in this one.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::execve;

use super::{FileId, oom_score, user};
use crate::sys::limit;
use crate::sys::signal::HeldBack;

/// Variables that a service manager sets for the process it has started, and for no other (systemd.exec(5)).
pub(super) const MANAGER_VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    // Not a manager's, but the master's own.
    oom_score::VARIABLE,
];

/// A program, opened once: later changes of its file change nothing.
#[derive(Debug)]
pub struct Executable(File);

impl Executable {
    /// Opens the running program.
    ///
    /// # Errors
    /// Those of open(2) on /proc/self/exe.
    pub fn current() -> io::Result<Executable> {
        let opened = File::open("/proc/self/exe").map(Executable);
        opened.map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => {
                let path = fs::read_link("/proc/self/exe").unwrap_or_else(|_| PathBuf::from("it"));
                let (path, user) = (path.display(), user());
                let why = format!("{e}: {path} must be readable for uid {user}, because workers are started from it");
                io::Error::new(e.kind(), why)
            }
            _ => e,
        })
    }

    /// Returns the program in this file.
    #[must_use]
    pub fn from_file(file: File) -> Executable {
        Executable(file)
    }

    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Replaces the program of this process by this one. It has the same children, and these descriptors under the same
    /// numbers. Signals that arrive in between wait until it calls [`unblock_signals`].
    ///
    /// Returns only if it fails, with the reason; then everything is as it was.
    pub fn become_it(
        &self,
        name: &str,
        arguments: &[String],
        left_open: &[BorrowedFd<'_>],
    ) -> io::Error {
        let c_string = |text: &[u8]| CString::new(text).unwrap_or_default();
        let program = c_string(self.path().as_bytes());
        let arguments: Vec<CString> = std::iter::once(name)
            .chain(arguments.iter().map(String::as_str))
            .map(|a| c_string(a.as_bytes()))
            .collect();
        let variable = |(key, value): (OsString, OsString)| {
            c_string(&[key.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let score =
            oom_score::noted_score().map(|score| (oom_score::VARIABLE.into(), score.into()));
        let environment: Vec<CString> = std::env::vars_os()
            .filter(|(key, _)| key != oom_score::VARIABLE)
            .chain(score)
            .map(variable)
            .collect();
        let inherit = |flag: FdFlag| {
            left_open
                .iter()
                .try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(flag)).map(drop))
        };
        let (all, mut before) = (SigSet::all(), SigSet::empty());
        let failed = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), Some(&mut before))
            .and_then(|()| inherit(FdFlag::empty()))
            .and_then(|()| execve(&program, &arguments, &environment).map(|never| match never {}));
        let _ = inherit(FdFlag::FD_CLOEXEC);
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        failed.err().unwrap_or(Errno::EINVAL).into()
    }

    /// Runs the program in a new process, which inherits `stdin` as its standard input, standard output and error, and
    /// the environment without what the service manager has set for this process, and without the variables `hidden`.
    /// Returns its pid; [`collect`](super::collect) collects it.
    ///
    /// Signals that it receives wait until it calls [`unblock_signals`] or
    /// [`ignore_group_signals`](crate::sys::signal::ignore_group_signals): a service manager sends a signal to all
    /// processes of the daemon, also to those that have just started (KillMode=control-group of systemd.kill(5)).
    ///
    /// # Errors
    /// Those of fork and of exec: posix_spawn(3) returns both.
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: &[A],
        stdin: OwnedFd,
        hidden: &[OsString],
    ) -> io::Result<u32> {
        let mut command = Command::new(self.path());
        // The environment of this process stays: changing it is not safe while there may be other threads.
        for variable in MANAGER_VARIABLES {
            command.env_remove(variable);
        }
        for variable in hidden {
            command.env_remove(variable);
        }
        if let Some(score) = oom_score::noted_score() {
            command.env(oom_score::VARIABLE, score);
        }
        command.arg0(name).args(arguments).stdin(Stdio::from(stdin));
        let _held_back = HeldBack::all();
        // The handle is dropped without waiting: the master collects all children.
        Ok(command.spawn().map_err(limit::named)?.id())
    }
}

/// Lets signals through that were held back while this process was started, or became another program.
pub fn unblock_signals() {
    // It fails for a bad argument only.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Returns the path by which the running program was started, with its symbolic links: its first argument, resolved
/// from the working directory or `$PATH`. If that leads to another file, such as when the starter chose another first
/// argument, returns the path that the kernel reports. None if the file has been replaced or removed since.
#[must_use]
pub fn program_path() -> Option<PathBuf> {
    let running = FileId::from_path("/proc/self/exe").ok()?;
    let is_running = |path: &PathBuf| FileId::from_path(path).is_ok_and(|found| found == running);
    let argument = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let directories: Vec<PathBuf> = match argument.as_os_str().as_bytes().contains(&b'/') {
        true => vec![PathBuf::new()],
        false => std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .collect(),
    };
    let paths = directories
        .into_iter()
        .filter_map(|directory| std::path::absolute(directory.join(&argument)).ok());
    paths.chain(std::env::current_exe()).find(is_running)
}

/// Returns whether the parent process runs the same program as this one: one file, or two with the same content. False
/// if one of them cannot be read.
#[must_use]
pub fn is_parents_program() -> bool {
    let compare = || -> io::Result<bool> {
        let own = File::open("/proc/self/exe")?;
        let parents = File::open(format!("/proc/{}/exe", nix::unistd::getppid()))?;
        Ok(FileId::from_fd(&own)? == FileId::from_fd(&parents)?
            || have_same_content(&own, &parents)?)
    };
    compare().unwrap_or(false)
}

fn have_same_content(one: &File, other: &File) -> io::Result<bool> {
    let length = one.metadata()?.len();
    if other.metadata()?.len() != length {
        return Ok(false);
    }
    let (mut mine, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    while at < length {
        let count = usize::try_from(length - at).map_or(mine.len(), |left| left.min(mine.len()));
        one.read_exact_at(&mut mine[..count], at)?;
        other.read_exact_at(&mut theirs[..count], at)?;
        if mine[..count] != theirs[..count] {
            return Ok(false);
        }
        at += count as u64;
    }
    Ok(true)
}
