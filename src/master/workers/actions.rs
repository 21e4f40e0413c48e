//! The actions of the pool on workers: start, stop, retire, kill.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::master::Token;
use crate::master::clients::Clients;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::worker::{KillReason, Worker};
use crate::master::workers::zygote::ForkedWorker;
use crate::master::workers::{NOT_NOW, Workers};
use crate::pool::KillDecision;
use crate::proto::channel::{Settings, Start, Stop, ToWorker, VERSION};
use crate::proto::control::{About, Kind};
use crate::proto::log::{Log, LogLevel};
use crate::proto::names::{Generation, WorkerId};
use crate::shm::Layout;
use crate::sys::poll::{Interest, Poller, is_shortage};

/// The parameters of a new worker.
pub(crate) struct WorkerParameters<'m> {
    /// The daemon's name.
    pub(crate) name: &'m str,
    pub(crate) generation: Generation,
    pub(crate) config: &'m Config,
    pub(crate) level: LogLevel,
    /// Bytes of clients that the worker may keep.
    pub(crate) buffers: u64,
    pub(crate) layout: Layout,
    /// The directory in which the worker's app gets a cgroup of its own.
    pub(crate) app_cgroups: Option<&'m Path>,
    /// The ends of handoff queues into which the worker may pack clients.
    pub(crate) queues: Vec<BorrowedFd<'m>>,
    /// Whether clients can connect to a Unix socket.
    pub(crate) has_unix_listener: bool,
}

