//! The line to the zygote that has forked an app. `proto/app/preload.rs` has the messages.
//!
//! The app is a child of the zygote, which reports its end on a line, and collects it only when the worker has closed
//! the line: until then the pid is that of the app, as of one that the worker has started.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::proto::app::FromAppZygote;
use crate::proto::text::Escaped;
use crate::sys::poll::{self, Interest, Poller};
use crate::sys::process::{self, Exit};
use crate::sys::socket::{self, Received};

/// The time between two attempts to send or to receive while the kernel has no memory, or other requests wait.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// How long the report of an app's end may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest message.
const MAX_MESSAGE: usize = 4096;

/// The most messages that are read of one line: its end is among them.
const MAX_MESSAGES: usize = 8;

/// A line to the zygote, for one app.
#[derive(Debug)]
pub(super) struct ZygoteLine {
    pub(super) socket: OwnedFd,
    pub(super) zygote: u32,
}

impl ZygoteLine {
    /// Returns the line to a zygote that the test plays.
    #[cfg(test)]
    pub(super) fn of_test(socket: OwnedFd) -> ZygoteLine {
        let zygote = std::process::id();
        ZygoteLine { socket, zygote }
    }

    /// Returns the pid of the zygote.
    pub(super) fn zygote(&self) -> u32 {
        self.zygote
    }

    /// Waits until the app is forked. Returns its pid.
    pub(super) fn await_fork(&self, master: impl AsFd) -> Result<u32, String> {
        const LINE: u64 = 0;
        let failed = |e: io::Error| format!("cannot be forked: {e}");
        let mut poller = Poller::new(2).map_err(failed)?;
        let mut ready = Vec::new();
        poller
            .add(&self.socket, LINE, Interest::Read)
            .map_err(failed)?;
        poller
            .add(master, LINE + 1, Interest::End)
            .map_err(failed)?;
        loop {
            poller.wait(&mut ready, None).map_err(failed)?;
            match self.receive().map_err(failed)? {
                Some(FromAppZygote::Forked(pid)) => return Ok(pid),
                Some(FromAppZygote::Failed(why)) => {
                    return Err(format!("cannot be forked: {}", Escaped(why)));
                }
                Some(other) => return Err(format!("cannot be forked: its zygote sends {other:?}")),
                None if ready.iter().any(|event| event.token != LINE) => {
                    return Err("has lost its master".to_owned());
                }
                None => {}
            }
        }
    }

    /// Returns how the app has ended; `None` while it runs.
    ///
    /// # Errors
    /// The zygote has not reported it: it has ended, or is stuck.
    pub(super) fn end_of(&self, pidfd: impl AsFd) -> io::Result<Option<Exit>> {
        if !poll::wait_for(&pidfd, Interest::Read, Duration::ZERO)? {
            return Ok(None);
        }
        let until = Instant::now() + REPORT_TIMEOUT;
        match self.reported_end(until) {
            Ok(exit) => Ok(Some(exit)),
            Err(e) => end_of_orphan(&pidfd, until).map(Some).ok_or(e),
        }
    }

    /// Receives the end of the app, which the zygote has noticed or is about to.
    fn reported_end(&self, until: Instant) -> io::Result<Exit> {
        for _ in 0..MAX_MESSAGES {
            let left = until.saturating_duration_since(Instant::now());
            if !poll::wait_for(&self.socket, Interest::Read, left)? {
                return Err(io::Error::other("its zygote does not report its end"));
            }
            match self.receive()? {
                Some(FromAppZygote::Exited(status)) => return Ok(Exit::Status(status)),
                Some(FromAppZygote::Killed(number)) => {
                    let core = false;
                    return Ok(Exit::Signal { number, core });
                }
                _ => {}
            }
        }
        Err(io::Error::other("its zygote does not report its end"))
    }

    /// Receives the next message, without waiting.
    fn receive(&self) -> io::Result<Option<FromAppZygote>> {
        let mut buffer = [0; MAX_MESSAGE];
        match socket::receive_message(&self.socket, &mut buffer)? {
            Received::Message { length, .. } => FromAppZygote::parse(&buffer[..length])
                .map(Some)
                .map_err(io::Error::other),
            Received::Closed => Err(io::Error::other("its zygote has ended")),
            Received::Nothing => Ok(None),
            Received::Shortage => {
                poll::pause(RETRY_INTERVAL);
                Ok(None)
            }
        }
    }
}

/// Returns the end of an app whose zygote has ended. The master is its parent now, and collects it.
fn end_of_orphan(pidfd: impl AsFd, until: Instant) -> Option<Exit> {
    loop {
        let end = process::end_of_collected(&pidfd);
        if end.is_some() || Instant::now() >= until {
            return end;
        }
        poll::pause(RETRY_INTERVAL);
    }
}
