//! The link to the service manager, if one has started the daemon and wants to be notified: sd_notify(3).
//!
//! ```text
//! EXTEND_TIMEOUT_USEC=…  the start may take `start-timeout`, which may be longer than TimeoutStartSec= of the unit
//! READY=1       the start is over: all wanted workers are ready, or `start-timeout` is over and one is
//!               a reload has its verdict, whatever it is
//! RELOADING=1   a new configuration was accepted, and its workers are being started
//! STOPPING=1    the daemon is stopping, with EXTEND_TIMEOUT_USEC= if that may take longer than TimeoutStopSec= of the unit
//! STATUS=…      the line that `systemctl status` shows
//! WATCHDOG=1    the loop runs; sent at half of WatchdogSec=
//! ```
//!
//! *The start.* READY=1 is all that waits: clients are leased to the first ready worker at once. `start-timeout` counts
//! from the start of the master. If no worker is ready by then, the first one that is ends the start; if none ever is,
//! the pool gives up, or the manager does. The next master after a restart is a start of its own, with kept clients as
//! without. After an upgrade nothing is sent: it is the same process for the manager, and it waits for all workers, so
//! it has sent READY=1 before.
//!
//! *A reload during the start* is not reported, because its READY=1 would be that of the start. If it is in progress
//! when the start ends, RELOADING=1 follows.
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
use crate::pool::{Member, Pool};
use crate::sys::clock;
use crate::sys::poll::{self, Interest};
use crate::sys::signal::{Signal, Signals};

pub(crate) use self::notifier::Notifier;
pub(crate) use self::summary::{Details, Summary};

/// Time that the manager grants in addition to that of the workers at the end: for the signals, and for collecting the
/// last worker.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Time that the manager grants in addition to `start-timeout`: READY=1 is late if the machine is busy.
const START_MARGIN: Duration = Duration::from_secs(10);

/// The interval of starts that fail while a client waits at a socket of systemd's: 30 a minute, of the 60 that the
/// shipped unit allows.
const ACTIVATION_INTERVAL: Duration = Duration::from_secs(2);

/// The link to the service manager, and the first report that the daemon serves.
pub(super) struct ManagerLink {
    pub(super) notifier: Notifier,
    /// Called once, when the first worker is ready.
    pub(super) announce: Option<Announce>,
    /// Until when READY=1 waits for all wanted workers; `None` once it was sent, and after an upgrade.
    ready_by: Option<Instant>,
    /// States that have begun in this iteration of the loop.
    states: Vec<String>,
}

impl ManagerLink {
    /// Finds the service manager by the environment, sd_notify(3).
    pub(super) fn new(announce: Announce, now: Instant) -> ManagerLink {
        ManagerLink {
            notifier: Notifier::from_environment(now),
            announce: Some(announce),
            ready_by: None,
            states: Vec::new(),
        }
    }

    /// Notes that the first worker is ready.
    pub(super) fn note_first_worker(&mut self) {
        failed_starts::forget();
    }

    /// Has the manager wait for a daemon that starts, for this time at least: [`ManagerLink::end_start`] ends the wait.
    pub(super) fn begin_start(&mut self, start_timeout: Duration, now: Instant) {
        if self.notifier.is_present() {
            self.ready_by = Some(now + start_timeout);
            self.notifier
                .extend_timeout(start_timeout + START_MARGIN, now);
        }
    }

    /// Reports that the daemon is ready, if the manager waits for that, and either all wanted workers are ready or one
    /// is and the others have had their time. Returns whether it did.
    pub(super) fn end_start(&mut self, pool: &Pool, now: Instant) -> bool {
        let has_worker = || pool.members().any(Member::is_ready);
        let is_over = |by: &mut Instant| pool.is_complete() || *by <= now && has_worker();
        let ends = self.ready_by.take_if(is_over).is_some();
        if ends {
            self.notify(&[NotifyState::Ready]);
        }
        ends
    }

    /// Reports that a new configuration was accepted, unless the daemon still starts.
    pub(super) fn notify_reloading(&mut self) {
        if self.ready_by.is_none() {
            self.notify(&[NotifyState::Reloading, monotonic()]);
        }
    }

    /// Reports that a reload has its verdict, unless the daemon still starts.
    ///
    /// A rejected reload has never begun. But a manager that has asked for it by SIGHUP (`Type=notify-reload`) waits
    /// until it has begun and ended: both in one datagram are its end for that manager, and nothing for another.
    pub(super) fn notify_reloaded(&mut self, has_begun: bool) {
        if self.ready_by.is_some() {
            return;
        }
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

    /// Returns when something must be sent although no event occurs.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        // Once the workers have had their time, the next one that becomes ready ends the start.
        let start = self.ready_by.filter(|by| *by > now);
        start.into_iter().chain(self.notifier.deadline()).min()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Action, Target};
    use crate::proto::names::Generation;

    #[test]
    fn a_start_ends_with_all_workers_or_its_time_and_one() {
        let start_timeout = Duration::from_secs(10);
        let target = Target {
            generation: Generation(1),
            count: 2,
            start_timeout,
            drain_timeout: start_timeout,
            max_lifetime: None,
            tries: 3,
        };
        let began = Instant::now();
        let over = began + start_timeout;
        let mut pool = Pool::new(target, began, 1);
        let spawned: Vec<_> = pool
            .reconcile(began)
            .into_iter()
            .filter_map(|action| match action {
                Action::Spawn { id, .. } => Some(id),
                _ => None,
            })
            .collect();
        let start = || ManagerLink {
            notifier: Notifier::from_environment(began),
            announce: None,
            ready_by: Some(over),
            states: Vec::new(),
        };
        let mut link = start();
        assert_eq!(link.deadline(began), Some(over));
        assert!(!link.end_start(&pool, over));
        assert_eq!(link.deadline(over), None);

        assert!(pool.ready(spawned[0], began));
        assert!(!start().end_start(&pool, began) && start().end_start(&pool, over));
        // Once.
        assert!(link.end_start(&pool, over) && !link.end_start(&pool, over));
        assert!(pool.ready(spawned[1], began));
        assert!(start().end_start(&pool, began));
    }
}
