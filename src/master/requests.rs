//! Control requests: each verb, and the room that executes it.

use std::time::{Duration, Instant};

use crate::logging;
use crate::master::control::Snapshot;
use crate::master::control::pending::{PendingKind, PendingReply};
use crate::master::control::reply::ControlReply;
use crate::master::control::request::{Answer, ControlRequest};
use crate::master::telemetry::events::Asker;
use crate::master::{Master, metrics};
use crate::proto::channel::ToWorker;
use crate::proto::control::{
    EventsAfter, Hold, Kick, Kind, MAX_WAIT, Metrics, Rebalance, Recycle, Refusal, RefusalCode,
    ReloadParams, Reopened, Scale, Settled, UpgradeTo, Upgraded, Verb, Version,
};
use crate::sys::poll::PollEvent;

/// Time in which requests are answered in an iteration of the loop. Many slow requests delay clients by no more than
/// this and one request.
const CONTROL_BUDGET: Duration = Duration::from_millis(5);

/// The answer to a permitted request.
type VerbResult = Result<Answer, Refusal>;

impl Master {
    /// Serves control clients whose sockets have events, for [`CONTROL_BUDGET`] an iteration; the others are served in
    /// the next iteration, before those that have been served.
    pub(super) fn serve_control_clients(&mut self, events: &[PollEvent], now: Instant) {
        self.listeners.count_arrived(&mut self.clients);
        let begin = Instant::now();
        for (number, event) in self.control.clients.order(events) {
            let request = self
                .control
                .clients
                .receive(number, event, &self.poller, now);
            if let Some(request) = request {
                let permitted = self.control.clients.permit(&request);
                let answer = permitted.and_then(|()| self.execute(&request, now));
                let events = &mut self.telemetry.events;
                let clients = &mut self.control.clients;
                clients.answer(&request, answer, &self.poller, events, now);
            }
            if begin.elapsed() >= CONTROL_BUDGET {
                return;
            }
        }
    }

    /// Executes a request, or begins to.
    fn execute(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        if request.verb.changes() && request.verb != Verb::Stop {
            self.lifecycle.check_change()?;
        }
        match request.verb {
            Verb::Status => self.show_status(request, now),
            Verb::Version => self.show_version(request),
            Verb::Clients => self.show_clients(request),
            Verb::Events => show_events(request, now),
            Verb::Config => self.show_config(request),
            Verb::Metrics => self.show_metrics(request, now),
            Verb::Check => self.check_file(request),
            Verb::LogLevel => self.show_or_set_log_level(request),
            Verb::Kick => self.kick_client(request, now),
            Verb::Stop => self.stop_daemon(request, now),
            Verb::Reload => self.reload_file(request, now),
            Verb::Scale => self.scale_workers(request),
            Verb::Recycle => self.recycle_workers(request),
            Verb::Hold => self.hold_worker(request),
            Verb::Release => self.release_held(request),
            Verb::Drain => self.drain_daemon(request, now),
            Verb::Undrain => self.undrain_daemon(request),
            Verb::Rebalance => self.rebalance_clients(request, now),
            Verb::Upgrade => self.upgrade_daemon(request, now),
            Verb::ReopenLog => self.reopen_log_file(request, now),
        }
    }

    fn show_status(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        request.no_params()?;
        self.workers.read_counters(&mut self.telemetry);
        request.reply(&self.status_snapshot().status(now))
    }

    fn show_version(&self, request: &ControlRequest) -> VerbResult {
        request.no_params()?;
        request.reply(&Version {
            name: self.name.clone(),
            version: self.version.to_owned(),
            pid: std::process::id(),
        })
    }

    fn show_metrics(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        request.no_params()?;
        self.workers.read_counters(&mut self.telemetry);
        let text = metrics::text(&self.status_snapshot(), now);
        request.reply(&Metrics { text })
    }

    fn show_clients(&self, request: &ControlRequest) -> VerbResult {
        let asked = request.params_or_default()?;
        request.reply(&self.status_snapshot().clients_page(asked)?)
    }

    fn show_config(&self, request: &ControlRequest) -> VerbResult {
        request.no_params()?;
        request.reply(&self.status_snapshot().effective())
    }

    fn check_file(&self, request: &ControlRequest) -> VerbResult {
        request.no_params()?;
        Ok(Answer::Pending(self.reloads.next_check()))
    }

    fn show_or_set_log_level(&mut self, request: &ControlRequest) -> VerbResult {
        let asked = request.params_or_default()?;
        request.reply(&self.log_level(request.asker(), asked))
    }

