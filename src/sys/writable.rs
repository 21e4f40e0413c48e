//! Writing to descriptors that other processes share, such as standard error, without waiting.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFlags, PollTimeout};
use nix::sys::stat::fstat;
use nix::unistd;

use super::poll::{Interest, poll_one, wait_for};
use super::signal::HeldBack;

/// `PIPE_BUF` of pipe(7): the bytes that a pipe takes without waiting when poll(2) reports room.
const PIPE_PART: usize = 4096;

/// The bytes that a terminal takes without waiting when poll(2) reports room: a pseudo-terminal reports 256 free bytes,
/// and it may write two for one.
const TERMINAL_PART: usize = 64;

/// Returns whether a write of a small part would not wait. Also true when it would fail, so that the write returns the
/// error.
fn is_writable(fd: BorrowedFd) -> bool {
    let found = poll_one(fd, PollFlags::POLLOUT, PollTimeout::ZERO);
    found.map_or(true, |found| !found.is_empty())
}

/// Writes as much as a descriptor takes now. A background process writes to a terminal with `stty tostop` as well: the
/// kernel permits it while SIGTTOU is blocked (termios(3)).
///
/// A regular file gets write(2): poll(2) and `O_NONBLOCK` mean nothing for it. For all others, `O_NONBLOCK` cannot be
/// set: it belongs to the open file, and so to the shell that shares it. The first of these that is possible is used:
/// `RWF_NOWAIT`, for pipes and sockets of newer kernels; the same file opened again; parts for which there is room.
/// Only the last can wait, if another writer takes the room first.
///
/// # Errors
/// Those of write(2); `WouldBlock` when it takes nothing.
pub fn write_at_once(to: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let to = to.as_fd();
    if is_disk_file(to) {
        return Ok(unistd::write(to, bytes)?);
    }
    match write_without_wait(to, bytes) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => {}
        written => return Ok(written?),
    }
    let _held_back = to.is_terminal().then(HeldBack::terminal_output);
    match open_again(to) {
        Ok(mut own) => own.write(bytes),
        // A socket, a pipe without a reader, a file of another user, or no descriptor is free.
        Err(_) => write_in_parts(to, bytes),
    }
}

