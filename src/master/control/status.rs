//! The status, from the master's tables and the shared memory. A stuck worker does not delay it.

use std::path::PathBuf;
use std::time::Instant;

use crate::master::Worker;
use crate::master::control::Snapshot;
use crate::master::listeners::listener::Listener;
use crate::master::service_manager::Summary;
use crate::master::workers::SeatTotals;
use crate::master::workers::app::WorkerApp;
use crate::pool::{Member, MemberState};
use crate::proto::channel::RuntimeInfo;
use crate::proto::control::{
    AppStatus, LeavingStatus, ListenerStatus, Pause, RuntimeStatus, Skew, Status, WorkerState,
    WorkerStatus,
};
use crate::proto::text::Counted;
use crate::shm::{Recent, RecentRequests};
use crate::sys::{clock, process};

impl Snapshot<'_> {
    /// Returns what the configuration wants and is missing, each with the reason as far as it is known. With
    /// `checks_files` it also checks the files of Unix sockets.
    pub(crate) fn missing(&self, checks_files: bool) -> Vec<String> {
        let exporter = self.exporter.into_iter();
        let exporter = exporter.flat_map(|exporter| exporter.missing(checks_files));
        self.settings
            .missing_log
            .iter()
            .cloned()
            .chain(self.control.missing(checks_files))
            .chain(exporter)
            .collect()
    }

    /// Returns the state for the service manager. `missing` is the number of things that are missing.
    pub(crate) fn summary(&self, missing: usize) -> Summary {
        let is_stopping = self.lifecycle.is_ending();
        let outages = self.listeners.all.iter();
        let outages = outages.filter(|listener| listener.outage.is_some());
        // Other reasons pass in moments.
        let pause = self.listeners.gate.pause;
        let pause = pause.filter(|pause| matches!(pause, Pause::Drained | Pause::Full));
        Summary {
            ready: if is_stopping {
                self.workers.all.len()
            } else {
                self.workers.pool.serving()
            },
            wanted: self.workers.pool.target().count,
            clients: self.clients.count(),
            generation: self.settings.generation,
            is_reloading: self.lifecycle.is_rolling(),
            is_stopping,
            outages: outages.count(),
            missing,
            is_unkept: self.store_outage.is_some(),
            is_leaving: self.listeners.drain.is_some() && !self.listeners.is_drained(),
            pause: pause.map(|pause| pause.to_string()),
        }
    }

    /// Returns why no client is accepted, while the daemon runs.
    fn paused(&self) -> Option<String> {
        let pause = self.listeners.gate.pause;
        pause
            .filter(|_| !self.lifecycle.is_ending())
            .map(|pause| pause.to_string())
    }

    /// Returns the complete status.
    pub(crate) fn status(&self, now: Instant) -> Status {
        let seats = (0..self.workers.pool.seats()).filter(|seat| self.is_seat_in_use(*seat));
        let workers: Vec<WorkerStatus> = seats.map(|seat| self.seat_status(seat, now)).collect();
        let totals = self.workers.totals();
        let recent = self.recent();
        Status {
            name: self.name.to_owned(),
            version: self.version.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            generation: self.settings.generation,
            config_file: self.settings.shown_file(),
            dispatch: self.settings.config.workers.dispatch.as_str().to_owned(),
            start: self.settings.config.workers.start.as_str().to_owned(),
            zygote: self.workers.zygotes.pid(self.settings.generation),
            stopping: self.lifecycle.is_ending(),
            drained: self.listeners.is_drained(),
            drain: self.listeners.drain_status(now),
            paused: self.paused(),
            pause: self.listeners.gate.pause,
            listeners: self.listeners.all.iter().map(listener_status).collect(),
            clients: self.clients.count(),
            max_clients: self.clients.max,
            accepted_total: self.clients.accepted(),
            refused_total: self.telemetry.counts.refused,
            moved_total: self.telemetry.counts.moves.total(),
            lost_total: self.telemetry.counts.lost(totals.lost).total(),
            requests_total: totals.requests,
            errors_total: totals.errors,
            p50_seconds: recent.p50.map(|p50| p50.as_secs_f64()),
            p99_seconds: recent.p99.map(|p99| p99.as_secs_f64()),
            log_errors_total: self.telemetry.log_errors(&totals),
            buffers: self.buffers(),
            memory_limit: self.settings.memory.map(|memory| memory.limit),
            app_cgroups: self.app_cgroups(),
            count: self.workers.pool.target().count as u32,
            count_origin: self.settings.count_origin,
            reloading: self.lifecycle.is_rolling(),
            last_reload: self.settings.last_reload.clone(),
            config_stale: self.settings.stale.clone(),
            restart_keeps_clients: self.keeps_clients,
            store_outage: self.store_outage.map(str::to_owned),
            missing: self.missing(true),
            deaths_total: self.telemetry.counts.deaths.total(),
            failed_starts_total: self.telemetry.counts.failed_starts,
            stalls_total: self.telemetry.counts.stalls,
            reruns_total: self.telemetry.counts.reruns,
            closed_for_crashes_total: self.telemetry.counts.closed_for_crashes,
            events_total: self.telemetry.events.last(),
            quarantined: self.workers.crash_limits.quarantined().to_vec(),
            skew: self.skew(),
            leaving: self.leaving(&workers, now),
            workers,
        }
    }

    /// Returns the requests that all workers together have answered lately.
    fn recent(&self) -> Recent {
        let (now, mut requests) = (clock::monotonic(), RecentRequests::default());
        for worker in self.workers.all.values() {
            worker.shm.header().add_recent(now, &mut requests);
        }
        requests.summary()
    }

    /// Returns the workers that are not among those with a seat.
    fn leaving(&self, seated: &[WorkerStatus], now: Instant) -> Vec<LeavingStatus> {
        let shown: Vec<_> = seated.iter().filter_map(|worker| worker.id).collect();
        let members = self.workers.pool.members();
        members
            .filter(|member| !shown.contains(&member.id))
            .filter_map(|member| self.leaving_status(member, now))
            .collect()
    }

    /// Returns where apps have cgroups of their own, if there are apps.
    fn app_cgroups(&self) -> Option<PathBuf> {
        let path = self.clients.cgroups_of_apps.path()?;
        let is_used = !self.settings.config.app.command.is_empty();
        is_used.then(|| path.to_owned())
    }

    /// Returns how unevenly the ready workers are loaded.
    fn skew(&self) -> Option<Skew> {
        let now = clock::monotonic();
        let workers: Vec<&Worker> = self.workers.ready().collect();
        let clients = uneven(workers.iter().map(|worker| worker.leases.clients() as f64))?;
        Some(Skew {
            clients,
            busy: uneven(
                workers
                    .iter()
                    .map(|worker| worker.shm.header().busy_with_turn(now)),
            ),
        })
    }

    /// Returns whether a seat is wanted, or has a worker that is not leaving.
    fn is_seat_in_use(&self, seat: usize) -> bool {
        let is_leaving = |member: &Member| {
            matches!(
                member.state,
                MemberState::Draining { .. } | MemberState::Killed
            )
        };
        seat < self.workers.pool.target().count
            || self
                .workers
                .pool
                .occupant(seat)
                .is_some_and(|member| !is_leaving(member))
    }

    fn seat_status(&self, index: usize, now: Instant) -> WorkerStatus {
        let member = self.workers.pool.occupant(index);
        let worker = member.and_then(|member| self.workers.all.get(&member.id));
        let no_totals = SeatTotals::default();
        let seat = self.workers.seats.get(index).unwrap_or(&no_totals);
        // Workers that are leaving the seat still add to it.
        let here = self
            .workers
            .all
            .values()
            .filter(|worker| worker.seat == index);
        let totals = here.fold(seat.totals, |totals, worker| {
            totals.plus_counters(worker.trusted.counters())
        });
        let header = worker.map(|worker| worker.shm.header());
        let uptime = worker.map(|worker| now.duration_since(worker.started).as_secs_f64());
        let clock = clock::monotonic();
        let recent = worker.and_then(|worker| {
            let age = now.duration_since(worker.started);
            let born = clock.saturating_sub(clock::nanoseconds(age));
            worker.shm.header().recent_since(clock, born)
        });
        let due = self.workers.pool.due(index).filter(|_| worker.is_none());
        let starts_in = due.map(|due| due.saturating_duration_since(now).as_secs_f64());
        WorkerStatus {
            seat: index as u32,
            id: worker.map(|worker| worker.id),
            pid: worker.map(|worker| worker.pid),
            generation: worker.map_or(self.settings.generation, |worker| worker.generation),
            state: member.map_or(WorkerState::Waiting, |member| worker_state(member, worker)),
            clients: worker.map_or(0, |worker| worker.leases.clients() as u64),
            executing: header.map_or(0, |header| header.in_progress()),
            away: header.map_or(0, |header| header.away()),
            waiting: header.map_or(0, |header| header.queued()),
            app: worker.and_then(|worker| app_status(&worker.app)),
            runtime: worker.and_then(|worker| worker.runtime.map(runtime_status)),
            busy: header.map(|header| header.busy_with_turn(clock)),
            requests_total: totals.requests,
            errors_total: totals.errors,
            panics_total: totals.panics,
            log_errors_total: totals.log_errors,
            parked_bytes: header.map_or(0, |header| header.parked()),
            requests_per_second: recent.map(|recent| recent.rate),
            p50_seconds: recent
                .and_then(|recent| recent.p50)
                .map(|p50| p50.as_secs_f64()),
            p99_seconds: recent
                .and_then(|recent| recent.p99)
                .map(|p99| p99.as_secs_f64()),
            uptime_seconds: uptime,
            starts_in_seconds: starts_in,
            restarts: seat.spawned.saturating_sub(1),
            rss_bytes: worker.and_then(|worker| process::resident_memory(worker.pid)),
            unhealthy: worker.and_then(|worker| worker.unhealthy.clone()),
            replaced_because: member.and_then(replacement),
            last_death: seat.last_death.clone(),
        }
    }

    fn leaving_status(&self, member: &Member, now: Instant) -> Option<LeavingStatus> {
        let worker = self.workers.all.get(&member.id)?;
        let clients = worker.leases.clients() as u64;
        let (reason, by) = match member.state {
            MemberState::Draining { until, why } => (why.to_string(), Some(until)),
            MemberState::Held { .. } => ("held by an operator".to_owned(), None),
            MemberState::Killed => ("it was killed".to_owned(), None),
            MemberState::Starting { .. } | MemberState::Ready { .. } => {
                let reason = replacement(member);
                let reason = reason.unwrap_or_else(|| "it is being replaced".to_owned());
                (reason, None)
            }
        };
        Some(LeavingStatus {
            id: worker.id,
            pid: worker.pid,
            seat: worker.seat as u32,
            generation: worker.generation,
            state: worker_state(member, Some(worker)),
            reason,
            waits_for: waits_for(worker, member, clients),
            killed_in_seconds: by.map(|by| by.saturating_duration_since(now).as_secs_f64()),
            clients,
        })
    }
}

