//! Watches a daemon over two connections to its control socket: one for the status, once an interval, and for clients
//! while the screen shows them; one for events, on which the daemon replies when there are some.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::inputs::Input;
use super::news::{ClientList, ClientsWanted, EventLine, News};
use crate::ctl::args::ChangeVerb;
use crate::ctl::change;
use crate::ctl::clients::request_pages;
use crate::ctl::error::Error;
use crate::ctl::page::EventsPage;
use crate::ctl::reconnecting::Reconnecting;
use crate::ctl::session::{Session, parse};
use crate::proto::control::{EventsAfter, MAX_WAIT, RefusalCode, Status, Verb};
use crate::proto::names::WorkerId;
use crate::proto::text::Escaped;
use crate::rpc_client::{self, Deadline};
use crate::sys::poll;

/// The questions about the figures of the daemon.
#[derive(Debug)]
pub(super) struct FiguresWatch {
    daemon: Reconnecting,
    interval: Duration,
    wanted: ClientsWanted,
}

impl FiguresWatch {
    pub(super) fn new(session: &Session, interval: Duration) -> FiguresWatch {
        FiguresWatch {
            daemon: Reconnecting::new(session),
            interval,
            wanted: ClientsWanted::Nothing,
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
    pub(super) fn run(mut self, wanted: &Receiver<ClientsWanted>, inputs: &Sender<Input>) {
        let mut next = Instant::now() + self.interval;
        loop {
            let news = match wanted.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(wanted) => {
                    self.wanted = wanted;
                    None
                }
                Err(RecvTimeoutError::Timeout) => {
                    next = (next + self.interval).max(Instant::now());
                    Some(self.status().map_or_else(outage, News::Status))
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let is_away = matches!(news, Some(News::Outage(_)));
            let clients = (!is_away).then(|| self.clients()).flatten();
            for news in news.into_iter().chain(clients) {
                if inputs.send(Input::News(news)).is_err() {
                    return;
                }
            }
        }
    }

    /// Returns the clients, if they are wanted.
    fn clients(&mut self) -> Option<News> {
        let worker = match self.wanted {
            ClientsWanted::Nothing => return None,
            ClientsWanted::All => None,
            ClientsWanted::Of(worker) => Some(worker),
        };
        Some(self.list(worker).map_or_else(outage, News::Clients))
    }

    fn list(&mut self, worker: Option<WorkerId>) -> Result<ClientList, Error> {
        let (rows, is_complete) = self
            .daemon
            .ask(|daemon| request_pages(daemon, worker, MAX_PAGES))?;
        let mut clients: Vec<_> = rows.into_iter().map(|row| row.status).collect();
        clients.sort_by_key(|client| client.id);
        Ok(ClientList {
            of: self.wanted,
            clients,
            is_complete,
        })
    }
}

fn outage(error: Error) -> News {
    News::Outage(error.to_string())
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
            Err(_) => poll::pause(interval),
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

/// Makes a change, and sends its result.
pub(super) fn make_change(change: &ChangeVerb, session: &Session, inputs: &Sender<Input>) {
    let result = match change::make(change, session) {
        // The result of a drain may have several lines.
        Ok(text) => Ok(text.replace('\n', "; ")),
        Err(error) => Err(Escaped(error).to_string()),
    };
    let _ = inputs.send(Input::News(News::Changed(result)));
}

/// The most pages of clients in one list.
const MAX_PAGES: usize = 10;
