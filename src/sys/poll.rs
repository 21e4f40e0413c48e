//! Waiting for descriptors: epoll(7), level-triggered, and poll(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// The events that a descriptor is watched for. Errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, or the end.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
    /// Either, each time that it begins (edge-triggered).
    Edges,
    /// Of a listener: a client waits, or another holder of the socket has ended it. A Unix listener of which only the
    /// receiving side was shut down does not hang up.
    Clients,
    /// Of a listener: another holder has ended it. Of a pipe or socket: the other end is closed.
    End,
    /// Errors and hang-ups only.
    HangUp,
    /// Nothing for a while. An error or a hang-up, which cannot be switched off, is reported once and not again and
    /// again.
    Paused,
}

impl From<Interest> for EpollFlags {
    fn from(interest: Interest) -> EpollFlags {
        match interest {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Interest::Edges => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
            Interest::Clients => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
            Interest::End => EpollFlags::EPOLLRDHUP,
            Interest::HangUp => EpollFlags::empty(),
            Interest::Paused => EpollFlags::EPOLLET,
        }
    }
}

/// An event of the descriptor that was added with this token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollEvent {
    /// The token given to [`Poller::add`].
    pub token: u64,
    /// There are bytes to read, or the end, or an error.
    pub readable: bool,
    /// There is room to write, or an error.
    pub writable: bool,
    /// Both sides have ended; or an error; or, for [`Interest::Clients`] and [`Interest::End`], the listener has ended.
    pub has_ended: bool,
}

/// The end of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// There are events, or the time is over.
    Ready,
    /// A signal arrived, or this process was stopped and continued (EINTR).
    Interrupted,
}

/// Descriptors and the events that they are watched for.
///
/// Every descriptor must be removed before it is closed: a registration belongs to the open file, not to the
/// descriptor, and outlives close() while another process holds a copy (epoll(7), Q6).
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poller {
    /// Returns a poller that reports up to `batch` events a wait.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new(batch: usize) -> io::Result<Poller> {
        Ok(Poller {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); batch],
        })
    }

    /// Watches a descriptor.
    ///
    /// # Errors
    /// Those of epoll_ctl(2), ENOSPC and ENOMEM among them.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let event = EpollEvent::new(interest.into(), token);
        Ok(self.epoll.add(fd, event)?)
    }

    /// Watches a descriptor for other events.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = EpollEvent::new(interest.into(), token);
        Ok(self.epoll.modify(fd, &mut event)?)
    }

    /// Stops watching a descriptor.
    ///
    /// # Errors
    /// Those of epoll_ctl(2); ENOENT when it was not watched.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits for events until `timeout` is over, or without end if it is `None`. Replaces the contents of `ready` by
    /// them.
    ///
    /// # Errors
    /// Those of epoll_wait(2) except EINTR.
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
        Ok(Woken::Ready)
    }

    /// Waits as [`Poller::wait`], for a time that is not rounded up to milliseconds. It costs a further system call.
    ///
    /// # Errors
    /// Those of ppoll(2) and epoll_wait(2) except EINTR.
    pub fn wait_precisely(
        &mut self,
        ready: &mut Vec<PollEvent>,
        timeout: Duration,
    ) -> io::Result<Woken> {
        let mut polled = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut polled, Some(timeout.into()), None) {
            Ok(_) => self.wait(ready, Some(Duration::ZERO)),
            Err(Errno::EINTR) => {
                ready.clear();
                Ok(Woken::Interrupted)
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }
}

/// Returns whether an error of a [`Poller`] means that the system is out of a resource, rather than that the descriptor
/// has become another one.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOSPC | Errno::ENOMEM))
}

/// Waits for this one descriptor; returns whether it got ready, or ended, within `timeout`. A signal does not end the
/// wait, so that callers can rely on the result.
///
/// # Errors
/// Those of poll(2) except EINTR.
pub fn wait_for(fd: impl AsFd, interest: Interest, timeout: Duration) -> io::Result<bool> {
    let flags = events_of(interest);
    let begin = Instant::now();
    loop {
        let left = timeout.saturating_sub(begin.elapsed());
        match poll_one(&fd, flags, in_milliseconds(Some(left))) {
            Ok(found) => return Ok(!found.is_empty()),
            // poll(2) fails with EINTR even if the time is 0.
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Returns the events of poll(2) of an interest.
fn events_of(interest: Interest) -> PollFlags {
    match interest {
        Interest::Read | Interest::Clients => PollFlags::POLLIN,
        Interest::End | Interest::HangUp | Interest::Paused => PollFlags::empty(),
        Interest::Write => PollFlags::POLLOUT,
        Interest::Both | Interest::Edges => PollFlags::POLLIN | PollFlags::POLLOUT,
    }
}

/// Waits until one of two descriptors is ready, or has ended, the second one for reading. Returns whether each of them
/// is; neither after `timeout` or a signal.
///
/// # Errors
/// Those of poll(2) except EINTR.
pub fn wait_for_either(
    (first, interest): (impl AsFd, Interest),
    second: impl AsFd,
    timeout: Duration,
) -> io::Result<(bool, bool)> {
    let mut polled = [
        PollFd::new(first.as_fd(), events_of(interest)),
        PollFd::new(second.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut polled, in_milliseconds(Some(timeout))) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let is_ready = |polled: &PollFd<'_>| polled.revents().is_none_or(|found| !found.is_empty());
    Ok((is_ready(&polled[0]), is_ready(&polled[1])))
}

/// Waits for something that no descriptor reports, such as memory of the kernel. A signal does not end the wait.
pub fn pause(time: Duration) {
    let begin = Instant::now();
    let mut left = time;
    while poll(&mut [], in_milliseconds(Some(left))) == Err(Errno::EINTR) && !left.is_zero() {
        left = time.saturating_sub(begin.elapsed());
    }
}

/// Returns whether the other end of a pipe, or of both directions of a connection, is closed, without waiting.
///
/// # Errors
/// Those of poll(2) except EINTR.
pub fn has_ended(fd: impl AsFd) -> io::Result<bool> {
    has_any(fd, PollFlags::empty())
}

/// Returns whether the other end of a connection sends nothing more (POLLRDHUP), or has ended, without waiting. Bytes
/// that it has sent before may still be unread.
///
/// # Errors
/// Those of poll(2) except EINTR.
pub fn has_stopped_sending(fd: impl AsFd) -> io::Result<bool> {
    has_any(fd, PollFlags::from_bits_retain(libc::POLLRDHUP))
}

fn has_any(fd: impl AsFd, flags: PollFlags) -> io::Result<bool> {
    loop {
        match poll_one(&fd, flags, PollTimeout::ZERO) {
            Ok(found) => return Ok(!found.is_empty()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Returns the events of one descriptor; none when `timeout` is over, all if there is one that nix does not know
/// (POLLRDHUP).
pub(super) fn poll_one(
    fd: impl AsFd,
    flags: PollFlags,
    timeout: PollTimeout,
) -> nix::Result<PollFlags> {
    let mut polled = [PollFd::new(fd.as_fd(), flags)];
    poll(&mut polled, timeout)?;
    Ok(polled[0].revents().unwrap_or(PollFlags::all()))
}

/// Rounds up: the last fraction of a millisecond before a deadline would be spent spinning.
fn in_milliseconds(timeout: Option<Duration>) -> EpollTimeout {
    let Some(timeout) = timeout else {
        return EpollTimeout::NONE;
    };
    let ms = timeout.as_nanos().div_ceil(1_000_000);
    let ms = i32::try_from(ms).unwrap_or(i32::MAX);
    EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX)
}
