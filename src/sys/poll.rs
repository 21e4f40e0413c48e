//! Waiting: epoll(7), level-triggered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }
}

/// What a descriptor is watched for. Errors and hang-ups are always told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read, or the end.
    Read,
    /// There is room to write.
    Write,
    /// Either.
    Both,
    /// Of a listener: a client waits, or another holder of the socket has ended it. A Unix listener of which only the
    /// receiving side was shut down does not hang up.
    Clients,
    /// Of a listener: that another holder has ended it, and nothing else.
    End,
}

impl From<Interest> for EpollFlags {
    fn from(interest: Interest) -> EpollFlags {
        match interest {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Interest::Clients => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
            Interest::End => EpollFlags::EPOLLRDHUP,
        }
    }
}

/// Something happened on the descriptor that was added with this token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollEvent {
    /// What the adder said.
    pub token: u64,
    /// There is something to read, or the end, or an error.
    pub readable: bool,
    /// There is room to write, or an error.
    pub writable: bool,
    /// Both sides have ended; or an error; or, of [`Interest::Clients`] and [`Interest::End`], the listener has ended.
    pub has_ended: bool,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// What has happened, or the end of the time.
    Told,
    /// A signal; or this process was stopped, and goes on (EINTR).
    Interrupted,
}

/// Descriptors and what they are watched for.
///
/// There is no excuse to skip [`Poller::remove`]: a registration belongs to the open file, not to the
/// descriptor, and outlives close() while another process holds a copy (epoll(7), Q6).
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poller {
    /// A poller that tells up to `batch` events a wait.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new(batch: usize) -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Poller {
            epoll,
            events: vec![EpollEvent::empty(); batch],
        })
    }

    /// Watches a descriptor.
    ///
    /// # Errors
    /// Those of epoll_ctl(2), ENOSPC and ENOMEM among them.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self
            .epoll
            .add(fd, EpollEvent::new(interest.into(), token))?)
    }

    /// Watches it for something else.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self
            .epoll
            .modify(fd, &mut EpollEvent::new(interest.into(), token))?)
    }

    /// Watches it for nothing but its hang-up, which cannot be switched off.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn disarm(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self
            .epoll
            .modify(fd, &mut EpollEvent::new(EpollFlags::empty(), token))?)
    }

    /// Stops watching it.
    ///
    /// # Errors
    /// Those of epoll_ctl(2); ENOENT when it was not watched.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits until something happens or `timeout` is over; `None` waits for ever. Puts what happened into
    /// `ready`, in place of what was there.
    ///
    /// # Errors
    /// Those of epoll_wait(2) but EINTR.
    pub fn wait(
        &mut self,
        ready: &mut Vec<PollEvent>,
        timeout: Option<Duration>,
    ) -> io::Result<Woken> {
        ready.clear();
        let count = match self.epoll.wait(&mut self.events, in_milliseconds(timeout)) {
            Ok(count) => count,
            Err(Errno::EINTR) => return Ok(Woken::Interrupted),
            Err(e) => return Err(e.into()),
        };
        ready.extend(self.events[..count].iter().map(|event| {
            let flags = event.events();
            let broken = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            PollEvent {
                token: event.data(),
                readable: broken || flags.contains(EpollFlags::EPOLLIN),
                writable: broken || flags.contains(EpollFlags::EPOLLOUT),
                has_ended: broken || flags.contains(EpollFlags::EPOLLRDHUP),
            }
        }));
        Ok(Woken::Told)
    }
}

/// Whether an error of [`Poller::add`], [`Poller::modify`] or [`Poller::remove`] says that the system is short of something,
/// and not that a descriptor is another one than it was.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    [Errno::ENOSPC, Errno::ENOMEM]
        .iter()
        .any(|shortage| error.raw_os_error() == Some(*shortage as i32))
}

/// Waits for this one descriptor: whether it came to that, or to its end, within `timeout`. For a thread that has nothing
/// else to wait for; a signal may have it look too early.
///
/// # Errors
/// Those of poll(2) but EINTR.
pub fn wait_for(fd: impl AsFd, interest: Interest, timeout: Duration) -> io::Result<bool> {
    let flags = match interest {
        Interest::Read | Interest::Clients => PollFlags::POLLIN,
        Interest::End => PollFlags::empty(),
        Interest::Write => PollFlags::POLLOUT,
        Interest::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
    };
    match poll(
        &mut [PollFd::new(fd.as_fd(), flags)],
        in_milliseconds(Some(timeout)),
    ) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Whether the other end is gone, of a pipe or of a pair of sockets. It does not wait.
///
/// # Errors
/// Those of poll(2) but EINTR.
pub fn has_ended(fd: impl AsFd) -> io::Result<bool> {
    loop {
        let mut polled = [PollFd::new(fd.as_fd(), PollFlags::empty())];
        match poll(&mut polled, EpollTimeout::ZERO) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Rounded up, or the last fraction of a millisecond before a deadline would be spent spinning.
fn in_milliseconds(timeout: Option<Duration>) -> EpollTimeout {
    match timeout {
        None => EpollTimeout::NONE,
        Some(t) => {
            let ms = t.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
            EpollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX))
                .unwrap_or(EpollTimeout::MAX)
        }
    }
}
