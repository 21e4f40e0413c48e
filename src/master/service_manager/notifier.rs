//! Messages to the service manager, and its watchdog.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{env, fmt};

use sd_notify::NotifyState;

use super::summary::{Details, Summary, status_text};
use crate::sys::fd;
use crate::sys::notify::NotifySocket;
use crate::sys::poll::{self, Interest};

/// Least time between two statuses.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Time until a message that the manager did not accept is sent again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Most messages without descriptors that wait for the manager. If there are more, it has been away for long, and the
/// last ones have it all.
const MAX_UNSENT: usize = 64;

/// Sends messages to the service manager, if there is one.
#[derive(Debug)]
pub(crate) struct Notifier(Option<Manager>);

#[derive(Debug)]
struct Manager {
    socket: NotifySocket,
    /// Messages that the manager has not accepted yet; the oldest is first.
    unsent: VecDeque<Notification>,
    retry_at: Option<Instant>,
    watchdog: Option<Watchdog>,
    /// The summary in the last status.
    sent: Option<Summary>,
    /// When the next status may be sent.
    next_status: Instant,
    /// The summary has changed since.
    has_changed: bool,
    /// The last failure was logged.
    is_failure_logged: bool,
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
    /// Finds the service manager by the environment.
    pub(crate) fn from_environment(now: Instant) -> Notifier {
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
            sent: None,
            next_status: now,
            has_changed: false,
            is_failure_logged: false,
        }))
    }

    /// Has the manager keep a descriptor under this name for the next master: FDSTORE=1 of sd_notify(3). It is kept
    /// whatever happens at its other end.
    ///
    /// # Errors
    /// Those of dup(2). Nothing is sent then.
    pub(crate) fn store(
        &mut self,
        name: &str,
        descriptor: BorrowedFd<'_>,
        now: Instant,
    ) -> io::Result<()> {
        let Some(manager) = &mut self.0 else {
            return Ok(());
        };
        let copy = descriptor.try_clone_to_owned()?;
        let states = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        let message = Notification {
            text: join(&states),
            descriptors: vec![copy],
        };
        manager.queue(message, now);
        Ok(())
    }

    /// Has the manager drop the descriptor that it keeps under this name.
    pub(crate) fn drop_stored(&mut self, name: &str, now: Instant) {
        if let Some(manager) = &mut self.0 {
            manager.notify(
                &[NotifyState::FdStoreRemove, NotifyState::FdName(name)],
                now,
            );
        }
    }

    /// Has the manager close this descriptor when it has handled all messages before.
    pub(crate) fn send_barrier(&mut self, theirs: OwnedFd, now: Instant) {
        if let Some(manager) = &mut self.0 {
            manager.queue(Notification::barrier(theirs), now);
        }
    }

    /// Waits until the manager has handled all messages (BARRIER=1 of sd_notify(3)), for `timeout` at most. This blocks
    /// the loop: called only at SIGTERM and at the exit.
    pub(crate) fn flush(&mut self, timeout: Duration) {
        let Some(manager) = &mut self.0 else { return };
        let deadline = Instant::now() + timeout;
        let Ok((end, theirs)) = fd::pipe() else {
            return;
        };
        manager.queue(Notification::barrier(theirs), Instant::now());
        // The manager closes its end of the pipe when it has handled all messages.
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

    /// Makes the watchdog's message due, because this process could not run for a while.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if let Some(watchdog) = self
            .0
            .as_mut()
            .and_then(|manager| manager.watchdog.as_mut())
        {
            watchdog.due = now;
        }
    }

    /// Returns the messages that the manager has not accepted yet, without those that carry descriptors.
    pub(crate) fn unsent(&self) -> Vec<String> {
        let all = self.0.iter().flat_map(|manager| &manager.unsent);
        let texts = all.filter(|message| message.descriptors.is_empty());
        texts.map(|message| message.text.clone()).collect()
    }

    /// Sends the messages that the manager had not accepted before this process became this program.
    pub(crate) fn send_unsent(&mut self, texts: Vec<String>, now: Instant) {
        let Some(manager) = &mut self.0 else { return };
        for text in texts {
            let descriptors = Vec::new();
            manager.queue(Notification { text, descriptors }, now);
        }
    }

    /// Returns whether there is a service manager.
    pub(crate) fn is_present(&self) -> bool {
        self.0.is_some()
    }

    /// Has the manager wait for the next message for this long, if it would give up before.
    pub(crate) fn extend_timeout(&mut self, timeout: Duration, now: Instant) {
        if let Some(manager) = &mut self.0 {
            let extend = format!("EXTEND_TIMEOUT_USEC={}", timeout.as_micros());
            manager.notify(&[NotifyState::Custom(&extend)], now);
        }
    }

    /// Sends a status alone.
    pub(crate) fn send_status(&mut self, status: &dyn fmt::Display, now: Instant) {
        if let Some(manager) = &mut self.0 {
            manager.notify(&[NotifyState::Status(&status_text(status))], now);
        }
    }

    /// Sends a state with the status.
    pub(crate) fn send_state(
        &mut self,
        state: &str,
        summary: &Summary,
        details: &Details<'_>,
        now: Instant,
    ) {
        if let Some(manager) = &mut self.0 {
            manager.send_status(Some(state), summary.clone(), details, now);
        }
    }

    /// Sends the watchdog's message, messages that could not be sent, and, once the daemon is ready, a changed status,
    /// each if it is due.
    pub(crate) fn send_due(
        &mut self,
        summary: Summary,
        details: &Details<'_>,
        is_ready: bool,
        now: Instant,
    ) {
        let Some(manager) = &mut self.0 else { return };
        if manager.retry_at.is_some_and(|at| at <= now) {
            manager.send(now);
        }
        manager.pulse(now);
        // READY=1 comes with the first status.
        manager.has_changed = is_ready && manager.sent.as_ref() != Some(&summary);
        if manager.has_changed && manager.next_status <= now {
            manager.send_status(None, summary, details, now);
        }
    }

    /// Returns when a message is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
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
    /// Sends these in one datagram, after the messages that already wait.
    fn notify(&mut self, states: &[NotifyState<'_>], now: Instant) {
        let message = Notification {
            text: join(states),
            descriptors: Vec::new(),
        };
        self.queue(message, now);
    }

    fn queue(&mut self, message: Notification, now: Instant) {
        self.unsent.push_back(message);
        // Messages with descriptors are not repeated.
        let is_forgettable = |message: &Notification| message.descriptors.is_empty();
        let forgettable = self.unsent.iter().filter(|message| is_forgettable(message));
        if forgettable.count() > MAX_UNSENT
            && let Some(index) = self.unsent.iter().position(is_forgettable)
        {
            self.unsent.remove(index);
        }
        self.send(now);
    }

    /// Sends the messages that wait, as far as the manager accepts them.
    fn send(&mut self, now: Instant) {
        self.retry_at = None;
        while let Some(message) = self.unsent.front() {
            match self
                .socket
                .send(message.text.as_bytes(), &message.descriptors)
            {
                Ok(()) => self.is_failure_logged = false,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.retry_at = Some(now + RETRY_INTERVAL);
                    return;
                }
                Err(e) => {
                    if !self.is_failure_logged {
                        log::warn!("cannot notify the service manager: {e}");
                    }
                    self.is_failure_logged = true;
                }
            }
            self.unsent.pop_front();
        }
    }

    /// Sends a status, after a state in the same datagram if there is one.
    fn send_status(
        &mut self,
        state: Option<&str>,
        summary: Summary,
        details: &Details<'_>,
        now: Instant,
    ) {
        let status = status_text(&format_args!("{summary}{details}"));
        let state = state.map(NotifyState::Custom);
        let states: Vec<_> = state
            .into_iter()
            .chain([NotifyState::Status(&status)])
            .collect();
        self.notify(&states, now);
        (self.sent, self.next_status, self.has_changed) =
            (Some(summary), now + STATUS_INTERVAL, false);
    }

    /// Sends the watchdog's message if it is due, unless older messages wait.
    fn pulse(&mut self, now: Instant) {
        let Some(watchdog) = self
            .watchdog
            .as_mut()
            .filter(|watchdog| watchdog.due <= now)
        else {
            return;
        };
        // The message follows those that wait: after a whole interval more, the manager would find the daemon dead.
        if !self.unsent.is_empty() {
            watchdog.due = now + RETRY_INTERVAL;
        } else {
            watchdog.due = now + watchdog.interval;
            self.notify(&[NotifyState::Watchdog], now);
        }
    }
}

