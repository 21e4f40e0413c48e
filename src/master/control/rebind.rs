//! Binds the control socket again when another process has ended it, or its file is gone.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::config::ControlConfig;
use crate::master::Token;
use crate::master::control::ControlServer;
use crate::master::listeners::served::{FILE_GONE, Served};
use crate::master::retry::Outage;
use crate::master::telemetry::events::EventLog;
use crate::sys::poll::{Interest, Poller};

impl ControlServer {
    /// Has the control socket bound again if its file is gone.
    pub(crate) fn replace_lost(&mut self, poller: &Poller, now: Instant) {
        if self.outage.is_some() || self.listener.is_reachable() {
            return;
        }
        // Clients that wait there are still served.
        self.accept(poller, now);
        let _ = poller.remove(&self.listener);
        self.outage = Some(Outage::new(now, FILE_GONE));
    }

    /// Ends an outage of the control socket, if a try is due.
    pub(crate) fn keep_open(
        &mut self,
        config: &ControlConfig,
        events: &mut EventLog,
        poller: &Poller,
        now: Instant,
    ) {
        let bind_again = |server: &mut ControlServer| {
            let is_default = config.socket.is_none();
            server.listener.bind_again(is_default, config.mode())
        };
        self.end_outage(bind_again, Interest::Clients, (events, poller), now);
    }
}

impl Served for ControlServer {
    fn token(&self) -> Token {
        Token::Control
    }

    fn name(&self) -> String {
        format!("control socket {}", self.listener.path().display())
    }

    fn outage_mut(&mut self) -> &mut Option<Outage> {
        &mut self.outage
    }

    fn is_reachable(&self) -> bool {
        self.listener.is_reachable()
    }
}

impl AsFd for ControlServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
