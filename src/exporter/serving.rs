//! Whether the daemon serves clients, by its status, and what is wrong with it.

use crate::proto::control::{DrainStatus, Status, WorkerState};
use crate::proto::text::Escaped;

/// How a warning is worded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wording {
    /// With its cause, which may have addresses, paths and texts of methods.
    Full,
    /// Without its cause.
    Short,
}

/// The parts that the status may list as missing.
const PARTS: [&str; 4] = ["log", "control socket", "metrics", "agent checks"];

/// Returns whether a worker is in one of these states. A leaving worker serves until its successor does.
pub(super) fn has_worker(status: &Status, wanted: &[WorkerState]) -> bool {
    let leaving = status.leaving.iter().map(|worker| worker.state);
    let mut states = status.workers.iter().map(|w| w.state).chain(leaving);
    states.any(|state| wanted.contains(&state))
}

/// Returns why no client is served.
pub(super) fn unhealthy(status: &Status) -> Option<String> {
    let reason = if status.stopping {
        "the daemon is stopping"
    } else {
        "no worker is ready"
    };
    // An unhealthy worker serves, so that the daemon need not be restarted.
    let serves = has_worker(status, &[WorkerState::Ready, WorkerState::Unhealthy]);
    (!serves).then(|| reason.to_owned())
}

/// Returns why new clients should go elsewhere.
pub(super) fn unready(status: &Status, wording: Wording) -> Option<String> {
    let reason = match status {
        Status { stopping: true, .. } => "the daemon is stopping",
        Status { drained: true, .. } => "the daemon is drained",
        Status {
            drain: Some(DrainStatus { notice, .. }),
            ..
        } => {
            let seconds = notice.unwrap_or_default().ceil();
            return Some(format!(
                "the daemon is leaving: it will be drained in {seconds} s"
            ));
        }
        Status { listeners, .. } if listeners.iter().any(|l| l.outage.is_some()) => {
            "clients cannot connect to a listener"
        }
        _ if has_worker(status, &[WorkerState::Ready]) => return None,
        _ => {
            let workers: Vec<String> = unhealthy_workers(status, wording).collect();
            let workers = Some(workers.join("; ")).filter(|workers| !workers.is_empty());
            return unhealthy(status).or(workers);
        }
    };
    Some(reason.to_owned())
}

/// Returns what a daemon lacks that serves clients.
pub(super) fn warnings(status: &Status, wording: Wording) -> Vec<String> {
    let missing = status.missing.iter().map(|missing| match wording {
        Wording::Full => format!("missing: {}", Escaped(missing)),
        Wording::Short => {
            let part = PARTS.iter().find(|part| missing.starts_with(**part));
            format!("missing: {}", part.unwrap_or(&"a part of the daemon"))
        }
    });
    let stale = status
        .config_stale
        .as_ref()
        .map(|cause| "the previous configuration is in force".to_owned() + &wording.cause(cause));
    missing
        .chain(stale)
        .chain(unhealthy_workers(status, wording))
        .collect()
}

/// Returns each worker that is unhealthy.
fn unhealthy_workers(status: &Status, wording: Wording) -> impl Iterator<Item = String> {
    status.workers.iter().filter_map(move |worker| {
        let cause = wording.cause(worker.unhealthy.as_ref()?);
        Some(format!("worker {} is unhealthy{cause}", worker.id?))
    })
}

impl Wording {
    /// Returns what follows a warning.
    fn cause(self, cause: &str) -> String {
        match self {
            Wording::Full => format!(": {}", Escaped(cause)),
            Wording::Short => String::new(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A member of the status, and its value.
    pub(in crate::exporter) type Member = (&'static str, Value);

    /// Returns the status of a daemon with workers of these states and shares, and with these other members.
    pub(in crate::exporter) fn status(
        workers: &[(&str, f64)],
        members: &[(&str, Value)],
    ) -> Status {
        let worker = |(index, (state, busy)): (usize, &(&str, f64))| {
            json!({
                "seat": index, "id": index, "pid": 1, "generation": 1, "state": state, "clients": 0,
                "executing": 0, "requests_total": 0, "errors_total": 0, "panics_total": 0,
                "log_errors_total": 0, "parked_bytes": 0, "restarts": 0, "busy": busy
            })
        };
        let workers: Vec<Value> = workers.iter().enumerate().map(worker).collect();
        let mut status = json!({
            "name": "fdpassd", "version": "1", "pid": 1, "uptime_seconds": 1.0, "generation": 1,
            "dispatch": "", "stopping": false, "drained": false, "listeners": [], "clients": 0,
            "max_clients": 9, "accepted_total": 0, "refused_total": 0, "moved_total": 0,
            "lost_total": 0, "requests_total": 0, "errors_total": 0, "log_errors_total": 0,
            "count": 2, "count_origin": "config", "reloading": false, "deaths_total": 0,
            "stalls_total": 0, "reruns_total": 0, "closed_for_crashes_total": 0,
            "quarantined": [], "leaving": [], "workers": workers
        });
        for (name, value) in members {
            status[name] = value.clone();
        }
        serde_json::from_value(status).expect("a status")
    }
}