/// Returns the largest value divided by the mean; `None` if all are zero or there are none.
fn uneven(values: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let (sum, count) = values
        .clone()
        .fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (sum > 0.0).then(|| values.fold(0.0, f64::max) * count / sum)
}

/// Returns what a worker without a seat still waits for.
fn waits_for(worker: &Worker, member: &Member, clients: u64) -> String {
    let away = worker.shm.header().away();
    match (member.state, worker.method_in_turn()) {
        (MemberState::Held { .. }, _) if clients == 0 => "its release".to_owned(),
        (MemberState::Killed, _) => "its end".to_owned(),
        (MemberState::Starting { .. } | MemberState::Ready { .. }, _) => "its successor".to_owned(),
        (_, _) if away > 0 => format!(
            "{} of its {} to be answered",
            Counted(away as usize, "request"),
            worker.executor_name()
        ),
        (_, Some(method)) => format!("method {method:?} to return"),
        (_, None) if clients > 0 => format!("the turns of {} to end", Counted(clients, "client")),
        (_, None) => "its exit".to_owned(),
    }
}

fn app_status(app: &WorkerApp) -> Option<AppStatus> {
    let info = app.info.as_ref()?;
    Some(AppStatus {
        pid: info.pid,
        name: info.name.clone(),
        version: info.version.clone(),
        concurrency: info.concurrency,
        rss_bytes: process::resident_memory(info.pid),
    })
}