/// Returns the text of one datagram.
pub(crate) fn join(states: &[NotifyState<'_>]) -> String {
    let lines: Vec<String> = states.iter().map(NotifyState::to_string).collect();
    lines.join("\n")
}

/// Returns the interval of the watchdog's messages, if the manager wants them: sd_watchdog_enabled(3).
fn watchdog_interval(var: impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<Duration> {
    let number = |key| var(key).and_then(|value| value.to_str()?.parse::<u64>().ok());
    let is_ours = var("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(pid.into());
    let limit = number("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0)?;
    Some(Duration::from_micros(limit / 2).max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_watchdog_interval_is_half_of_watchdog_usec() {
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

    /// Returns a manager whose socket is full, and its receiver. The directory must outlive them.
    fn full(directory: &Path) -> (Manager, UnixDatagram) {
        let path = directory.join("notify");
        let receiver = UnixDatagram::bind(&path).expect("bind");
        receiver.set_nonblocking(true).expect("fcntl");
        let mut manager = Manager {
            socket: NotifySocket::new(path.as_os_str()).expect("an address"),
            unsent: VecDeque::new(),
            retry_at: None,
            watchdog: None,
            sent: None,
            next_status: Instant::now(),
            has_changed: false,
            is_failure_logged: false,
        };
        while manager.unsent.is_empty() {
            manager.notify(&[NotifyState::Watchdog], Instant::now());
        }
        manager.unsent.clear();
        (manager, receiver)
    }

    #[test]
    fn a_watchdog_message_follows_those_that_wait() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (mut manager, receiver) = full(directory.path());
        let now = Instant::now();
        manager.notify(&[NotifyState::Ready], now);
        manager.watchdog = Some(Watchdog {
            interval: Duration::from_secs(10),
            due: now,
        });
        manager.pulse(now);
        let due = |manager: &Manager| manager.watchdog.expect("it is set").due;
        assert!(due(&manager) <= now + RETRY_INTERVAL);

        let (mut received, mut buffer) = (String::new(), [0; 100]);
        while receiver.recv(&mut buffer).is_ok() {}
        let later = now + RETRY_INTERVAL;
        manager.send(later);
        manager.pulse(later);
        while let Ok(length) = receiver.recv(&mut buffer) {
            received += &String::from_utf8_lossy(&buffer[..length]);
        }
        assert_eq!(received, "READY=1WATCHDOG=1");
        assert_eq!(due(&manager), later + Duration::from_secs(10));
    }

    #[test]
    fn descriptors_that_wait_displace_no_message() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (mut manager, receiver) = full(directory.path());
        manager.notify(&[NotifyState::Ready], Instant::now());
        for _ in 0..2 * MAX_UNSENT {
            let (_, theirs) = fd::pipe().expect("a pipe");
            manager.queue(Notification::barrier(theirs), Instant::now());
        }
        let (mut received, mut buffer) = (String::new(), [0; 100]);
        while !manager.unsent.is_empty() {
            while let Ok(length) = receiver.recv(&mut buffer) {
                received += &String::from_utf8_lossy(&buffer[..length]);
            }
            manager.send(Instant::now());
        }
        assert!(received.contains("READY=1"), "{received}");
    }
}
