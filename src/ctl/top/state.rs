//! The state of the screen: it changes by news of the daemon and by keys, and does no I/O.

use std::time::Duration;

use super::clients::{self, RatedClient, RatedClients};
use super::columns::{RowStep, Selection, Sorting};
use super::events::EventLines;
use super::history::History;
use super::keys::KeyPress;
use super::news::{ClientsWanted, News};
use super::question::{Confirmation, of_drain, of_kick, of_recycling};
use super::workers::{self, WorkerKey, WorkerRow};
use crate::ctl::args::ChangeVerb;
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
}

impl<K> TableView<K> {
    fn sorted_by(column: Option<usize>) -> TableView<K> {
        TableView {
            sorting: Sorting {
                by: column,
                is_reversed: false,
            },
            selection: Selection::default(),
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
    pub(crate) history: History,
    pub(crate) clients: RatedClients,
    pub(crate) events: EventLines,
    pub(crate) worker_table: TableView<WorkerKey>,
    pub(crate) client_table: TableView<ClientId>,
    pub(crate) confirmation: Option<Confirmation>,
    pub(crate) message: Option<TopMessage>,
    /// The change that the daemon performs, in words.
    pub(crate) under_way: Option<String>,
    /// The views that Escape returns to; the last one is shown.
    views: Vec<View>,
}

impl Top {
    /// Begins with a status, and with the workers.
    pub(crate) fn new(interval: Duration, status: Box<Status>) -> Top {
        let mut history = History::default();
        history.add(&status);
        Top {
            interval,
            status,
            outage: None,
            history,
            clients: RatedClients::default(),
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
            View::Clients | View::Client(_) => ClientsWanted::All,
            View::Worker(key) => {
                let id = self.worker(key).and_then(|row| row.id);
                id.map_or(ClientsWanted::Nothing, ClientsWanted::Of)
            }
            View::Workers | View::Events | View::Help => ClientsWanted::Nothing,
        }
    }

    /// Takes in what the daemon has reported.
    pub(crate) fn receive(&mut self, news: News) {
        match news {
            News::Status(status) => {
                if status.pid != self.status.pid {
                    self.note(format!(
                        "{} was restarted: it is pid {}",
                        status.name, status.pid
                    ));
                }
                self.history.add(&status);
                self.status = status;
                self.outage = None;
            }
            News::Outage(why) => self.outage = Some(why),
            News::Clients(list) => self.clients = self.clients.next(list),
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

    /// Acts on a key.
    pub(crate) fn press(&mut self, key: KeyPress) -> Option<TopRequest> {
        if let Some(confirmation) = self.confirmation.take() {
            return self.answer(confirmation, key);
        }
        self.message = None;
        match key {
            KeyPress::Char('q') => return Some(TopRequest::Quit),
            KeyPress::Char('?' | 'h') => self.open(View::Help),
            KeyPress::Char('w') => self.views = vec![View::Workers],
            KeyPress::Char('c') => self.views = vec![View::Workers, View::Clients],
            KeyPress::Char('e') => self.views = vec![View::Workers, View::Events],
            KeyPress::Tab => self.switch(),
            KeyPress::Escape | KeyPress::Backspace => self.close(),
            KeyPress::Enter => self.look(),
            KeyPress::Char('>' | 's') => self.sort_by_next(true),
            KeyPress::Char('<') => self.sort_by_next(false),
            KeyPress::Char('R') => self.reverse(),
            KeyPress::Char('r') => self.ask_to_recycle(),
            KeyPress::Char('k') => self.ask_to_kick(),
            KeyPress::Char('d') => self.ask(Ok(of_drain(&self.status))),
            KeyPress::Char(_) => {}
            KeyPress::Up => self.step(RowStep::Up),
            KeyPress::Down => self.step(RowStep::Down),
            KeyPress::PageUp => self.step(RowStep::PageUp),
            KeyPress::PageDown => self.step(RowStep::PageDown),
            KeyPress::Home => self.step(RowStep::First),
            KeyPress::End => self.step(RowStep::Last),
        }
        None
    }

    /// Acts on a key while a question is shown: only `y` confirms it.
    fn answer(&mut self, confirmation: Confirmation, key: KeyPress) -> Option<TopRequest> {
        match key {
            _ if !confirmation.is_drawn => {
                self.confirmation = Some(confirmation);
                None
            }
            KeyPress::Char('y' | 'Y') => {
                self.under_way = Some(confirmation.under_way);
                Some(TopRequest::Change(confirmation.change))
            }
            KeyPress::Char('n' | 'N' | 'q') | KeyPress::Escape => {
                self.note("nothing was changed".to_owned());
                None
            }
            _ => {
                self.confirmation = Some(confirmation);
                None
            }
        }
    }

    fn note(&mut self, text: String) {
        self.message = Some(TopMessage {
            text: Escaped(text).to_string(),
            is_bad: false,
        });
    }

    fn open(&mut self, view: View) {
        if self.view() != view {
            self.views.push(view);
        }
    }

    fn close(&mut self) {
        if self.views.len() > 1 {
            self.views.pop();
        }
        self.events.return_to_last();
    }

    /// Shows the clients, or the workers again.
    fn switch(&mut self) {
        self.views = match self.view() {
            View::Clients => vec![View::Workers],
            _ => vec![View::Workers, View::Clients],
        };
    }

    /// Shows more about the selected row.
    fn look(&mut self) {
        match self.view() {
            View::Workers => {
                if let Some(row) = self.selected_worker() {
                    self.client_table.selection = Selection::default();
                    self.open(View::Worker(row.key));
                }
            }
            View::Clients | View::Worker(_) => {
                if let Some(id) = self.selected_client().map(|client| client.status.id) {
                    self.open(View::Client(id));
                }
            }
            View::Client(_) | View::Events | View::Help => {}
        }
    }

    fn sort_by_next(&mut self, is_forward: bool) {
        match self.view() {
            View::Workers => {
                let sorting = &mut self.worker_table.sorting;
                sorting.step(workers::COLUMNS, is_forward);
            }
            View::Clients | View::Worker(_) => {
                let sorting = &mut self.client_table.sorting;
                sorting.step(clients::COLUMNS, is_forward);
            }
            View::Client(_) | View::Events | View::Help => {}
        }
    }

    fn reverse(&mut self) {
        let sorting = match self.view() {
            View::Workers => &mut self.worker_table.sorting,
            View::Clients | View::Worker(_) => &mut self.client_table.sorting,
            View::Client(_) | View::Events | View::Help => return,
        };
        sorting.is_reversed = !sorting.is_reversed;
    }

    fn step(&mut self, step: RowStep) {
        match self.view() {
            View::Workers => {
                let keys = self.worker_keys();
                self.worker_table.selection.step(&keys, step);
            }
            View::Clients | View::Worker(_) => {
                let keys = self.client_keys();
                self.client_table.selection.step(&keys, step);
            }
            View::Events => self.events.scroll(step),
            View::Client(_) | View::Help => {}
        }
    }

    fn ask_to_recycle(&mut self) {
        let row = match self.view() {
            View::Workers => self.selected_worker(),
            View::Worker(key) => self.worker(key),
            _ => return,
        };
        let question = row
            .ok_or("there is no worker")
            .and_then(|row| of_recycling(&row));
        self.ask(question);
    }

    fn ask_to_kick(&mut self) {
        let client = match self.view() {
            View::Clients | View::Worker(_) => self.selected_client(),
            View::Client(id) => self.client(id),
            _ => return,
        };
        let question = client.map(|client| of_kick(&client.status));
        self.ask(question.ok_or("there is no client"));
    }

    /// Shows a question, or why it is not asked.
    fn ask(&mut self, question: Result<Confirmation, &'static str>) {
        let question = match self.under_way {
            Some(_) => Err("the change before is still under way"),
            None => question,
        };
        match question {
            Ok(confirmation) => self.confirmation = Some(confirmation),
            Err(why) => self.note(why.to_owned()),
        }
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
        let mut clients = self.clients.clients.iter();
        clients.find(|client| client.status.id == id)
    }

    fn worker_keys(&self) -> Vec<WorkerKey> {
        let rows = self.worker_rows();
        let mut rows: Vec<&WorkerRow> = rows.iter().collect();
        self.worker_table.sorting.sort(workers::COLUMNS, &mut rows);
        rows.iter().map(|row| row.key).collect()
    }

    fn client_keys(&self) -> Vec<ClientId> {
        let rows = self.client_rows();
        rows.iter().map(|client| client.status.id).collect()
    }

    fn selected_worker(&mut self) -> Option<WorkerRow> {
        let keys = self.worker_keys();
        let at = self.worker_table.selection.settle(&keys)?;
        self.worker(keys[at])
    }

    fn selected_client(&mut self) -> Option<&RatedClient> {
        let keys = self.client_keys();
        let at = self.client_table.selection.settle(&keys)?;
        self.client(keys[at])
    }
}
