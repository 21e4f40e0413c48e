//! What is told on standard error while the daemon is busy with a change: its events, heard on a second connection.
//!
//! On a terminal that is one line with counters, written over until it is erased; else each event is a line. Nothing of it
//! can make a change fail: a daemon that has no events to tell is asked for the change alone.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::error::Error;
use super::events::{EventsPage, forgotten};
use super::figures::{clock, counted};
use super::{Session, read};
use crate::proto::control::{Event, EventsAfter, Kind, MAX_WAIT, Verb};
use crate::proto::names::Generation;
use crate::proto::text::Escaped;
use crate::rpc_client::{self, Closer, Deadline, RpcClient};

/// What the daemon is busy with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doing {
    Reload,
    Scale { count: u32 },
    Recycle { one: bool },
    Hold { worker: u64 },
    Drain,
    Rebalance,
    Upgrade,
    Stop,
}

impl Doing {
    /// In a sentence, and how long it is waited for by default; none of what is over soon.
    pub(super) fn takes_long(self) -> Option<(&'static str, Duration)> {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        match self {
            Doing::Reload => Some(("reloading", minutes(1))),
            Doing::Scale { .. } => Some(("scaling", minutes(1))),
            Doing::Recycle { .. } => Some(("replacing workers", minutes(1))),
            Doing::Hold { .. } => Some(("moving the worker's clients", minutes(1))),
            Doing::Drain => Some(("draining", minutes(60))),
            Doing::Upgrade => Some(("upgrading", minutes(1))),
            Doing::Stop => Some(("stopping", minutes(1))),
            Doing::Rebalance => None,
        }
    }
}

/// Somebody who listens to the daemon while it is busy.
#[derive(Debug)]
pub(super) struct Progress<'a> {
    session: &'a Session,
    events: RpcClient,
    line: ProgressLine,
    teller: Teller,
}

impl<'a> Progress<'a> {
    /// Finds out where the events are, before anything is asked for. None if nobody wants to hear of them, or the daemon
    /// has none to tell.
    pub(super) fn new(
        doing: Doing,
        session: &'a Session,
        daemon: &mut RpcClient,
    ) -> Result<Option<Progress<'a>>, rpc_client::Error> {
        if session.json || session.quiet {
            return Ok(None);
        }
        let result = match daemon.ask_with(Verb::Events, &EventsAfter::default()) {
            Ok(result) => result,
            Err(rpc_client::Error::Refused { .. } | rpc_client::Error::Forbidden(_)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Ok(page) = read::<EventsPage>(&result) else {
            return Ok(None);
        };
        let Ok(events) = connect(session) else {
            return Ok(None);
        };
        let Ok(closer) = events.closer() else {
            return Ok(None);
        };
        let width = session.seen.err.then_some(session.seen.width);
        let teller = Teller {
            last: page.last,
            width,
            counters: RequestCounts::new(doing, &page),
        };
        Ok(Some(Progress {
            session,
            events,
            line: ProgressLine(Mutex::new(Some(closer))),
            teller,
        }))
    }

    /// Has something done, and tells of it until it is.
    pub(super) fn during<T>(
        self,
        daemon: &mut RpcClient,
        err: &mut (impl Write + Send),
        ask: impl FnOnce(&mut RpcClient) -> Result<T, rpc_client::Error>,
    ) -> Result<T, rpc_client::Error> {
        let Progress {
            session,
            mut events,
            line,
            mut teller,
        } = self;
        // Before anything begins, so that the daemon tells its first event whenever the thread comes to run.
        let is_asked = teller.ask(&mut events);
        let done = thread::scope(|threads| {
            let follow = || is_asked.map(|()| teller.follow(session, events, &line, err));
            // Without a thread there is no progress until the end.
            let _ = thread::Builder::new().spawn_scoped(threads, follow);
            let done = ask(daemon);
            line.hang_up();
            done
        });
        // What happened since the last of them was heard. Somebody who still owes an answer cannot be asked.
        if matches!(
            done,
            Ok(_) | Err(rpc_client::Error::Refused { .. } | rpc_client::Error::Forbidden(_))
        ) {
            let _ = teller.finish(daemon, err);
        }
        let _ = teller.erase(err);
        done
    }
}

/// A second connection.
fn connect(session: &Session) -> Result<RpcClient, rpc_client::Error> {
    let mut events =
        RpcClient::connect_control(&session.places(), Deadline::new(SECOND_CONNECT_TIMEOUT))?;
    events.extend(session.deadline);
    Ok(events)
}

/// What ends the second connection, whichever that is by then; none when nobody wants to hear more.
#[derive(Debug)]
struct ProgressLine(Mutex<Option<Closer>>);

impl ProgressLine {
    fn is_over(&self) -> bool {
        self.closer().is_none()
    }