fn runtime_status(runtime: RuntimeInfo) -> RuntimeStatus {
    let RuntimeInfo {
        thread,
        concurrency,
    } = runtime;
    RuntimeStatus {
        thread,
        concurrency,
    }
}

/// Returns why a worker that serves will be replaced, if it will.
fn replacement(member: &Member) -> Option<String> {
    let why = member.spent().filter(|_| member.is_ready())?;
    Some(why.to_string())
}

fn worker_state(member: &Member, worker: Option<&Worker>) -> WorkerState {
    let is_unhealthy = worker.is_some_and(|worker| worker.unhealthy.is_some());
    match member.state {
        MemberState::Starting { .. } => WorkerState::Starting,
        MemberState::Ready { .. } if member.is_stalled => WorkerState::Stalled,
        MemberState::Ready { .. } if is_unhealthy => WorkerState::Unhealthy,
        MemberState::Ready { .. } => WorkerState::Ready,
        MemberState::Held { .. } => WorkerState::Held,
        MemberState::Draining { .. } | MemberState::Killed => WorkerState::Draining,
    }
}

fn listener_status(listener: &Listener) -> ListenerStatus {
    let queue = listener.queue();
    ListenerStatus {
        address: listener.address.to_string(),
        byte_order: listener.byte_order,
        proxy: listener.proxy.as_ref().map(|rule| rule.version),
        queue: queue.map(|(len, _)| len),
        queue_max: queue.map(|(_, most)| most),
        accepted_total: listener.accepted,
        outage: listener.outage_reason().map(str::to_owned),
        refuses: listener.is_refusing(),
    }
}
