//! The child processes: executes the pool's decisions, receives the messages of workers, collects the children that
//! have ended, and gives each to the room that it belongs to.

mod zygotes;

use std::time::{Duration, Instant};

use crate::config::{Listen, StartMode};
use crate::master::handover::unleased::Leasing;
use crate::master::workers::actions::WorkerParameters;
use crate::master::workers::messages::MessageOutcome;
use crate::master::workers::zygote::{Birth, ForkedWorker};
use crate::master::{Error, Master, memory};
use crate::pool::{Action, Why};
use crate::proto::channel::ToWorker;
use crate::proto::names::{Generation, WorkerId};
use crate::sys::process::{self, Exit};

impl Master {
    /// Executes the decisions of the pool.
    pub(super) fn reconcile(&mut self, now: Instant) -> Result<(), Error> {
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        if self.workers.end_outgoing(clients, telemetry, now) {
            return Ok(());
        }
        // An action can lead to others: a spawn may fail.
        loop {
            let actions = self.workers.pool.reconcile(now);
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                match action {
                    Action::Spawn {
                        seat,
                        id,
                        generation,
                    } => self.start_worker(seat, id, generation, now),
                    Action::Kill { id, why } => {
                        let start_timeout = self.start_timeout(id);
                        let telemetry = &mut self.telemetry;
                        self.workers
                            .execute_kill(id, why, start_timeout, telemetry, now);
                    }
                    Action::Drain { id, why, .. } => {
                        self.workers.retire(id, why, &mut self.telemetry);
                    }
                    Action::Stop { id, by } => {
                        self.workers.end_moves_from(id);
                        self.telemetry.counts.retirements.add(Why::Stop, 1);
                        match self.lifecycle.is_restarting() {
                            true => self.workers.send(id, ToWorker::Retire, &self.poller),
                            false => self.workers.stop(id, by, &self.poller, now),
                        }
                    }
                    Action::Applied => {
                        if let Some(outcome) = self.commit_reload(now) {
                            self.store_all(now);
                            self.report_reload(&outcome);
                        }
                    }
                    Action::RolledBack => {
                        let reason = self.workers.last_failure();
                        self.abandon_reload(format!("its workers do not become ready; {reason}"));
                    }
                    Action::GiveUp => {
                        let reason = self.workers.last_failure();
                        return Err(Error::NoWorker(format!(
                            "no worker ever became ready; {reason}"
                        )));
                    }
                }
            }
        }
    }

    /// Handles events of a worker's channel.
    pub(super) fn attend(&mut self, id: WorkerId, is_writable: bool, now: Instant) {
        if is_writable {
            self.workers.resume_channel(id, &self.poller);
        }
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        let lifecycle = self.lifecycle;
        // One message is enough: the next wait reports further ones.
        let outcome = self
            .workers
            .receive(id, lifecycle, clients, telemetry, &self.poller, now);
        if outcome == MessageOutcome::Ready {
            self.announce();
        }
    }

    /// Starts a worker by the configuration of its generation.
    fn start_worker(&mut self, seat: usize, id: WorkerId, generation: Generation, now: Instant) {
        let config = self.reloads.config_of(generation, &self.settings);
        let is_forked = config.workers.start == StartMode::Fork
            && !self.workers.zygotes.is_abandoned(generation);
        if is_forked {
            let birth = Birth::new(id, seat, generation);
            // It takes a while to make, and few births need it.
            let is_first = self.workers.zygotes.pid(generation).is_none();
            let start = is_first.then(|| self.zygote_settings(generation));
            let failed = self.workers.request_birth(birth, start, &self.poller, now);
            return self
                .workers
                .report_failed_births(failed, &mut self.telemetry, now);
        }
        self.begin_worker((seat, id, generation), None, now);
    }

    /// Starts a worker in a process that was forked for it, or in one that executes the program.
    fn begin_worker(
        &mut self,
        (seat, id, generation): (usize, WorkerId, Generation),
        forked: Option<ForkedWorker>,
        now: Instant,
    ) {
        let config = self.reloads.config_of(generation, &self.settings);
        let memory = self.reloads.memory_of(generation, &self.settings);
        let count = self.workers.pool.target().count;
        if !config.app.command.is_empty() {
            self.clients.cgroups_of_apps.log();
        }
        let store = self.handover.store.iter();
        let parameters = WorkerParameters {
            name: &self.name,
            generation,
            config,
            level: self.reloads.log_level_of(generation, &self.settings),
            buffers: memory::buffers(&config.limits, memory, count),
            layout: self.reloads.layout(&self.clients),
            app_cgroups: self.clients.cgroups_of_apps.path(),
            queues: store.flat_map(|store| store.queues.descriptors()).collect(),
            has_unix_listener: self.listeners.have_unix()
                || config.listen.iter().any(Listen::is_unix),
        };
        let (telemetry, poller) = (&mut self.telemetry, &self.poller);
        self.workers
            .start((seat, id), forked, parameters, telemetry, poller, now);
    }

    /// Returns the time in which a worker must be ready, by the configuration of its generation.
    fn start_timeout(&self, id: WorkerId) -> Duration {
        let member = self.workers.pool.member(id);
        let generation = member.map_or(self.settings.generation, |member| member.generation);
        let config = self.reloads.config_of(generation, &self.settings);
        config.workers.start_timeout
    }

    /// Collects all children that have ended.
    pub(super) fn reap(&mut self, now: Instant) {
        // One of them may be a worker whose pid has just been reported.
        for generation in self.workers.zygotes.asked() {
            self.attend_zygote(generation, now);
        }
        loop {
            match process::ended() {
                Ok(Some((pid, exit))) => {
                    self.end_child(pid, exit, now);
                    // It may have been an app, or in the cgroup of one.
                    self.clients.note_end_of_child(now);
                    if let Err(e) = process::collect(pid) {
                        return log::error!("cannot collect process {pid}: {e}");
                    }
                }
                Ok(None) => return self.workers.end_sessions(),
                Err(e) => return log::error!("cannot collect dead workers: {e}"),
            }
        }
    }

    /// Handles the end of a process. For PID 1 of a container it may be any process.
    fn end_child(&mut self, pid: u32, exit: Exit, now: Instant) {
        if let Some(exporter) = &mut self.exporter
            && exporter.take_death(pid, exit, now)
        {
            return;
        }
        if let Some(generation) = self.workers.zygote_with_pid(pid) {
            return self.end_zygote((pid, generation), exit, now);
        }
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        let dead =
            self.workers
                .remove_dead(pid, self.lifecycle, clients, telemetry, &self.poller, now);
        let Some(dead) = dead else {
            if !self.reading_ended(pid, exit) {
                self.candidate_ended(pid, exit, now);
            }
            return;
        };
        if dead.has_become_ready {
            self.announce();
        }
        if self.lifecycle.is_restarting() {
            let (worker, written) = dead.into_parts();
            return self.keep_orphan(worker, written, now);
        }
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        let is_out_of_memory =
            self.workers
                .settle_death(dead, exit, clients, telemetry, &self.poller, now);
        // Before anything else: only this process has the clients, and the counters of the worker.
        self.keep_unleased(Leasing::Ahead, now);
        self.write_changed_state();
        if is_out_of_memory {
            self.listeners.pause_for_memory(now);
        }
    }
}
