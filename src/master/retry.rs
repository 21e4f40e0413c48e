//! The schedule of tries to end an outage: the first at once, then one every second, after half a minute every 30 s.

use std::time::{Duration, Instant};

use crate::master::Error;

/// Number of tries that are a second apart; later ones are [`SLOW_RETRY_INTERVAL`] apart.
const FAST_RETRIES: u32 = 30;
const SLOW_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// An outage: its reason, and the time of the next try.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_retried_every_second_and_later_every_30_s() {
        let now = Instant::now();
        let mut outage = Outage::new(now, "gone");
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
