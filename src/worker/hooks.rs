//! Functions of a daemon that no request calls: what it does when a client has left.

use std::collections::HashSet;

use super::WorkerLoop;
use super::methods::Service;
use crate::proto::names::ClientId;

pub(super) type OnClose<S> = Box<dyn Fn(&mut S, ClientId)>;

/// The functions of a daemon that no request calls.
pub(crate) struct Hooks<S> {
    pub(crate) on_close: Option<OnClose<S>>,
}

impl<S> Default for Hooks<S> {
    fn default() -> Hooks<S> {
        Hooks { on_close: None }
    }
}

impl Hooks<()> {
    /// Returns the functions for workers with any state, which they do not use.
    pub(crate) fn for_any_state<S: 'static>(self) -> Hooks<S> {
        let on_close = self
            .on_close
            .map(|call| -> OnClose<S> { Box::new(move |_: &mut S, client| call(&mut (), client)) });
        Hooks { on_close }
    }
}

/// Clients that have left this worker since the state was last notified of it.
#[derive(Debug, Default)]
pub(super) struct LeftClients {
    /// They were closed here, and do not come back.
    closed: Vec<ClientId>,
    /// They were leased to other workers, or could come back under another lease.
    moved: Vec<ClientId>,
    /// Whether the state is notified.
    is_wanted: bool,
}

impl LeftClients {
    pub(super) fn new(is_wanted: bool) -> LeftClients {
        LeftClients {
            is_wanted,
            ..LeftClients::default()
        }
    }

    pub(super) fn close(&mut self, client: ClientId) {
        if self.is_wanted {
            self.closed.push(client);
        }
    }

    pub(super) fn release(&mut self, client: ClientId) {
        if self.is_wanted {
            self.moved.push(client);
        }
    }
}

impl WorkerLoop<'_> {
    /// Notifies the state of the clients that have left, after the master was: it waits for no method.
    pub(super) fn notify_of_left_clients(&mut self, service: &mut dyn Service) {
        if self.left.closed.is_empty() && self.left.moved.is_empty() {
            return;
        }
        let moved = std::mem::take(&mut self.left.moved);
        let mut left: Vec<ClientId> = std::mem::take(&mut self.left.closed);
        if !moved.is_empty() {
            // The next lease of a client may have been picked up before the end of the last one was noticed.
            let served: HashSet<ClientId> = (0..self.connections.bound())
                .filter_map(|index| Some(self.connections.get(index)?.client))
                .collect();
            left.extend(moved.into_iter().filter(|client| !served.contains(client)));
        }
        for client in left {
            if let Err(why) = service.client_has_left(client) {
                return self.break_off(&why);
            }
        }
    }
}
