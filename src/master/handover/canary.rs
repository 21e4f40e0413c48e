//! Finds out whether the service manager keeps what is stored with it.
//!
//! FDSTORE=1 of sd_notify(3) has no answer: a store may be disabled or full, and it is emptied while the service runs
//! when its unit is masked, or missing during one daemon-reload. So one end of a pair of sockets (a canary) is stored
//! before everything else, and one of another pair after everything. The other ends are watched: they hang up as soon
//! as the manager has closed its own. BARRIER=1 confirms that it has received all of it.
//!
//! ```text
//! stored     canary 0, everything, canary 1, barrier      start, SIGTERM, reload, after an upgrade
//! confirmed  the barrier is closed, and both canaries     a restart keeps the clients
//!            live 100 ms later
//! refused    a canary has ended                           one canary is tried, every second at first, then every 30 s;
//!                                                         once it is confirmed, everything is stored again
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::master::handover::state_file::CANARY_NAME;
use crate::master::retry::Outage;
use crate::master::service_manager::Notifier;
use crate::master::telemetry::events::EventLog;
use crate::master::{Error, Master, Token};
use crate::proto::control::{About, Kind};
use crate::sys::poll::{self, Interest, Poller};
use crate::sys::{fd, socket};

/// How long SIGTERM waits for the manager if it has not confirmed the store before.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(1);

/// How long after the barrier a rejected canary may end.
const REJECTION_TIMEOUT: Duration = Duration::from_millis(100);

/// The reason of an outage when a canary has ended.
const REFUSED: &str = "the service manager keeps no descriptors of this daemon, or not all (FileDescriptorStoreMax=, a masked unit)";

/// The state of the store, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Canaries {
    /// The master's ends of the stored canaries: one stored before all descriptors, one after.
    ends: Vec<OwnedFd>,
    /// Hangs up when the manager has received everything.
    barrier: Option<OwnedFd>,
    /// Both canaries were alive for [`REJECTION_TIMEOUT`] after the barrier ended.
    is_confirmed: bool,
    /// When a canary that the manager has rejected has hung up at the latest. Set when the barrier has ended.
    settles_at: Option<Instant>,
    /// The store accepts nothing, or has dropped something.
    outage: Option<Outage>,
}

/// Returns the names of the canaries in the store.
fn names() -> [String; 2] {
    [0, 1].map(|number| format!("{CANARY_NAME}.{number}"))
}

impl Canaries {
    /// Returns the reason why a restart would lose the clients, if it would.
    pub(crate) fn outage(&self) -> Option<&str> {
        self.outage.as_ref().map(|outage| outage.reason.as_str())
    }

    /// Returns whether a restart certainly keeps the clients.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }

