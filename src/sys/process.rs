//! Processes: start, end, collect.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fmt, fs};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, SysconfVar, execve, sysconf};

use super::limit;

/// What a service manager tells the process that it has started, and no other (systemd.exec(5)).
const MANAGERS: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// The program that this process runs, opened once: what happens to its file later changes nothing.
#[derive(Debug)]
pub struct Executable(File);

impl Executable {
    /// The running one.
    ///
    /// # Errors
    /// Those of open(2) on /proc/self/exe.
    pub fn current() -> io::Result<Executable> {
        File::open("/proc/self/exe").map(Executable).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => {
                let path = fs::read_link("/proc/self/exe").unwrap_or_else(|_| PathBuf::from("it"));
                let (path, user) = (path.display(), user());
                let why = format!("{e}: {path} must be readable for uid {user}, because workers are started from it");
                io::Error::new(e.kind(), why)
            }
            _ => e,
        })
    }

    /// The one in this file.
    #[must_use]
    pub fn from_file(file: File) -> Executable {
        Executable(file)
    }

    /// Becomes this program: same process, same children, and these descriptors, which it finds under the numbers that they
    /// have. Signals that arrive meanwhile wait until it calls [`unblock_signals`].
    ///
    /// Returns only if it fails, and then everything is as it was: why.
    pub fn become_it(
        &self,
        name: &str,
        arguments: &[String],
        left_open: &[BorrowedFd<'_>],
    ) -> io::Error {
        let c_string = |text: &[u8]| CString::new(text).unwrap_or_default();
        let program = c_string(format!("/proc/self/fd/{}", self.0.as_raw_fd()).as_bytes());
        let arguments: Vec<CString> = std::iter::once(name)
            .chain(arguments.iter().map(String::as_str))
            .map(|a| c_string(a.as_bytes()))
            .collect();
        let variable = |(key, value): (OsString, OsString)| {
            c_string(&[key.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let environment: Vec<CString> = std::env::vars_os().map(variable).collect();
        let inherit = |flag: FdFlag| {
            left_open
                .iter()
                .try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(flag)).map(|_| ()))
        };
        let mut before = SigSet::empty();
        let failed = sigprocmask(
            SigmaskHow::SIG_BLOCK,
            Some(&SigSet::all()),
            Some(&mut before),
        )
        .and_then(|()| inherit(FdFlag::empty()))
        .and_then(|()| execve(&program, &arguments, &environment).map(|never| match never {}));
        let _ = inherit(FdFlag::FD_CLOEXEC);
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        failed.err().unwrap_or(Errno::EINVAL).into()
    }

    /// Runs it again in a new process that has `stdin` as its standard input and inherits nothing else but
    /// standard output and error, and the environment without what the service manager has told this one there.
    /// Returns its pid; [`collect`] collects it.
    ///
    /// # Errors
    /// Those of fork and of exec: posix_spawn(3) tells both to the caller.
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: &[A],
        stdin: OwnedFd,
    ) -> io::Result<u32> {
        let program = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let mut command = Command::new(program);
        // Not from our own environment, which nobody may change who cannot know of all threads.
        MANAGERS.iter().for_each(|variable| {
            command.env_remove(variable);
        });
        let child = command
            .arg0(name)
            .args(arguments)
            .stdin(Stdio::from(stdin))
            .spawn()
            .map_err(limit::named)?;
        // The handle is dropped without waiting: there is one reaper.
        Ok(child.id())
    }
}

/// The path that the running program was called by, symbolic links and all: its first argument, from the working directory
/// or from `$PATH`. If that leads to another file, such as when the caller chose another first argument, it is the path that
/// the kernel reports. None if the file has been replaced or removed since.
#[must_use]
pub fn program_path() -> Option<PathBuf> {
    let running = FileId::from_path("/proc/self/exe").ok()?;
    let is_running = |path: &PathBuf| FileId::from_path(path).is_ok_and(|found| found == running);
    let called = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let directories: Vec<PathBuf> = match called.as_os_str().as_bytes().contains(&b'/') {
        true => vec![PathBuf::new()],
        false => std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .collect(),
    };
    let paths = directories
        .into_iter()
        .filter_map(|directory| std::path::absolute(directory.join(&called)).ok());
    paths.chain(std::env::current_exe()).find(is_running)
}

