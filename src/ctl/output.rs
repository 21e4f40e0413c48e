//! Standard output and standard error.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use crate::sys::writable::wait_writable;

/// A descriptor that another process may have set to non-blocking. Writes wait until there is room.
#[derive(Debug)]
pub(super) struct Patient<W>(pub(super) W);

impl<W: Write + AsFd> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => wait_writable(self.0.as_fd())?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.0.flush() {
                Err(e) if e.kind() == ErrorKind::WouldBlock => wait_writable(self.0.as_fd())?,
                flushed => return flushed,
            }
        }
    }
}
