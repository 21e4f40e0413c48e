//! The sockets that the daemon serves, and their outages: listeners, the control socket and the exporter's listener.
//!
//! Another process that holds such a socket can shut it down, by shutdown(2) or by `ss -K`. The daemon then binds another
//! socket to the same address. The old one cannot listen again: after listen(2) on a TCP socket, the kernel would accept
//! clients that are shut down from the start.
//!
//! The poller reports the shutdown as a hang-up, even for a disarmed listener, so the daemon handles it in the same
//! iteration of the loop. A listener that the daemon has closed for a drain is no longer in the poller, and has no outage.
//!
//! epoll(7) may also lack memory to watch a socket that is bound (ENOMEM, ENOSPC). Its clients wait in its queue, and
//! only the watch is tried again.
//!
//! Tries are made as `master/retry.rs` schedules them. Until one succeeds, the status gives the reason.

use std::os::fd::AsFd;
use std::time::Instant;

use crate::master::retry::Outage;
use crate::master::telemetry::events::EventLog;
use crate::master::{Error, Token};
use crate::proto::control::{About, Kind};
use crate::sys::listening::is_listening;
use crate::sys::poll::{Interest, Poller};

/// The reason of the outage of a socket that another process has shut down.
pub(crate) const ENDED: &str = "another process has shut the socket down";

/// The reason why no client can connect to a Unix socket that listens.
pub(crate) const FILE_GONE: &str = "its file is gone";

/// A socket of the daemon that clients connect to. It is bound and in the poller, unless it has an outage, or is a
/// listener that refuses clients.
pub(crate) trait Served: AsFd {
    /// Returns the token of its events.
    fn token(&self) -> Token;

    /// Returns the name of the socket in log lines.
    fn name(&self) -> String;

    /// Returns its outage, to be changed.
    fn outage_mut(&mut self) -> &mut Option<Outage>;

    /// Returns whether clients find the socket: the file of a Unix socket may be gone.
    fn is_reachable(&self) -> bool;

    /// Returns whether the socket listens where clients find it, also if it is not in the poller.
    fn is_open(&self) -> bool {
        is_listening(self) && self.is_reachable()
    }

    /// Adds the socket to the poller, unless it has an outage. A failure is an outage.
    fn watch(&mut self, interest: Interest, poller: &Poller, now: Instant) {
        if self.outage_mut().is_none()
            && let Err(e) = self.add_to(poller, interest)
        {
            *self.outage_mut() = Some(Outage::from_error(&e, now));
        }
    }

    /// Adds the socket to the poller.
    ///
    /// # Errors
    /// Those of [`Poller::add`].
    fn add_to(&self, poller: &Poller, interest: Interest) -> Result<(), Error> {
        let added = poller.add(self, self.token().into(), interest);
        added.map_err(|e| Error::unavailable(&format!("watch {}", self.name()), &e))
    }

    /// Begins an outage if another process has ended the socket.
    fn check_ended(&mut self, events: &mut EventLog, poller: &Poller, now: Instant) {
        if self.outage_mut().is_some() || is_listening(&*self) {
            return;
        }
        let _ = poller.remove(&*self);
        *self.outage_mut() = Some(Outage::new(now, ENDED));
        let sentence = format_args!("{}: {ENDED}; binding a new one", self.name());
        events.note(Kind::ListenerEnded, About::default(), sentence);
    }

    /// Ends an outage if a try is due: binds another socket if that is necessary, and adds it to the poller. Returns
    /// whether the outage has ended.
    fn end_outage(
        &mut self,
        bind_again: impl FnOnce(&mut Self) -> Result<(), Error>,
        interest: Interest,
        (events, poller): (&mut EventLog, &Poller),
        now: Instant,
    ) -> bool
    where
        Self: Sized,
    {
        let outage = self.outage_mut().as_ref();
        if !outage.is_some_and(|outage| outage.is_due(now)) {
            return false;
        }
        let bound = if self.is_open() {
            Ok(())
        } else {
            bind_again(self)
        };
        let added = bound.and_then(|()| self.add_to(poller, interest));
        if let Err(e) = added {
            if let Some(outage) = self.outage_mut() {
                outage.failed(&e, now);
            }
            return false;
        }
        *self.outage_mut() = None;
        let name = self.name();
        let sentence = format_args!("{name} is open again");
        events.note(Kind::ListenerOpened, About::default(), sentence);
        true
    }
}
