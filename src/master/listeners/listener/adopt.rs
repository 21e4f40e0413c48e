//! The settings of a listener that stays, at a reload and at the start of the next master.

use std::io;
use std::time::Duration;

use super::Listener;
use crate::config::Listen;
use crate::master::error::Error;
use crate::master::listeners::served::Served;
use crate::proto::names::Address;
use crate::sys::listening::{is_listening, listen};
use crate::sys::socket;

impl Listener {
    /// Checks whether [`Listener::adopt`] can set the access that an entry wants. Changes nothing.
    ///
    /// # Errors
    /// Those of `adopt`.
    pub(crate) fn check_access(&self, wanted: &Listen) -> Result<(), Error> {
        check_balancers(wanted, &self.address)?;
        if let (true, Some(file), Some(access)) = (self.is_open(), &self.file, &wanted.access) {
            file.check_access(access)
                .map_err(|e| cannot_change(wanted, &e))?;
        }
        Ok(())
    }

    /// Adopts the settings that are wanted now for this address. Clients in the queue stay there.
    ///
    /// Only the change of a Unix socket's file can be refused, so it comes first: on an error nothing else has changed.
    /// Adopting the previous settings undoes this.
    pub(crate) fn adopt(
        &mut self,
        wanted: &Listen,
        keepalive: Option<Duration>,
    ) -> Result<(), Error> {
        let fail = |e: io::Error| cannot_change(wanted, &e);
        check_balancers(wanted, &self.address)?;
        // A listener whose file is gone, or that has ended, gets its access when it is bound again.
        if let (true, Some(file), Some(access)) = (self.is_open(), &mut self.file, &wanted.access) {
            file.set_access(access).map_err(fail)?;
        }
        if let Address::Tcp(_) = self.address {
            socket::set_keepalive(&self.socket, keepalive).map_err(fail)?;
        }
        // If the socket has ended, the poller reports that, and another one is bound.
        if is_listening(&self.socket) {
            listen(&self.socket, wanted.backlog).map_err(fail)?;
        }
        self.byte_order = wanted.byte_order;
        self.proxy = wanted.proxy_rule();
        self.entry = wanted.clone();
        Ok(())
    }

    /// Adopts the settings that are wanted now, as far as that is possible, for a listener that an earlier master has
    /// left: its clients must not be lost because this master may not change a file that another user has created.
    pub(crate) fn adopt_left(&mut self, wanted: &Listen, keepalive: Option<Duration>) {
        let Err(e) = self.adopt(wanted, keepalive) else {
            return;
        };
        log::error!("{e}; it stays as it is");
        let without_access = Listen {
            access: None,
            ..wanted.clone()
        };
        if self.adopt(&without_access, keepalive).is_err() {
            self.proxy = wanted.proxy_rule();
            (self.byte_order, self.entry) = (wanted.byte_order, without_access);
        }
    }
}

/// Checks that an entry names the load balancers, if the socket of systemd that it is for is a TCP one. For other
/// sockets the configuration shows that.
///
/// # Errors
/// A sentence for the operator.
pub(super) fn check_balancers(entry: &Listen, address: &Address) -> Result<(), Error> {
    let is_tcp = matches!(address, Address::Tcp(_));
    if entry.proxy.is_some() && is_tcp && entry.proxy_from.is_empty() {
        return Err(Error::Unavailable(format!(
            "cannot listen on {}: proxy needs the key `proxy-from`, as {address} is a TCP address",
            entry.source
        )));
    }
    Ok(())
}

fn cannot_change(wanted: &Listen, error: &io::Error) -> Error {
    Error::unavailable(&format!("change the listener {}", wanted.source), error)
}
