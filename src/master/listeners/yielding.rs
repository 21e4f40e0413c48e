//! Listeners that a restart leaves to systemd.
//!
//! The file names `systemd:NAME`, and no socket of that name was handed over: from the next master
//! on, systemd must listen. Its socket unit binds the address between the two masters, and cannot
//! do so while one of the daemon's listeners is in the service manager's store. So the leaving
//! master accepts the clients that wait at the listeners that the file does not name any more, and
//! closes these listeners.

use crate::config::{Config, Source};
use crate::master::Master;
use crate::master::clients::client::Unleased;
use crate::master::listeners::listener::Listener;
use crate::proto::names::Address;
use crate::sys::clock;
use crate::sys::listening::{self, Look, Offer};

impl Master {
    /// Gives up the listeners whose addresses the next configuration leaves to systemd.
    pub(crate) fn yield_listeners(&mut self, next: &Config) {
        if self.listeners.activated.wanted(&next.listen).is_ok() {
            return;
        }
        while let Some(index) = self
            .listeners
            .all
            .iter()
            .position(|listener| is_given_up(listener, next))
        {
            self.accept_waiting(index);
            self.close_listener(index);
        }
    }

    /// Accepts the clients that wait at a listener, for the next master: no worker of this one
    /// serves them.
    fn accept_waiting(&mut self, index: usize) {
        while !self.clients.is_full() {
            match listening::accept(&self.listeners.all[index], Look::Next) {
                Ok(Offer::Client(accepted)) => {
                    if let Some(client) = self.admit(index, accepted) {
                        self.clients
                            .unleased
                            .push_back(Unleased::new(client, clock::monotonic()));
                    }
                }
                Ok(Offer::Empty | Offer::Ended) => return,
                Err(e) => {
                    let address = &self.listeners.all[index].address;
                    return log::warn!(
                        "cannot accept the clients that wait at {address}: {e}; they are closed"
                    );
                }
            }
        }
    }
}

/// Returns whether the daemon itself has bound a listener at an address that the configuration does
/// not name.
fn is_given_up(listener: &Listener, config: &Config) -> bool {
    let names = |address: &Address| {
        config
            .listen
            .iter()
            .any(|entry| entry.source == Source::Bound(address.clone()))
    };
    listener.configured().is_some_and(|address| !names(address))
}
