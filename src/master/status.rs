//! What can be seen from outside, from the master's tables and the desks: a worker that is stuck keeps nobody waiting.

use std::time::Instant;

use super::listener::Listener;
use super::{Master, Seat};
use crate::logging;
use crate::pool::State;
use crate::proto::control::{ListenerStatus, Origin, Status, WorkerState, WorkerStatus};
use crate::sys::{clock, process};

/// Rates are over so many seconds; a worker that is younger has none.
const WINDOW: f64 = 10.0;

impl Master {
    /// The whole of it.
    pub(super) fn status(&self, now: Instant) -> Status {
        let workers: Vec<WorkerStatus> =
            self.seats.iter().zip(self.pool.states()).enumerate().map(|(i, p)| self.worker_status(i, p, now)).collect();
        Status {
            name: self.name.clone(),
            version: self.version.to_owned(),
            pid: std::process::id(),
            uptime_seconds: now.duration_since(self.started).as_secs_f64(),
            generation: self.generation,
            config_file: self.config_file.clone(),
            dispatch: self.config.workers.dispatch.as_str().to_owned(),
            stopping: self.pool.is_stopping(),
            paused: self.gate.pause.filter(|_| !self.pool.is_stopping()).map(|pause| pause.to_string()),
            listeners: self.listeners.iter().map(listener_status).collect(),
            clients: self.clients,
            max_clients: self.max_clients,
            accepted_total: self.next_client - 1,
            refused_total: self.refused,
            moved_total: self.moved,
            lost_total: self.lost,
            requests_total: workers.iter().fold(0, |sum, w| sum.saturating_add(w.requests_total)),
            errors_total: workers.iter().fold(0, |sum, w| sum.saturating_add(w.errors_total)),
            log_errors_total: workers.iter().fold(logging::errors(), |sum, w| sum.saturating_add(w.log_errors_total)),
            count: self.seats.len() as u32,
            count_origin: Origin::Config,
            reloading: false,
            last_reload: None,
            deaths_total: 0,
            stalls_total: 0,
            reruns_total: 0,
            closed_for_crashes_total: 0,
            quarantined: Vec::new(),
            workers,
            leaving: Vec::new(),
        }
    }

    fn worker_status(&self, index: usize, (seat, state): (&Seat, State), now: Instant) -> WorkerStatus {
        let worker = seat.worker.as_ref();
        let totals = worker.map_or(seat.totals, |worker| seat.totals.plus(worker));
        let header = worker.map(|worker| worker.desk.header());
        let uptime = worker.map(|worker| now.duration_since(worker.started).as_secs_f64());
        // One second more, for the one that is not full yet.
        let recent = header.filter(|_| uptime > Some(WINDOW + 1.0)).map(|header| header.recent(clock::monotonic()));
        WorkerStatus {
            seat: index as u32,
            id: worker.map(|worker| worker.id),
            pid: worker.map(|worker| worker.pid),
            generation: self.generation,
            state: match state {
                State::Waiting { .. } | State::Gone => WorkerState::Waiting,
                State::Starting { .. } => WorkerState::Starting,
                State::Ready { .. } => WorkerState::Ready,
                State::Draining { .. } => WorkerState::Draining,
            },
            clients: worker.map_or(0, |worker| worker.clients() as u64),
            executing: header.map_or(0, |header| u64::from(header.executing().is_some())),
            requests_total: totals.requests,
            errors_total: totals.errors,
            panics_total: totals.panics,
            log_errors_total: totals.log_errors,
            parked_bytes: header.map_or(0, |header| header.parked()),
            requests_per_second: recent.map(|recent| recent.rate),
            p50_seconds: recent.and_then(|recent| recent.p50).map(|p50| p50.as_secs_f64()),
            p99_seconds: recent.and_then(|recent| recent.p99).map(|p99| p99.as_secs_f64()),
            uptime_seconds: uptime,
            restarts: seat.spawned.saturating_sub(1),
            rss_bytes: worker.and_then(|worker| process::resident_memory(worker.pid)),
            last_death: seat.last_death.clone(),
        }
    }
}

fn listener_status(listener: &Listener) -> ListenerStatus {
    let queue = listener.queue();
    ListenerStatus {
        address: listener.address.to_string(),
        byte_order: listener.byte_order,
        queue: queue.map(|(waiting, _)| waiting),
        queue_max: queue.map(|(_, most)| most),
        accepted_total: listener.accepted,
    }
}
