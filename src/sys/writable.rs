//! Whether a descriptor that belongs to others as well takes bytes now.

use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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
        assert_eq!(writer.write(b"x").expect_err("broken").kind(), io::ErrorKind::BrokenPipe);
    }
}
