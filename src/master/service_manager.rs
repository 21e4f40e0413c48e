//! What the service manager is told, if one has started us and wants to know: sd_notify(3).
//!
//! ```text
//! READY=1       the first worker is ready; a reload has its verdict, whatever it is
//! RELOADING=1   a new configuration was accepted, and its workers are being started
//! STOPPING=1    the end has begun, with EXTEND_TIMEOUT_USEC= if it may take longer than the unit's TimeoutStopSec=
//! STATUS=…      what `systemctl status` shows
//! WATCHDOG=1    the loop turns: said at half the time that it may take, and by nobody else
//! ```
//!
//! Nothing here waits. What the manager does not take now is kept, in its order, and tried again. A status is sent when it
//! has changed, once a second at most; nobody wakes up to look whether it has. Whatever is said in one is escaped, so that
//! nothing of it can be taken for another assignment.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fmt::{self, Write};
use std::io::ErrorKind;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::Master;
use super::listeners::accept::Pause;
use crate::master::Announce;
use crate::proto::control::{LastReload, Verdict};
use crate::proto::names::Generation;
use crate::proto::text::{Counted, Escaped};
use crate::sys::notify::NotifySocket;
use crate::sys::poll::{self, Interest};
use crate::sys::{clock, fd};

/// A status is at least that old before the next one is sent.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// After which time the manager is tried again that took no more.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Most messages that wait for the manager. It has been away for long then, and the last ones tell it all.
const MAX_UNSENT: usize = 64;

/// Time for the manager beside what workers may take at the end: for the signals, and for the last of them to be collected.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// The interval of starts that fail while a client waits at a socket of systemd's: 30 a minute, of the 60 that the shipped
/// unit allows.
const ACTIVATION_INTERVAL: Duration = Duration::from_secs(2);

/// Longest status, in bytes; systemd drops datagrams of more than 4 KiB.
const MAX_STATUS_LEN: usize = 1000;

/// Tells the service manager, or nobody.
#[derive(Debug)]
pub(super) struct Notifier(Option<Manager>);

#[derive(Debug)]
struct Manager {
    socket: NotifySocket,
    /// Not taken yet; the oldest is first.
    unsent: VecDeque<Notification>,
    retry_at: Option<Instant>,
    watchdog: Option<Watchdog>,
    /// In the last status.
    told: Option<Summary>,
    /// A status is not sent before.
    next_status: Instant,
    /// There is something to tell of then.
    has_changed: bool,
    /// It was said that nobody listens.
    is_complained_of: bool,
}

/// A datagram for the manager.
#[derive(Debug)]
struct Notification {
    text: String,
    descriptors: Vec<OwnedFd>,
}

