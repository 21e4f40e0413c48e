//! Metrics over HTTP. The master binds the listener, so that a reload can be rejected, and a process of its own answers
//! there. The listener stays when that process dies or is replaced: requests wait in its queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::listeners::exporter_listener::ExporterListener;
use super::listeners::outage::{FILE_GONE, Served};
use super::retry::Outage;
use super::telemetry::events::EventLog;
use super::{Error, Token};
use crate::channel::{Channel, Sent};
use crate::config::{Config, HostName, variables_of};
use crate::pool::backoff::Jitter;
use crate::proto::exporter::{Nothing, StartExporter, ToExporter};
use crate::proto::names::Address;
use crate::sys::clock;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable, Exit};

/// The number of deaths in a row begins again after this lifetime.
const PROBATION: Duration = Duration::from_secs(10);

/// The listener for metrics, and the process that answers there. Dropping it ends both.
#[derive(Debug)]
pub(super) struct Exporter {
    listener: ExporterListener,
    /// Set while the listener is not bound or not in the poller.
    outage: Option<Outage>,
    /// The first message to the process.
    start: StartExporter,
    state: ExporterState,
    /// Deaths in a row, each soon after the start.
    streak: u32,
    jitter: Jitter,
}

#[derive(Debug)]
enum ExporterState {
    /// The process is started at this time.
    Due(Instant),
    Running {
        pid: u32,
        since: Instant,
        channel: Channel<ToExporter, Nothing>,
    },
}

/// The change of the exporter by a reload.
#[derive(Debug)]
pub(super) enum PlannedExporter {
    /// The listener stays, if there is one.
    Keep,
    /// A new listener, where requests wait.
    New(Box<ExporterListener>),
    /// There is no exporter any more.
    Gone,
}

impl Exporter {
    pub(super) fn listener(&self) -> &ExporterListener {
        &self.listener
    }

    /// Creates an exporter whose process is started at once, with the message `start`.
    pub(super) fn new(listener: ExporterListener, start: StartExporter, now: Instant) -> Exporter {
        log::info!("metrics are served on {}", listener.address);
        Exporter::with_outage(listener, None, start, now)
    }

    fn with_outage(
        listener: ExporterListener,
        outage: Option<Outage>,
        start: StartExporter,
        now: Instant,
    ) -> Exporter {
        let jitter = Jitter::new(clock::monotonic());
        Exporter {
            listener,
            outage,
            start,
            state: ExporterState::Due(now),
            streak: 0,
            jitter,
        }
    }

    /// Binds the address. If this master follows another one, an address that cannot be bound is retried.
    ///
    /// # Errors
    /// Those of [`ExporterListener::bind`], unless this master follows another one.
    pub(super) fn open(
        address: &Address,
        start: StartExporter,
        follows_a_master: bool,
        now: Instant,
    ) -> Result<Exporter, Error> {
        match ExporterListener::bind(address) {
            Err(e) if follows_a_master => {
                let missing =
                    ExporterListener::missing(address).map_err(Error::system("make a socket"))?;
                Ok(Exporter::with_outage(
                    missing,
                    Some(Outage::from_error(&e, now)),
                    start,
                    now,
                ))
            }
            bound => bound.map(|listener| Exporter::new(listener, start, now)),
        }
    }

    /// Returns the first message to the process.
    pub(super) fn start(&self) -> StartExporter {
        self.start.clone()
    }

    /// Returns why no metrics can be requested, if so. With `checks_file` the file of a Unix socket that is gone is a
    /// reason, too.
    pub(super) fn missing(&self, checks_file: bool) -> Option<&str> {
        match &self.outage {
            Some(outage) => Some(&outage.reason),
            None => (checks_file && self.listener.is_file_gone()).then_some(FILE_GONE),
        }
    }

