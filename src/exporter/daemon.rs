//! Queries over the daemon's control socket: one for each HTTP request, and one a second for all streams together.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::http::{HttpReply, HttpStatus};
use crate::proto::control::{Events, EventsAfter, Status, Verb};
use crate::proto::names::Address;
use crate::rpc_client::{Deadline, Error, RpcClient, no_reply};
use crate::sys::socket;

/// The time for an answer, including the wait for the other queries.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The shortest time between two queries.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// A client of the daemon. It sends one query at a time and at most a hundred a second: with any number of HTTP
/// requests the master has one more control client, and most of its time for others.
#[derive(Debug)]
pub(super) struct DaemonClient {
    control: PathBuf,
    queue: Mutex<QueryQueue>,
    freed: Condvar,
}

/// The queue of threads with a query.
#[derive(Debug)]
struct QueryQueue {
    is_querying: bool,
    /// The earliest time of the next query.
    next: Instant,
}

impl DaemonClient {
    /// Returns a client of the daemon with this control socket.
    pub(super) fn new(control: PathBuf) -> DaemonClient {
        let queue = Mutex::new(QueryQueue {
            is_querying: false,
            next: Instant::now(),
        });
        DaemonClient {
            control,
            queue,
            freed: Condvar::new(),
        }
    }

    /// Runs a verb without params.
    ///
    /// # Errors
    /// The reply to the HTTP client: 503 without an answer, 502 for an invalid one.
    pub(super) fn query<T: DeserializeOwned>(&self, verb: Verb) -> Result<T, HttpReply> {
        self.answer(verb).map_err(|error| reply_for(&error))
    }

    /// Does the same as [`DaemonClient::query`], but returns `None` if nothing listens at the path of the control
    /// socket. The daemon runs then: the exporter ends with it.
    ///
    /// # Errors
    /// As [`DaemonClient::query`].
    pub(super) fn query_if_reachable<T: DeserializeOwned>(
        &self,
        verb: Verb,
    ) -> Result<Option<T>, HttpReply> {
        match self.answer(verb) {
            Ok(answer) => Ok(Some(answer)),
            Err(Error::Connect { cause, .. }) if is_missing(&cause) => Ok(None),
            Err(error) => Err(reply_for(&error)),
        }
    }

    /// Returns the status and, over the same connection, at most about `most` events after the event `last`, if there
    /// are any.
    ///
    /// # Errors
    /// As [`DaemonClient::query`].
    pub(super) fn status_and_events(
        &self,
        last: u64,
        most: u64,
    ) -> Result<(Status, Option<Events>), HttpReply> {
        let requests = |client: &mut RpcClient| {
            let status: Status = parse(&client.ask(Verb::Status)?)?;
            if status.events_total == last {
                return Ok((status, None));
            }
            // A lower total belongs to a daemon that was started since.
            let oldest = status.events_total.saturating_sub(most);
            let after = match last > status.events_total {
                true => oldest,
                false => last.max(oldest),
            };
            let params = EventsAfter {
                after: Some(after),
                wait: None,
            };
            let events = parse(&client.ask_with(Verb::Events, &params)?)?;
            Ok((status, Some(events)))
        };
        self.exchange(requests).map_err(|error| reply_for(&error))
    }

    fn answer<T: DeserializeOwned>(&self, verb: Verb) -> Result<T, Error> {
        self.exchange(|client| parse(&client.ask(verb)?))
    }

    /// Sends requests over a new connection, when no other thread has one.
    fn exchange<T>(
        &self,
        requests: impl FnOnce(&mut RpcClient) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let deadline = Deadline::new(ANSWER_TIMEOUT);
        let failed = |cause: io::Error| match cause.kind() {
            ErrorKind::TimedOut => Error::Timeout(ANSWER_TIMEOUT),
            _ => Error::Connect {
                address: Address::Unix(self.control.clone()).to_string(),
                cause,
            },
        };
        let _turn = self.wait_turn(deadline).map_err(failed)?;
        let connected = deadline
            .left()
            .and_then(|left| socket::connect_unix(&self.control, left));
        requests(&mut RpcClient::from_stream(
            connected.map_err(failed)?,
            deadline,
        ))
    }

    /// Waits until no other thread has a query.
    fn wait_turn(&self, deadline: Deadline) -> io::Result<QueryGuard<'_>> {
        let mut queue = self.queue();
        loop {
            let left = deadline.left()?;
            let wait = if queue.is_querying {
                left
            } else {
                queue.next.saturating_duration_since(Instant::now())
            };
            if wait.is_zero() {
                break;
            }
            (queue, _) = self
                .freed
                .wait_timeout(queue, wait.min(left))
                .unwrap_or_else(PoisonError::into_inner);
        }
        *queue = QueryQueue {
            is_querying: true,
            next: Instant::now() + MIN_INTERVAL,
        };
        Ok(QueryGuard(self))
    }

    fn queue(&self) -> MutexGuard<'_, QueryQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to query, until it is dropped.
struct QueryGuard<'a>(&'a DaemonClient);

impl Drop for QueryGuard<'_> {
    fn drop(&mut self) {
        self.0.queue().is_querying = false;
        self.0.freed.notify_all();
    }
}

fn parse<T: DeserializeOwned>(result: &RawValue) -> Result<T, Error> {
    serde_json::from_str(result.get()).map_err(|e| no_reply(&e))
}

/// Returns whether an error of connect(2) means that the file of the socket is gone, or that no process listens there.
fn is_missing(cause: &io::Error) -> bool {
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::ConnectionRefused,
    ];
    kinds.contains(&cause.kind())
}

/// Returns the reply to an HTTP client without an answer of the daemon.
fn reply_for(error: &Error) -> HttpReply {
    match error {
        Error::NoReply(_) => HttpReply::sentence(
            HttpStatus::BadGateway,
            &format!("the daemon does not answer: {error}"),
        ),
        // The path is not for clients over TCP.
        Error::Connect { cause, .. } => HttpReply::sentence(
            HttpStatus::Unavailable,
            &format!("cannot connect to the daemon: {cause}"),
        ),
        _ => HttpReply::sentence(
            HttpStatus::Unavailable,
            &format!("the daemon does not answer: {error}"),
        ),
    }
}
