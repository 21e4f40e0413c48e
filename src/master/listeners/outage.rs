//! Sockets of the daemon that no client can connect to: listeners, the control socket and the exporter's listener.
//!
//! Another holder of such a socket can end it, by shutdown(2) or by `ss -K`. It never listens again then: listen(2) on
//! a TCP socket would make the kernel accept clients that are shut down from the start. Another socket is bound to the
//! same address instead. The poller reports the end as a hang-up, also for a disarmed listener: so it is handled in the
//! iteration of the loop in which it occurs. A listener that the daemon itself has ended, for a drain, is not in the poller
//! any more, and has no outage.
//!
//! epoll(7) may also lack memory to watch a socket that is bound (ENOMEM, ENOSPC). Its clients wait in its queue, and
//! only the watch is tried again.
//!
//! Tries are made as `master/retry.rs` schedules them. Until one succeeds, the status gives the reason.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::master::listeners::Listeners;
use crate::master::listeners::listener::Listener;
use crate::master::listeners::listener::refusal::Admission;
use crate::master::retry::Outage;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::events::EventLog;
use crate::master::{Error, Token};
use crate::proto::control::{About, Kind};
use crate::sys::listening::is_listening;
use crate::sys::poll::{Interest, Poller};

/// The first reason of an outage.
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

impl Listeners {
    /// Handles listeners that the poller reported as ended. Clients that waited there have been accepted by now, if
    /// there was capacity for them.
    pub(crate) fn check_ended(
        &mut self,
        numbers: &[u32],
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        for number in numbers {
            let Some(index) = self.index_of(*number) else {
                continue;
            };
            let listener = &mut self.all[index];
            // The daemon itself has ended it.
            if listener.admission != Admission::Open {
                continue;
            }
            if self.closing.contains(number)
                && listener.outage.is_none()
                && !is_listening(&*listener)
            {
                self.close(index, telemetry, poller);
            } else {
                listener.check_ended(&mut telemetry.events, poller, now);
            }
        }
    }

    /// Ends the outages of listeners, if a try is due.
    pub(crate) fn end_outages(
        &mut self,
        keepalive: Option<Duration>,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let is_due = |listener: &&Listener| {
            let outage = listener.outage.as_ref();
            outage.is_some_and(|outage| outage.is_due(now))
        };
        let due: Vec<u32> = self
            .all
            .iter()
            .filter(is_due)
            .map(|listener| listener.number)
            .collect();
        let interest = self.gate.interest();
        for number in due {
            let Some(index) = self.index_of(number) else {
                continue;
            };
            if self.closing.contains(&number) {
                self.close(index, telemetry, poller);
                continue;
            }
            let activated = &mut self.activated;
            let changed = &mut self.changed;
            let bind_again = |listener: &mut Listener| {
                listener.bind_again(activated, keepalive)?;
                changed.push(listener.number);
                Ok(())
            };
            let context = (&mut telemetry.events, poller);
            self.all[index].end_outage(bind_again, interest, context, now);
        }
    }

    /// Returns when [`Listeners::end_outages`] has something to do.
    pub(super) fn outage_deadline(&self) -> Option<Instant> {
        self.all
            .iter()
            .filter_map(|listener| listener.outage.as_ref())
            .map(Outage::deadline)
            .min()
    }
}
