//! The control socket: fdpassctl's requests and the replies.

use std::time::Instant;

use crate::config::ControlConfig;
use crate::master::clients::Clients;
use crate::master::control::server::ControlClients;
use crate::master::exporter::Exporter;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::Listeners;
use crate::master::listeners::control_listener::ControlListener;
use crate::master::listeners::served::FILE_GONE;
use crate::master::memory;
use crate::master::retry::Outage;
use crate::master::settings::SettingsInForce;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::sys::poll::Poller;

pub(crate) mod access;
pub(crate) mod connection;
pub(crate) mod drain;
pub(crate) mod inspect;
pub(crate) mod kick;
pub(crate) mod moves;
pub(crate) mod operate;
pub(crate) mod pending;
pub(crate) mod rebind;
mod refusals;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod server;
pub(crate) mod status;

/// The control socket and its clients.
#[derive(Debug)]
pub(crate) struct ControlServer {
    pub(crate) listener: ControlListener,
    /// Set while the control socket is not open: another process has ended it, its file is gone, or this master could
    /// not open it.
    pub(crate) outage: Option<Outage>,
    pub(crate) clients: ControlClients,
}

impl ControlServer {
    /// Accepts the control clients that want to connect.
    pub(crate) fn accept(&mut self, poller: &Poller, now: Instant) {
        self.clients.accept(&self.listener, poller, now);
    }

    /// Closes the clients whose deadline has passed, and accepts clients again after a pause.
    pub(crate) fn expire(&mut self, poller: &Poller, now: Instant) {
        self.clients.expire(&self.listener, poller, now);
    }

    /// Changes which peers can connect to the control socket, and their roles.
    pub(crate) fn reconfigure(
        &mut self,
        before: &ControlConfig,
        next: &ControlConfig,
        poller: &Poller,
        now: Instant,
    ) {
        if next == before {
            return;
        }
        if next.mode() != before.mode()
            && self.listener.is_reachable()
            && let Err(e) = self.listener.set_mode(next.mode())
        {
            log::error!("cannot set the mode of the control socket: {e}");
        }
        // Peers that wait in the queue came by the mode before, and get the roles of then: without groups, the mode is
        // what keeps other users out.
        self.accept(poller, now);
        self.clients.roles.change(next);
    }

    /// Returns why no client can connect to the control socket, if so. With `checks_file` a file that is gone is a
    /// reason, too.
    fn missing(&self, checks_file: bool) -> Option<String> {
        let reason = match &self.outage {
            Some(outage) => outage.reason.as_str(),
            None if checks_file && !self.listener.is_reachable() => FILE_GONE,
            None => return None,
        };
        let path = self.listener.path().display();
        Some(format!("control socket {path}: {reason}"))
    }
}

/// The state of the master as read-only requests, the metrics and the service manager's status need it.
pub(crate) struct Snapshot<'m> {
    pub(crate) name: &'m str,
    pub(crate) version: &'m str,
    pub(crate) started: Instant,
    /// How many descriptors the master may have.
    pub(crate) descriptors: u64,
    pub(crate) settings: &'m SettingsInForce,
    pub(crate) listeners: &'m Listeners,
    pub(crate) clients: &'m Clients,
    pub(crate) workers: &'m Workers,
    pub(crate) control: &'m ControlServer,
    pub(crate) telemetry: &'m Telemetry,
    pub(crate) exporter: Option<&'m Exporter>,
    pub(crate) lifecycle: Lifecycle,
    /// The service manager has confirmed that a restart keeps the clients.
    pub(crate) keeps_clients: bool,
    /// Why the service manager does not keep them.
    pub(crate) store_outage: Option<&'m str>,
}

impl Snapshot<'_> {
    /// Returns the bytes of its clients that each worker may buffer.
    fn buffers(&self) -> u64 {
        memory::buffers(
            &self.settings.config.limits,
            self.settings.memory,
            self.workers.pool.target().count,
        )
    }
}
