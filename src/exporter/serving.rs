//! Whether the daemon serves clients, by its status.

use crate::proto::control::{Status, WorkerState};

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