    /// It goes on by another connection, unless it is over.
    fn goes_on(&self, events: &RpcClient) -> bool {
        let Ok(new) = events.closer() else {
            return false;
        };
        self.closer().as_mut().map(|closer| *closer = new).is_some()
    }

    fn hang_up(&self) {
        if let Some(closer) = self.closer().take() {
            closer.close();
        }
    }

    fn closer(&self) -> MutexGuard<'_, Option<Closer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has been told, and how.
#[derive(Debug)]
struct Teller {
    /// The last event that was heard.
    last: u64,
    /// Of the line, on a terminal.
    width: Option<usize>,
    counters: RequestCounts,
}

impl Teller {
    /// Goes on until nobody wants to hear more, the daemon ends, or nobody takes what is told.
    fn follow(
        &mut self,
        session: &Session,
        mut events: RpcClient,
        line: &ProgressLine,
        err: &mut impl Write,
    ) -> Result<(), Error> {
        self.draw(err).map_err(Error::Output)?;
        loop {
            let before = self.last;
            let ended = loop {
                if let Err(error) = self.hear(&mut events, err) {
                    break error;
                }
            };
            let is_closed = matches!(ended, Error::Connection(rpc_client::Error::Closed));
            if line.is_over() || !is_closed || self.last == before {
                return Err(ended);
            }
            // A daemon that becomes another program keeps only those whom it owes the verdict.
            events = connect(session)?;
            if !line.goes_on(&events) {
                return Ok(());
            }
            self.ask(&mut events)?;
        }
    }

    fn hear(&mut self, events: &mut RpcClient, err: &mut impl Write) -> Result<(), Error> {
        let result = events.answered(Verb::Events)?;
        let page: EventsPage = read(&result)?;
        self.last = page.last;
        // At once: of a daemon that ends, what comes last is heard only by those who have asked.
        let is_asked = self.ask(events);
        self.take(&page, err).map_err(Error::Output)?;
        Ok(is_asked?)
    }

    fn ask(&self, events: &mut RpcClient) -> Result<(), rpc_client::Error> {
        // A count of clients changes without an event.
        let wait = if self.width.is_some() {
            Duration::from_secs(1)
        } else {
            MAX_WAIT
        };
        events.begin(
            Verb::Events,
            &EventsAfter {
                after: Some(self.last),
                wait: Some(wait.as_secs_f64()),
            },
        )
    }

    /// Tells what nobody waits for any more.
    fn finish(&mut self, daemon: &mut RpcClient, err: &mut impl Write) -> Result<(), Error> {
        let result = daemon.ask_with(
            Verb::Events,
            &EventsAfter {
                after: Some(self.last),
                wait: None,
            },
        )?;
        self.take(&read(&result)?, err).map_err(Error::Output)
    }

    fn take(&mut self, page: &EventsPage, err: &mut impl Write) -> io::Result<()> {
        self.counters.take(page);
        match self.width {
            Some(_) => self.draw(err),
            None => tell(page, err),
        }
    }

    fn draw(&self, err: &mut impl Write) -> io::Result<()> {
        let Some(width) = self.width else {
            return Ok(());
        };
        // A line that goes on in the next one could not be written over.
        let line: String = self.counters.to_string().chars().take(width - 1).collect();
        write!(err, "\r{line}{ERASE}").and_then(|()| err.flush())
    }

