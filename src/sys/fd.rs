//! Descriptors: their limit, and files opened without waiting.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open descriptors to the hard one. Returns the limit in force.
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

/// Returns how many descriptors this process has open: the size of /proc/self/fd (proc(5)). None before Linux 6.2,
/// because counting many one by one takes long.
#[must_use]
pub fn open() -> Option<u64> {
    std::fs::metadata("/proc/self/fd")
        .ok()
        .map(|folder| folder.len())
        .filter(|count| *count > 0)
}

/// Opens a file of any kind for reading: a FIFO without a writer does not block (fifo(7)), and a terminal does not
/// become the controlling one.
///
/// # Errors
/// Those of open(2). The error names a socket, for which open(2) returns ENXIO.
pub fn open_at_once(path: &Path) -> io::Result<File> {
    open_with(path, File::options().read(true))
}

/// Opens a file to append to it, as [`open_at_once`] does, and creates it with `mode` if there is none.
///
/// # Errors
/// Those of open(2). The error names a socket, and a FIFO without a reader, for which open(2) returns ENXIO.
pub fn append_at_once(path: &Path, mode: u32) -> io::Result<File> {
    open_with(path, File::options().append(true).create(true).mode(mode))
}

fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let opened = options
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path);
    opened.map_err(|e| match fs::metadata(path) {
        Ok(found) if e.raw_os_error() == Some(Errno::ENXIO as i32) => {
            io::Error::other(format!("it is {}", kind(&found)))
        }
        _ => e,
    })
}

/// Returns the kind of a file for people, such as `a directory`.
#[must_use]
pub fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    match () {
        () if kind.is_file() => "a regular file",
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () if kind.is_block_device() => "a block device",
        () => "no file",
    }
}

/// Returns a pipe: its reading end, then its writing end.
///
/// # Errors
/// Those of pipe2(2).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Makes reads and writes of all holders of this open file return instead of waiting.
///
/// # Errors
/// Those of fcntl(2).
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Replaces standard input by /dev/null and returns the previous one, close-on-exec. A worker's is its channel.
///
/// # Errors
/// Those of fcntl(2), open(2) and dup3(2).
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    Ok(taken)
}
