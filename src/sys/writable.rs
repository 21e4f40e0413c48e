//! Writing to descriptors that other processes share, such as standard error, without waiting.

use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFlags, PollTimeout};
use nix::unistd;

use super::poll::poll_one;
use super::signal::HeldBack;

/// Returns whether a write of up to 4096 bytes (`PIPE_BUF`, pipe(7)) would not wait. Also true when it would fail, so
/// that the write returns the error.
///
/// `O_NONBLOCK` cannot be set instead: it belongs to the open file, and so to the shell that shares it.
fn is_writable(fd: BorrowedFd) -> bool {
    let found = poll_one(fd, PollFlags::POLLOUT, PollTimeout::ZERO);
    found.map_or(true, |found| !found.is_empty())
}

/// Writes as much as a descriptor takes now. A background process writes to a terminal with `stty tostop` as well: the
/// kernel permits it while SIGTTOU is blocked (termios(3)).
///
/// # Errors
/// Those of write(2); `WouldBlock` when it takes nothing.
pub fn write_at_once(to: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let to = to.as_fd();
    if !is_writable(to) {
        return Err(ErrorKind::WouldBlock.into());
    }
    let _held_back = to.is_terminal().then(HeldBack::terminal_output);
    Ok(unistd::write(to, bytes)?)
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
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_pipe_is_writable_unless_it_is_full() {
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
        let broken = writer.write(b"x").expect_err("broken");
        assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
    }
}