    fn erase(&self, err: &mut impl Write) -> io::Result<()> {
        if self.width.is_some() {
            write!(err, "\r{ERASE}").and_then(|()| err.flush())
        } else {
            Ok(())
        }
    }
}

/// `12:00:01 worker 5 (pid 77, gen 2) is ready after 3 ms`, for each.
fn tell(page: &EventsPage, err: &mut impl Write) -> io::Result<()> {
    if page.lost > 0 {
        writeln!(err, "{}", forgotten(page.lost))?;
    }
    page.events.iter().try_for_each(|raw| match read(raw) {
        // The verdict says so.
        Ok(Event {
            event: Kind::ReloadRejected | Kind::UpgradeRefused | Kind::Forbidden,
            ..
        }) => Ok(()),
        Ok(Event { at, message, .. }) => writeln!(err, "{} {}", clock(at), Escaped(message)),
        Err(_) => writeln!(err, "{}", Escaped(raw.get())),
    })
}

/// What can be counted of a change while it goes on.
#[derive(Debug)]
struct RequestCounts {
    doing: Doing,
    /// Workers there are to be; known of a reload when it has begun.
    wanted: Option<u32>,
    /// The generation that a reload starts.
    generation: Option<Generation>,
    /// Workers there were before.
    before: u32,
    /// Workers that became ready since.
    became_ready: u32,
    /// Workers of those before that have ended since.
    gone: u32,
    /// Workers that are ready.
    ready: u32,
    /// Clients there are.
    clients: u64,
}

impl RequestCounts {
    fn new(doing: Doing, page: &EventsPage) -> RequestCounts {
        let before = if let Doing::Recycle { one: true } = doing {
            1
        } else {
            page.workers
        };
        let wanted = if let Doing::Reload = doing {
            None
        } else {
            Some(before)
        };
        let (ready, clients) = (page.workers, page.clients);
        RequestCounts {
            doing,
            wanted,
            generation: None,
            before,
            became_ready: 0,
            gone: 0,
            ready,
            clients,
        }
    }

    fn take(&mut self, page: &EventsPage) {
        (self.ready, self.clients) = (page.workers, page.clients);
        for event in page.events.iter().filter_map(|raw| read::<Event>(raw).ok()) {
            let is_new = self.generation.is_some() && event.about.generation == self.generation;
            match event.event {
                Kind::ReloadBegun => {
                    (self.generation, self.wanted) = (event.about.generation, event.about.workers)
                }
                Kind::WorkerReady if is_new || self.generation.is_none() => self.became_ready += 1,
                Kind::WorkerFinished | Kind::WorkerDied if !is_new => self.gone += 1,
                _ => {}
            }
        }
    }

    /// Workers may die in between, and be replaced: no more are told than there are to be.
    fn replaced(&self, f: &mut fmt::Formatter<'_>, doing: &str) -> fmt::Result {
        let (ready, gone, before) = (self.became_ready, self.gone.min(self.before), self.before);
        let Some(wanted) = self.wanted else {
            return f.write_str(doing);
        };
        let ready = ready.min(wanted);
        write!(
            f,
            "{doing}: {ready} of {wanted} workers ready, {gone} of {before} old ones gone"
        )
    }
}

impl fmt::Display for RequestCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.doing {
            Doing::Reload => self.replaced(f, "reloading"),
            Doing::Recycle { .. } => self.replaced(f, "replacing"),
            Doing::Upgrade => self.replaced(f, "upgrading"),
            Doing::Scale { count } => write!(
                f,
                "scaling to {count}: {} ready",
                counted(self.ready.into(), "worker")
            ),
            Doing::Hold { worker } => {
                write!(f, "holding worker {worker}: its clients go to the others")
            }
            Doing::Drain => write!(f, "draining: {} left", counted(self.clients, "client")),
            Doing::Rebalance => f.write_str("rebalancing: measuring load"),
            Doing::Stop => {
                let left = self.before.saturating_sub(self.gone);
                write!(
                    f,
                    "stopping: {} and {} left",
                    counted(left.into(), "worker"),
                    counted(self.clients, "client")
                )
            }
        }
    }
}

