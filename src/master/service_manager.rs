//! The link to the service manager, if one has started the daemon and wants to be notified: sd_notify(3).
//!
//! ```text
//! READY=1       the first worker is ready; a reload has its verdict, whatever it is
//! RELOADING=1   a new configuration was accepted, and its workers are being started
//! STOPPING=1    the daemon is stopping, with EXTEND_TIMEOUT_USEC= if that may take longer than TimeoutStopSec= of the unit
//! STATUS=…      the line that `systemctl status` shows
//! WATCHDOG=1    the loop runs; sent at half of WatchdogSec=
//! ```
//!
//! Nothing here waits. A message that the manager does not accept now is kept, in its order, and sent again. Each state
//! is sent at the end of the iteration of the loop in which it began, with the status of then. A status is sent when it
//! has changed, once a second at most; the loop does not wake up for it. It is escaped, so that nothing in it is taken
//! for an assignment.

mod failed_starts;
mod notifier;
mod summary;

use std::fmt;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::master::Announce;
use crate::sys::clock;
use crate::sys::poll::{self, Interest};
use crate::sys::signal::{Signal, Signals};

pub(crate) use self::notifier::Notifier;
pub(crate) use self::summary::{Details, Summary};

/// Time that the manager grants in addition to that of the workers at the end: for the signals, and for collecting the
/// last worker.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// The interval of starts that fail while a client waits at a socket of systemd's: 30 a minute, of the 60 that the
/// shipped unit allows.
const ACTIVATION_INTERVAL: Duration = Duration::from_secs(2);

/// The link to the service manager, and the first report that the daemon serves.
pub(super) struct ManagerLink {
    pub(super) notifier: Notifier,
    /// Called once, when the first worker is ready.
    pub(super) announce: Option<Announce>,
    /// States that have begun in this iteration of the loop.
    states: Vec<String>,
}

impl ManagerLink {
    /// Finds the service manager by the environment, sd_notify(3).
    pub(super) fn new(announce: Announce, now: Instant) -> ManagerLink {
        ManagerLink {
            notifier: Notifier::from_environment(now),
            announce: Some(announce),
            states: Vec::new(),
        }
    }

    /// Reports that the first worker is ready.
    pub(super) fn notify_ready(&mut self) {
        failed_starts::forget();
        self.notify(&[NotifyState::Ready]);
    }

    /// Reports that a new configuration was accepted.
    pub(super) fn notify_reloading(&mut self) {
        self.notify(&[NotifyState::Reloading, monotonic()]);
    }

    /// Reports that a reload has its verdict.
    ///
    /// A rejected reload has never begun. But a manager that has asked for it by SIGHUP (`Type=notify-reload`) waits
    /// until it has begun and ended: both in one datagram are its end for that manager, and nothing for another.
    pub(super) fn notify_reloaded(&mut self, has_begun: bool) {
        match has_begun {
            true => self.notify(&[NotifyState::Ready]),
            false => self.notify(&[NotifyState::Reloading, monotonic(), NotifyState::Ready]),
        }
    }

    /// Reports that the daemon is stopping, for `timeout` at most. The manager kills no process before that.
    pub(super) fn notify_stopping(&mut self, timeout: Duration) {
        let extension = (timeout + STOP_MARGIN).as_micros();
        let extend = format!("EXTEND_TIMEOUT_USEC={extension}");
        self.notify(&[NotifyState::Stopping, NotifyState::Custom(&extend)]);
    }

    fn notify(&mut self, states: &[NotifyState<'_>]) {
        if self.notifier.is_present() {
            self.states.push(notifier::join(states));
        }
    }

    /// Sends, at the end of an iteration of the loop, the states that have begun, the watchdog's message, messages that
    /// could not be sent, and the status, each if it is due.
    pub(super) fn report(&mut self, summary: Summary, details: &Details<'_>, now: Instant) {
        let is_ready = self.announce.is_none();
        for state in self.states.drain(..) {
            self.notifier.send_state(&state, &summary, details, now);
        }
        self.notifier.send_due(summary, details, is_ready, now);
    }
}

/// Sends the reason why this daemon does not start, or cannot continue, to the service manager, which otherwise gets
/// the exit status alone.
pub fn report_failure(reason: &dyn fmt::Display) {
    let now = Instant::now();
    Notifier::from_environment(now).send_status(reason, now);
}

/// Waits before the daemon exits because it cannot start, so that the service manager does not start it so often that
/// it gives up. `is_restarted` is whether the manager starts it again by itself; `is_awaited`, whether a client waits
/// at a socket of a socket unit, which starts it again.
pub fn wait_before_failing(is_restarted: bool, is_awaited: bool) {
    let mut wait = Duration::ZERO;
    if is_restarted {
        wait = failed_starts::count();
    }
    if is_awaited {
        wait = wait.max(ACTIVATION_INTERVAL);
    }
    if wait.is_zero() {
        return;
    }
    log::info!("exiting in {wait:?}, so that the service manager does not try too often");
    log::logger().flush();
    let Ok(mut stops) = Signals::catch(&[Signal::Terminate, Signal::Interrupt]) else {
        return;
    };
    let until = Instant::now() + wait;
    while stops.take().is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || poll::wait_for(&stops, Interest::Read, left).is_err() {
            return;
        }
    }
}

/// Returns the time of the message, by which systemd 253 and newer distinguishes the reload that it has asked for from
/// one before.
fn monotonic() -> NotifyState<'static> {
    NotifyState::MonotonicUsec((clock::monotonic() / 1000).into())
}
