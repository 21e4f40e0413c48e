//! A configuration that is prepared: everything that can fail is done, and nothing that is in force has changed.

use std::path::PathBuf;
use std::time::Instant;

use crate::config::{Config, Loaded};
use crate::logging;
use crate::master::Master;
use crate::master::capacity::{ClientLimits, client_limits, worker_count};
use crate::master::exporter::{Exporter, PlannedExporter};
use crate::master::listeners::conflict::OwnListeners;
use crate::master::listeners::exchange::PlannedListener;
use crate::master::memory::{self, Memory};
use crate::proto::control::{Refusal, RefusalCode};
use crate::proto::names::Generation;
use crate::shm::Layout;

/// A configuration that can come into force.
#[derive(Debug)]
pub(crate) struct PreparedReload {
    pub(crate) generation: Generation,
    pub(crate) loaded: Loaded,
    pub(super) file: Option<PathBuf>,
    pub(super) max_clients: u64,
    /// The layout of the shared memory of all workers that are started from now on. It also holds for workers of the
    /// configuration before: after a rollback they may get clients with more parked bytes than that one allows.
    pub(crate) layout: Layout,
    pub(crate) memory: Option<Memory>,
    pub(super) listeners: Vec<PlannedListener>,
    pub(super) exporter: PlannedExporter,
    pub(super) log: logging::Prepared,
    pub(super) began: Instant,
}

impl PreparedReload {
    pub(crate) fn config(&self) -> &Config {
        &self.loaded.config
    }

    /// Returns whether a listener stays.
    pub(super) fn keeps(&self, number: u32) -> bool {
        self.listeners
            .iter()
            .any(|planned| matches!(planned, PlannedListener::Keep(kept) if *kept == number))
    }
}

impl Master {
    /// Returns the addresses at which this daemon listens.
    fn own_addresses(&self) -> OwnListeners {
        let exporter = self.exporter.iter().flat_map(Exporter::listeners);
        OwnListeners::from_listeners(&self.listeners.all, exporter, Some(&self.control.listener))
    }

    /// Prepares a configuration.
    ///
    /// # Errors
    /// `rejected`, with the first reason why it cannot come into force.
    pub(super) fn prepare(
        &self,
        file: Option<PathBuf>,
        loaded: Loaded,
        began: Instant,
    ) -> Result<PreparedReload, Refusal> {
        let config = &loaded.config;
        let workers = worker_count(config.workers.count);
        let limits = limits_under(config, self.descriptors)?;
        limits.warn_if_lowered();
        let memory = Memory::read(self.workers.parked());
        memory::warn_if_short(&config.limits, memory, workers);
        let log = logging::prepare(&self.name, &config.log).map_err(|e| rejected(&e))?;
        let own = || self.own_addresses();
        let exporter = PlannedExporter::new(config, &self.settings.config, self.exporter.as_ref())
            .map_err(|(e, address)| rejected(&own().explain(e, Some(address))))?;
        let listeners = self.listeners.plan(config, own).map_err(|e| rejected(&e))?;
        // Clients that stay keep their parked bytes. Some may have been parked under a configuration before the one in
        // force, so the present layout counts while there are clients.
        let max_frame_before = if self.clients.count() > 0 {
            self.clients.layout.max_frame()
        } else {
            self.settings.config.limits.max_frame
        };
        let max_frame = config.limits.max_frame.max(max_frame_before);
        let layout = limits.layout(max_frame, self.clients.layout.slots());
        Ok(PreparedReload {
            generation: Generation(self.settings.last_generation.0 + 1),
            max_clients: limits.clients_in(layout),
            layout,
            loaded,
            file,
            memory,
            listeners,
            exporter,
            log,
            began,
        })
    }
}

/// Returns how many clients there may be under a configuration.
pub(super) fn limits_under(config: &Config, descriptors: u64) -> Result<ClientLimits, Refusal> {
    let workers = worker_count(config.workers.count);
    client_limits(config, workers, descriptors).map_err(|e| rejected(&e))
}

fn rejected(reason: &impl ToString) -> Refusal {
    Refusal::new(RefusalCode::Rejected, reason.to_string())
}
