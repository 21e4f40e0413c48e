//! The rows and columns of the tables.

use crate::ctl::figures::{in_letters, rate, short, time};
use crate::ctl::style::of_state;
use crate::ctl::table::{ADDRESS, Cell, Columns, READABLE};
use crate::proto::control::{LeavingStatus, WorkerState, WorkerStatus};
use crate::proto::text::Escaped;

/// Returns the row of a seat. One that waits for its next worker has no process: it has its number and the time of the
/// next start there.
pub(super) fn worker_row(worker: &WorkerStatus) -> [Cell; 13] {
    let process = match worker.pid {
        Some(pid) => pid.to_string(),
        None => format!("seat {}", worker.seat),
    };
    let uptime = worker.uptime_seconds.map(in_letters);
    let next = worker.starts_in_seconds;
    let next = next.map(|left| format!("in {}", in_letters(left.ceil())));
    [
        shown(worker.id, |id| id.to_string()),
        process.into(),
        worker.generation.to_string().into(),
        state(worker.state),
        short(worker.clients).into(),
        short(worker.executing).into(),
        short(worker.requests_total).into(),
        shown(worker.requests_per_second, rate),
        shown(worker.p50_seconds, time),
        shown(worker.p99_seconds, time),
        uptime.or(next).unwrap_or_default().into(),
        short(worker.restarts).into(),
        shown(worker.rss_bytes, mebibytes),
    ]
}

/// Returns the row of a worker's app, if it has one.
pub(super) fn app_row(worker: &WorkerStatus) -> Option<[Cell; 8]> {
    let app = worker.app.as_ref()?;
    let word =
        |text: &Option<String>| Cell::foreign(text.as_deref().unwrap_or_default(), MAX_WORD_LEN);
    Some([
        shown(worker.id, |id| id.to_string()),
        app.pid.to_string().into(),
        word(&app.name),
        word(&app.version),
        short(worker.away).into(),
        short(app.concurrency.into()).into(),
        short(worker.waiting).into(),
        shown(app.rss_bytes, mebibytes),
    ])
}

/// Returns the row of a worker's runtime, if it has one.
pub(super) fn runtime_row(worker: &WorkerStatus) -> Option<[Cell; 5]> {
    let runtime = worker.runtime?;
    Some([
        shown(worker.id, |id| id.to_string()),
        runtime.thread.to_string().into(),
        short(worker.away).into(),
        short(runtime.concurrency.into()).into(),
        short(worker.waiting).into(),
    ])
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0}M", bytes as f64 / MIB)
}

pub(super) fn leaving_row(worker: &LeavingStatus) -> [Cell; 9] {
    [
        worker.id.to_string().into(),
        worker.pid.to_string().into(),
        worker.seat.to_string().into(),
        worker.generation.to_string().into(),
        state(worker.state),
        short(worker.clients).into(),
        shown(worker.killed_in_seconds, in_letters),
        Escaped(&worker.reason).to_string().into(),
        Escaped(&worker.waits_for).to_string().into(),
    ]
}

fn state(state: WorkerState) -> Cell {
    Cell::styled(state.as_str(), of_state(state))
}

fn shown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> Cell {
    value.map(show).unwrap_or_default().into()
}

pub(super) const WORKERS: Columns<13> = Columns {
    header: [
        "ID", "PID", "GEN", "STATE", "CLIENTS", "EXEC", "REQUESTS", "REQ/S", "P50", "P99",
        "UPTIME", "RESTARTS", "RSS",
    ],
    words: &[3],
    gives_way: &[],
    goes: &[2, 11, 5],
    optional: None,
};

pub(super) const APPS: Columns<8> = Columns {
    header: [
        "WORKER", "PID", "APP", "VERSION", "AWAY", "MOST", "WAIT", "RSS",
    ],
    words: &[2, 3],
    gives_way: &[(3, READABLE), (2, READABLE)],
    goes: &[],
    optional: None,
};

pub(super) const RUNTIMES: Columns<5> = Columns {
    header: ["WORKER", "THREAD", "AWAY", "MOST", "WAIT"],
    words: &[],
    gives_way: &[],
    goes: &[],
    optional: None,
};

/// The longest name or version of an app that is shown in full.
const MAX_WORD_LEN: usize = 24;

pub(super) const LEAVING: Columns<9> = Columns {
    header: [
        "ID",
        "PID",
        "SEAT",
        "GEN",
        "STATE",
        "CLIENTS",
        "KILLED IN",
        "REASON",
        "WAITS FOR",
    ],
    words: &[4, 7, 8],
    gives_way: &[(8, ADDRESS), (7, ADDRESS)],
    goes: &[3, 2],
    optional: None,
};

const MIB: f64 = (1 << 20) as f64;