/// Whether the parent process runs the same program as this one: one file, or two with the same content. False if one of
/// them cannot be read.
#[must_use]
pub fn is_parents_program() -> bool {
    let compared = || {
        let [own, parents] = ["self".to_owned(), nix::unistd::getppid().to_string()]
            .map(|process| File::open(format!("/proc/{process}/exe")));
        let (own, parents) = (own?, parents?);
        Ok::<bool, io::Error>(
            FileId::from_fd(&own)? == FileId::from_fd(&parents)?
                || have_same_content(&own, &parents)?,
        )
    };
    compared().unwrap_or(false)
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

/// Signals are let through that were held back while this process became another program.
pub fn unblock_signals() {
    // It fails for a bad argument only.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Status(i32),
    /// By a signal.
    Signal {
        /// Its number.
        number: i32,
        /// Whether it left a core file.
        core: bool,
    },
}

impl Exit {
    /// Whether the process did that to itself: by exiting, or by what it executed (the signals that signal(7) calls
    /// synchronous, and abort(3)). All others, SIGKILL first, come from outside.
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

/// A child that has ended: its pid and how it ended. `None` when there is none. /proc/PID still tells of it, until it is
/// collected by [`collect`].
///
/// Call both until this says `None`: twenty deaths may be told by one SIGCHLD. As PID 1 of a container it also tells of
/// the orphans of others.
///
/// # Errors
/// Those of waitid(2) but ECHILD.
pub fn ended() -> io::Result<Option<(u32, Exit)>> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::All, flags) {
            Ok(WaitStatus::Exited(pid, status)) => {
                return Ok(Some((number(pid), Exit::Status(status))));
            }
            Ok(WaitStatus::Signaled(pid, signal, core)) => {
                return Ok(Some((
                    number(pid),
                    Exit::Signal {
                        number: signal as i32,
                        core,
                    },
                )));
            }
            Ok(_) | Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Collects a child that has ended; its pid may be another's from then on.
///
/// # Errors
/// Those of waitpid(2).
pub fn collect(pid: u32) -> io::Result<()> {
    waitpid(pid_of(pid), Some(WaitPidFlag::WNOHANG))?;
    Ok(())
}

/// Kills a child that has not been collected yet, which is what makes the pid its own.
///
/// # Errors
/// Those of kill(2).
pub fn kill_child(pid: u32) -> io::Result<()> {
    Ok(kill(pid_of(pid), Signal::SIGKILL)?)
}

/// Kills a child that leads a process group, and all others in its group: nobody is forked out of it meanwhile.
///
/// # Errors
/// Those of killpg(3).
pub fn kill_group(leader: u32) -> io::Result<()> {
    Ok(killpg(pid_of(leader), Signal::SIGKILL)?)
}

/// Makes this process the leader of a session, and of a process group in it, without a terminal.
///
/// # Errors
/// Those of setsid(2): EPERM when it leads a process group already.
pub fn begin_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    Ok(())
}

/// Kills the process group that this process leads, and with it this process. Does nothing where it leads none.
pub fn end_group_with_its_leader() {
    if nix::unistd::getpgrp() == Pid::this() {
        // It fails for a bad argument only.
        let _ = killpg(Pid::this(), Signal::SIGKILL);
    }
}

/// From now on the children of a descendant that ends become children of this process (PR_SET_CHILD_SUBREAPER of prctl(2)),
/// which is to collect them.
///
/// # Errors
/// Those of prctl(2).
pub fn adopt_orphans() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// A child of this process, own or adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its number.
    pub pid: u32,
    /// Its process group.
    pub group: u32,
    /// Its session.
    pub session: u32,
}

/// All children of this process, those that have ended and are not collected among them: /proc/PID/task/TID/children and
/// /proc/PID/stat (proc(5)). None where the kernel does not list them (CONFIG_PROC_CHILDREN).
#[must_use]
pub fn children() -> Vec<Child> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let lists = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<u32> = lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    let child = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name: state, parent, group, session.
        let mut fields = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .skip(2)
            .map(str::parse);
        let (group, session) = (fields.next()?.ok()?, fields.next()?.ok()?);
        Some(Child {
            pid,
            group,
            session,
        })
    };
    pids.into_iter().filter_map(child).collect()
}

/// Which file it is that is open, whoever has it open. Both ends of a pipe are one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    number: u64,
}

