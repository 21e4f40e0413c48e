//! Progress on standard error while the daemon performs a change: its events, from a second connection.
//!
//! On a terminal it is one line with counters, which is overwritten and erased at the end; else each event is a line.
//! A failure of the progress is not a failure of the change: of a daemon without events only the change is requested.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::args::ChangeVerb;
use super::counters::ChangeCounters;
use super::error::Error;
use super::figures::clock;
use super::page::EventsPage;
use super::session::{Session, parse};
use crate::proto::control::{Event, EventsAfter, Kind, MAX_WAIT, Verb};
use crate::proto::text::Escaped;
use crate::rpc_client::{self, Closer, Deadline, RpcClient};

/// A second connection, on which events are received while the daemon performs a change.
#[derive(Debug)]
pub(super) struct Progress<'a> {
    session: &'a Session,
    events: RpcClient,
    closer: SharedCloser,
    reporter: Reporter<'a>,
}

impl<'a> Progress<'a> {
    /// Finds the last event before the change. Returns `None` if progress is not wanted, or the daemon has no events.
    pub(super) fn new(
        change: &'a ChangeVerb,
        session: &'a Session,
        daemon: &mut RpcClient,
    ) -> Result<Option<Progress<'a>>, rpc_client::Error> {
        let is_slow =
            change.takes_long().is_some() || matches!(change, ChangeVerb::Rebalance { .. });
        if !is_slow || session.json || session.quiet {
            return Ok(None);
        }
        let result = match daemon.ask_with(Verb::Events, &EventsAfter::default()) {
            Ok(result) => result,
            Err(rpc_client::Error::Refused { .. } | rpc_client::Error::Forbidden(_)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let progress = || {
            let page: EventsPage = parse(&result).ok()?;
            let events = connect(session).ok()?;
            let closer = events.closer().ok()?;
            Some(Progress {
                session,
                events,
                closer: SharedCloser(Mutex::new(Some(closer))),
                reporter: Reporter {
                    last: page.last,
                    width: session.seen.err.then_some(session.seen.width),
                    counters: ChangeCounters::new(change, &page),
                },
            })
        };
        Ok(progress())
    }

    /// Calls `request` and reports progress until it returns.
    pub(super) fn during<T>(
        self,
        daemon: &mut RpcClient,
        err: &mut (impl Write + Send),
        request: impl FnOnce(&mut RpcClient) -> Result<T, rpc_client::Error>,
    ) -> Result<T, rpc_client::Error> {
        let Progress {
            session,
            mut events,
            closer,
            mut reporter,
        } = self;
        // Before the change begins, so that the daemon sends its first event even if the thread starts late.
        let requested = reporter.request(&mut events);
        let done = thread::scope(|threads| {
            let follow = || requested.map(|()| reporter.follow(session, events, &closer, err));
            // Without a thread there is no progress until the end.
            let _ = thread::Builder::new().spawn_scoped(threads, follow);
            let done = request(daemon);
            closer.close();
            done
        });
        // The events since the last page. No request is sent while a reply is outstanding.
        if matches!(
            done,
            Ok(_) | Err(rpc_client::Error::Refused { .. } | rpc_client::Error::Forbidden(_))
        ) {
            let _ = reporter.finish(daemon, err);
        }
        let _ = reporter.erase(err);
        done
    }
}

fn connect(session: &Session) -> Result<RpcClient, rpc_client::Error> {
    let mut events = session.connect_until(Deadline::new(SECOND_CONNECT_TIMEOUT))?;
    events.extend(session.deadline);
    Ok(events)
}

/// Closes the current second connection from another thread; empty when the change has ended.
#[derive(Debug)]
struct SharedCloser(Mutex<Option<Closer>>);

impl SharedCloser {
    fn is_closed(&self) -> bool {
        self.lock().is_none()
    }

    /// Sets the closer of a new connection. Returns false if the change has ended, or the connection has no closer.
    fn replace(&self, events: &RpcClient) -> bool {
        let Ok(new) = events.closer() else {
            return false;
        };
        self.lock().as_mut().map(|closer| *closer = new).is_some()
    }

