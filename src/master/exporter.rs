//! Metrics over HTTP: the master binds where they are asked for, so that a reload can be refused, and has a process of its
//! own answer there. The listener stays when that process dies or is replaced: who asks meanwhile waits in its queue.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::listeners::exporter_listener::ExporterListener;
use super::listeners::outage::{ENDED, Outage};
use super::{Error, Master, Token};
use crate::channel::{Channel, Sent};
use crate::config::{Config, HostName};
use crate::pool::backoff::Jitter;
use crate::proto::control::{About, Kind};
use crate::proto::exporter::{Nothing, StartExporter, ToExporter};
use crate::proto::names::Address;
use crate::sys::clock;
use crate::sys::listening::is_listening;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable, Exit};

/// An exporter that lived for so long was none that cannot.
const PROBATION: Duration = Duration::from_secs(10);

/// Where metrics are asked for, and the process that answers. Dropped, both are gone.
#[derive(Debug)]
pub(super) struct Exporter {
    listener: ExporterListener,
    /// Another process has ended the listener, and it is not bound again yet. Then it is not in the poller.
    outage: Option<Outage>,
    /// What the process is told.
    start: StartExporter,
    state: ExporterState,
    /// Deaths in a row, each soon after the start.
    streak: u32,
    jitter: Jitter,
}

#[derive(Debug)]
enum ExporterState {
    /// It is to be started then.
    Due(Instant),
    Running {
        pid: u32,
        since: Instant,
        channel: Channel<ToExporter, Nothing>,
    },
}

/// What becomes of it at a reload.
#[derive(Debug)]
pub(super) enum PlannedExporter {
    /// Its listener stays, if there is one.
    Keep,
    /// There is this one; who asks there waits.
    New(Box<ExporterListener>),
    /// There is none any more.
    Gone,
}

impl Exporter {
    pub(super) fn listener(&self) -> &ExporterListener {
        &self.listener
    }

    /// To be started at once. What it is told is `start`.
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