impl Notification {
    fn barrier(theirs: OwnedFd) -> Notification {
        Notification {
            text: "BARRIER=1".to_owned(),
            descriptors: vec![theirs],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watchdog {
    interval: Duration,
    due: Instant,
}

impl Notifier {
    /// As the environment says.
    pub(super) fn from_environment(now: Instant) -> Notifier {
        let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
        else {
            return Notifier(None);
        };
        let socket = match NotifySocket::new(&address) {
            Ok(socket) => socket,
            Err(e) => {
                log::warn!(
                    "cannot notify the service manager: NOTIFY_SOCKET={}: {e}",
                    address.display()
                );
                return Notifier(None);
            }
        };
        let interval = watchdog_interval(|key| env::var_os(key), std::process::id());
        Notifier(Some(Manager {
            socket,
            unsent: VecDeque::new(),
            retry_at: None,
            watchdog: interval.map(|interval| Watchdog { interval, due: now }),
            told: None,
            next_status: now,
            has_changed: false,
            is_complained_of: false,
        }))
    }

    /// Has the manager keep a descriptor under this name for whoever is started after us: FDSTORE=1 of sd_notify(3). It is kept
    /// whatever happens at its other end.
    pub(super) fn store(&mut self, name: &str, descriptor: BorrowedFd<'_>, now: Instant) {
        let Some(manager) = &mut self.0 else { return };
        match descriptor.try_clone_to_owned() {
            Ok(copy) => {
                let states = [
                    NotifyState::FdStore,
                    NotifyState::FdName(name),
                    NotifyState::Custom("FDPOLL=0"),
                ];
                let text = states
                    .iter()
                    .map(NotifyState::to_string)
                    .collect::<Vec<_>>()
                    .join("\n");
                manager.queue(
                    Notification {
                        text,
                        descriptors: vec![copy],
                    },
                    now,
                );
            }
            Err(e) => log::error!("cannot store {name} with the service manager: {e}"),
        }
    }

    /// It need not keep what it has under this name any more.
    pub(super) fn drop_stored(&mut self, name: &str, now: Instant) {
        if let Some(manager) = &mut self.0 {
            manager.tell(
                &[NotifyState::FdStoreRemove, NotifyState::FdName(name)],
                now,
            );
        }
    }

    /// Has the manager close this when it has taken in all that it was told before.
    pub(super) fn send_barrier(&mut self, theirs: OwnedFd, now: Instant) {
        if let Some(manager) = &mut self.0 {
            manager.queue(Notification::barrier(theirs), now);
        }
    }

    /// Waits until the manager has taken in all that it was told (BARRIER=1 of sd_notify(3)), but not for ever. At the end only.
    pub(super) fn flush(&mut self, timeout: Duration) {
        let Some(manager) = &mut self.0 else { return };
        let deadline = Instant::now() + timeout;
        let Ok((end, theirs)) = fd::pipe() else {
            return;
        };
        manager.queue(Notification::barrier(theirs), Instant::now());
        // The pipe's other end is with the manager when it is told, and closed when it has taken all in.
        let is_confirmed = |timeout| poll::wait_for(&end, Interest::Read, timeout).unwrap_or(false);
        while !manager.unsent.is_empty()
            && Instant::now() < deadline
            && !is_confirmed(RETRY_INTERVAL)
        {
            manager.send(Instant::now());
        }
        if !is_confirmed(deadline.saturating_duration_since(Instant::now())) {
            log::warn!("the service manager has not confirmed the stored descriptors");
        }
    }

    /// This process could not run for a while: the manager, whose time went on, is told as soon as may be that it does.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(watchdog) = self
            .0
            .as_mut()
            .and_then(|manager| manager.watchdog.as_mut())
        {
            watchdog.due = now;
        }
    }

    /// When there is something to tell although nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let manager = self.0.as_ref()?;
        let status = manager.has_changed.then_some(manager.next_status);
        [
            status,
            manager.retry_at,
            manager.watchdog.map(|watchdog| watchdog.due),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

impl Manager {
    /// Sends these in one datagram, behind what waits already.
    fn tell(&mut self, states: &[NotifyState<'_>], now: Instant) {
        let text = states
            .iter()
            .map(NotifyState::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        self.queue(
            Notification {
                text,
                descriptors: Vec::new(),
            },
            now,
        );
    }

    fn queue(&mut self, message: Notification, now: Instant) {
        self.unsent.push_back(message);
        // What is to be kept is not said again.
        let forgettable = self
            .unsent
            .iter()
            .position(|message| message.descriptors.is_empty());
        if let Some(index) = forgettable.filter(|_| self.unsent.len() > MAX_UNSENT) {
            self.unsent.remove(index);
        }
        self.send(now);
    }

    /// Sends what waits, as far as it is taken.
    fn send(&mut self, now: Instant) {
        self.retry_at = None;
        while let Some(message) = self.unsent.front() {
            match self
                .socket
                .send(message.text.as_bytes(), &message.descriptors)
            {
                Ok(()) => self.is_complained_of = false,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.retry_at = Some(now + RETRY_INTERVAL);
                    return;
                }
                Err(e) => {
                    if !self.is_complained_of {
                        log::warn!("cannot notify the service manager: {e}");
                    }
                    self.is_complained_of = true;
                }
            }
            self.unsent.pop_front();
        }
    }

    /// Sends these with a status behind them.
    fn tell_with_status(
        &mut self,
        states: &[NotifyState<'_>],
        summary: Summary,
        outcome: Outcome<'_>,
        now: Instant,
    ) {
        let status = status_text(&format_args!("{summary}{outcome}"));
        self.tell(&[states, &[NotifyState::Status(&status)]].concat(), now);
        (self.told, self.next_status, self.has_changed) =
            (Some(summary), now + STATUS_INTERVAL, false);
    }

    /// Says that the loop turns, if it is time to. What waits is older than that, and would be told first.
    fn pulse(&mut self, now: Instant) {
        let Some(watchdog) = self
            .watchdog
            .as_mut()
            .filter(|watchdog| watchdog.due <= now)
        else {
            return;
        };
        watchdog.due = now + watchdog.interval;
        if self.unsent.is_empty() {
            self.tell(&[NotifyState::Watchdog], now);
        }
    }
}

/// The link to the service manager, and the first report that the daemon serves.
pub(super) struct ManagerLink {
    pub(super) notifier: Notifier,
    /// Called once, when the first worker is ready.
    pub(super) announce: Option<Announce>,
}

impl ManagerLink {
    /// Finds the service manager by the environment, sd_notify(3).
    pub(super) fn new(announce: Announce, now: Instant) -> ManagerLink {
        ManagerLink {
            notifier: Notifier::from_environment(now),
            announce: Some(announce),
        }
    }
}

impl Master {
    /// Something of importance, and how things are then.
    fn tell_manager(&mut self, states: &[NotifyState<'_>], now: Instant) {
        let (summary, missing) = (self.summary(), self.missing());
        let (Some(summary), Some(manager)) = (summary, &mut self.manager.notifier.0) else {
            return;
        };
        let outcome = Outcome {
            reload: self.settings.last_reload.as_ref(),
            stale: self.settings.stale.as_deref(),
            missing: &missing,
        };
        manager.tell_with_status(states, summary, outcome, now);
    }

    /// The first worker is ready.
    pub(super) fn tell_ready(&mut self, now: Instant) {
        self.tell_manager(&[NotifyState::Ready], now);
    }

    /// A new configuration was accepted.
    pub(super) fn tell_reloading(&mut self, now: Instant) {
        self.tell_manager(&[NotifyState::Reloading, monotonic()], now);
    }

    /// What came of a reload.
    ///
    /// One that was refused has never begun. But a manager that has asked for it by SIGHUP (`Type=notify-reload`) waits
    /// until it has begun and ended: both in one datagram is the end for that one, and nothing for any other.
    pub(super) fn tell_reloaded(&mut self, has_begun: bool, now: Instant) {
        match has_begun {
            true => self.tell_manager(&[NotifyState::Ready], now),
            false => self.tell_manager(
                &[NotifyState::Reloading, monotonic(), NotifyState::Ready],
                now,
            ),
        }
    }

    /// The end has begun, and takes `timeout` at most. The manager kills nobody until then.
    pub(super) fn tell_stopping(&mut self, timeout: Duration, now: Instant) {
        let extension = (timeout + STOP_MARGIN).as_micros();
        let extend = format!("EXTEND_TIMEOUT_USEC={extension}");
        self.tell_manager(&[NotifyState::Stopping, NotifyState::Custom(&extend)], now);
    }

    /// At the end of each turn of the loop: that it turns, what could not be sent, and how things are, each if it is time to.
    pub(super) fn keep_manager_informed(&mut self, now: Instant) {
        let (summary, missing) = (self.summary(), self.missing());
        let (Some(summary), Some(manager)) = (summary, &mut self.manager.notifier.0) else {
            return;
        };
        if manager.retry_at.is_some_and(|at| at <= now) {
            manager.send(now);
        }
        manager.pulse(now);
        // Until it is ready, which comes with a status of its own, there is nothing to tell of.
        manager.has_changed = self.manager.announce.is_none() && manager.told != Some(summary);
        if manager.has_changed && manager.next_status <= now {
            let outcome = Outcome {
                reload: self.settings.last_reload.as_ref(),
                stale: self.settings.stale.as_deref(),
                missing: &missing,
            };
            manager.tell_with_status(&[], summary, outcome, now);
        }
    }

    /// How things are, if anybody wants to know.
    fn summary(&self) -> Option<Summary> {
        self.manager.notifier.0.as_ref()?;
        let is_stopping = self.lifecycle.is_ending();
        Some(Summary {
            ready: if is_stopping {
                self.workers.all.len()
            } else {
                self.ready_workers().count()
            },
            wanted: self.workers.pool.target().count,
            clients: self.clients.count(),
            generation: self.settings.generation,
            is_reloading: self.lifecycle.is_rolling(),
            is_stopping,
            outages: self
                .listeners
                .all
                .iter()
                .filter(|listener| listener.outage.is_some())
                .count(),
            missing: self.missing().len(),
            is_unkept: self
                .handover
                .store
                .as_ref()
                .is_some_and(|store| store.canaries.outage().is_some()),
            // Others pass in moments.
            pause: self
                .listeners
                .gate
                .pause
                .filter(|pause| matches!(pause, Pause::Drained | Pause::Full)),
        })
    }
}

/// Tells the service manager why this daemon does not start, or does not go on. Its exit status is all else that it learns.
pub fn say_why(reason: &dyn fmt::Display) {
    let now = Instant::now();
    if let Some(manager) = &mut Notifier::from_environment(now).0 {
        manager.tell(&[NotifyState::Status(&status_text(reason))], now);
    }
}

/// Waits for two seconds, so that a socket unit whose service cannot start does not start it so often that systemd gives it up.
pub fn wait_before_failing() {
    // Nothing is ever written to the pipe; a signal may end the wait.
    if let Ok((end, _writer)) = fd::pipe() {
        let _ = poll::wait_for(&end, Interest::Read, ACTIVATION_INTERVAL);
    }
}

/// How things are, in a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summary {
    /// Workers that serve, or are still there at the end.
    ready: usize,
    wanted: usize,
    clients: u64,
    generation: Generation,
    is_reloading: bool,
    is_stopping: bool,
    /// Listeners that clients cannot connect to.
    outages: usize,
    /// What is missing beside them: see [`Master::missing`].
    missing: usize,
    /// The service manager does not keep what it was given.
    is_unkept: bool,
    pause: Option<Pause>,
}

impl fmt::Display for Summary {
    /// `2 workers, 120 clients, generation 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary {
            ready,
            wanted,
            clients,
            generation,
            ..
        } = *self;
        if ready < wanted && !self.is_stopping {
            write!(f, "{ready} of ")?;
        }
        let workers = if self.is_stopping {
            ready
        } else {
            ready.max(wanted)
        };
        write!(
            f,
            "{}, {}, generation {generation}",
            Counted(workers, "worker"),
            Counted(clients, "client")
        )?;
        if self.is_stopping {
            return f.write_str("; stopping");
        }
        if self.is_reloading {
            f.write_str("; reloading")?;
        }
        if self.outages > 0 {
            write!(f, "; {} down", Counted(self.outages, "listener"))?;
        }
        if self.is_unkept {
            f.write_str("; a restart would lose all clients")?;
        }
        if let Some(pause) = self.pause {
            write!(f, "; new clients are not accepted: {pause}")?;
        }
        Ok(())
    }
}

/// What came of the last reload, if that was not what the operator wanted; or of the file at the last restart.
struct Outcome<'a> {
    reload: Option<&'a LastReload>,
    stale: Option<&'a str>,
    missing: &'a [String],
}

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for missing in self.missing {
            write!(f, "; missing: {missing}")?;
        }
        if let Some(why) = self.stale {
            return write!(f, "; the previous configuration is in force: {why}");
        }
        let Some(LastReload {
            verdict, message, ..
        }) = self.reload
        else {
            return Ok(());
        };
        f.write_str(match verdict {
            Verdict::Applied => return Ok(()),
            Verdict::Rejected => "; last reload rejected",
            Verdict::RolledBack => "; last reload rolled back",
        })?;
        message
            .as_ref()
            .map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// In one line that nothing can act in, and not too long.
fn status_text(what: &dyn fmt::Display) -> String {
    let mut text = String::new();
    // A `Display` that fails has said what it could.
    let _ = write!(text, "{}", Escaped(what));
    if text.len() > MAX_STATUS_LEN {
        let cut = (0..=MAX_STATUS_LEN)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or_default();
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// The time of the message, by which systemd 253 and newer tells the reload that it has asked for from one before.
fn monotonic() -> NotifyState<'static> {
    NotifyState::MonotonicUsec((clock::monotonic() / 1000).into())
}

/// How often the manager wants to hear that the loop turns, if it does: sd_watchdog_enabled(3).
fn watchdog_interval(var: impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<Duration> {
    let number = |key| var(key).and_then(|value| value.to_str()?.parse::<u64>().ok());
    let is_ours = var("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(pid.into());
    let limit = number("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0)?;
    Some(Duration::from_micros(limit / 2).max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_one_line_for_people() {
        let usual = Summary {
            ready: 2,
            wanted: 2,
            clients: 120,
            generation: Generation(3),
            is_reloading: false,
            is_stopping: false,
            outages: 0,
            missing: 0,
            is_unkept: false,
            pause: None,
        };
        for (summary, text) in [
            (usual, "2 workers, 120 clients, generation 3"),
            (
                Summary {
                    ready: 1,
                    wanted: 1,
                    clients: 1,
                    ..usual
                },
                "1 worker, 1 client, generation 3",
            ),
            (
                Summary {
                    ready: 1,
                    clients: 0,
                    ..usual
                },
                "1 of 2 workers, 0 clients, generation 3",
            ),
            (
                Summary { ready: 3, ..usual },
                "3 workers, 120 clients, generation 3",
            ),
            (
                Summary {
                    outages: 1,
                    ..usual
                },
                "2 workers, 120 clients, generation 3; 1 listener down",
            ),
            (
                Summary {
                    outages: 2,
                    ..usual
                },
                "2 workers, 120 clients, generation 3; 2 listeners down",
            ),
            (
                Summary {
                    is_unkept: true,
                    ..usual
                },
                "2 workers, 120 clients, generation 3; a restart would lose all clients",
            ),
            (
                Summary {
                    is_reloading: true,
                    ..usual
                },
                "2 workers, 120 clients, generation 3; reloading",
            ),
            (
                Summary {
                    is_stopping: true,
                    ready: 1,
                    ..usual
                },
                "1 worker, 120 clients, generation 3; stopping",
            ),
            (
                Summary {
                    pause: Some(Pause::Drained),
                    ..usual
                },
                "2 workers, 120 clients, generation 3; new clients are not accepted: the daemon is drained",
            ),
        ] {
            assert_eq!(summary.to_string(), text);
        }
    }

    #[test]
    fn nothing_in_a_status_is_an_assignment_and_a_long_one_is_cut() {
        let reload = LastReload {
            at: 0,
            verdict: Verdict::Rejected,
            message: Some("bad\nMAINPID=1\x1b".to_owned()),
        };
        assert_eq!(
            status_text(&Outcome {
                reload: Some(&reload),
                stale: None,
                missing: &[]
            }),
            r"; last reload rejected: bad\nMAINPID=1\x1b"
        );
        let long = status_text(&"ä".repeat(MAX_STATUS_LEN));
        assert!(
            long.len() <= MAX_STATUS_LEN + '…'.len_utf8() && long.ends_with("ä…"),
            "{long}"
        );
    }

    #[test]
    fn the_watchdog_is_fed_in_half_its_time_if_it_waits_for_this_process() {
        let interval = |vars: &[(&str, &str)]| {
            let var = |key: &str| {
                vars.iter()
                    .find(|(k, _)| *k == key)
                    .map(|(_, value)| OsString::from(value))
            };
            watchdog_interval(var, 42)
        };
        let half = Some(Duration::from_millis(1500));
        assert_eq!(interval(&[("WATCHDOG_USEC", "3000000")]), half);
        assert_eq!(
            interval(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "42")]),
            half
        );
        assert_eq!(
            interval(&[("WATCHDOG_USEC", "1")]),
            Some(Duration::from_millis(1))
        );
        for vars in [
            &[][..],
            &[("WATCHDOG_PID", "42")],
            &[("WATCHDOG_USEC", "0")],
            &[("WATCHDOG_USEC", "-1")],
            &[("WATCHDOG_USEC", "3s")],
            &[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "43")],
            &[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "")],
        ] {
            assert_eq!(interval(vars), None, "{vars:?}");
        }
    }
}
