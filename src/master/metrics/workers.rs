//! The figures of the workers, all together and each.

use super::text::{COUNTER, GAUGE, MetricsText};
use crate::master::control::Snapshot;
use crate::proto::control::{Status, WorkerState, WorkerStatus};

/// A figure of a worker; `None` if it is not known.
type WorkerFigure = fn(&WorkerStatus) -> Option<f64>;

pub(super) fn write(text: &mut MetricsText, master: &Snapshot<'_>, status: &Status) {
    write_states(text, master, status);
    write_lives(text, master);
    write_each(text, status);
}

fn write_states(text: &mut MetricsText, master: &Snapshot<'_>, status: &Status) {
    text.gauge(
        "workers_wanted",
        "Configured number of workers.",
        status.count,
    );
    text.family("workers", GAUGE, "Workers by state.");
    let states = status.workers.iter().map(|worker| worker.state);
    let states: Vec<_> = states
        .chain(status.leaving.iter().map(|worker| worker.state))
        .collect();
    for state in WorkerState::ALL {
        let count = states.iter().filter(|other| **other == state).count();
        text.sample("workers", &[("state", &state.as_str())], count);
    }
    let old = master
        .workers
        .all
        .values()
        .filter(|worker| worker.generation != master.settings.generation)
        .count();
    text.gauge(
        "old_generation_workers",
        "Workers of another configuration than that in force.",
        old,
    );
}

fn write_lives(text: &mut MetricsText, master: &Snapshot<'_>) {
    let counts = &master.telemetry.counts;
    let starts = master
        .workers
        .seats
        .iter()
        .map(|seat| seat.spawned)
        .sum::<u64>();
    text.counter("worker_starts_total", "Workers that were started.", starts);
    let help = "Workers that had been ready and ended without being asked to, by what ended them.";
    text.by("worker_deaths_total", help, "cause", &counts.deaths);
    let help = "Workers that were asked to retire, by the reason.";
    text.by(
        "worker_retirements_total",
        help,
        "reason",
        &counts.retirements,
    );
    let help = "Workers that ended before they were ready, or could not be started.";
    text.counter("worker_failed_starts_total", help, counts.failed_starts);
    let help = "Workers whose counters could not be true and were left out from then on.";
    text.counter(
        "worker_counters_rejected_total",
        help,
        counts.rejected_counters,
    );
    text.counter(
        "worker_stalls_total",
        "Times that a worker was stuck.",
        counts.stalls,
    );
}

/// The figures of each worker: name, type, help.
const EACH: [(&str, &str, &str, WorkerFigure); 8] = [
    (
        "worker_clients",
        GAUGE,
        "Clients leased to the worker.",
        |w| Some(w.clients as f64),
    ),
    (
        "worker_requests_total",
        COUNTER,
        "Requests answered in this seat.",
        |w| Some(w.requests_total as f64),
    ),
    (
        "worker_parked_bytes",
        GAUGE,
        "Bytes of unfinished frames and unsent replies.",
        |w| Some(w.parked_bytes as f64),
    ),
    (
        "worker_resident_memory_bytes",
        GAUGE,
        "Resident memory of the worker.",
        |w| w.rss_bytes.map(|bytes| bytes as f64),
    ),
    (
        "worker_requests_away",
        GAUGE,
        "Requests that the worker's app or runtime executes.",
        |w| Some(w.away as f64),
    ),
    (
        "worker_requests_waiting",
        GAUGE,
        "Requests that wait until the worker's app or runtime may execute one more.",
        |w| Some(w.waiting as f64),
    ),
    (
        "worker_app_resident_memory_bytes",
        GAUGE,
        "Resident memory of the worker's app; 0 without one.",
        |w| {
            w.app
                .as_ref()
                .map_or(Some(0.0), |app| Some(app.rss_bytes? as f64))
        },
    ),
    (
        "worker_busy_ratio",
        GAUGE,
        "Share of the last seconds in which the worker worked.",
        |w| w.busy,
    ),
];

fn write_each(text: &mut MetricsText, status: &Status) {
    for (name, kind, help, figure) in EACH {
        text.family(name, kind, help);
        for worker in &status.workers {
            if let Some(value) = figure(worker) {
                text.sample(name, &[("worker", &worker.seat)], value);
            }
        }
    }
}