    fn close(&self) {
        if let Some(closer) = self.lock().take() {
            closer.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Closer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports events and counters.
#[derive(Debug)]
struct Reporter<'a> {
    /// The last event that was received.
    last: u64,
    /// The width of the terminal, if standard error is one.
    width: Option<usize>,
    counters: ChangeCounters<'a>,
}

impl Reporter<'_> {
    /// Reports until the change has ended, the daemon ends, or standard error fails.
    fn follow(
        &mut self,
        session: &Session,
        mut events: RpcClient,
        closer: &SharedCloser,
        err: &mut impl Write,
    ) -> Result<(), Error> {
        self.draw(err).map_err(Error::Output)?;
        loop {
            let before = self.last;
            let ended = loop {
                if let Err(error) = self.receive(&mut events, err) {
                    break error;
                }
            };
            let is_closed = matches!(ended, Error::Connection(rpc_client::Error::Closed));
            if closer.is_closed() || !is_closed || self.last == before {
                return Err(ended);
            }
            // A daemon that executes a new program keeps only the connections that it owes a reply.
            events = connect(session)?;
            if !closer.replace(&events) {
                return Ok(());
            }
            self.request(&mut events)?;
        }
    }

    fn receive(&mut self, events: &mut RpcClient, err: &mut impl Write) -> Result<(), Error> {
        let result = events.answered(Verb::Events)?;
        let page: EventsPage = parse(&result)?;
        self.last = page.last;
        // Before the page is shown: a daemon that ends sends its last events only to pending requests.
        let requested = self.request(events);
        self.show(&page, err).map_err(Error::Output)?;
        Ok(requested?)
    }

    fn request(&self, events: &mut RpcClient) -> Result<(), rpc_client::Error> {
        // The counter of clients changes without an event.
        let wait = match self.width {
            Some(_) => Duration::from_secs(1),
            None => MAX_WAIT,
        };
        events.begin(Verb::Events, &self.after(Some(wait)))
    }

    /// Shows the events that were not received before the change ended.
    fn finish(&mut self, daemon: &mut RpcClient, err: &mut impl Write) -> Result<(), Error> {
        let result = daemon.ask_with(Verb::Events, &self.after(None))?;
        self.show(&parse(&result)?, err).map_err(Error::Output)
    }

    fn after(&self, wait: Option<Duration>) -> EventsAfter {
        EventsAfter {
            after: Some(self.last),
            wait: wait.map(|wait| wait.as_secs_f64()),
        }
    }

    fn show(&mut self, page: &EventsPage, err: &mut impl Write) -> io::Result<()> {
        self.counters.count(page);
        match self.width {
            Some(_) => self.draw(err),
            None => write_lines(page, err),
        }
    }

    fn draw(&self, err: &mut impl Write) -> io::Result<()> {
        let Some(width) = self.width else {
            return Ok(());
        };
        // A line that wraps could not be overwritten.
        let line: String = self.counters.to_string().chars().take(width - 1).collect();
        write!(err, "\r{line}{ERASE}").and_then(|()| err.flush())
    }

    fn erase(&self, err: &mut impl Write) -> io::Result<()> {
        match self.width {
            Some(_) => write!(err, "\r{ERASE}").and_then(|()| err.flush()),
            None => Ok(()),
        }
    }
}

/// Writes a line such as `12:00:01 worker 5 (pid 77, gen 2) is ready after 3 ms` for each event.
fn write_lines(page: &EventsPage, err: &mut impl Write) -> io::Result<()> {
    if let Some(gap) = page.gap() {
        writeln!(err, "{gap}")?;
    }
    page.events.iter().try_for_each(|raw| match parse(raw) {
        // The reply has the same message.
        Ok(Event {
            event: Kind::ReloadRejected | Kind::UpgradeRefused | Kind::Forbidden,
            ..
        }) => Ok(()),
        Ok(Event { at, message, .. }) => writeln!(err, "{} {}", clock(at), Escaped(message)),
        Err(_) => writeln!(err, "{}", Escaped(raw.get())),
    })
}

/// How long a change waits for the second connection.
const SECOND_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// From the cursor to the end of the line: EL of ECMA-48.
const ERASE: &str = "\x1b[K";
