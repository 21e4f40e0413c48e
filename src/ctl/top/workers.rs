//! The workers: the rows and columns of their table, and the lines about one of them.

use ratatui_core::text::Line;

use super::columns::Column;
use super::history::RecentTotals;
use super::text::{fact, foreign};
use crate::ctl::figures::{counted, grouped, in_letters, rate, short, time};
use crate::ctl::style::{BAD, NOTED, of_state};
use crate::ctl::table::Cell;
use crate::proto::control::{LeavingStatus, Status, WorkerState, WorkerStatus};
use crate::proto::names::{Generation, WorkerId};
use crate::proto::text::Escaped;

/// A row that stays while workers are replaced: a seat, or a worker without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerKey {
    Seat(u32),
    Leaving(WorkerId),
}

/// A worker, or a seat that waits for one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerRow {
    pub(crate) key: WorkerKey,
    pub(crate) id: Option<WorkerId>,
    pub(crate) pid: Option<u32>,
    pub(crate) clients: u64,
    seat: u32,
    generation: Generation,
    state: WorkerState,
    executing: Option<u64>,
    waiting: Option<u64>,
    rate: Option<f64>,
    p50: Option<f64>,
    p99: Option<f64>,
    busy: Option<f64>,
    uptime: Option<f64>,
    /// The time until the next worker of the seat is started.
    starts_in: Option<f64>,
    requests: Option<u64>,
    errors: Option<u64>,
    restarts: Option<u64>,
    rss: Option<u64>,
}

impl WorkerRow {
    fn of_seat(worker: &WorkerStatus, history: &RecentTotals) -> WorkerRow {
        let requests = worker.requests_per_second;
        WorkerRow {
            key: WorkerKey::Seat(worker.seat),
            id: worker.id,
            pid: worker.pid,
            clients: worker.clients,
            seat: worker.seat,
            generation: worker.generation,
            state: worker.state,
            executing: Some(worker.executing),
            waiting: Some(worker.waiting).filter(|waiting| *waiting > 0),
            rate: requests.or_else(|| history.requests_in(worker.seat)),
            p50: worker.p50_seconds,
            p99: worker.p99_seconds,
            busy: worker.busy,
            uptime: worker.uptime_seconds,
            starts_in: worker.starts_in_seconds,
            requests: Some(worker.requests_total),
            errors: Some(worker.errors_total),
            restarts: Some(worker.restarts),
            rss: worker.rss_bytes,
        }
    }

    fn of_leaving(worker: &LeavingStatus) -> WorkerRow {
        WorkerRow {
            key: WorkerKey::Leaving(worker.id),
            id: Some(worker.id),
            pid: Some(worker.pid),
            clients: worker.clients,
            seat: worker.seat,
            generation: worker.generation,
            state: worker.state,
            executing: None,
            waiting: None,
            rate: None,
            p50: None,
            p99: None,
            busy: None,
            uptime: None,
            starts_in: None,
            requests: None,
            errors: None,
            restarts: None,
            rss: None,
        }
    }
}

/// Returns a row for each seat, and then for each worker without one.
pub(crate) fn rows(status: &Status, history: &RecentTotals) -> Vec<WorkerRow> {
    let seated = status.workers.iter();
    let seated = seated.map(|worker| WorkerRow::of_seat(worker, history));
    let leaving = status.leaving.iter().map(WorkerRow::of_leaving);
    seated.chain(leaving).collect()
}

/// Returns the lines about one worker; none if it has ended.
pub(crate) fn details(status: &Status, row: &WorkerRow) -> Vec<Line<'static>> {
    match row.key {
        WorkerKey::Seat(seat) => {
            let mut workers = status.workers.iter();
            let worker = workers.find(|worker| worker.seat == seat);
            worker.map_or_else(Vec::new, |worker| seat_details(worker, row))
        }
        WorkerKey::Leaving(id) => {
            let mut leaving = status.leaving.iter();
            let worker = leaving.find(|worker| worker.id == id);
            worker.map_or_else(Vec::new, leaving_details)
        }
    }
}

fn seat_details(worker: &WorkerStatus, row: &WorkerRow) -> Vec<Line<'static>> {
    let name = match (worker.id, worker.pid) {
        (Some(id), Some(pid)) => format!("{id}, pid {pid}, {}", worker.state.as_str()),
        (Some(id), None) => format!("{id}, {}", worker.state.as_str()),
        (None, _) => format!("none, {}", worker.state.as_str()),
    };
    let uptime = worker.uptime_seconds.map(in_letters);
    let mut uptime = uptime.map_or_else(String::new, |uptime| format!(", up {uptime}"));
    if let Some(next) = worker.starts_in_seconds.map(starts_in) {
        uptime = format!(", starts {next}");
    }
    let name = format!(
        "{name}{uptime}; seat {}, generation {}, {}",
        worker.seat,
        worker.generation,
        counted(worker.restarts, "restart")
    );
    let speed = [
        row.rate.map(|requests| format!("{}/s", rate(requests))),
        worker.p50_seconds.map(|p50| format!("p50 {}", time(p50))),
        worker.p99_seconds.map(|p99| format!("p99 {}", time(p99))),
        worker.busy.map(|busy| format!("busy {}", share(busy))),
        Some(format!("{} executing", grouped(worker.executing))),
        Some(format!("{} waiting", grouped(worker.waiting))),
    ];
    let speed = speed.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let totals = format!(
        "{}; errors {}, panics {}, log lines lost {}",
        grouped(worker.requests_total),
        grouped(worker.errors_total),
        grouped(worker.panics_total),
        grouped(worker.log_errors_total)
    );
    let memory = worker.rss_bytes.map(mebibytes);
    let memory = memory.map_or_else(String::new, |resident| format!("{resident} resident, "));
    let buffers = counted(worker.parked_bytes, "byte");
    let mut lines = vec![
        fact("worker", &name),
        fact("speed", &speed),
        fact("requests", &totals),
        fact("memory", &format!("{memory}{buffers} in buffers")),
    ];
    lines.extend(app_details(worker));
    if let Some(why) = &worker.unhealthy {
        lines.push(foreign("UNHEALTHY", BAD, why));
    }
    if let Some(why) = &worker.replaced_because {
        lines.push(foreign("REPLACED", NOTED, why));
    }
    if let Some(why) = &worker.last_death {
        lines.push(foreign("previous", NOTED, why));
    }
    lines
}