    /// Returns when a start or a bind is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match (&self.outage, &self.state) {
            (Some(outage), _) => Some(outage.deadline()),
            (None, ExporterState::Due(at)) => Some(*at),
            (None, ExporterState::Running { .. }) => None,
        }
    }

    /// Returns the address of the listener.
    pub(super) fn address(&self) -> &Address {
        &self.listener.address
    }

    /// Removes the listener from the poller. The exporter's process may have the socket for longer, so that the poller
    /// would keep it.
    fn unwatch(&self, poller: &Poller) {
        let _ = poller.remove(&self.listener);
    }

    /// Binds an ended listener again and starts the process, each if it is due.
    pub(super) fn keep_running(
        &mut self,
        executable: &Executable,
        poller: &Poller,
        events: &mut EventLog,
        now: Instant,
    ) {
        let bind_again = |exporter: &mut Exporter| exporter.listener.bind_again();
        if self.end_outage(bind_again, Interest::End, (events, poller), now) {
            // The next process gets the new listener.
            self.replace(now);
        }
        self.start_if_due(executable, now);
    }

    /// Ends the process, and has the next one started.
    fn replace(&mut self, now: Instant) {
        self.end();
        self.state = ExporterState::Due(now);
    }

    /// Starts the process if that is due.
    fn start_if_due(&mut self, executable: &Executable, now: Instant) {
        if self.outage.is_some() || self.deadline().is_none_or(|due| due > now) {
            return;
        }
        match self.spawn(executable) {
            Ok((pid, channel)) => {
                log::debug!("exporter (pid {pid}) started");
                self.state = ExporterState::Running {
                    pid,
                    since: now,
                    channel,
                };
            }
            Err(e) => {
                let wait = self.back_off(now);
                log::error!(
                    "the exporter cannot be started: {e}; trying again in {} ms",
                    wait.as_millis()
                );
            }
        }
    }

    fn spawn(&self, executable: &Executable) -> io::Result<(u32, Channel<ToExporter, Nothing>)> {
        let (mut channel, theirs) = Channel::pair()?;
        // Before the start, so that the process finds it there.
        match channel.send(
            &ToExporter::Start(self.start.clone()),
            &[self.listener.as_fd()],
        )? {
            Sent::Queued => {}
            Sent::Full | Sent::Shortage | Sent::Closed => {
                return Err(io::Error::other("too many descriptors are under way"));
            }
        }
        let name = &self.start.name;
        let pid = executable.spawn(name, &["metrics"], theirs, &variables_of(name))?;
        Ok((pid, channel))
    }

    /// Schedules the next start, after a wait that grows from death to death.
    fn back_off(&mut self, now: Instant) -> Duration {
        self.streak += 1;
        let wait = self.jitter.backoff(self.streak);
        self.state = ExporterState::Due(now + wait);
        wait
    }

    /// Schedules a successor if the child that has ended was the exporter. Returns whether it was.
    pub(super) fn take_death(&mut self, child: u32, exit: Exit, now: Instant) -> bool {
        let ExporterState::Running { pid, since, .. } = self.state else {
            return false;
        };
        if pid != child {
            return false;
        }
        if now.duration_since(since) >= PROBATION {
            self.streak = 0;
        }
        let wait = self.back_off(now);
        log::warn!(
            "exporter (pid {pid}) {exit}; its successor starts in {} ms",
            wait.as_millis()
        );
        true
    }

    /// Replaces the process if it was started with another message.
    fn restart(&mut self, start: StartExporter, now: Instant) {
        if self.start != start {
            self.start = start;
            self.replace(now);
        }
    }

    /// Has the process open the log file again.
    pub(super) fn reopen_log(&mut self, now: Instant) {
        let ExporterState::Running { channel, .. } = &mut self.state else {
            return;
        };
        if !matches!(channel.send(&ToExporter::Reopen, &[]), Ok(Sent::Queued)) {
            // It is stopped, or dead and not collected yet. Its successor opens the new file.
            self.replace(now);
        }
    }

    /// Kills the process: the end of its channel would not end a stopped one.
    fn end(&self) {
        let ExporterState::Running { pid, .. } = self.state else {
            return;
        };
        if let Err(e) = process::kill_child(pid) {
            log::error!("cannot kill the exporter (pid {pid}): {e}");
        }
    }
}

impl Served for Exporter {
    fn token(&self) -> Token {
        Token::Metrics
    }

    fn name(&self) -> String {
        format!("metrics listener {}", self.address())
    }

    fn outage_mut(&mut self) -> &mut Option<Outage> {
        &mut self.outage
    }

    fn is_reachable(&self) -> bool {
        !self.listener.is_file_gone()
    }
}

impl AsFd for Exporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.end();
    }
}

/// Binds an exporter again that ended just now.
pub(super) fn open_again(
    address: &Address,
    start: StartExporter,
    poller: &Poller,
    now: Instant,
) -> Option<Exporter> {
    match Exporter::open(address, start, true, now) {
        Ok(mut exporter) => {
            exporter.watch(Interest::End, poller, now);
            Some(exporter)
        }
        Err(e) => {
            log::error!("no metrics are served: {e}");
            None
        }
    }
}

impl PlannedExporter {
    /// Determines what a configuration with this `listen` needs, and binds a new listener.
    ///
    /// # Errors
    /// Those of [`ExporterListener::bind`].
    pub(super) fn new(
        listen: Option<&Address>,
        current: Option<&Exporter>,
        in_force: Option<&Address>,
    ) -> Result<PlannedExporter, Error> {
        let is_lost = current.is_some_and(|exporter| exporter.missing(true) == Some(FILE_GONE));
        match listen {
            listen if listen == in_force && !is_lost => Ok(PlannedExporter::Keep),
            None => Ok(PlannedExporter::Gone),
            Some(address) => ExporterListener::bind(address)
                .map(|listener| PlannedExporter::New(Box::new(listener))),
        }
    }

    /// Applies the plan to the exporter that there is.
    pub(super) fn commit(
        self,
        exporter: &mut Option<Exporter>,
        start: StartExporter,
        poller: &Poller,
        now: Instant,
    ) {
        if let (PlannedExporter::Keep, Some(exporter)) = (&self, &mut *exporter) {
            return exporter.restart(start, now);
        }
        // Another process may hold the listener, so that it would stay in the poller.
        if let Some(exporter) = exporter.take() {
            exporter.unwatch(poller);
        }
        if let PlannedExporter::New(listener) = self {
            let mut new = Exporter::new(*listener, start, now);
            new.watch(Interest::End, poller, now);
            *exporter = Some(new);
        }
    }
}

/// Returns the first message to an exporter.
pub(super) fn start(name: &str, config: &Config, control: &Path) -> StartExporter {
    let names = || {
        config
            .metrics
            .hosts
            .iter()
            .map(|HostName(name)| name.clone())
            .collect()
    };
    StartExporter {
        name: name.to_owned(),
        control: control.as_os_str().as_bytes().to_owned(),
        hosts: matches!(config.metrics.listen, Some(Address::Tcp(_))).then(names),
        log: config.log.clone(),
    }
}
