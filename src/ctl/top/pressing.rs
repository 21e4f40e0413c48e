//! The effects of keys on the state of the screen.

use std::time::Instant;

use super::clients;
use super::columns::{RowStep, Selection};
use super::keys::KeyPress;
use super::question::{Confirmation, of_drain, of_kick, of_recycling};
use super::state::{Top, TopRequest, View};
use super::workers;

impl Top {
    /// Acts on keys that were read together at this time.
    pub(crate) fn press(&mut self, keys: &[KeyPress], read_at: Instant) -> Option<TopRequest> {
        // A key that confirms arrives alone, and not as a part of a pasted text.
        let is_alone = keys.len() == 1;
        for key in keys {
            let request = match self.confirmation.take() {
                Some(confirmation) => {
                    let is_seen = confirmation.answered_from.is_some_and(|at| read_at >= at);
                    self.answer(confirmation, *key, is_seen, is_alone)
                }
                None => self.act(*key),
            };
            if request.is_some() {
                return request;
            }
        }
        None
    }

    fn act(&mut self, key: KeyPress) -> Option<TopRequest> {
        self.message = None;
        match key {
            KeyPress::Char('q') => return Some(TopRequest::Quit),
            KeyPress::Char('?' | 'h') => self.open(View::Help),
            KeyPress::Char('w') => self.views = vec![View::Workers],
            KeyPress::Char('c') => self.views = vec![View::Workers, View::Clients],
            KeyPress::Char('e') => self.views = vec![View::Workers, View::Events],
            KeyPress::Tab => self.switch(),
            KeyPress::Escape | KeyPress::Backspace => self.close(),
            KeyPress::Enter => self.show_details(),
            KeyPress::Char('>' | 's') => self.sort_by_next(true),
            KeyPress::Char('<') => self.sort_by_next(false),
            KeyPress::Char('R') => self.reverse(),
            KeyPress::Char('r') => self.ask_to_recycle(),
            KeyPress::Char('k') => self.ask_to_kick(),
            KeyPress::Char('d') => self.ask(Ok(of_drain(&self.status))),
            KeyPress::Redraw => return Some(TopRequest::Redraw),
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

    /// Acts on a key while there is a question: only `y` confirms it.
    fn answer(
        &mut self,
        confirmation: Confirmation,
        key: KeyPress,
        is_seen: bool,
        is_alone: bool,
    ) -> Option<TopRequest> {
        match key {
            _ if !is_seen => {
                self.confirmation = Some(confirmation);
                None
            }
            KeyPress::Char('y' | 'Y') if is_alone => {
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
    fn show_details(&mut self) {
        match self.view() {
            View::Workers => {
                if let Some(row) = self.selected_worker() {
                    self.client_table.selection = Selection::default();
                    self.open(View::Worker(row.key));
                }
            }
            View::Clients | View::Worker(_) => {
                if let Some(client) = self.selected_client().cloned() {
                    let id = client.status.id;
                    self.shown_client = Some(client);
                    self.open(View::Client(id));
                }
            }
            View::Client(_) | View::Events | View::Help => {}
        }
    }

    fn sort_by_next(&mut self, is_forward: bool) {
        match self.view() {
            View::Workers => {
                let table = &mut self.worker_table;
                let sorting = &mut table.sorting;
                sorting.step(workers::COLUMNS, &table.shown, is_forward);
            }
            View::Clients | View::Worker(_) => {
                let table = &mut self.client_table;
                let sorting = &mut table.sorting;
                sorting.step(clients::COLUMNS, &table.shown, is_forward);
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
        let is_there = self.clients.of == self.clients_wanted();
        self.ask(question.ok_or(match is_there {
            true => "there is no client",
            false => "the list of clients has not arrived yet",
        }));
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
}
