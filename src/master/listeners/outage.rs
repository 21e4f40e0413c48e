//! Listeners that another holder of their socket has ended: by shutdown(2) in another process that
//! has it, or by `ss -K`.
//!
//! Such a socket never listens again. listen(2) on a TCP socket would make the kernel accept
//! clients that are shut down from the start. Another socket is bound to the same address instead:
//! at once, then every second, after half a minute every 30 s. Until that succeeds, the status
//! gives the reason. The poller reports the end as a hang-up, also for a disarmed listener: so it
//! is handled in the turn of the loop in which it occurs. A listener that the daemon itself has
//! ended is not in the poller any more.

use std::time::{Duration, Instant};

use crate::master::{Error, Master, Token};
use crate::proto::control::{About, Kind};
use crate::sys::listening::is_listening;
use crate::sys::poll::Interest;

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
pub(crate) const ENDED: &str = "another process that holds the socket has ended it";

/// The reason why no client can connect to a Unix socket that listens.
pub(crate) const FILE_GONE: &str = "its file is gone";

impl Master {
    /// Handles the listeners that the poller has reported as ended. Clients that waited there have
    /// been accepted by now, if there was capacity for them.
    pub(crate) fn look_at_ended(&mut self, numbers: &[u32], now: Instant) {
        for number in numbers {
            let Some(index) = self
                .listeners
                .all
                .iter()
                .position(|listener| listener.number == *number)
            else {
                continue;
            };
            if self.listeners.all[index].outage.is_some()
                || is_listening(&self.listeners.all[index])
            {
                continue;
            }
            if self.listeners.closing.contains(number) {
                self.close_listener(index);
                continue;
            }
            let listener = &mut self.listeners.all[index];
            let _ = self.poller.remove(&*listener);
            listener.outage = Some(Outage::new(now, ENDED));
            let sentence = format_args!(
                "listener {}: {ENDED}; binding another one",
                listener.address
            );
            self.telemetry
                .events
                .note(Kind::ListenerEnded, About::default(), sentence);
        }
    }

    /// Does the same for the control socket.
    pub(crate) fn look_at_control(&mut self, now: Instant) {
        if self.control.outage.is_some() || is_listening(&self.control.listener) {
            return;
        }
        let _ = self.poller.remove(&self.control.listener);
        self.control.outage = Some(Outage::new(now, ENDED));
        let path = self.control.listener.path().display();
        let sentence = format_args!("control socket {path}: {ENDED}; binding another one");
        self.telemetry
            .events
            .note(Kind::ListenerEnded, About::default(), sentence);
    }

    /// Has the control socket bound again if its file is gone.
    pub(crate) fn replace_lost_control(&mut self, now: Instant) {
        if self.control.outage.is_some() || self.control.listener.is_reachable() {
            return;
        }
        // Clients that wait there are still served.
        self.control
            .clients
            .accept(&self.control.listener, &self.poller, now);
        let _ = self.poller.remove(&self.control.listener);
        self.control.outage = Some(Outage::new(now, FILE_GONE));
    }

    /// Binds ended listeners again, if a try is due.
    pub(crate) fn bind_ended(&mut self, now: Instant) {
        self.bind_control(now);
        for index in 0..self.listeners.all.len() {
            self.bind_listener(index, now);
        }
    }

    /// Returns when [`Master::bind_ended`] has something to do.
    pub(crate) fn outage_deadline(&self) -> Option<Instant> {
        let outages = self
            .listeners
            .all
            .iter()
            .filter_map(|listener| listener.outage.as_ref());
        outages
            .chain(&self.control.outage)
            .map(Outage::deadline)
            .min()
    }

    fn bind_listener(&mut self, index: usize, now: Instant) {
        let keepalive = self.settings.config.limits.tcp_keepalive;
        let listener = &mut self.listeners.all[index];
        let Some(outage) = listener.outage.as_mut().filter(|outage| outage.is_due(now)) else {
            return;
        };
        if self.listeners.closing.contains(&listener.number) {
            return self.close_listener(index);
        }
        let mut outage = std::mem::replace(outage, Outage::new(now, ENDED));
        if let Err(e) = listener.bind_anew(&mut self.listeners.activated, keepalive) {
            outage.failed(&e, now);
            listener.outage = Some(outage);
            return;
        }
        listener.outage = None;
        let number = listener.number;
        let sentence = format!("listening on {} again", listener.address);
        if let Err(e) = self.watch_listener(&self.listeners.all[index]) {
            log::error!("cannot watch {}: {e}", self.listeners.all[index].address);
        }
        self.telemetry
            .events
            .note(Kind::ListenerOpened, About::default(), sentence);
        self.listeners.changed.push(number);
    }

    fn bind_control(&mut self, now: Instant) {
        let Some(outage) = self
            .control
            .outage
            .as_mut()
            .filter(|outage| outage.is_due(now))
        else {
            return;
        };
        if let Err(e) = self.control.listener.bind_anew(
            self.settings.config.control.socket.is_none(),
            self.settings.config.control.mode(),
        ) {
            return outage.failed(&e, now);
        }
        if let Err(e) = self.poller.add(
            &self.control.listener,
            Token::Control.into(),
            Interest::Clients,
        ) {
            log::error!("cannot watch the control socket: {e}");
        }
        self.control.outage = None;
        let path = self.control.listener.path().display();
        let sentence = format_args!("control socket {path} is open again");
        self.telemetry
            .events
            .note(Kind::ListenerOpened, About::default(), sentence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_tried_every_second_and_then_seldom() {
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
