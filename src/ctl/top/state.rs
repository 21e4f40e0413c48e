//! The state of the screen: it changes by news of the daemon and by keys, and does no I/O.

use std::time::Duration;

use super::clients::{self, RatedClient, RatedClients};
use super::columns::{Selection, Sorting};
use super::events::EventLines;
use super::history::RecentTotals;
use super::news::{ClientsWanted, News};
use super::question::Confirmation;
use super::workers::{self, WorkerKey, WorkerRow};
use crate::ctl::args::ChangeVerb;
use crate::ctl::change::DaemonRun;
use crate::ctl::figures::are;
use crate::proto::control::Status;
use crate::proto::names::ClientId;
use crate::proto::text::Escaped;

/// The part of the screen below the figures of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The workers, and the last events.
    Workers,
    /// All clients.
    Clients,
    /// One worker, and its clients.
    Worker(WorkerKey),
    /// One client, and the events about it.
    Client(ClientId),
    Events,
    Help,
}

/// A request of the screen to the program.
#[derive(Debug)]
pub(crate) enum TopRequest {
    Quit,
    Change(ChangeVerb),
    /// Write the whole screen again: another program has written to the terminal.
    Redraw,
}

/// A message to the user, until the next key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopMessage {
    pub(crate) text: String,
    pub(crate) is_bad: bool,
}

/// A table: how it is sorted, and which row is selected.
#[derive(Clone, Debug)]
pub(crate) struct TableView<K> {
    pub(crate) sorting: Sorting,
    pub(crate) selection: Selection<K>,
    /// The columns that were shown.
    pub(crate) shown: Vec<usize>,
}

impl<K> TableView<K> {
    fn sorted_by(column: Option<usize>) -> TableView<K> {
        TableView {
            sorting: Sorting {
                by: column,
                is_reversed: false,
            },
            selection: Selection::default(),
            shown: Vec::new(),
        }
    }
}

/// The state of the screen.
#[derive(Debug)]
pub(crate) struct Top {
    pub(crate) interval: Duration,
    /// The last status.
    pub(crate) status: Box<Status>,
    /// Why the daemon does not answer; none while it does.
    pub(crate) outage: Option<String>,
    pub(crate) history: RecentTotals,
    pub(crate) clients: RatedClients,
    /// The client of the view of one client, as it was last known.
    pub(super) shown_client: Option<RatedClient>,
    pub(crate) events: EventLines,
    pub(crate) worker_table: TableView<WorkerKey>,
    pub(crate) client_table: TableView<ClientId>,
    pub(crate) confirmation: Option<Confirmation>,
    pub(crate) message: Option<TopMessage>,
    /// The change that the daemon performs, in words.
    pub(crate) under_way: Option<String>,
    /// The views that Escape returns to; the last one is shown.
    pub(super) views: Vec<View>,
}

impl Top {
    /// Begins with a status, and with the workers.
    pub(crate) fn new(interval: Duration, status: Box<Status>) -> Top {
        let mut history = RecentTotals::default();
        history.add(&status);
        Top {
            interval,
            status,
            outage: None,
            history,
            clients: RatedClients::default(),
            shown_client: None,
            events: EventLines::default(),
            worker_table: TableView::sorted_by(None),
            client_table: TableView::sorted_by(Some(clients::BY_RATE)),
            confirmation: None,
            message: None,
            under_way: None,
            views: vec![View::Workers],
        }
    }

    pub(crate) fn view(&self) -> View {
        self.views.last().copied().unwrap_or(View::Workers)
    }

    /// Returns the clients that the view needs.
    pub(crate) fn clients_wanted(&self) -> ClientsWanted {
        match self.view() {
            View::Clients => ClientsWanted::All,
            View::Client(id) => self.clients_wanted_for(id),
            View::Worker(key) => {
                let id = self.worker(key).and_then(|row| row.id);
                id.map_or(ClientsWanted::Nothing, ClientsWanted::Of)
            }
            View::Workers | View::Events | View::Help => ClientsWanted::Nothing,
        }
    }

    /// Returns the clients among which one is: those of its worker, or all after it has left that one.
    fn clients_wanted_for(&self, id: ClientId) -> ClientsWanted {
        let list = &self.clients;
        let is_listed = list.clients.iter().any(|client| client.status.id == id);
        let worker = self.client(id).and_then(|client| client.status.worker);
        match worker {
            Some(worker) if is_listed || list.of != ClientsWanted::Of(worker) => {
                ClientsWanted::Of(worker)
            }
            None if self.has_left(id) => ClientsWanted::Nothing,
            _ => ClientsWanted::All,
        }
    }