/// Writes everything, and waits up to this time while a descriptor takes nothing.
///
/// # Errors
/// Those of [`write_at_once`]; `TimedOut` if something is left.
pub fn write_within(to: impl AsFd, mut bytes: &[u8], timeout: Duration) -> io::Result<()> {
    let began = Instant::now();
    while !bytes.is_empty() {
        match write_at_once(&to, bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() != ErrorKind::WouldBlock => return Err(e),
            Err(_) => {
                let left = timeout.saturating_sub(began.elapsed());
                if left.is_zero() || !wait_for(&to, Interest::Write, left)? {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
        }
    }
    Ok(())
}

/// Returns whether this is a regular file.
fn is_disk_file(fd: BorrowedFd) -> bool {
    fstat(fd).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFREG)
}

/// Writes with `RWF_NOWAIT` of pwritev2(2).
fn write_without_wait(to: BorrowedFd, bytes: &[u8]) -> nix::Result<usize> {
    let part = [IoSlice::new(bytes)];
    // SAFETY: an IoSlice has the layout of an iovec, and the one that is passed lives until the call returns. The
    // kernel only reads the bytes.
    let written = unsafe {
        libc::pwritev2(
            to.as_raw_fd(),
            part.as_ptr().cast::<libc::iovec>(),
            1,
            -1,
            libc::RWF_NOWAIT,
        )
    };
    // The result is not negative then.
    Errno::result(written).map(isize::cast_unsigned)
}

/// Opens the file of a descriptor again, with an `O_NONBLOCK` of its own.
fn open_again(fd: BorrowedFd) -> io::Result<File> {
    File::options()
        .append(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Writes parts while there is room for one.
fn write_in_parts(to: BorrowedFd, bytes: &[u8]) -> io::Result<usize> {
    let most = if to.is_terminal() {
        TERMINAL_PART
    } else {
        PIPE_PART
    };
    let mut written = 0;
    for part in bytes.chunks(most) {
        let taken = if is_writable(to) {
            unistd::write(to, part).map_err(io::Error::from)
        } else {
            Err(ErrorKind::WouldBlock.into())
        };
        match taken {
            Ok(length) => written += length,
            // A part that was written must not be written twice.
            Err(_) if written > 0 => break,
            Err(e) => return Err(e),
        }
        if written % most != 0 {
            break;
        }
    }
    Ok(written)
}

/// Waits until a write makes progress, or fails. A signal may make it return too early.
///
/// # Errors
/// Those of poll(2) except EINTR.
pub fn wait_writable(fd: BorrowedFd) -> io::Result<()> {
    match poll_one(fd, PollFlags::POLLOUT, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};
    use std::os::fd::OwnedFd;
    use std::thread;

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::pty::openpty;

    use super::*;

    /// A way to write: the tests use each, also where another one comes first.
    type Way = fn(BorrowedFd, &[u8]) -> io::Result<usize>;

    const WAYS: [(&str, Way); 4] = [
        ("all of them", |to, bytes| write_at_once(to, bytes)),
        ("RWF_NOWAIT", |to, bytes| {
            let written = write_without_wait(to, bytes);
            if written == Err(Errno::EOPNOTSUPP) {
                return write_at_once(to, bytes);
            }
            Ok(written?)
        }),
        ("opened again", |to, bytes| open_again(to)?.write(bytes)),
        ("in parts", write_in_parts),
    ];

    /// Writes until nothing is taken; returns how much was.
    fn fill(way: Way, to: BorrowedFd) -> usize {
        let mut taken = 0;
        loop {
            match way(to, &[b'x'; 5000]) {
                Ok(length) => taken += length,
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                    return taken;
                }
            }
        }
    }

    #[test]
    fn a_pipe_takes_what_fits_and_returns_its_errors() {
        for (name, way) in WAYS {
            let (mut reader, writer) = pipe().expect("a pipe");
            let size = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(8192)).expect("our pipe");
            let taken = fill(way, writer.as_fd());
            assert!(taken <= 8192 && size == 8192, "{name}: {taken}");
            reader.read_exact(&mut vec![0; taken]).expect("all of it");
            assert_eq!(way(writer.as_fd(), b"again").expect("room"), 5, "{name}");
            drop(reader);
            if name != "opened again" {
                // A process that another test is starting may have a copy of the other end for a moment.
                let deadline = Instant::now() + Duration::from_secs(10);
                let mut written = way(writer.as_fd(), b"x");
                while !written.is_err_and(|e| e.kind() == ErrorKind::BrokenPipe) {
                    assert!(Instant::now() < deadline, "{name}: it is not broken");
                    thread::yield_now();
                    written = way(writer.as_fd(), b"x");
                }
            }
        }
    }

    #[test]
    fn a_terminal_takes_what_fits() {
        for (name, way) in WAYS {
            let terminal = openpty(None, None).expect("a terminal");
            let taken = fill(way, terminal.slave.as_fd());
            assert!(taken > 0, "{name}");
            let mut master = File::from(terminal.master);
            master.read_exact(&mut vec![0; taken]).expect("all of it");
            assert!(fill(way, terminal.slave.as_fd()) > 0, "{name}");
        }
    }

    #[test]
    fn a_slow_terminal_gets_everything_in_time() {
        let terminal = openpty(None, None).expect("a terminal");
        let mut filled = 0;
        for part in [&[b'x'; 500][..], b"x"] {
            while let Ok(length) = write_at_once(&terminal.slave, part) {
                filled += length;
            }
        }
        let written = write_within(&terminal.slave, b"the end", Duration::ZERO);
        let error = written.expect_err("it takes nothing");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let mut master = File::from(terminal.master);
        let reader = thread::spawn(move || {
            let mut read = vec![0; filled + 7];
            master.read_exact(&mut read).map(|()| read)
        });
        let long = Duration::from_secs(600);
        write_within(&terminal.slave, b"the end", long).expect("it takes all");
        let read = reader.join().expect("it does not panic");
        assert!(read.expect("all bytes").ends_with(b"the end"));
    }

    #[test]
    fn a_socket_takes_what_fits() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let socket = OwnedFd::from(socket);
        assert!(fill(|to, bytes| write_at_once(to, bytes), socket.as_fd()) > 0);
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(fill(write_in_parts, OwnedFd::from(socket).as_fd()) > 0);
    }
}
