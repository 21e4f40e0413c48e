//! A descriptor by which one thread wakes another that waits in a poller.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd(2): readable from a call of [`Wakeup::notify`] until [`Wakeup::clear`].
#[derive(Debug)]
pub struct Wakeup(EventFd);

impl Wakeup {
    /// Returns one that is not readable.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Wakeup> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Wakeup(EventFd::from_value_and_flags(0, flags)?))
    }

    /// Makes it readable.
    pub fn notify(&self) {
        // It fails only if it is readable already, and nearly 2^64 calls were not cleared.
        let _ = self.0.write(1);
    }

    /// Makes it unreadable until the next call of [`Wakeup::notify`].
    pub fn clear(&self) {
        // It fails if it is not readable.
        let _ = self.0.read();
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::poll::{Interest, wait_for};

    #[test]
    fn it_is_readable_from_a_notification_until_it_is_cleared() {
        let wakeup = Wakeup::new().expect("eventfd");
        let is_readable = || wait_for(&wakeup, Interest::Read, Duration::ZERO).expect("poll");
        assert!(!is_readable());
        wakeup.notify();
        wakeup.notify();
        assert!(is_readable());
        wakeup.clear();
        wakeup.clear();
        assert!(!is_readable());
    }
}
