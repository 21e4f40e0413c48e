//! Cgroups of apps (cgroups(7); cgroup-v2.rst of the kernel's documentation), where the cgroup of this process is
//! delegated to it: each app has one, and all that it has started is killed by one write, whatever its session, process
//! group and parent are.
//!
//! An app enters its cgroup before it executes its program. The cgroup's name has the app's pid, so any process of the
//! daemon that knows the app finds it. No controller is used, so no limit applies, and this process may stay where it
//! is: only cgroups with controllers may not have both processes and children.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::libc;
use nix::unistd::{AccessFlags, Pid, eaccess, geteuid, getppid};

use super::own_v2;
use crate::sys::process::is_running;

/// The names of the cgroups, before the pid.
const PREFIX: &str = "app-";

/// Extended attributes by which service managers mark what they delegate. Only root can read the second.
const MARKS: [&CStr; 2] = [c"user.delegate", c"trusted.delegate"];

/// The most child cgroups that one call removes: an app may have made any number.
const MAX_REMOVALS: usize = 64;

/// The time between two looks at a cgroup, in ms, and the number of looks in [`AppCgroup::end`].
const LOOK_INTERVAL: libc::c_int = 2;
const MAX_LOOKS: u32 = 250;

/// The cgroup that has a child for each app.
#[derive(Clone, Debug)]
pub struct AppCgroups {
    directory: Arc<OwnedFd>,
    path: PathBuf,
}

impl AppCgroups {
    /// Finds the cgroup that is delegated to this process: its own, or the one above it if it was placed in a child.
    ///
    /// # Errors
    /// Why there is none.
    pub fn of_process() -> Result<AppCgroups, String> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (own, is_root) = own_v2(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
            .ok_or("cgroup v2 is not mounted")?;
        if !lists(&own, std::process::id()) {
            return Err(format!("{} is not the daemon's cgroup", own.display()));
        }
        if !own.join("cgroup.kill").exists() {
            return Err(format!("{} has no cgroup.kill", own.display()));
        }
        let above = own.parent().filter(|_| !is_root);
        let delegated = [Some(own.as_path()), above].into_iter().flatten();
        let path = delegated
            .filter(|path| is_delegated(path, is_root))
            .find(|path| path.join("cgroup.kill").exists())
            .ok_or_else(|| format!("{} is not delegated to the daemon", own.display()))?;
        for file in [path.to_owned(), path.join("cgroup.procs")] {
            eaccess(&file, AccessFlags::W_OK)
                .map_err(|e| format!("{}: {}", file.display(), io::Error::from(e)))?;
        }
        if path.to_str().is_none() {
            return Err(format!("{} is not UTF-8", path.display()));
        }
        AppCgroups::open(path).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Opens a cgroup that [`of_process`](Self::of_process) has found.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<AppCgroups> {
        Ok(AppCgroups {
            directory: Arc::new(File::open(path)?.into()),
            path: path.to_owned(),
        })
    }

    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the cgroup of an app, and moves the calling process, which will be that app, into it. If that fails,
    /// there is no such cgroup. Must be called between fork(2) and execve(2): it makes system calls only.
    pub(in crate::sys) fn enter(&self) {
        let pid = std::process::id();
        let (mut name, mut file) = ([0; 64], [0; 64]);
        let written = write!(&mut name[..], "{PREFIX}{pid}\0")
            .and_then(|()| write!(&mut file[..], "{PREFIX}{pid}/cgroup.procs\0"));
        let (Ok(()), Ok(name), Ok(file)) = (
            written,
            CStr::from_bytes_until_nul(&name),
            CStr::from_bytes_until_nul(&file),
        ) else {
            return;
        };
        // SAFETY: the strings end with a null byte and outlive the call.
        unsafe { libc::mkdirat(self.directory.as_raw_fd(), name.as_ptr(), 0o755) };
        if write_at(&self.directory, file, b"0").is_err() {
            let _ = remove_at(&self.directory, name);
        }
    }

    /// Creates the cgroup of an app that was forked, and moves the app into it. If that fails, there is no such cgroup.
    pub fn adopt(&self, pid: u32) {
        let path = self.path.join(format!("{PREFIX}{pid}"));
        let _ = fs::create_dir(&path);
        if fs::write(path.join("cgroup.procs"), pid.to_string()).is_err() {
            let _ = fs::remove_dir(&path);
        }
    }

    /// Returns the cgroup of the app with this pid, if there is one.
    #[must_use]
    pub fn of_app(&self, pid: u32) -> Option<AppCgroup> {
        let name = format!("{PREFIX}{pid}");
        let path = self.path.join(&name);
        path.is_dir().then(|| AppCgroup {
            directory: Arc::clone(&self.directory),
            kill_file: CString::new(format!("{name}/cgroup.kill")).unwrap_or_default(),
            events_file: CString::new(format!("{name}/cgroup.events")).unwrap_or_default(),
            name: CString::new(name).unwrap_or_default(),
            path,
            pid,
            parent: getppid(),
        })
    }

    /// Returns the cgroups of apps that are gone. Most are of a daemon that was killed.
    #[must_use]
    pub fn left(&self) -> Vec<AppCgroup> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix(PREFIX)?.parse().ok()
        });
        // An app of another user may be hidden, and one that has not entered its cgroup yet is not listed.
        let runs = |cgroup: &AppCgroup| lists(&cgroup.path, cgroup.pid) || is_running(cgroup.pid);
        pids.filter_map(|pid| self.of_app(pid))
            .filter(|cgroup| !runs(cgroup))
            .collect()
    }
}

