//! What the exporter knows of the daemon: what it asks of the control socket, anew for each request over HTTP.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::http::{HttpReply, HttpStatus};
use crate::proto::control::Verb;
use crate::proto::names::Address;
use crate::rpc_client::{Deadline, Error, RpcClient, no_reply};
use crate::sys::socket;

/// How long an answer may take, together with the turn to ask for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// From one question to the next, at least.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The daemon. One question at a time and a hundred a second at the most: however many ask over HTTP, the master has one
/// control client more, and most of its time for others.
#[derive(Debug)]
pub(super) struct DaemonClient {
    control: PathBuf,
    line: Mutex<QuestionQueue>,
    moved: Condvar,
}

/// Where those stand who want to ask.
#[derive(Debug)]
struct QuestionQueue {
    is_being_asked: bool,
    /// The next question may come then.
    next: Instant,
}

impl DaemonClient {
    /// That has its control socket there.
    pub(super) fn new(control: PathBuf) -> DaemonClient {
        let line = Mutex::new(QuestionQueue {
            is_being_asked: false,
            next: Instant::now(),
        });
        DaemonClient {
            control,
            line,
            moved: Condvar::new(),
        }
    }

    /// Asks for what has no params.
    ///
    /// # Errors
    /// The reply to whoever wanted to know: 503 if there is no answer, 502 if it is none.
    pub(super) fn ask<T: DeserializeOwned>(&self, verb: Verb) -> Result<T, HttpReply> {
        self.answer(verb).map_err(|error| match error {
            Error::NoReply(_) => HttpReply::sentence(
                HttpStatus::BadGateway,
                &format!("the daemon does not answer: {error}"),
            ),
            // Without the path, which is nobody's business over TCP.
            Error::Connect { cause, .. } => HttpReply::sentence(
                HttpStatus::Unavailable,
                &format!("cannot connect to the daemon: {cause}"),
            ),
            _ => HttpReply::sentence(
                HttpStatus::Unavailable,
                &format!("the daemon does not answer: {error}"),
            ),
        })
    }

    fn answer<T: DeserializeOwned>(&self, verb: Verb) -> Result<T, Error> {
        let deadline = Deadline::new(ANSWER_TIMEOUT);
        let failed = |cause: io::Error| match cause.kind() {
            ErrorKind::TimedOut => Error::Timeout(ANSWER_TIMEOUT),
            _ => Error::Connect {
                address: Address::Unix(self.control.clone()),
                cause,
            },
        };
        let _turn = self.turn(deadline).map_err(failed)?;
        let connected = deadline
            .left()
            .and_then(|left| socket::connect_unix(&self.control, left));
        let result = RpcClient::from_stream(connected.map_err(failed)?, deadline).ask(verb)?;
        serde_json::from_str(result.get()).map_err(|e| no_reply(&e))
    }

    /// Waits until nobody else asks.
    fn turn(&self, deadline: Deadline) -> io::Result<QuestionGuard<'_>> {
        let mut line = self.line();
        loop {
            let left = deadline.left()?;
            let wait = if line.is_being_asked {
                left
            } else {
                line.next.saturating_duration_since(Instant::now())
            };
            if wait.is_zero() {
                break;
            }
            (line, _) = self
                .moved
                .wait_timeout(line, wait.min(left))
                .unwrap_or_else(PoisonError::into_inner);
        }
        *line = QuestionQueue {
            is_being_asked: true,
            next: Instant::now() + MIN_INTERVAL,
        };
        Ok(QuestionGuard(self))
    }

    fn line(&self) -> MutexGuard<'_, QuestionQueue> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to ask, until it is dropped.
struct QuestionGuard<'a>(&'a DaemonClient);

impl Drop for QuestionGuard<'_> {
    fn drop(&mut self) {
        self.0.line().is_being_asked = false;
        self.0.moved.notify_all();
    }
}
