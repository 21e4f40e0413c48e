//! Listeners that a restart leaves to systemd.
//!
//! The configuration file now has `systemd:NAME` instead of an address, and this master has no socket of that name:
//! from the next master on, systemd listens there. Its socket unit binds the address between the two masters, which
//! fails while a listener of the daemon is in the service manager's store. So the leaving master accepts the clients
//! that wait at the listeners that the file does not name any more, and closes these listeners.

use crate::config::{Config, Source};
use crate::master::clients::Clients;
use crate::master::listeners::Listeners;
use crate::master::listeners::listener::Listener;
use crate::master::telemetry::Telemetry;
use crate::proto::names::Address;
use crate::sys::listening::{self, AcceptResult, AcceptTry};
use crate::sys::poll::Poller;
use crate::sys::socket;

impl Listeners {
    /// Gives up the listeners whose addresses the next configuration leaves to systemd.
    pub(crate) fn yield_to_systemd(
        &mut self,
        next: &Config,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) {
        if self.activated.wanted(&next.listen).is_ok() {
            return;
        }
        while let Some(index) = self
            .all
            .iter()
            .position(|listener| is_given_up(listener, next))
        {
            self.accept_queued(index, clients, telemetry);
            self.close(index, telemetry, poller);
        }
    }

    /// Accepts the clients that wait at a listener, for the next master: no worker of this one serves them. Those above
    /// `max-clients` are closed.
    fn accept_queued(&mut self, index: usize, clients: &mut Clients, telemetry: &mut Telemetry) {
        let mut closed = 0;
        let listener = &self.all[index];
        // A Unix socket is shut down, so that no more clients come. To a TCP listener, new clients may come all the
        // time: only as many are accepted as can wait there now.
        if let Address::Unix(_) = listener.address {
            socket::end(listener);
        }
        for _ in 0..self.all[index].most_waiting() {
            match listening::accept(&self.all[index], AcceptTry::Later) {
                Ok(AcceptResult::Client(_)) if clients.is_full() => closed += 1,
                Ok(AcceptResult::Client(accepted)) => {
                    self.admit_unleased(index, accepted, clients, telemetry);
                }
                Ok(AcceptResult::Empty | AcceptResult::Ended) => break,
                Err(e) => {
                    let address = &self.all[index].address;
                    log::warn!(
                        "cannot accept the clients that wait at {address}: {e}; they are closed"
                    );
                    break;
                }
            }
        }
        self.report_closed(index, closed, clients, telemetry);
    }
}

/// Returns whether the daemon itself has bound a listener at an address that the configuration does not name.
fn is_given_up(listener: &Listener, config: &Config) -> bool {
    let names = |address: &Address| {
        config
            .listen
            .iter()
            .any(|entry| entry.source == Source::Bound(address.clone()))
    };
    listener.configured().is_some_and(|address| !names(address))
}
