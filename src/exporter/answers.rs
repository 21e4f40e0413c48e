//! The resources of the exporter: metrics and health, and the lines for agent checks.

use super::agent;
use super::daemon::DaemonClient;
use super::host;
use super::http::{HttpReply, HttpRequest, HttpStatus};
use super::serving::{has_worker, unhealthy};
use crate::proto::control::{DrainStatus, Metrics, Status, Verb, WorkerState};
use crate::proto::text::Escaped;

/// The health of a daemon that cannot be asked.
const UNREACHABLE: &str = "ok; missing: control socket: nothing listens at its path, so the state of the workers is unknown";

/// Answers requests.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) daemon: DaemonClient,
    /// Names that the Host header may have; `None` if any is allowed.
    pub(super) hosts: Option<Vec<String>>,
}

impl Answers {
    /// Returns the reply to a request.
    pub(super) fn reply(&self, request: &HttpRequest) -> HttpReply {
        self.answer(request).unwrap_or_else(|refusal| refusal)
    }

    /// Returns the line for an agent check; `None` if the daemon does not answer. Then the balancer keeps what it knows:
    /// its own check shows whether the daemon serves clients.
    pub(super) fn agent_line(&self) -> Option<String> {
        let status = self.daemon.query(Verb::Status).ok()?;
        Some(agent::line(&status))
    }

    fn answer(&self, request: &HttpRequest) -> Result<HttpReply, HttpReply> {
        if let Some(names) = &self.hosts {
            host::check(request, names)?;
        }
        if !["GET", "HEAD"].contains(&request.method.as_str()) {
            return Err(HttpReply::sentence(
                HttpStatus::MethodNotAllowed,
                "only GET and HEAD are answered",
            ));
        }
        if request.has_body {
            return Err(HttpReply::sentence(
                HttpStatus::ContentTooLarge,
                "a request has no body here",
            ));
        }
        match request.path.as_str() {
            "/metrics" => self
                .daemon
                .query(Verb::Metrics)
                .map(|Metrics { text }| HttpReply::metrics(text)),
            "/healthz" => self.daemon.query_if_reachable(Verb::Status).map(|status| {
                // A liveness probe must not end a daemon whose clients are served.
                let Some(status) = status else {
                    return HttpReply::sentence(HttpStatus::Ok, UNREACHABLE);
                };
                match unhealthy(&status) {
                    None => HttpReply::sentence(HttpStatus::Ok, &health(&status)),
                    reason => reply_for(reason),
                }
            }),
            "/readyz" => self
                .daemon
                .query(Verb::Status)
                .map(|status| reply_for(unready(&status))),
            _ => Err(HttpReply::sentence(
                HttpStatus::NotFound,
                "there are /metrics, /healthz and /readyz",
            )),
        }
    }
}

fn reply_for(reason: Option<String>) -> HttpReply {
    match reason {
        None => HttpReply::sentence(HttpStatus::Ok, "ok"),
        Some(reason) => HttpReply::sentence(HttpStatus::Unavailable, &reason),
    }
}

/// Returns the text for a daemon that serves clients, with its warnings.
fn health(status: &Status) -> String {
    let stale = status
        .config_stale
        .as_ref()
        .map(|why| format!("the previous configuration is in force: {}", Escaped(why)));
    let warnings: Vec<String> = status
        .missing
        .iter()
        .map(|missing| format!("missing: {}", Escaped(missing)))
        .chain(stale)
        .chain(unhealthy_workers(status))
        .collect();
    if warnings.is_empty() {
        "ok".to_owned()
    } else {
        format!("ok; {}", warnings.join("; "))
    }
}

/// Returns each worker that is unhealthy, with the reason.
fn unhealthy_workers(status: &Status) -> impl Iterator<Item = String> {
    status.workers.iter().filter_map(|worker| {
        let why = Escaped(worker.unhealthy.as_ref()?);
        Some(format!("worker {} is unhealthy: {why}", worker.id?))
    })
}

/// Returns why new clients should go elsewhere.
fn unready(status: &Status) -> Option<String> {
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
            let workers: Vec<String> = unhealthy_workers(status).collect();
            let workers = Some(workers.join("; ")).filter(|workers| !workers.is_empty());
            return unhealthy(status).or(workers);
        }
    };
    Some(reason.to_owned())
}