    /// Binds the address. If there are clients and it cannot be had, it is tried again.
    ///
    /// # Errors
    /// Those of [`ExporterListener::bind`], unless there are clients.
    pub(super) fn open(
        address: &Address,
        start: StartExporter,
        has_clients: bool,
        now: Instant,
    ) -> Result<Exporter, Error> {
        match ExporterListener::bind(address) {
            Err(e) if has_clients => {
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

    /// Why nobody can ask for metrics, if so.
    pub(super) fn outage(&self) -> Option<&str> {
        self.outage.as_ref().map(|outage| outage.reason.as_str())
    }

    /// Whether its Unix socket listens, and nobody finds it.
    pub(super) fn is_file_gone(&self) -> bool {
        self.outage.is_none() && self.listener.is_file_gone()
    }

    /// When it is to be started.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match (&self.outage, &self.state) {
            (Some(outage), _) => Some(outage.deadline()),
            (None, ExporterState::Due(at)) => Some(*at),
            (None, ExporterState::Running { .. }) => None,
        }
    }

    /// Where it is reached.
    pub(super) fn address(&self) -> &Address {
        &self.listener.address
    }

    /// Whether its listener has not ended.
    pub(super) fn is_listening(&self) -> bool {
        is_listening(&self.listener)
    }

    /// Its listener has ended. Whether that was not known.
    pub(super) fn note_ended(&mut self, outage: Outage, poller: &Poller) -> bool {
        let is_new = self.outage.is_none();
        if is_new {
            self.forget_listener(poller);
            self.outage = Some(outage);
        }
        is_new
    }

    /// Has the end of the listener reported, if it is there.
    pub(super) fn watch_listener(&self, poller: &Poller) -> io::Result<()> {
        if self.outage.is_some() {
            return Ok(());
        }
        poller.add(&self.listener, Token::Metrics.into(), Interest::End)
    }

    /// The exporter's process may have the socket for longer, so that the poller would not forget it by itself.
    pub(super) fn forget_listener(&self, poller: &Poller) {
        let _ = poller.remove(&self.listener);
    }

    /// Binds the listener anew if it has ended and it is time to; then a new process gets it.
    fn bind_ended(&mut self, poller: &Poller, now: Instant) -> Option<String> {
        let outage = self.outage.as_mut().filter(|outage| outage.is_due(now))?;
        if let Err(e) = self.listener.bind_anew() {
            outage.failed(&e, now);
            return None;
        }
        self.outage = None;
        if let Err(e) = self.watch_listener(poller) {
            log::error!("cannot watch the listener for metrics: {e}");
        }
        self.end();
        self.state = ExporterState::Due(now);
        Some(format!(
            "metrics are served on {} again",
            self.listener.address
        ))
    }

    /// Starts it if it is time to.
    fn keep(&mut self, executable: &Executable, now: Instant) {
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
        // First of all, so that the process finds it there.
        match channel.send(
            &ToExporter::Start(self.start.clone()),
            &[self.listener.as_fd()],
        )? {
            Sent::Queued => {}
            Sent::Full | Sent::Closed => {
                return Err(io::Error::other("too many descriptors are under way"));
            }
        }
        Ok((
            executable.spawn(&self.start.name, &["metrics"], theirs)?,
            channel,
        ))
    }

    /// Has it started again after a wait that grows from death to death.
    fn back_off(&mut self, now: Instant) -> Duration {
        self.streak += 1;
        let wait = self.jitter.backoff(self.streak);
        self.state = ExporterState::Due(now + wait);
        wait
    }

    /// Whether that child was the exporter, which has ended now.
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

    /// From now on it is told this. One that was told something else is replaced.
    fn tell(&mut self, start: StartExporter, now: Instant) {
        if self.start != start {
            self.start = start;
            self.end();
            self.state = ExporterState::Due(now);
        }
    }

    /// Has it open the log file again.
    pub(super) fn reopen_log(&mut self, now: Instant) {
        let ExporterState::Running { channel, .. } = &mut self.state else {
            return;
        };
        if !matches!(channel.send(&ToExporter::Reopen, &[]), Ok(Sent::Queued)) {
            // It is stopped, or dead and not collected yet. Its successor opens the new file.
            self.end();
            self.state = ExporterState::Due(now);
        }
    }

    /// Ends the process. The end of its channel would do, but not if it is stopped; and nobody waits for it.
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

impl Master {
    /// Has the exporter run, if there is to be one.
    pub(super) fn keep_exporter(&mut self, now: Instant) {
        let Some(exporter) = &mut self.exporter else {
            return;
        };
        if let Some(sentence) = exporter.bind_ended(&self.poller, now) {
            self.telemetry
                .events
                .note(Kind::ListenerOpened, About::default(), sentence);
        }
        exporter.keep(&self.workers.executable, now);
    }

    /// What a configuration wants of it; binds what is new.
    pub(super) fn plan_exporter(&self, config: &Config) -> Result<PlannedExporter, Error> {
        match &config.metrics.listen {
            listen
                if *listen == self.settings.config.metrics.listen
                    && !self.exporter.as_ref().is_some_and(Exporter::is_file_gone) =>
            {
                Ok(PlannedExporter::Keep)
            }
            Some(address) => {
                let bound = ExporterListener::bind(address)
                    .map_err(|e| self.own_addresses().named_in(e, Some(address)));
                bound.map(|listener| PlannedExporter::New(Box::new(listener)))
            }
            None => Ok(PlannedExporter::Gone),
        }
    }

    /// Has one again, which there was until just now.
    pub(super) fn bind_exporter(&mut self, now: Instant) {
        let Some(address) = &self.settings.config.metrics.listen else {
            return;
        };
        let start = start(
            &self.name,
            &self.settings.config,
            self.control.listener.path(),
        );
        match Exporter::open(address, start, true, now) {
            Ok(exporter) => {
                self.watch_metrics(&exporter);
                self.exporter = Some(exporter);
            }
            Err(e) => log::error!("no metrics are served: {e}"),
        }
    }

    /// Puts into force what was planned for the configuration that is in force now.
    pub(super) fn exchange_exporter(&mut self, planned: PlannedExporter, now: Instant) {
        let start = start(
            &self.name,
            &self.settings.config,
            self.control.listener.path(),
        );
        match planned {
            PlannedExporter::New(listener) => {
                self.drop_exporter();
                let exporter = Exporter::new(*listener, start, now);
                self.watch_metrics(&exporter);
                self.exporter = Some(exporter);
            }
            PlannedExporter::Gone => self.drop_exporter(),
            PlannedExporter::Keep => {
                if let Some(exporter) = &mut self.exporter {
                    exporter.tell(start, now);
                }
            }
        }
    }

    /// Looks at the listener for metrics, which the exporter accepts from.
    pub(super) fn look_at_metrics(&mut self, now: Instant) {
        let Some(exporter) = self
            .exporter
            .as_mut()
            .filter(|exporter| !exporter.is_listening())
        else {
            return;
        };
        if !exporter.note_ended(Outage::new(now, ENDED), &self.poller) {
            return;
        }
        let sentence = format_args!(
            "metrics on {}: {ENDED}; binding another listener",
            exporter.address()
        );
        self.telemetry
            .events
            .note(Kind::ListenerEnded, About::default(), sentence);
    }

    /// The exporter is not there any more. Another process may hold its listener, so that it would stay in the poller.
    pub(super) fn drop_exporter(&mut self) {
        if let Some(exporter) = self.exporter.take() {
            exporter.forget_listener(&self.poller);
        }
    }

    /// The poller reports when another process ends this listener.
    pub(super) fn watch_metrics(&self, exporter: &Exporter) {
        if let Err(e) = exporter.watch_listener(&self.poller) {
            log::error!("cannot watch the listener for metrics: {e}");
        }
    }
}

/// What an exporter is told.
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