/// The cgroup of one app.
#[derive(Debug)]
pub struct AppCgroup {
    directory: Arc<OwnedFd>,
    name: CString,
    kill_file: CString,
    events_file: CString,
    path: PathBuf,
    pid: u32,
    /// The parent of this process when it opened the cgroup.
    parent: Pid,
}

impl AppCgroup {
    /// Returns the pid of its app.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills everything in it and below it, also a process that is being forked. May be called by a signal handler.
    pub fn kill(&self) {
        // It fails if the cgroup is gone.
        let _ = write_at(&self.directory, &self.kill_file, b"1");
    }

    /// Removes it if nothing runs in it. Returns whether nothing does. Never waits.
    #[must_use]
    pub fn try_remove(&self) -> bool {
        match remove_at(&self.directory, &self.name) {
            Ok(()) | Err(Errno::ENOENT) => true,
            Err(_) => {
                // Then the app has left cgroups of its own in it.
                self.is_empty() && remove_all(&self.path, &mut { MAX_REMOVALS })
            }
        }
    }

    /// Kills everything in it, and waits until that has ended, at most 500 ms. May be called by a signal handler.
    ///
    /// Does not remove it. The master is gone, so a service manager may be sending signals to each process of the unit.
    /// When systemd reads the list of a cgroup that was removed a moment ago, it gets ENODEV, does not wait for the
    /// processes that it has signalled, and kills them: the other workers, which pack their clients.
    pub fn end(&self) {
        self.kill();
        for _ in 0..MAX_LOOKS {
            if self.is_empty() {
                return;
            }
            // SAFETY: without descriptors it only waits.
            unsafe { libc::poll(std::ptr::null_mut(), 0, LOOK_INTERVAL) };
        }
    }

    /// Returns whether nothing runs in it or below it any more.
    fn is_empty(&self) -> bool {
        let mut events = [0; 256];
        match read_at(&self.directory, &self.events_file, &mut events) {
            Ok(length) => {
                let mut lines = events[..length].split(|byte| *byte == b'\n');
                lines.any(|line| line == b"populated 0")
            }
            // It is removed.
            Err(e) => matches!(e, Errno::ENOENT | Errno::ENODEV),
        }
    }
}

/// Ends the cgroup of an app when it is dropped. The master does the same, so this waits only if the master is gone.
#[derive(Debug)]
pub struct AppCgroupGuard(pub Arc<AppCgroup>);

impl Drop for AppCgroupGuard {
    fn drop(&mut self) {
        self.0.kill();
        if getppid() != self.0.parent {
            self.0.end();
        }
    }
}

/// Returns whether a cgroup has this process in it. A process that has ended is in none.
fn lists(cgroup: &Path, pid: u32) -> bool {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.lines().any(|line| line.parse() == Ok(pid))
}

/// Returns whether a service manager has delegated a cgroup: it has marked it, or has given it to this user in a
/// directory that it has kept. The root of a container is delegated to the container.
fn is_delegated(path: &Path, is_root: bool) -> bool {
    let user = geteuid().as_raw();
    let owner = |path: &Path| fs::metadata(path).ok().map(|found| found.uid());
    let above = path.parent().and_then(owner);
    let is_given = user != 0 && owner(path) == Some(user) && above != Some(user);
    is_root || is_given || MARKS.iter().any(|mark| has_mark(path, mark))
}

fn has_mark(path: &Path, mark: &CStr) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    let mut value = [0_u8; 1];
    // SAFETY: the strings end with a null byte, and the kernel writes at most one byte to the buffer.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), mark.as_ptr(), value.as_mut_ptr().cast(), 1) };
    length == 1 && value == *b"1"
}

fn open_at(directory: &OwnedFd, file: &CStr, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the string ends with a null byte, and the descriptor is owned by nothing else.
    unsafe {
        let opened = libc::openat(directory.as_raw_fd(), file.as_ptr(), flags);
        Ok(OwnedFd::from_raw_fd(Errno::result(opened)?))
    }
}

/// Reads a file that is shorter than the buffer. Returns its length.
fn read_at(directory: &OwnedFd, file: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    let file = open_at(directory, file, libc::O_RDONLY)?;
    // SAFETY: it writes at most as many bytes as the buffer has.
    let read = unsafe { libc::read(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    Errno::result(read).map(isize::unsigned_abs)
}

fn write_at(directory: &OwnedFd, file: &CStr, text: &[u8]) -> Result<(), Errno> {
    let file = open_at(directory, file, libc::O_WRONLY)?;
    // SAFETY: it reads as many bytes as there are.
    let written = unsafe { libc::write(file.as_raw_fd(), text.as_ptr().cast(), text.len()) };
    Errno::result(written).map(drop)
}

fn remove_at(directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let flags = AtFlags::AT_REMOVEDIR.bits();
    // SAFETY: the string ends with a null byte and outlives the call.
    let removed = unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), flags) };
    Errno::result(removed).map(drop)
}

/// Removes an empty cgroup and those below it. Returns false if `budget` of them did not suffice.
fn remove_all(path: &Path, budget: &mut usize) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if *budget == 0 || !remove_all(&entry.path(), budget) {
            return false;
        }
    }
    *budget = budget.saturating_sub(1);
    // An error other than that of a cgroup with children will not pass.
    !fs::remove_dir(path).is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy)
}
