//! Metrics and health over HTTP, and agent checks. The master binds the listeners, so that a reload can be rejected, and
//! a process of its own answers there. The listeners stay when that process dies or is replaced: requests wait in their
//! queues.

mod plan;
mod socket;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

pub(super) use self::plan::PlannedExporter;
use self::socket::ExporterSocket;
use super::Error;
use super::listeners::exporter_listener::ExporterListener;
use super::listeners::served::Served;
use super::retry::Outage;
use super::telemetry::events::EventLog;
use crate::channel::{Channel, Sent};
use crate::config::{Config, HostName, variables_of};
use crate::pool::backoff::Jitter;
use crate::proto::exporter::{ExporterService, Nothing, StartExporter, ToExporter};
use crate::proto::names::Address;
use crate::sys::clock;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable, Exit};

/// The number of deaths in a row begins again after this lifetime.
const PROBATION: Duration = Duration::from_secs(10);

/// The listeners for metrics and for agent checks, and the process that answers there. Dropping it ends all of them.
#[derive(Debug)]
pub(super) struct Exporter {
    /// At least one.
    sockets: Vec<ExporterSocket>,
    /// The first message to the process, without the purposes of its listeners.
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

impl Exporter {
    /// Creates an exporter whose process is started at once, with the message `start`.
    fn new(sockets: Vec<ExporterSocket>, start: StartExporter, now: Instant) -> Exporter {
        Exporter {
            sockets,
            start,
            state: ExporterState::Due(now),
            streak: 0,
            jitter: Jitter::new(clock::monotonic()),
        }
    }

    /// Binds the addresses of a configuration; `None` if it has none. If this master follows another one, an address
    /// that cannot be bound is retried.
    ///
    /// # Errors
    /// Those of [`ExporterListener::bind`], with the address, unless this master follows another one.
    pub(super) fn open(
        config: &Config,
        start: StartExporter,
        follows_a_master: bool,
        now: Instant,
    ) -> Result<Option<Exporter>, (Error, &Address)> {
        let mut sockets = Vec::new();
        for service in ExporterService::ALL {
            if let Some(address) = address_of(config, service) {
                let socket = ExporterSocket::open(service, address, follows_a_master, now);
                sockets.push(socket.map_err(|e| (e, address))?);
            }
        }
        Ok((!sockets.is_empty()).then(|| Exporter::new(sockets, start, now)))
    }

    pub(super) fn listeners(&self) -> impl Iterator<Item = &ExporterListener> {
        self.sockets.iter().map(|socket| &socket.listener)
    }

    /// Returns the first message to the process.
    pub(super) fn start(&self) -> StartExporter {
        self.start.clone()
    }

    /// Returns what cannot be requested, each with the reason. With `checks_files` the file of a Unix socket that is
    /// gone is a reason, too.
    pub(super) fn missing(&self, checks_files: bool) -> impl Iterator<Item = String> {
        self.sockets.iter().filter_map(move |socket| {
            let reason = socket.missing(checks_files)?;
            let ExporterListener {
                service, address, ..
            } = &socket.listener;
            Some(format!("{service} on {address}: {reason}"))
        })
    }

    /// Returns when a start or a bind is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let outages = self.sockets.iter().filter_map(|s| s.outage.as_ref());
        let start = match self.state {
            ExporterState::Due(at) if self.is_open() => Some(at),
            ExporterState::Due(_) | ExporterState::Running { .. } => None,
        };
        outages.map(Outage::deadline).chain(start).min()
    }

    /// Returns whether a listener is open.
    fn is_open(&self) -> bool {
        self.sockets.iter().any(|socket| socket.outage.is_none())
    }

    /// Has the poller report the end of the listeners.
    pub(super) fn watch(&mut self, poller: &Poller, now: Instant) {
        for socket in &mut self.sockets {
            socket.watch(Interest::End, poller, now);
        }
    }

    /// Begins an outage if another process has ended this listener.
    pub(super) fn check_ended(
        &mut self,
        service: ExporterService,
        events: &mut EventLog,
        poller: &Poller,
        now: Instant,
    ) {
        for socket in &mut self.sockets {
            if socket.listener.service == service {
                socket.check_ended(events, poller, now);
            }
        }
    }

    /// Binds ended listeners again and starts the process, each if it is due.
    pub(super) fn keep_running(
        &mut self,
        executable: &Executable,
        poller: &Poller,
        events: &mut EventLog,
        now: Instant,
    ) {
        let mut has_ended = false;
        for socket in &mut self.sockets {
            let bind_again = |socket: &mut ExporterSocket| socket.listener.bind_again();
            has_ended |= socket.end_outage(bind_again, Interest::End, (&mut *events, poller), now);
        }
        if has_ended {
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
        let is_due = matches!(self.state, ExporterState::Due(at) if at <= now);
        if !is_due || !self.is_open() {
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
        let is_open = |socket: &&ExporterSocket| socket.outage.is_none();
        let open: Vec<&ExporterSocket> = self.sockets.iter().filter(is_open).collect();
        let start = StartExporter {
            services: open.iter().map(|socket| socket.listener.service).collect(),
            ..self.start.clone()
        };
        let descriptors: Vec<_> = open.iter().map(|socket| socket.as_fd()).collect();
        // Before the start, so that the process finds it there.
        match channel.send(&ToExporter::Start(start), &descriptors)? {
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

impl Drop for Exporter {
    fn drop(&mut self) {
        self.end();
    }
}

/// Binds an exporter again that ended just now.
pub(super) fn open_again(
    config: &Config,
    start: StartExporter,
    poller: &Poller,
    now: Instant,
) -> Option<Exporter> {
    match Exporter::open(config, start, true, now) {
        Ok(mut exporter) => {
            if let Some(exporter) = &mut exporter {
                exporter.watch(poller, now);
            }
            exporter
        }
        Err((e, _)) => {
            log::error!("no metrics are served, and no agent checks are answered: {e}");
            None
        }
    }
}

/// Returns the address that a configuration has for this purpose.
fn address_of(config: &Config, service: ExporterService) -> Option<&Address> {
    match service {
        ExporterService::Metrics => config.metrics.listen.as_ref(),
        ExporterService::Agent => config.agent.listen.as_ref(),
    }
}

/// Returns the first message to an exporter, without the purposes of its listeners.
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
        services: Vec::new(),
        hosts: matches!(config.metrics.listen, Some(Address::Tcp(_))).then(names),
        log: config.log.clone(),
    }
}