    fn kick_client(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        let Kick { client } = request.params()?;
        request.reply(&self.kick(request.asker(), client, now)?)
    }

    fn stop_daemon(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        request.no_params()?;
        let asker = request.asker();
        if self.lifecycle.is_ending() {
            log::info!("{asker}: already stopping");
        } else {
            self.stop(asker, now);
        }
        Ok(Answer::Pending(PendingKind::Stopped))
    }

    fn reload_file(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        let ReloadParams { force } = request.params_or_default()?;
        Ok(Answer::Pending(
            match self.begin_reload(request.asker(), force, now) {
                Ok(()) => PendingKind::Reloaded,
                // The service manager gets the end of the reload before the client does.
                Err(refusal) if refusal.code == RefusalCode::Rejected => {
                    PendingKind::Known(Err(refusal))
                }
                Err(refusal) => return Err(refusal),
            },
        ))
    }

    fn scale_workers(&mut self, request: &ControlRequest) -> VerbResult {
        let Scale { count } = request.params()?;
        self.scale(request.asker(), count)?;
        Ok(Answer::Pending(PendingKind::Settled(request.verb)))
    }

    fn recycle_workers(&mut self, request: &ControlRequest) -> VerbResult {
        let Recycle { worker } = request.params_or_default()?;
        self.workers
            .recycle(request.asker(), worker, &mut self.telemetry)?;
        Ok(Answer::Pending(PendingKind::Settled(request.verb)))
    }

    fn hold_worker(&mut self, request: &ControlRequest) -> VerbResult {
        let Hold { worker } = request.params()?;
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        self.workers
            .hold(request.asker(), worker, clients, telemetry, &self.poller)?;
        Ok(Answer::Pending(PendingKind::Emptied(worker)))
    }

    fn release_held(&mut self, request: &ControlRequest) -> VerbResult {
        let (what, telemetry) = (request.params()?, &mut self.telemetry);
        self.workers
            .release(request.asker(), &what, telemetry, &self.poller)?;
        Ok(Answer::Pending(PendingKind::Done(request.verb)))
    }

    fn drain_daemon(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        let asked = request.params_or_default()?;
        Ok(Answer::Pending(self.drain(request.asker(), asked, now)?))
    }

    fn undrain_daemon(&mut self, request: &ControlRequest) -> VerbResult {
        request.no_params()?;
        self.undrain(request.asker());
        Ok(Answer::Pending(PendingKind::Done(request.verb)))
    }

    fn rebalance_clients(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        let Rebalance { dry_run } = request.params_or_default()?;
        self.workers.begin_balance(request.asker(), dry_run, now)?;
        Ok(Answer::Pending(PendingKind::Rebalanced))
    }

    fn upgrade_daemon(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        let UpgradeTo { binary } = request.params_or_default()?;
        if binary.is_some() {
            self.control.clients.roles.check_owner(&request.peer)?;
        }
        self.begin_upgrade(request.asker(), binary, now)?;
        Ok(Answer::Pending(PendingKind::Upgraded))
    }

    fn reopen_log_file(&mut self, request: &ControlRequest, now: Instant) -> VerbResult {
        request.no_params()?;
        let reopened = self.reopen_log(request.asker(), now)?;
        request.reply(&Reopened { reopened })
    }

    /// Opens the log file again, here and in all other processes of the daemon. Returns whether the log is a file.
    ///
    /// # Errors
    /// `Refused` when the master cannot open it; lines still go to the file that was open, or to standard error.
    pub(super) fn reopen_log(&mut self, asker: Asker, now: Instant) -> Result<bool, Refusal> {
        if let Some(why) = &self.settings.missing_log {
            let why = format!("{why}; a reload opens the log file");
            return Err(Refusal::new(RefusalCode::Refused, why));
        }
        let opened = logging::reopen();
        self.workers.send_all(&ToWorker::Reopen, &self.poller);
        self.workers.zygotes.reopen_log();
        if let Some(exporter) = &mut self.exporter {
            exporter.reopen_log(now);
        }
        let is_file = opened.map_err(|e| {
            let why = format!("{e}; still writing to the previous log file");
            Refusal::new(RefusalCode::Refused, why)
        })?;
        if is_file {
            let sentence = format_args!("{asker}: log file reopened");
            self.telemetry
                .events
                .note(Kind::LogReopened, asker.about(), sentence);
        } else {
            log::info!("{asker}: the log is not a file, so there is nothing to reopen");
        }
        Ok(is_file)
    }

