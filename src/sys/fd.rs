//! Descriptors: how many there may be, and which one is whose.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open descriptors to the hard one; the limit now in force.
///
/// # Errors
/// Those of getrlimit(2). A limit that cannot be raised is left as it is.
pub fn raise_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return Ok(hard);
    }
    Ok(soft)
}

/// Descriptors that this process has open: since Linux 6.2 the size of /proc/self/fd (proc(5)), else none, because to
/// count many one by one takes long.
#[must_use]
pub fn open() -> Option<u64> {
    std::fs::metadata("/proc/self/fd").ok().map(|folder| folder.len()).filter(|count| *count > 0)
}

/// Opens a file for reading, whatever it is: a FIFO that nobody writes into keeps nobody waiting (fifo(7)).
///
/// # Errors
/// Those of open(2).
pub fn open_at_once(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

/// A pipe: what is written into the second end comes out of the first.
///
/// # Errors
/// Those of pipe2(2).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Takes standard input away from whoever would read it: the descriptor, close-on-exec, with /dev/null in
/// its place. It is where a worker finds its channel.
///
/// # Errors
/// Those of fcntl(2), open(2) and dup3(2).
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    Ok(taken)
}
