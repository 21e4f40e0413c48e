//! Binds the control socket again when another process has ended it, or its file is gone.

use std::time::Instant;

use crate::config::ControlConfig;
use crate::master::Token;
use crate::master::control::ControlServer;
use crate::master::listeners::outage::{ENDED, FILE_GONE, Outage};
use crate::master::telemetry::events::EventLog;
use crate::proto::control::{About, Kind};
use crate::sys::listening::is_listening;
use crate::sys::poll::{Interest, Poller};

impl ControlServer {
    /// Handles a control socket that another process has ended.
    pub(crate) fn check_ended(&mut self, events: &mut EventLog, poller: &Poller, now: Instant) {
        if self.outage.is_some() || is_listening(&self.listener) {
            return;
        }
        let _ = poller.remove(&self.listener);
        self.outage = Some(Outage::new(now, ENDED));
        let path = self.listener.path().display();
        let sentence = format_args!("control socket {path}: {ENDED}; binding a new one");
        events.note(Kind::ListenerEnded, About::default(), sentence);
    }

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

    /// Binds the control socket again, if a try is due.
    pub(crate) fn bind_ended(
        &mut self,
        config: &ControlConfig,
        events: &mut EventLog,
        poller: &Poller,
        now: Instant,
    ) {
        let Some(outage) = self.outage.as_mut().filter(|outage| outage.is_due(now)) else {
            return;
        };
        if let Err(e) = self
            .listener
            .bind_again(config.socket.is_none(), config.mode())
        {
            return outage.failed(&e, now);
        }
        let token = Token::Control.into();
        if let Err(e) = poller.add(&self.listener, token, Interest::Clients) {
            log::error!("cannot watch the control socket: {e}");
        }
        self.outage = None;
        let path = self.listener.path().display();
        let sentence = format_args!("control socket {path} is open again");
        events.note(Kind::ListenerOpened, About::default(), sentence);
    }
}
