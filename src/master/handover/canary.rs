//! Whether the service manager keeps what is stored with it.
//!
//! FDSTORE=1 of sd_notify(3) has no answer: a store may be disabled or full, and it is emptied while the service runs when its
//! unit is masked, or missing during one daemon-reload. So one end of a pair of sockets (a canary) is stored before everything
//! else, and one of another pair behind everything. The other ends are watched: they hang up as soon as the manager has closed
//! its own. BARRIER=1 confirms that it has taken in all of it.
//!
//! ```text
//! stored     canary 0, everything, canary 1, barrier      start, SIGTERM, reload, after an upgrade
//! confirmed  the barrier is closed, both canaries live    a restart keeps the clients
//! refused    a canary has ended                           a canary alone is tried, every second at first, then every 30 s;
//!                                                         when it is confirmed everything is stored again
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::master::handover::state_file::CANARY_NAME;
use crate::master::listeners::outage::Outage;
use crate::master::service_manager::Notifier;
use crate::master::telemetry::counters::Loss;
use crate::master::telemetry::events::Asker;
use crate::master::{Error, Master, Token};
use crate::proto::control::{About, Kind};
use crate::proto::text::Counted;
use crate::sys::poll::{self, Interest, Poller};
use crate::sys::{fd, socket};

/// How long a SIGTERM waits for the manager to store what it did not keep before.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the end of a canary may come after the barrier, if the manager has rejected it.
const REJECTION_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a restart would lose the clients.
const REFUSED: &str = "the service manager keeps no descriptors of this daemon, or not all (FileDescriptorStoreMax=, a masked unit)";

/// What is known of the store.
#[derive(Debug, Default)]
pub(crate) struct Canaries {
    /// The ends here of those that are stored: the first, and the one behind everything.
    ends: Vec<OwnedFd>,
    /// It ends when the manager has taken in what was stored.
    barrier: Option<OwnedFd>,
    /// Both canaries lived when the barrier ended.
    is_confirmed: bool,
    /// The store takes nothing, or has let go.
    outage: Option<Outage>,
}

/// Names of the canaries in the store.
fn names() -> [String; 2] {
    [0, 1].map(|number| format!("{CANARY_NAME}.{number}"))
}

impl Canaries {
    /// Why a restart would lose the clients, if it would.
    pub(crate) fn outage(&self) -> Option<&str> {
        self.outage.as_ref().map(|outage| outage.reason.as_str())
    }

    /// Whether a restart keeps the clients for certain.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }

