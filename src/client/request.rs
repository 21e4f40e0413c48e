//! Requests, and the ones that have no outcome yet.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar};
use std::time::Instant;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{ConnectionError, Error};

/// A request for [`Client::send`](super::Client::send) and [`Client::call_all`](super::Client::call_all).
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientRequest {
    pub(super) method: String,
    /// The params, or why they cannot be written.
    pub(super) params: Result<Option<Box<RawValue>>, String>,
    pub(super) idempotent: Option<bool>,
}

impl ClientRequest {
    /// Returns a request. If the params cannot be written as JSON, that is its outcome.
    pub fn new(method: impl Into<String>, params: impl Serialize) -> ClientRequest {
        ClientRequest {
            method: method.into(),
            params: to_raw_value(&params).map(Some).map_err(|e| e.to_string()),
            idempotent: None,
        }
    }

    /// Returns a request without params, which is the same as `null`.
    pub fn without_params(method: impl Into<String>) -> ClientRequest {
        ClientRequest {
            method: method.into(),
            params: Ok(None),
            idempotent: None,
        }
    }

    /// Sets whether the method may run more than once, instead of what the options or the daemon declare.
    pub fn idempotent(self, is_idempotent: bool) -> ClientRequest {
        ClientRequest {
            idempotent: Some(is_idempotent),
            ..self
        }
    }
}

/// The result of a request, byte for byte, or why there is none.
pub(super) type RawOutcome = Result<Box<RawValue>, Error>;

/// A thread that waits for outcomes.
#[derive(Debug, Default)]
pub(super) struct Caller {
    /// Is notified at the last outcome, and if this thread must do the work of the client.
    pub(super) news: Condvar,
    /// How many outcomes are missing. It changes only while the state of the client is locked.
    missing: AtomicUsize,
}

impl Caller {
    pub(super) fn new(requests: usize) -> Arc<Caller> {
        Arc::new(Caller {
            news: Condvar::new(),
            missing: AtomicUsize::new(requests),
        })
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.missing.load(Ordering::Relaxed) > 0
    }

    pub(super) fn take_one(&self) {
        if self.missing.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.news.notify_one();
        }
    }
}

/// A request without an outcome.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) method: String,
    pub(super) frame: Vec<u8>,
    /// Whether it asks for a goaway.
    pub(super) asks: bool,
    /// `None` if only the daemon knows.
    pub(super) idempotent: Option<bool>,
    /// How many bytes of the frame the connection has taken.
    pub(super) sent: usize,
    /// The address and the reason of the last run whose outcome is unknown.
    pub(super) doubt: Option<(String, ConnectionError)>,
    /// How many runs have an unknown outcome.
    pub(super) doubts: u32,
    /// When the call began.
    pub(super) begin: Instant,
    /// `None` if the client itself asks.
    pub(super) caller: Option<Arc<Caller>>,
}

impl Unanswered {
    /// Returns whether the connection has taken all of it.
    pub(super) fn is_sent(&self) -> bool {
        self.sent == self.frame.len()
    }

    /// Returns whether the daemon must be asked before it is sent once more.
    pub(super) fn is_undecided(&self) -> bool {
        self.doubt.is_some() && self.idempotent.is_none()
    }

    /// Returns the outcome if the time is over, or the method may not run once more: unknown if it may have run.
    pub(super) fn doubtful_outcome(&mut self) -> Option<RawOutcome> {
        let (address, cause) = self.doubt.take()?;
        Some(Err(Error::UnknownOutcome {
            method: self.method.clone(),
            address,
            cause,
        }))
    }
}
