//! Watches a daemon over two connections to its control socket: one for the status, once an interval, and for clients
//! while the screen shows them; one for events, on which the daemon replies when there are some.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::inputs::Input;
use super::news::{ClientList, ClientsWanted, EventLine, FiguresRequest, News};
use crate::ctl::args::ChangeVerb;
use crate::ctl::change::{self, DaemonRun};
use crate::ctl::clients::request_pages;
use crate::ctl::error::Error;
use crate::ctl::page::EventsPage;
use crate::ctl::reconnecting::Reconnecting;
use crate::ctl::session::{Session, parse};
use crate::proto::control::{EventsAfter, MAX_WAIT, RefusalCode, Status, Verb};
use crate::proto::names::WorkerId;
use crate::proto::text::Escaped;
use crate::rpc_client::{self, Deadline, RpcClient};
use crate::sys::poll;

/// The questions about the figures of the daemon.
#[derive(Debug)]
pub(super) struct FiguresWatch {
    daemon: Reconnecting,
    interval: Duration,
    next_status: Instant,
    wanted: ClientsWanted,
    /// When the wanted clients are asked for; none if not before the next status.
    next_list: Option<Instant>,
    /// The first time for the next list of all clients, so that a daemon with many is asked less often.
    next_of_all: Instant,
}

impl FiguresWatch {
    pub(super) fn new(session: &Session, interval: Duration) -> FiguresWatch {
        FiguresWatch {
            daemon: Reconnecting::new(session),
            interval,
            next_status: Instant::now() + interval,
            wanted: ClientsWanted::Nothing,
            next_list: None,
            next_of_all: Instant::now(),
        }
    }

    /// Returns the status.
    pub(super) fn status(&mut self) -> Result<Box<Status>, Error> {
        self.daemon.ask(|daemon| {
            let result = daemon.ask(Verb::Status)?;
            Ok(Box::new(parse(&result)?))
        })
    }