    /// Sends the replies whose results are there, at the end of an iteration of the loop.
    pub(super) fn complete_requests(&mut self, now: Instant) {
        self.end_clients(now);
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        let rebalanced = self
            .workers
            .end_balance(clients, telemetry, &self.poller, now);
        if let Some(rebalanced) = rebalanced {
            let reply = ControlReply::new(Verb::Rebalance, &rebalanced);
            self.control
                .clients
                .resolve(|kind| matches!(kind, PendingKind::Rebalanced), &reply);
        }
        for PendingReply { client, kind } in self.control.clients.pending() {
            if let Some(result) = self.result_of(client, kind, now) {
                self.control
                    .clients
                    .complete(client, &result, &self.poller, now);
            }
        }
    }

    /// Returns the result that a client waits for, if it is there.
    fn result_of(
        &self,
        client: u64,
        kind: PendingKind,
        now: Instant,
    ) -> Option<Result<ControlReply, Refusal>> {
        let refused = |why: &str| Some(Err(Refusal::new(RefusalCode::Refused, why)));
        let settled = |verb| ControlReply::new(verb, &self.settled());
        let pool = &self.workers.pool;
        match kind {
            PendingKind::Known(result) => Some(result),
            PendingKind::Applied(result) => (!self.workers.is_moving()).then_some(result),
            PendingKind::Stopped => None,
            // Events are sent to the end.
            PendingKind::Event { after, until } => {
                let is_due = until <= now || after != self.telemetry.events.last();
                // A reload may have taken the client's access away since.
                let permitted = || self.control.clients.permit_events(client);
                let events =
                    || ControlReply::new(Verb::Events, &self.status_snapshot().events_after(after));
                is_due.then(|| permitted().and_then(|()| events()))
            }
            _ if self.lifecycle.is_ending() => refused("the daemon is stopping"),
            PendingKind::Done(verb) => Some(settled(verb)),
            PendingKind::Settled(verb) => pool.is_settled().then(|| settled(verb)),
            PendingKind::Emptied(id) => {
                let worker = self.workers.all.get(&id);
                let is_empty = worker.is_none_or(|worker| worker.leases.clients() == 0);
                if !is_empty && pool.member(id).is_some_and(|member| member.is_ready()) {
                    return refused("the worker is released");
                }
                is_empty.then(|| settled(Verb::Hold))
            }
            PendingKind::Drained { until_empty } => self.drain_result(until_empty, now),
            PendingKind::Renewed => pool
                .is_settled()
                .then(|| ControlReply::new(Verb::Upgrade, &self.upgraded())),
            // These become known.
            PendingKind::Reloaded
            | PendingKind::Checked(_)
            | PendingKind::Rebalanced
            | PendingKind::Upgraded => None,
        }
    }

    fn settled(&self) -> Settled {
        Settled {
            workers: self.workers.pool.serving() as u32,
            clients: self.clients.count(),
        }
    }

    fn upgraded(&self) -> Upgraded {
        let Settled { workers, clients } = self.settled();
        Upgraded {
            version: self.version.to_owned(),
            workers,
            clients,
            unchanged: self.handover.is_same_program,
        }
    }

    /// Returns the state that is read.
    pub(super) fn status_snapshot(&self) -> Snapshot<'_> {
        let canaries = self.handover.store.as_ref().map(|store| &store.canaries);
        Snapshot {
            name: &self.name,
            version: self.version,
            started: self.started,
            descriptors: self.descriptors,
            settings: &self.settings,
            listeners: &self.listeners,
            clients: &self.clients,
            workers: &self.workers,
            control: &self.control,
            telemetry: &self.telemetry,
            exporter: self.exporter.as_ref(),
            lifecycle: self.lifecycle,
            keeps_clients: canaries.is_some_and(|canaries| canaries.is_confirmed()),
            store_outage: canaries.and_then(|canaries| canaries.outage()),
        }
    }
}

/// Shows the events after a number, and waits for the next one if there is none yet.
fn show_events(request: &ControlRequest, now: Instant) -> VerbResult {
    let EventsAfter { after, wait } = request.params_or_default()?;
    let wait = Duration::try_from_secs_f64(wait.unwrap_or(0.0))
        .ok()
        .filter(|wait| *wait <= MAX_WAIT)
        .ok_or_else(|| {
            let sentence = format!("wait is from 0 to {} seconds", MAX_WAIT.as_secs());
            Refusal::new(RefusalCode::BadParams, sentence)
        })?;
    let (after, until) = (after.unwrap_or(0), now + wait);
    Ok(Answer::Pending(PendingKind::Event { after, until }))
}