/// Returns the line about the app of a worker, or the runtime of its asynchronous methods.
fn app_details(worker: &WorkerStatus) -> Option<Line<'static>> {
    let load = |most: u32| format!("{} of {most} requests away", grouped(worker.away));
    if let Some(app) = &worker.app {
        let name = app.name.as_deref().unwrap_or("unnamed");
        let version = app.version.as_ref();
        let version = version.map_or_else(String::new, |version| format!(" {version}"));
        let memory = app.rss_bytes.map(mebibytes);
        let memory = memory.map_or_else(String::new, |memory| format!(", {memory}"));
        let name = Escaped(format_args!("{name}{version}")).to_string();
        let text = format!("{name}, pid {}, {}{memory}", app.pid, load(app.concurrency));
        return Some(fact("app", &text));
    }
    let runtime = worker.runtime?;
    let text = format!("thread {}, {}", runtime.thread, load(runtime.concurrency));
    Some(fact("runtime", &text))
}

fn leaving_details(worker: &LeavingStatus) -> Vec<Line<'static>> {
    let killed = worker.killed_in_seconds.map(in_letters);
    let killed = killed.map_or_else(String::new, |time| format!("; killed in {time}"));
    let name = format!(
        "{}, pid {}, {}; seat {} before, generation {}{killed}",
        worker.id,
        worker.pid,
        worker.state.as_str(),
        worker.seat,
        worker.generation
    );
    let reason = Escaped(&worker.reason).to_string();
    let waits_for = Escaped(&worker.waits_for).to_string();
    vec![
        fact("worker", &name),
        fact("reason", &reason),
        fact("waits for", &waits_for),
    ]
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0}M", bytes as f64 / MIB)
}

/// Returns when the next worker of a seat is started: `in 4s`.
fn starts_in(seconds: f64) -> String {
    format!("in {}", in_letters(seconds.ceil()))
}

/// Returns `35%`.
fn share(part: f64) -> String {
    format!("{:.0}%", part * 100.0)
}

/// Returns a cell, which is blank if the value is not known.
fn shown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> Cell {
    value.map(show).unwrap_or_default().into()
}

const MIB: f64 = (1 << 20) as f64;

/// The columns of the table of workers.
pub(crate) const COLUMNS: &[Column<WorkerRow>] = &[
    Column::plain("SEAT", 4, 3, |row| row.seat.to_string().into()),
    Column::plain("ID", 3, 0, |row| shown(row.id, |id| id.to_string())),
    Column::plain("PID", 6, 4, |row| shown(row.pid, |pid| pid.to_string())),
    Column::plain("GEN", 3, 6, |row| row.generation.to_string().into()),
    Column::word("STATE", 8, 0, |row| {
        Cell::styled(row.state.as_str(), of_state(row.state))
    }),
    Column::figure(
        "CLIENTS",
        7,
        0,
        |row| short(row.clients).into(),
        |row| Some(row.clients as f64),
    ),
    Column::figure(
        "EXEC",
        4,
        2,
        |row| shown(row.executing, short),
        |row| row.executing.map(|count| count as f64),
    ),
    Column::figure(
        "WAIT",
        4,
        7,
        |row| shown(row.waiting, short),
        |row| row.waiting.map(|count| count as f64),
    ),
    Column::figure(
        "REQUESTS",
        8,
        9,
        |row| shown(row.requests, short),
        |row| row.requests.map(|count| count as f64),
    ),
    Column::figure(
        "ERRORS",
        6,
        10,
        |row| shown(row.errors, short),
        |row| row.errors.map(|count| count as f64),
    ),
    Column::figure("REQ/S", 5, 0, |row| shown(row.rate, rate), |row| row.rate),
    Column::figure("P50", 5, 2, |row| shown(row.p50, time), |row| row.p50),
    Column::figure("P99", 5, 1, |row| shown(row.p99, time), |row| row.p99),
    Column::figure("BUSY", 4, 5, |row| shown(row.busy, share), |row| row.busy),
    Column::figure(
        "UPTIME",
        6,
        5,
        |row| {
            let next = row.starts_in.map(starts_in);
            row.uptime
                .map(in_letters)
                .or(next)
                .unwrap_or_default()
                .into()
        },
        |row| row.uptime,
    ),
    Column::figure(
        "RESTARTS",
        8,
        8,
        |row| shown(row.restarts, short),
        |row| row.restarts.map(|count| count as f64),
    ),
    Column::figure(
        "RSS",
        5,
        4,
        |row| shown(row.rss, mebibytes),
        |row| row.rss.map(|bytes| bytes as f64),
    ),
];