    /// When the store is tried again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.outage
            .as_ref()
            .filter(|_| self.barrier.is_none())
            .map(Outage::deadline)
    }

    /// Whether the manager has closed one.
    fn has_ended(&self) -> bool {
        self.ends.iter().any(is_hung_up)
    }

    /// Takes the canaries back that there are, also those of a master before.
    pub(crate) fn retire(&mut self, notifier: &mut Notifier, poller: &Poller, now: Instant) {
        for end in self.ends.drain(..).chain(self.barrier.take()) {
            let _ = poller.remove(&end);
        }
        names()
            .iter()
            .for_each(|name| notifier.drop_stored(name, now));
    }

    /// Stores one more.
    pub(crate) fn send(
        &mut self,
        notifier: &mut Notifier,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<()> {
        let (ours, theirs) = socket::message_pair()?;
        poller.add(&ours, Token::Store.into(), Interest::End)?;
        let name = &names()[self.ends.len().min(1)];
        self.ends.push(ours);
        notifier.store(name, theirs.as_fd(), now);
        Ok(())
    }

    /// Asks for the confirmation of all that was stored.
    pub(crate) fn confirm(
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
}

fn is_hung_up(end: &OwnedFd) -> bool {
    poll::has_ended(end).unwrap_or(false)
}

impl Master {
    /// Something has happened to what is stored. Events of ends that are gone already are harmless.
    pub(crate) fn look_at_store(&mut self, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let canaries = &mut store.canaries;
        if canaries.has_ended() {
            return self.lose_store(REFUSED, now);
        }
        let Some(barrier) = canaries.barrier.take_if(|barrier| is_hung_up(barrier)) else {
            return;
        };
        let _ = self.poller.remove(&barrier);
        if canaries.ends.len() < 2 {
            // The trial went well.
            return self.store_all(now);
        }
        canaries.is_confirmed = true;
        if canaries.outage.take().is_some() {
            let sentence = format_args!(
                "the service manager has all of it again: a restart keeps the clients"
            );
            self.telemetry
                .events
                .note(Kind::StoreRestored, About::default(), sentence);
        }
    }

    /// Tries the store again, if it is time to.
    pub(crate) fn try_store(&mut self, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let canaries = &mut store.canaries;
        if canaries.deadline().is_none_or(|at| at > now) {
            return;
        }
        let (notifier, poller) = (&mut self.manager.notifier, &self.poller);
        canaries.retire(notifier, poller, now);
        let sent = canaries
            .send(notifier, poller, now)
            .and_then(|()| canaries.confirm(notifier, poller, now));
        if let Err(e) = sent {
            self.lose_store(&format!("cannot make a canary: {e}"), now);
        }
    }

    /// The store does not keep what it was given. Everything is stored again as soon as it takes something.
    pub(crate) fn lose_store(&mut self, reason: &str, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        store
            .canaries
            .retire(&mut self.manager.notifier, &self.poller, now);
        store.canaries.is_confirmed = false;
        let is_first = store.canaries.outage.is_none();
        let outage = store
            .canaries
            .outage
            .get_or_insert_with(|| Outage::new(now, reason));
        outage.failed(&Error::Unavailable(reason.to_owned()), now);
        if is_first {
            let sentence = format_args!("a restart would lose all clients: {reason}; trying again");
            self.telemetry
                .events
                .note(Kind::StoreLost, About::default(), sentence);
        }
    }

    /// Stores everything again at SIGTERM. Whether the next master will have the clients, as far as can be known within a
    /// moment.
    pub(crate) fn is_kept(&mut self, now: Instant) -> bool {
        let Some(canaries) = self.handover.store.as_ref().map(|store| &store.canaries) else {
            return false;
        };
        let is_confirmed = canaries.is_confirmed && !canaries.has_ended();
        self.store_all(now);
        if !is_confirmed {
            self.manager.notifier.flush(CONFIRMATION_TIMEOUT);
            self.await_rejection();
        }
        !self.has_store_ended()
    }

    /// Waits for the end of a canary that the manager has not taken, for [`REJECTION_TIMEOUT`] at most. systemd closes
    /// rejected descriptors in a thread, so that their ends come after the barrier behind them.
    fn await_rejection(&self) {
        let deadline = Instant::now() + REJECTION_TIMEOUT;
        let store = self.handover.store.as_ref();
        let Some(first) = store.and_then(|store| store.canaries.ends.first()) else {
            return;
        };
        // A signal may end a wait too early.
        while !is_hung_up(first) && Instant::now() < deadline {
            let rest = deadline.saturating_duration_since(Instant::now());
            let _ = poll::wait_for(first, Interest::End, rest);
        }
    }

    /// Whether the store has let go of what it was given last, or has not taken it.
    pub(crate) fn has_store_ended(&self) -> bool {
        self.handover
            .store
            .as_ref()
            .is_some_and(|store| store.canaries.has_ended())
    }

    /// Begins an end by which the clients are lost, although another master was to have them: they get the time of a stop.
    pub(crate) fn stop_unkept(&mut self, asker: Asker, now: Instant) {
        self.look_at_store(now);
        let clients = self.clients.count();
        self.telemetry.counts.losses.add(Loss::Store, clients);
        log::error!(
            "the service manager does not keep clients for the next master; closing {}",
            Counted(clients, "client")
        );
        self.stop(asker, now);
    }
}
