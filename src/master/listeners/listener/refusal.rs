//! How a listener refuses clients while the daemon is drained, and listens again.
//!
//! ```text
//! TCP    its queue is emptied; then shutdown(2) has the kernel answer each SYN by RST. listen(2) ends that
//! Unix   shutdown(2) has connect(2) fail with ECONNREFUSED; then its queue is emptied. Another socket is bound to end that
//! ```
//!
//! A Unix socket cannot listen again after a shutdown, so it is not stored for the next master any more. Its file stays,
//! so that clients get ECONNREFUSED, not ENOENT. The poller would report both kinds of sockets as hung up all the time,
//! so they are removed from it.

use std::io;
use std::time::Duration;

use super::Listener;
use crate::master::error::Error;
use crate::master::listeners::activation::ActivatedSockets;
use crate::master::listeners::served::Served;
use crate::master::listeners::socket_file::cannot_bind;
use crate::proto::names::Address;
use crate::sys::listening::{self, can_listen_again, hold_address, is_listening, stop_listening};
use crate::sys::socket;

/// Whether clients can connect to a listener, as far as a drain decides that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Clients can connect, unless the listener has an outage.
    Open,
    /// The clients in the queue are accepted, at most this number, before the listener refuses others. It is not in the
    /// poller any more.
    Emptying(u32),
    /// The socket does not listen. `can_listen` is whether it is bound, and listen(2) is enough for it to listen again.
    Refusing { can_listen: bool },
}

impl Listener {
    /// Returns whether the listener can refuse clients: if the daemon itself has bound it.
    pub(crate) fn can_refuse(&self) -> bool {
        self.configured().is_some()
    }

    pub(crate) fn is_refusing(&self) -> bool {
        matches!(self.admission, Admission::Refusing { .. })
    }

    pub(crate) fn is_emptying(&self) -> bool {
        matches!(self.admission, Admission::Emptying(_))
    }

    /// Returns whether the next master can use the socket, so that it must be stored. It cannot use a Unix socket that
    /// does not listen, and binds another one.
    pub(crate) fn is_storable(&self) -> bool {
        let is_usable = match (self.admission, &self.address) {
            (Admission::Refusing { can_listen }, Address::Tcp(_)) => can_listen,
            (Admission::Refusing { .. }, Address::Unix(_)) => false,
            (Admission::Open | Admission::Emptying(_), _) => true,
        };
        is_usable && self.record().is_some()
    }

    /// Returns whether the listener is in the poller.
    pub(crate) fn is_watched(&self) -> bool {
        self.outage.is_none() && self.admission == Admission::Open
    }

    /// Begins to refuse clients. The listener must not be in the poller any more.
    pub(crate) fn begin_refusal(&mut self) {
        self.outage = None;
        if !is_listening(&self.socket) {
            self.admission = Admission::Refusing { can_listen: false };
            return;
        }
        if let Address::Unix(_) = self.address {
            socket::end(&self.socket);
        }
        self.admission = Admission::Emptying(self.most_waiting());
    }

    /// Refuses clients. Those that still wait are reset.
    pub(crate) fn refuse(&mut self) {
        let can_listen = match self.address {
            Address::Tcp(at) => stop_listening(&self.socket, at)
                .inspect_err(|e| log::warn!("cannot hold the address {at} during the drain: {e}"))
                .is_ok(),
            Address::Unix(_) => false,
        };
        self.admission = Admission::Refusing { can_listen };
    }

    /// Returns how many clients can wait in the queue. For a TCP listener this limits how many are accepted, because
    /// new ones may come all the time.
    pub(crate) fn most_waiting(&self) -> u32 {
        match self.address {
            // It was shut down, so that no others come.
            Address::Unix(_) => u32::MAX,
            Address::Tcp(_) => {
                // A reload may have reduced the backlog while more of them waited.
                let waiting = socket::queue(&self.socket).map_or(0, |(waiting, _)| waiting);
                // The kernel lets one more client wait than the backlog.
                waiting.max(self.entry.backlog.saturating_add(1))
            }
        }
    }

    /// Has a listener of an earlier master refuse clients, if it does not listen. Binds its socket to its address,
    /// unless it is bound.
    pub(crate) fn resume_refusal(&mut self) {
        if !is_listening(&self.socket) {
            let can_listen = match self.address {
                Address::Tcp(at) => hold_address(&self.socket, at).is_ok(),
                Address::Unix(_) => false,
            };
            self.admission = Admission::Refusing { can_listen };
        }
    }

    /// Has a listener that refuses clients listen again, with another socket if this one cannot. Returns whether it is
    /// the same socket.
    ///
    /// # Errors
    /// When its address cannot be bound, or another process listens there.
    pub(crate) fn listen_again(
        &mut self,
        activated: &mut ActivatedSockets,
        keepalive: Option<Duration>,
    ) -> Result<bool, Error> {
        let before = std::mem::replace(&mut self.admission, Admission::Open);
        let Admission::Refusing { can_listen } = before else {
            return Ok(true);
        };
        if !can_listen || !can_listen_again(&self.socket) || !self.is_reachable() {
            return self.bind_again(activated, keepalive).map(|()| false);
        }
        let fail =
            |e: io::Error| cannot_bind(&format!("listen on {}", self.address), &self.address, &e);
        // A reload may have changed the access since.
        if let (Some(file), Some(access)) = (&mut self.file, &self.entry.access) {
            file.set_access(access).map_err(fail)?;
        }
        listening::listen(&self.socket, self.entry.backlog).map_err(fail)?;
        Ok(true)
    }
}