/// How long a change waits for the second connection.
const SECOND_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// From the cursor to the end of the line: EL of ECMA-48.
const ERASE: &str = "\x1b[K";

#[cfg(test)]
mod tests {
    use serde_json::value::{RawValue, to_raw_value};

    use super::*;
    use crate::proto::channel::LogLevel;
    use crate::proto::control::About;

    fn event(kind: Kind, generation: u64, workers: Option<u32>) -> Box<RawValue> {
        let about = About {
            generation: Some(Generation(generation)),
            workers,
            ..About::default()
        };
        let (level, message) = (LogLevel::Info, String::new());
        to_raw_value(&Event {
            id: 1,
            at: 0.0,
            level,
            event: kind,
            message,
            about,
        })
        .expect("JSON")
    }

    /// What the line says at first, and when this has happened.
    fn counted(doing: Doing, events: &[Box<RawValue>]) -> [String; 2] {
        let page = |events, workers, clients| EventsPage {
            events,
            last: 1,
            lost: 0,
            workers,
            clients,
        };
        let mut counters = RequestCounts::new(doing, &page(Vec::new(), 3, 1234));
        let first = counters.to_string();
        counters.take(&page(events.iter().map(|event| &**event).collect(), 2, 1));
        [first, counters.to_string()]
    }

    #[test]
    fn a_reload_counts_workers_of_both_generations() {
        use Kind::*;
        let events = [
            event(ReloadBegun, 7, Some(4)),
            event(WorkerReady, 7, None),
            event(WorkerStarted, 7, None),
            event(WorkerReady, 6, None),
            event(WorkerFinished, 6, None),
            event(WorkerDied, 7, None),
            event(WorkerDied, 6, None),
        ];
        let last = "reloading: 1 of 4 workers ready, 2 of 3 old ones gone";
        assert_eq!(counted(Doing::Reload, &events), ["reloading", last]);
        // Those that die and come back are not more than there are to be.
        let more: Vec<_> = events
            .iter()
            .chain([&events[1]; 9])
            .chain([&events[4]; 9])
            .cloned()
            .collect();
        assert_eq!(
            counted(Doing::Reload, &more)[1],
            "reloading: 4 of 4 workers ready, 3 of 3 old ones gone"
        );
    }

    #[test]
    fn each_change_counts_what_it_waits_for() {
        let events = [
            event(Kind::WorkerReady, 6, None),
            event(Kind::WorkerFinished, 6, None),
        ];
        for (doing, first, last) in [
            (
                Doing::Recycle { one: false },
                "replacing: 0 of 3 workers ready, 0 of 3 old ones gone",
                "replacing: 1 of 3 workers ready, 1 of 3 old ones gone",
            ),
            (
                Doing::Recycle { one: true },
                "replacing: 0 of 1 workers ready, 0 of 1 old ones gone",
                "replacing: 1 of 1 workers ready, 1 of 1 old ones gone",
            ),
            (
                Doing::Upgrade,
                "upgrading: 0 of 3 workers ready, 0 of 3 old ones gone",
                "upgrading: 1 of 3 workers ready, 1 of 3 old ones gone",
            ),
            (
                Doing::Scale { count: 2 },
                "scaling to 2: 3 workers ready",
                "scaling to 2: 2 workers ready",
            ),
            (
                Doing::Drain,
                "draining: 1,234 clients left",
                "draining: 1 client left",
            ),
            (
                Doing::Stop,
                "stopping: 3 workers and 1,234 clients left",
                "stopping: 2 workers and 1 client left",
            ),
            (
                Doing::Hold { worker: 5 },
                "holding worker 5: its clients go to the others",
                "holding worker 5: its clients go to the others",
            ),
            (
                Doing::Rebalance,
                "rebalancing: measuring load",
                "rebalancing: measuring load",
            ),
        ] {
            assert_eq!(counted(doing, &events), [first, last]);
        }
    }
}