impl Workers {
    /// Starts a worker: in a process that was forked for it, or in one that executes the program.
    pub(crate) fn start(
        &mut self,
        (seat, id): (usize, WorkerId),
        forked: Option<ForkedWorker>,
        parameters: WorkerParameters<'_>,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let start = Start {
            version: VERSION,
            name: parameters.name.to_owned(),
            worker: id,
            seat: seat as u32,
            generation: parameters.generation,
            slots: parameters.layout.slots(),
            longest: parameters.layout.max_frame(),
            quarantined: self.crash_limits.quarantined().to_vec(),
            handoff_queues: parameters.queues.len() as u32,
            settings: settings(parameters.config, parameters.level, id, parameters.buffers),
            app: parameters.config.app.spec(),
            app_cgroups: parameters.app_cgroups.map(Path::to_owned),
            own_table: parameters.config.own_table(),
        };
        let (queues, layout) = (parameters.queues, parameters.layout);
        let spawned = match forked {
            Some(forked) => Worker::begin(forked, start, queues, layout, now),
            None => Worker::spawn(&self.executable, start, queues, layout, now),
        };
        let spawned = spawned.and_then(|worker| {
            let token = Token::Worker(id).into();
            match poller.add(&worker.channel, token, Interest::Read) {
                Err(e) if is_shortage(&e) => Err(io::Error::new(NOT_NOW, e)),
                added => added.map(|()| worker),
            }
        });
        match spawned {
            Ok(worker) => {
                let name = worker.name();
                let sentence = format_args!("{name} started");
                telemetry
                    .events
                    .note(Kind::WorkerStarted, worker.about(), sentence);
                self.seat(seat).spawned += 1;
                if parameters.has_unix_listener {
                    worker.writes.open();
                }
                self.insert(worker);
            }
            Err(e) => self.report_failed_start(seat, id, &e, telemetry, now),
        }
    }

    /// Lets the pool decide what follows a worker that could not be started, and reports it.
    pub(super) fn report_failed_start(
        &mut self,
        seat: usize,
        id: WorkerId,
        error: &io::Error,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let reason = format!("cannot be started: {error}");
        let (delay, is_known) = match error.kind() {
            // This is not a fault of the worker, so the pool does not give up because of it.
            NOT_NOW => (
                Some(self.pool.postponed(id, now)),
                self.last_failure.as_ref() == Some(&reason),
            ),
            _ => (self.pool.exited(id, false, now), false),
        };
        self.last_failure = Some(reason.clone());
        telemetry.counts.failed_starts += 1;
        self.seat(seat).last_death = Some(reason.clone());
        let next = delay.map_or(String::new(), |delay| {
            format!("; trying again in {} ms", delay.as_millis())
        });
        let sentence = format_args!("worker {id} {reason}{next}");
        if is_known {
            return log::debug!("{sentence}");
        }
        let about = About {
            worker: Some(id),
            seat: Some(seat as u32),
            ..About::default()
        };
        telemetry.events.note(Kind::WorkerFailed, about, sentence);
    }

    /// Kills a worker as the pool has decided. `start_timeout` is that of its generation.
    pub(crate) fn execute_kill(
        &mut self,
        id: WorkerId,
        why: KillDecision,
        start_timeout: Duration,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let Some(worker) = self.all.get_mut(&id) else {
            return self.withdraw_birth(id, why, start_timeout, telemetry, now);
        };
        let (kill_reason, kind, what) = match why {
            KillDecision::NotReady => {
                // The generation may be rolled back because of this worker. Then the pool starts another worker before
                // this death is known, so the reason is recorded now.
                let cause = worker.app.awaited_hello();
                let reason = format!("was not ready within {start_timeout:?}{cause}");
                worker.failure = Some(format!("it {reason}"));
                self.last_failure = Some(reason);
                let what = format!("is not ready after {start_timeout:?}{cause}");
                (KillReason::Late, Kind::WorkerKilled, what)
            }
            KillDecision::NotGone => {
                telemetry.counts.killed += 1;
                let what = "did not finish in time".to_owned();
                (KillReason::Late, Kind::WorkerKilled, what)
            }
            KillDecision::Stalled if worker.is_executing() => {
                let method = worker
                    .method_in_turn()
                    .map(|method| format!(" in method {method:?}"));
                let what = format!("exceeded request-timeout{}", method.unwrap_or_default());
                (KillReason::TimedOut, Kind::WorkerKilled, what)
            }
            KillDecision::Stalled => {
                let what = "has been stuck for request-timeout".to_owned();
                (KillReason::Stuck, Kind::WorkerKilled, what)
            }
            KillDecision::Unneeded => {
                let what = "is not needed any more".to_owned();
                (KillReason::Unneeded, Kind::WorkerDraining, what)
            }
        };
        let sentence = format_args!("{} {what}; killing it", worker.name());
        telemetry.events.note(kind, worker.about(), sentence);
        worker.kill_for(kill_reason);
    }

    /// Has a worker exit by a deadline, as the daemon stops.
    pub(crate) fn stop(&mut self, id: WorkerId, by: Instant, poller: &Poller, now: Instant) {
        let within = by.saturating_duration_since(now);
        self.send(id, ToWorker::Stop(Stop { within }), poller);
    }

    /// Revokes the leases of all clients of a worker that are in no turn, and queues these clients. The time `excused`
    /// counts towards none of their timeouts. Returns their number; the worker must be notified afterwards.
    pub(super) fn revoke_all(
        &mut self,
        id: WorkerId,
        (reason, excused): (Reason, Duration),
        clients: &mut Clients,
        telemetry: &mut Telemetry,
    ) -> usize {
        let Some(worker) = self.all.get_mut(&id) else {
            return 0;
        };
        let mut revoked = worker.leases.revoke_all(&worker.shm);
        let clients_of = revoked.iter_mut().flatten();
        clients_of.for_each(|unleased| unleased.excuse(excused));
        clients.requeue(revoked, reason, telemetry)
    }

    /// Does the same as [`Workers::revoke_all`], and has the worker close its copies of their sockets.
    pub(crate) fn revoke_and_notify(
        &mut self,
        id: WorkerId,
        why: (Reason, Duration),
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) -> usize {
        let moved = self.revoke_all(id, why, clients, telemetry);
        if moved > 0 {
            self.send(id, ToWorker::LeasesRevoked, poller);
        }
        moved
    }
}

/// Returns the settings that a worker must use.
fn settings(config: &Config, level: LogLevel, id: WorkerId, buffers: u64) -> Settings {
    let limits = &config.limits;
    let max_requests = config
        .workers
        .max_requests
        .map(|most| u64::from(most.get()));
    Settings {
        max_frame: limits.max_frame,
        buffers,
        idle_timeout: limits.idle_timeout,
        frame_timeout: limits.frame_timeout,
        send_timeout: limits.send_timeout,
        request_timeout: limits.request_timeout,
        stall_timeout: limits.stall_timeout,
        restart_grace: limits.restart_grace,
        near_limit_at: max_requests.map(|most| near_limit_at(most, id)),
        max_requests,
        counts_addresses: limits.max_clients_per_address.is_some(),
        log: Log {
            level,
            ..config.log.clone()
        },
    }
}

/// Returns after how many requests a worker requests its successor: at 90 to 95 % of the request limit. The worker's id
/// determines where, so that workers that started together do not end together.
fn near_limit_at(most: u64, id: WorkerId) -> u64 {
    let spread = most / 20;
    most - spread - id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (spread + 1)
}