impl FileId {
    /// That of an open file.
    ///
    /// # Errors
    /// Those of stat(2) on /proc/self/fd.
    pub fn from_fd(file: impl AsFd) -> io::Result<FileId> {
        FileId::from_path(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
    }

    fn from_path(path: impl AsRef<Path>) -> io::Result<FileId> {
        fs::metadata(path).map(|found| FileId {
            device: found.dev(),
            number: found.ino(),
        })
    }
}

/// Kills all processes but this one whose standard output or error this file is.
///
/// # Errors
/// Those of reading /proc.
pub fn kill_writers(file: FileId) -> io::Result<()> {
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids.filter(|pid| *pid != std::process::id()) {
        if [1, 2].iter().any(|fd| {
            FileId::from_path(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|found| found == file)
        }) {
            // It may have ended since.
            let _ = kill(pid_of(pid), Signal::SIGKILL);
        }
    }
    Ok(())
}

/// Sends a signal by the name that kill(1) has for it, such as `TERM`.
///
/// # Errors
/// Those of kill(2); EINVAL also for a name that there is not.
pub fn send(pid: u32, signal: &str) -> io::Result<()> {
    let signal: Signal = format!("SIG{signal}").parse()?;
    Ok(kill(pid_of(pid), signal)?)
}

/// The effective user of this process.
#[must_use]
pub fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Resident memory of a process in bytes, by /proc/PID/statm (proc(5)), which takes no lock of it.
#[must_use]
pub fn resident_memory(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    pages.checked_mul(page)
}

/// Processes that the kernel has killed for want of memory since the system began, whosever they were: `oom_kill` of
/// /proc/vmstat (proc(5)). If it has grown when one was killed by SIGKILL, that was probably the kernel's doing.
#[must_use]
pub fn oom_kills() -> Option<u64> {
    let counters = fs::read_to_string("/proc/vmstat").ok()?;
    counters
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?
        .parse()
        .ok()
}

/// Makes it likelier by so much that the kernel ends this process, and not another one, when memory is out: from 0 to 1000,
/// thousandths of all memory (`oom_score_adj` of proc(5)). It needs no right, and children inherit it.
///
/// # Errors
/// Those of open(2), read(2) and write(2).
pub fn raise_oom_score(by: i32) -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let now: i32 = fs::read_to_string(path)?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    fs::write(path, now.saturating_add(by).clamp(-1000, 1000).to_string())
}

/// What a process has had of the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// It runs, or would if it had a CPU.
    pub is_runnable: bool,
    /// How long it has run in all; of one that is running it may lag behind by a tick.
    pub ran: Duration,
}

/// What the kernel says of that: /proc/PID/stat and /proc/PID/schedstat (proc(5), sched-stats.rst). Nothing where it keeps no
/// account, or the process is gone.
#[must_use]
pub fn scheduling(pid: u32) -> Option<Scheduling> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let schedstat = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    let ran = Duration::from_nanos(schedstat.split_whitespace().next()?.parse().ok()?);
    (!ran.is_zero()).then(|| Scheduling {
        is_runnable: after_name.trim_start().starts_with('R'),
        ran,
    })
}

/// Has the kernel end this process when its parent ends (PR_SET_PDEATHSIG of prctl(2)).
pub fn end_with_parent() {
    // It fails for a bad signal only.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
}

/// Gives this process the name that ps(1) and top(1) show, of which the kernel keeps 15 bytes. Without it a
/// program run by its descriptor is called by the number of that.
pub fn set_name(name: &str) {
    let short: Vec<u8> = name.bytes().filter(|b| *b != 0).take(15).collect();
    if let Ok(short) = std::ffi::CString::new(short) {
        // It fails for a bad pointer only.
        let _ = nix::sys::prctl::set_name(&short);
    }
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

fn number(pid: Pid) -> u32 {
    pid.as_raw().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_does_to_itself_is_told_from_what_is_done_to_it() {
        use Signal::*;
        let killed_by = |signal| Exit::Signal {
            number: signal as i32,
            core: false,
        };
        for exit in [0, 1, 70].map(Exit::Status) {
            assert!(exit.is_own_doing(), "{exit}");
        }
        for exit in [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP].map(killed_by) {
            assert!(exit.is_own_doing(), "{exit}");
        }
        for exit in [
            SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGUSR2, SIGPIPE, SIGALRM, SIGXCPU,
        ]
        .map(killed_by)
        {
            assert!(!exit.is_own_doing(), "{exit}");
        }
        // A real-time signal, for which nix has no name.
        assert!(
            !Exit::Signal {
                number: 40,
                core: false
            }
            .is_own_doing()
        );
    }

    #[test]
    fn children_are_listed_with_group_and_session() {
        let mut child = Command::new("sleep")
            .arg("1000")
            .process_group(0)
            .spawn()
            .expect("sleep");
        let session = nix::unistd::getsid(None)
            .expect("a session")
            .as_raw()
            .unsigned_abs();
        let wanted = Child {
            pid: child.id(),
            group: child.id(),
            session,
        };
        assert!(children().contains(&wanted), "{wanted:?}: {:?}", children());
        child.kill().expect("it is ours");
        assert!(children().contains(&wanted), "it is not collected yet");
        child.wait().expect("it is ours");
        assert!(!children().contains(&wanted));
    }

    #[test]
    fn the_kernel_tells_what_this_process_has_had_of_the_cpus() {
        let before = scheduling(std::process::id()).expect("the kernel keeps account");
        assert!(!before.ran.is_zero());
        assert_eq!(scheduling(u32::MAX >> 1), None);
    }

    #[test]
    fn the_kernel_tells_how_often_it_was_out_of_memory() {
        let told = fs::read_to_string("/proc/vmstat")
            .is_ok_and(|counters| counters.contains("\noom_kill "));
        assert_eq!(oom_kills().is_some(), told);
    }
}
