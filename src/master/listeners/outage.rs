//! Listeners that another holder of their socket has ended: by shutdown(2) in another process that has it, or by `ss
//! -K`.
//!
//! Such a socket never listens again. listen(2) on a TCP socket would make the kernel accept clients that are shut down
//! from the start. Another socket is bound to the same address instead: at once, then every second, after half a minute
//! every 30 s. Until that succeeds, the status gives the reason. The poller reports the end as a hang-up, also for a
//! disarmed listener: so it is handled in the iteration of the loop in which it occurs. A listener that the daemon
//! itself has ended is not in the poller any more.

use std::time::{Duration, Instant};

use crate::master::Error;
use crate::master::listeners::Listeners;
use crate::master::listeners::listener::Listener;
use crate::master::telemetry::Telemetry;
use crate::proto::control::{About, Kind};
use crate::sys::listening::is_listening;
use crate::sys::poll::Poller;

/// Number of tries that are a second apart; later ones are [`SLOW_RETRY_INTERVAL`] apart.
const FAST_RETRIES: u32 = 30;
const SLOW_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// An outage of a listener: its reason, and the time of the next try.
#[derive(Clone, Debug)]
pub(crate) struct Outage {
    /// The last reason.
    pub(crate) reason: String,
    next_try: Instant,
    tries: u32,
}

impl Outage {
    /// Creates an outage with the first try due at once.
    pub(crate) fn new(now: Instant, reason: &str) -> Outage {
        Outage {
            reason: reason.to_owned(),
            next_try: now,
            tries: 0,
        }
    }

    /// Creates an outage after the first try has failed. Logs the reason.
    pub(crate) fn from_error(error: &Error, now: Instant) -> Outage {
        let mut outage = Outage::new(now, "");
        outage.failed(error, now);
        outage
    }

    /// Returns when the next try is due.
    pub(crate) fn deadline(&self) -> Instant {
        self.next_try
    }

    /// Returns whether a try is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next_try <= now
    }

    /// Records a failed try. Logs the reason if it differs from the last one.
    pub(crate) fn failed(&mut self, error: &Error, now: Instant) {
        self.tries += 1;
        let wait = if self.tries <= FAST_RETRIES {
            Duration::from_secs(1)
        } else {
            SLOW_RETRY_INTERVAL
        };
        self.next_try = now + wait;
        let reason = error.to_string();
        if self.reason != reason {
            log::error!("{reason}; trying again every {} s", wait.as_secs());
            self.reason = reason;
        }
    }
}

/// The first reason of an outage.
pub(crate) const ENDED: &str = "another process has shut the socket down";

/// The reason why no client can connect to a Unix socket that listens.
pub(crate) const FILE_GONE: &str = "its file is gone";

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
            if listener.outage.is_some() || is_listening(&*listener) {
                continue;
            }
            if self.closing.contains(number) {
                self.close(index, telemetry, poller);
                continue;
            }
            let _ = poller.remove(&*listener);
            listener.outage = Some(Outage::new(now, ENDED));
            let sentence =
                format_args!("listener {}: {ENDED}; binding a new one", listener.address);
            telemetry
                .events
                .note(Kind::ListenerEnded, About::default(), sentence);
        }
    }

    /// Binds ended listeners again, if a try is due.
    pub(crate) fn bind_ended(
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
        for number in due {
            if let Some(index) = self.index_of(number) {
                if self.closing.contains(&number) {
                    self.close(index, telemetry, poller);
                } else {
                    self.bind_again(index, keepalive, telemetry, poller, now);
                }
            }
        }
    }

    /// Returns when [`Listeners::bind_ended`] has something to do.
    pub(crate) fn outage_deadline(&self) -> Option<Instant> {
        self.all
            .iter()
            .filter_map(|listener| listener.outage.as_ref())
            .map(Outage::deadline)
            .min()
    }

    fn bind_again(
        &mut self,
        index: usize,
        keepalive: Option<Duration>,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let listener = &mut self.all[index];
        if let Err(e) = listener.bind_again(&mut self.activated, keepalive) {
            if let Some(outage) = &mut listener.outage {
                outage.failed(&e, now);
            }
            return;
        }
        listener.outage = None;
        self.changed.push(listener.number);
        let listener = &self.all[index];
        if let Err(e) = self.watch(listener, poller) {
            log::error!("cannot watch {}: {e}", listener.address);
        }
        let sentence = format_args!("listening on {} again", listener.address);
        telemetry
            .events
            .note(Kind::ListenerOpened, About::default(), sentence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_retried_every_second_and_later_every_30_s() {
        let now = Instant::now();
        let mut outage = Outage::new(now, ENDED);
        assert!(outage.is_due(now));
        let error = Error::Unavailable("no".to_owned());
        let mut at = now;
        for _ in 0..FAST_RETRIES {
            outage.failed(&error, at);
            assert_eq!(outage.deadline() - at, Duration::from_secs(1));
            at = outage.deadline();
        }
        outage.failed(&error, at);
        assert_eq!(outage.deadline() - at, SLOW_RETRY_INTERVAL);
        assert_eq!(outage.reason, "no");
    }
}