    /// Returns when the store is tried again, or the result of a trial is known.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let retry_at = || {
            self.outage
                .as_ref()
                .filter(|_| self.barrier.is_none())
                .map(Outage::deadline)
        };
        self.settles_at.or_else(retry_at)
    }

    /// Returns whether the manager has closed a canary.
    pub(crate) fn has_ended(&self) -> bool {
        self.ends.iter().any(is_hung_up)
    }

    /// Removes all canaries, also those of an earlier master.
    pub(crate) fn remove_all(&mut self, notifier: &mut Notifier, poller: &Poller, now: Instant) {
        for end in self.ends.drain(..).chain(self.barrier.take()) {
            let _ = poller.remove(&end);
        }
        self.settles_at = None;
        names()
            .iter()
            .for_each(|name| notifier.drop_stored(name, now));
    }

    /// Stores another canary.
    pub(crate) fn send(
        &mut self,
        notifier: &mut Notifier,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<()> {
        let (ours, theirs) = socket::message_pair()?;
        let name = &names()[self.ends.len().min(1)];
        notifier.store(name, theirs.as_fd(), now)?;
        poller.add(&ours, Token::Store.into(), Interest::End)?;
        self.ends.push(ours);
        Ok(())
    }

    /// Requests the confirmation of everything that was stored.
    pub(crate) fn send_barrier(
        &mut self,
        notifier: &mut Notifier,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<()> {
        let (ours, theirs) = fd::pipe()?;
        poller.add(&ours, Token::Store.into(), Interest::End)?;
        notifier.send_barrier(theirs, now);
        self.barrier = Some(ours);
        Ok(())
    }

    /// Sends one canary alone, to find out whether the store accepts descriptors again.
    fn retry(
        &mut self,
        notifier: &mut Notifier,
        poller: &Poller,
        events: &mut EventLog,
        now: Instant,
    ) {
        self.remove_all(notifier, poller, now);
        let sent = self.send(notifier, poller, now);
        if let Err(e) = sent.and_then(|()| self.send_barrier(notifier, poller, now)) {
            self.mark_failed(&cannot_send(&e), notifier, poller, events, now);
        }
    }

    /// Records that the store does not keep descriptors, or that no canary can be made. Everything is stored again as
    /// soon as the store keeps a canary.
    pub(crate) fn mark_failed(
        &mut self,
        reason: &str,
        notifier: &mut Notifier,
        poller: &Poller,
        events: &mut EventLog,
        now: Instant,
    ) {
        self.remove_all(notifier, poller, now);
        self.is_confirmed = false;
        let is_first = self.outage.is_none();
        let outage = self.outage.get_or_insert_with(|| Outage::new(now, reason));
        outage.failed(&Error::Unavailable(reason.to_owned()), now);
        if is_first {
            let sentence = format_args!("a restart would lose all clients: {reason}; trying again");
            events.note(Kind::StoreLost, About::default(), sentence);
        }
    }

    /// Waits for the end of a canary that the manager has rejected, for [`REJECTION_TIMEOUT`] at most. systemd closes
    /// rejected descriptors in a thread, so their ends come after the barrier that follows them.
    pub(crate) fn await_rejection(&self) {
        let deadline = Instant::now() + REJECTION_TIMEOUT;
        let Some(first) = self.ends.first() else {
            return;
        };
        // A signal may end a wait too early.
        while !is_hung_up(first) && Instant::now() < deadline {
            let rest = deadline.saturating_duration_since(Instant::now());
            let _ = poll::wait_for(first, Interest::End, rest);
        }
    }
}

/// Returns the reason of an outage in which a descriptor, such as a canary, cannot be made or copied.
pub(crate) fn cannot_send(error: &io::Error) -> String {
    format!("cannot send descriptors to the service manager: {error}")
}

fn is_hung_up(end: &OwnedFd) -> bool {
    poll::has_ended(end).unwrap_or(false)
}

impl Master {
    /// Handles an event of a canary or of a barrier; events of removed ones are harmless.
    pub(crate) fn check_store(&mut self, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let (notifier, events) = (&mut self.manager.notifier, &mut self.telemetry.events);
        let canaries = &mut store.canaries;
        if canaries.has_ended() {
            return canaries.mark_failed(REFUSED, notifier, &self.poller, events, now);
        }
        let Some(barrier) = canaries.barrier.take_if(|barrier| is_hung_up(barrier)) else {
            return;
        };
        let _ = self.poller.remove(&barrier);
        canaries.settles_at = Some(now + REJECTION_TIMEOUT);
    }

    /// Stores everything after a trial, or notes that everything is stored: the manager has kept the canaries.
    fn confirm_store(&mut self, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let (events, canaries) = (&mut self.telemetry.events, &mut store.canaries);
        if canaries.ends.len() < 2 {
            // The trial has succeeded.
            return self.store_all(now);
        }
        canaries.is_confirmed = true;
        if canaries.outage.take().is_some() {
            let sentence = format_args!(
                "the service manager keeps all descriptors again: a restart keeps the clients"
            );
            events.note(Kind::StoreRestored, About::default(), sentence);
        }
    }

    /// Tries the store again, or concludes a trial, if that is due.
    pub(crate) fn retry_store(&mut self, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let canaries = &mut store.canaries;
        if canaries.deadline().is_none_or(|at| at > now) {
            return;
        }
        if canaries.settles_at.take().is_none() {
            let (notifier, events) = (&mut self.manager.notifier, &mut self.telemetry.events);
            return canaries.retry(notifier, &self.poller, events, now);
        }
        if canaries.has_ended() {
            return self.check_store(now);
        }
        self.confirm_store(now);
    }

    /// Stores everything again at SIGTERM. Returns whether the next master will have the clients, as far as that can be
    /// known within a moment.
    pub(crate) fn store_and_confirm(&mut self, now: Instant) -> bool {
        let Some(canaries) = self.handover.store.as_ref().map(|store| &store.canaries) else {
            return false;
        };
        let is_confirmed = canaries.is_confirmed && !canaries.has_ended();
        self.store_all(now);
        if !is_confirmed {
            self.manager.notifier.flush(CONFIRMATION_TIMEOUT);
            if let Some(store) = &self.handover.store {
                store.canaries.await_rejection();
            }
        }
        // Without canaries nothing is known of what was sent now, but a store that was confirmed has what it had.
        let store = self.handover.store.as_ref();
        let is_sent = store.is_some_and(|store| store.canaries.ends.len() == names().len());
        (is_sent || is_confirmed) && !self.handover.has_store_ended()
    }
}