    /// Sends news until the screen has ended. The first status was asked for before.
    pub(super) fn run(mut self, requests: &Receiver<FiguresRequest>, inputs: &Sender<Input>) {
        loop {
            let next = self
                .next_list
                .map_or(self.next_status, |next| next.min(self.next_status));
            match requests.recv_timeout(next.saturating_duration_since(Instant::now())) {
                // Only the last one of several counts: the lists before it are not asked for.
                Ok(first) => {
                    let all = std::iter::once(first).chain(requests.try_iter());
                    all.for_each(|request| self.accept(request));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let status = self.due_status();
            let is_away = matches!(status, Some(News::Outage(_)));
            let sent = status.is_none_or(|news| inputs.send(Input::News(news)).is_ok());
            let clients = (!is_away).then(|| self.due_list()).flatten();
            if !sent || clients.is_some_and(|news| inputs.send(Input::News(news)).is_err()) {
                return;
            }
        }
    }

    fn accept(&mut self, request: FiguresRequest) {
        match request {
            FiguresRequest::Status => self.next_status = Instant::now(),
            FiguresRequest::Clients(wanted) => {
                self.wanted = wanted;
                self.next_list = self.list_after(Instant::now());
            }
        }
    }

    /// Returns the first time from then on at which the wanted clients may be asked for.
    fn list_after(&self, time: Instant) -> Option<Instant> {
        match self.wanted {
            ClientsWanted::Nothing => None,
            ClientsWanted::Of(_) => Some(time),
            ClientsWanted::All => Some(time.max(self.next_of_all)),
        }
    }

    fn due_status(&mut self) -> Option<News> {
        let now = Instant::now();
        if now < self.next_status {
            return None;
        }
        self.next_status = (self.next_status + self.interval).max(now);
        let status = self.status();
        if status.is_ok() {
            self.next_list = self.next_list.or_else(|| self.list_after(Instant::now()));
        } else {
            self.next_list = None;
            self.next_status = self.next_status.min(now + MAX_RETRY);
        }
        Some(status.map_or_else(|error| News::Outage(error.to_string()), News::Status))
    }

    /// Returns the clients, if they are wanted and it is time.
    fn due_list(&mut self) -> Option<News> {
        let began = Instant::now();
        if self.next_list.is_none_or(|next| began < next) {
            return None;
        }
        self.next_list = None;
        let worker = match self.wanted {
            ClientsWanted::Nothing => return None,
            ClientsWanted::All => None,
            ClientsWanted::Of(worker) => Some(worker),
        };
        let list = self.list(worker);
        if self.wanted == ClientsWanted::All {
            let rest = match list.error {
                None => began.elapsed() * REST_FACTOR,
                Some(_) => self.interval,
            };
            self.next_of_all = Instant::now() + rest;
        }
        Some(News::Clients(list))
    }

    /// Returns the clients of a worker, or all. An error belongs to the list: the daemon itself may answer.
    fn list(&mut self, worker: Option<WorkerId>) -> ClientList {
        let at = Instant::now();
        let pages = |daemon: &mut RpcClient| request_pages(daemon, worker, MAX_PAGES);
        let (rows, is_complete, error) = match self.daemon.ask(pages) {
            Ok((rows, is_complete)) => (rows, is_complete, None),
            Err(error) if worker.is_some() && has_ended(&error) => (Vec::new(), true, None),
            Err(error) => (Vec::new(), false, Some(error.to_string())),
        };
        let mut clients: Vec<_> = rows.into_iter().map(|row| row.status).collect();
        clients.sort_by_key(|client| client.id);
        ClientList {
            of: self.wanted,
            at,
            clients,
            is_complete,
            error,
        }
    }
}

/// Returns whether the daemon has no such worker: it has ended since the last status.
fn has_ended(error: &Error) -> bool {
    matches!(error, Error::Connection(rpc_client::Error::Refused { code, .. })
        if code == RefusalCode::Refused.as_str())
}

/// Sends events as they come, until the screen has ended, or of a daemon that has none to send.
pub(super) fn follow_events(session: &Session, interval: Duration, inputs: &Sender<Input>) {
    loop {
        match follow_connection(session, inputs) {
            Ok(()) | Err(Error::Connection(rpc_client::Error::Forbidden(_))) => return,
            Err(Error::Connection(rpc_client::Error::Refused { code, .. }))
                if code != RefusalCode::Busy.as_str() =>
            {
                return;
            }
            Err(_) => poll::pause(interval.min(MAX_RETRY)),
        }
    }
}

/// Sends the events of one connection until it breaks, or the screen has ended.
fn follow_connection(session: &Session, inputs: &Sender<Input>) -> Result<(), Error> {
    let mut daemon = session.connect_until(Deadline::new(session.timeout))?;
    let mut after = EventsAfter::default();
    loop {
        let wait = after.wait.map_or(Duration::ZERO, Duration::from_secs_f64);
        daemon.extend(Deadline::new(wait + session.timeout));
        let result = daemon.ask_with(Verb::Events, &after)?;
        let page: EventsPage = parse(&result)?;
        let is_first = after.after.is_none();
        if is_first || !page.events.is_empty() || page.lost > 0 {
            let news = News::Events {
                events: EventLine::parse_all(&page.events),
                lost: page.lost,
                is_first,
            };
            if inputs.send(Input::News(news)).is_err() {
                return Ok(());
            }
        }
        after = EventsAfter {
            after: Some(page.last),
            wait: Some(MAX_WAIT.as_secs_f64()),
        };
    }
}

/// Makes a change, and sends when it is requested, and its result.
pub(super) fn make_change(
    change: &ChangeVerb,
    of: DaemonRun,
    session: &Session,
    inputs: &Sender<Input>,
) {
    let begins = || {
        let _ = inputs.send(Input::ChangeRequested(Instant::now()));
    };
    let result = match change::make(change, of, session, begins) {
        // The result of a drain may have several lines.
        Ok(text) => Ok(text.replace('\n', "; ")),
        Err(error) => Err(Escaped(error).to_string()),
    };
    let _ = inputs.send(Input::News(News::Changed(result)));
}

/// The most pages of clients in one list.
const MAX_PAGES: usize = 10;

/// After a list of all clients, the time until the next one: as many times its own.
const REST_FACTOR: u32 = 10;

/// The longest pause before another try to connect.
const MAX_RETRY: Duration = Duration::from_secs(1);