    /// Returns whether a client has left: a complete list of all of them is without it.
    pub(crate) fn has_left(&self, id: ClientId) -> bool {
        let list = &self.clients;
        list.of == ClientsWanted::All && list.is_complete && self.client(id).is_none()
    }

    /// Takes in what the daemon has reported.
    pub(crate) fn receive(&mut self, news: News) {
        match news {
            News::Status(status) => {
                if !DaemonRun::of(&self.status).continues_in(&status) {
                    self.begin_again(&status);
                }
                self.history.add(&status);
                self.status = status;
                self.outage = None;
            }
            News::Outage(why) => self.outage = Some(why),
            News::Clients(list) => {
                self.clients = self.clients.next(list);
                self.find_shown_client();
            }
            News::Events {
                events,
                lost,
                is_first,
            } => {
                self.events.add(events, is_first);
                if lost > 0 && !is_first {
                    self.note(format!("{} forgotten", are(lost, "event")));
                }
            }
            News::Changed(result) => {
                self.under_way = None;
                self.message = Some(match result {
                    Ok(text) => TopMessage {
                        text,
                        is_bad: false,
                    },
                    Err(text) => TopMessage { text, is_bad: true },
                });
            }
        }
    }

    /// Forgets everything with an id, which another run of the daemon may give to another client or worker.
    fn begin_again(&mut self, status: &Status) {
        let withdrawn = match self.confirmation.take() {
            Some(_) => "; the question is withdrawn",
            None => "",
        };
        self.note(format!(
            "{} was restarted: it is pid {}{withdrawn}",
            status.name, status.pid
        ));
        self.clients = RatedClients::default();
        self.shown_client = None;
        self.events.forget_clients();
        self.client_table.selection = Selection::default();
        self.worker_table.selection = Selection::default();
        self.views
            .retain(|view| !matches!(view, View::Client(_) | View::Worker(WorkerKey::Leaving(_))));
    }

    /// Finds the client of the view of one in a new list. One that may have moved to another worker stays as it was.
    fn find_shown_client(&mut self) {
        let Some(shown) = &self.shown_client else {
            return;
        };
        let id = shown.status.id;
        let mut clients = self.clients.clients.iter();
        match clients.find(|client| client.status.id == id) {
            Some(client) => self.shown_client = Some(client.clone()),
            None if self.clients.of == ClientsWanted::All && self.clients.error.is_none() => {
                self.shown_client = None;
            }
            None => {}
        }
    }

    pub(super) fn note(&mut self, text: String) {
        self.message = Some(TopMessage {
            text: Escaped(text).to_string(),
            is_bad: false,
        });
    }

    /// Returns the rows of the workers in their natural order.
    pub(crate) fn worker_rows(&self) -> Vec<WorkerRow> {
        workers::rows(&self.status, &self.history)
    }

    /// Returns the worker of a row; none if it has ended.
    pub(crate) fn worker(&self, key: WorkerKey) -> Option<WorkerRow> {
        self.worker_rows().into_iter().find(|row| row.key == key)
    }

    /// Returns the rows of the clients in the order in which they are shown; none before the daemon has sent them.
    pub(crate) fn client_rows(&self) -> Vec<&RatedClient> {
        if self.clients.of != self.clients_wanted() {
            return Vec::new();
        }
        let mut rows: Vec<&RatedClient> = self.clients.clients.iter().collect();
        self.client_table.sorting.sort(clients::COLUMNS, &mut rows);
        rows
    }

    /// Returns a client; none if it has left.
    pub(crate) fn client(&self, id: ClientId) -> Option<&RatedClient> {
        let mut clients = self.clients.clients.iter().chain(&self.shown_client);
        clients.find(|client| client.status.id == id)
    }

    pub(super) fn worker_keys(&self) -> Vec<WorkerKey> {
        let rows = self.worker_rows();
        let mut rows: Vec<&WorkerRow> = rows.iter().collect();
        self.worker_table.sorting.sort(workers::COLUMNS, &mut rows);
        rows.iter().map(|row| row.key).collect()
    }

    pub(super) fn client_keys(&self) -> Vec<ClientId> {
        let rows = self.client_rows();
        rows.iter().map(|client| client.status.id).collect()
    }

    pub(super) fn selected_worker(&mut self) -> Option<WorkerRow> {
        let keys = self.worker_keys();
        let at = self.worker_table.selection.settle(&keys)?;
        self.worker(keys[at])
    }

    pub(super) fn selected_client(&mut self) -> Option<&RatedClient> {
        let keys = self.client_keys();
        let at = self.client_table.selection.settle(&keys)?;
        self.client(keys[at])
    }
}
