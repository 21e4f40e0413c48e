//! The resources of the exporter: the page and its stream, metrics and health, and the lines for agent checks.

use super::agent;
use super::daemon::DaemonClient;
use super::host;
use super::http::{HttpReply, HttpRequest, HttpStatus};
use super::live::{Live, LiveStream, MAX_STREAMS};
use super::page;
use super::serving::{Wording, unhealthy, unready, warnings};
use crate::proto::control::{Metrics, Status, Verb};

/// The health of a daemon that cannot be asked.
const UNREACHABLE: &str = "ok; missing: control socket: nothing listens at its path, so the state of the workers is unknown";

/// Answers requests.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) daemon: DaemonClient,
    pub(super) live: Live,
    /// Names that the Host header may have; `None` if any is allowed.
    pub(super) hosts: Option<Vec<String>>,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) enum HttpAnswer<'a> {
    Reply(HttpReply),
    /// The reply is a stream of updates.
    Stream(LiveStream<'a>),
}

impl Answers {
    /// Returns the answer to a request.
    pub(super) fn answer(&self, request: &HttpRequest) -> HttpAnswer<'_> {
        self.check(request)
            .and_then(|()| self.find(request))
            .unwrap_or_else(HttpAnswer::Reply)
    }

    /// Returns the line for an agent check; `None` if the daemon does not answer. Then the balancer keeps what it knows:
    /// its own check shows whether the daemon serves clients.
    pub(super) fn agent_line(&self) -> Option<String> {
        Some(agent::line(&self.status().ok()?))
    }

    /// Adds a sample to the history if the last one is not recent, so that scraping the metrics is enough for the plots.
    pub(super) fn sample(&self) {
        if let Some(_claim) = self.live.claim_sample() {
            // A failure leaves a gap in the plots.
            let _ = self.status();
        }
    }

    fn check(&self, request: &HttpRequest) -> Result<(), HttpReply> {
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
        Ok(())
    }

    fn find(&self, request: &HttpRequest) -> Result<HttpAnswer<'_>, HttpReply> {
        let reply = match request.path.as_str() {
            "/" => page::reply(),
            "/live" => return self.stream(request),
            "/metrics" => {
                let Metrics { text } = self.daemon.query(Verb::Metrics)?;
                HttpReply::metrics(text)
            }
            "/healthz" => self.health()?,
            "/readyz" => reply_for(unready(&self.status()?, Wording::Full)),
            _ => HttpReply::sentence(
                HttpStatus::NotFound,
                "there are /, /metrics, /healthz and /readyz",
            ),
        };
        Ok(HttpAnswer::Reply(reply))
    }

    /// Returns a stream for the page, if one is free.
    fn stream(&self, request: &HttpRequest) -> Result<HttpAnswer<'_>, HttpReply> {
        if !request.is_of_page {
            // Another page could not read the stream, but would take a place.
            return Err(HttpReply::sentence(
                HttpStatus::Forbidden,
                "this stream is for the page of this address only",
            ));
        }
        if request.method == "HEAD" {
            return Ok(HttpAnswer::Reply(HttpReply::event_stream()));
        }
        let full = || {
            let sentence =
                format!("{MAX_STREAMS} pages are open, and no more are updated at a time");
            HttpReply::sentence(HttpStatus::Unavailable, &sentence)
        };
        self.live.join().map(HttpAnswer::Stream).ok_or_else(full)
    }

    fn health(&self) -> Result<HttpReply, HttpReply> {
        let status: Option<Status> = self.daemon.query_if_reachable(Verb::Status)?;
        // A liveness probe must not end a daemon whose clients are served.
        let Some(status) = status else {
            return Ok(HttpReply::sentence(HttpStatus::Ok, UNREACHABLE));
        };
        self.live.record(&status);
        Ok(match unhealthy(&status) {
            None => HttpReply::sentence(HttpStatus::Ok, &health(&status)),
            reason => reply_for(reason),
        })
    }

    /// Queries the status, which is also a sample for the plots.
    fn status(&self) -> Result<Status, HttpReply> {
        let status = self.daemon.query(Verb::Status)?;
        self.live.record(&status);
        Ok(status)
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
    let warnings = warnings(status, Wording::Full);
    if warnings.is_empty() {
        "ok".to_owned()
    } else {
        format!("ok; {}", warnings.join("; "))
    }
}
