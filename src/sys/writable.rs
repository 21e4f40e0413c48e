//! Whether a descriptor that belongs to others as well takes bytes now, and has bytes now.

use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd;

use super::signal::StopHeldBack;

/// Whether a write of up to 4096 bytes (`PIPE_BUF`, pipe(7)) would not wait. Also true when it would fail,
/// so that the write can say how.
///
/// For what was inherited: `O_NONBLOCK` belongs to the open file, so that setting it on standard error would
/// set it for the shell, too.
#[must_use]
pub fn is_writable(fd: BorrowedFd) -> bool {
    let mut wanted = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut wanted, PollTimeout::ZERO) != Ok(0)
}

/// Writes what a descriptor takes now, for [`is_writable`]'s reason. A background process writes to a terminal with
/// `stty tostop` as well: the kernel permits it while SIGTTOU is blocked (termios(3)).
///
/// # Errors
/// Those of write(2); `WouldBlock` when it takes nothing.
pub fn write_at_once(to: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let to = to.as_fd();
    if !is_writable(to) {
        return Err(ErrorKind::WouldBlock.into());
    }
    let _held_back = to.is_terminal().then(StopHeldBack::new);
    Ok(unistd::write(to, bytes)?)
}

/// Waits until a write makes progress, or fails: for a program that has nothing else to do.
///
/// # Errors
/// Those of poll(2).
pub fn wait_writable(fd: BorrowedFd) -> io::Result<()> {
    wait(fd, PollFlags::POLLOUT, PollTimeout::NONE).map(drop)
}

/// Waits until there are bytes, or an end, but no longer than `within`; whether there are.
///
/// # Errors
/// Those of poll(2).
pub fn wait_readable(fd: BorrowedFd, within: Duration) -> io::Result<bool> {
    wait(
        fd,
        PollFlags::POLLIN,
        PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX),
    )
}

fn wait(fd: BorrowedFd, flags: PollFlags, timeout: PollTimeout) -> io::Result<bool> {
    match poll(&mut [PollFd::new(fd, flags)], timeout) {
        // As if there were something: the caller looks.
        Err(Errno::EINTR) => Ok(true),
        found => Ok(found? > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_pipe_is_writable_until_it_is_full_and_again_when_it_was_read_or_is_broken() {
        let (mut reader, mut writer) = io::pipe().expect("a pipe");
        let mut written = 0;
        while is_writable(writer.as_fd()) {
            writer.write_all(&[b'x'; 4096]).expect("room");
            written += 4096;
        }
        reader.read_exact(&mut vec![0; written]).expect("all of it");
        assert!(is_writable(writer.as_fd()));
        drop(reader);
        assert!(is_writable(writer.as_fd()));
        assert_eq!(
            writer.write(b"x").expect_err("broken").kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
