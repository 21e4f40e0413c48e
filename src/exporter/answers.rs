//! What is asked for over HTTP, and what is answered.

use super::daemon::DaemonClient;
use super::host;
use super::http::{self, HttpReply, HttpRequest};
use crate::proto::control::{Metrics, Status, Verb, WorkerState};

/// Answers requests.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) daemon: DaemonClient,
    /// Names by which it may be asked; none if it does not matter.
    pub(super) hosts: Option<Vec<String>>,
}

impl Answers {
    /// The reply to a request.
    pub(super) fn reply_to(&self, request: &HttpRequest) -> HttpReply {
        self.answer(request).unwrap_or_else(|refusal| refusal)
    }

    fn answer(&self, request: &HttpRequest) -> Result<HttpReply, HttpReply> {
        if let Some(names) = &self.hosts {
            host::check(request, names)?;
        }
        if !["GET", "HEAD"].contains(&request.method.as_str()) {
            return Err(HttpReply::sentence(
                http::HttpStatus::MethodNotAllowed,
                "only GET and HEAD are answered",
            ));
        }
        if request.has_body {
            return Err(HttpReply::sentence(
                http::HttpStatus::ContentTooLarge,
                "a request has no body here",
            ));
        }
        match request.path.as_str() {
            "/metrics" => self
                .daemon
                .ask(Verb::Metrics)
                .map(|Metrics { text }| HttpReply::metrics(text)),
            "/healthz" => self
                .daemon
                .ask(Verb::Status)
                .map(|status| match illness(&status) {
                    None => HttpReply::sentence(http::HttpStatus::Ok, &wellness(&status)),
                    reason => verdict(reason),
                }),
            "/readyz" => self
                .daemon
                .ask(Verb::Status)
                .map(|status| verdict(unreadiness(&status))),
            _ => Err(HttpReply::sentence(
                http::HttpStatus::NotFound,
                "there are /metrics, /healthz and /readyz",
            )),
        }
    }
}

fn verdict(reason: Option<&str>) -> HttpReply {
    match reason {
        None => HttpReply::sentence(http::HttpStatus::Ok, "ok"),
        Some(reason) => HttpReply::sentence(http::HttpStatus::Unavailable, reason),
    }
}

/// That clients are served, and what is amiss beside that.
fn wellness(status: &Status) -> String {
    let stale = status
        .config_stale
        .as_ref()
        .map(|why| format!("the previous configuration is in force: {why}"));
    let amiss: Vec<String> = status
        .missing
        .iter()
        .map(|missing| format!("missing: {missing}"))
        .chain(stale)
        .collect();
    if amiss.is_empty() {
        "ok".to_owned()
    } else {
        format!("ok; {}", amiss.join("; "))
    }
}

/// Why nobody is served.
fn illness(status: &Status) -> Option<&'static str> {
    // One that is leaving serves until its successor does.
    let states = status
        .workers
        .iter()
        .map(|w| w.state)
        .chain(status.leaving.iter().map(|w| w.state));
    let is_ready = states.into_iter().any(|state| state == WorkerState::Ready);
    let reason = if status.stopping {
        "the daemon is stopping"
    } else {
        "no worker is ready"
    };
    (!is_ready).then_some(reason)
}

/// Why nobody new should be sent here.
fn unreadiness(status: &Status) -> Option<&'static str> {
    match status {
        Status { stopping: true, .. } => Some("the daemon is stopping"),
        Status { drained: true, .. } => Some("the daemon is drained"),
        Status { listeners, .. } if listeners.iter().any(|l| l.outage.is_some()) => {
            Some("clients cannot connect to a listener")
        }
        _ => illness(status),
    }
}
