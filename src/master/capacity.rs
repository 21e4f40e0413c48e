//! The numbers of workers, clients and control clients, by the limit of descriptors.

use super::Error;
use crate::config::{Config, Count};
use crate::pool::Target;
use crate::proto::names::{Generation, MAX_WORKERS};
use crate::shm::Layout;

/// Descriptors that the master needs besides those of clients, listeners, workers and control clients: the standard
/// ones, the poller, signals, the program, the log, the watch of the store, and those that are open for a moment only.
pub(super) const OWN_DESCRIPTORS: u64 = 20;

/// The channel, the shared memory and the I/O account of a worker's successor during a replacement.
pub(super) const SUCCESSOR_DESCRIPTORS: u64 = 3;

/// The same of a worker, and those of its successor.
const WORKER_DESCRIPTORS: u64 = 3 + SUCCESSOR_DESCRIPTORS;

/// The exporter's listener and its channel, and the listener of a reload.
const EXPORTER_DESCRIPTORS: u64 = 3;

/// Most clients with `max-clients = "auto"`.
const MAX_AUTO_CLIENTS: u64 = 1_000_000;

/// Returns the number of workers; `auto` is one for each CPU that this process may use, by affinity and cgroup quota.
pub(super) fn worker_count(count: Count) -> usize {
    match count {
        Count::Auto => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MAX_WORKERS as usize),
        Count::Exactly(count) => count.get() as usize,
    }
}

/// Returns the most control clients.
pub(super) fn control_clients(descriptors: u64) -> u64 {
    (descriptors / 8).clamp(4, MAX_CONTROL_CLIENTS)
}

/// Most control clients; there are fewer when descriptors are scarce.
pub(super) const MAX_CONTROL_CLIENTS: u64 = 72;

/// The most clients that there may be.
#[derive(Clone, Debug)]
pub(super) struct ClientLimits {
    pub(super) clients: u64,
    /// Slots of each shared memory.
    pub(super) slots: u32,
    /// Clients for which there are descriptors, whatever the configuration wants.
    pub(super) possible: u64,
    /// Why there may be fewer than the configuration wants.
    lowered: Option<String>,
}

impl ClientLimits {
    /// Returns the layout of shared memory for at least this many slots and frames of this length.
    pub(super) fn layout(&self, max_frame: u32, slots: u32) -> Layout {
        Layout::new(
            self.slots.max(slots).min(Layout::max_slots(max_frame)),
            max_frame,
        )
    }

    /// Returns the most clients with shared memory of this layout, which may have fewer slots: they depend on the
    /// longest frame of the clients that are connected.
    pub(super) fn clients_in(&self, layout: Layout) -> u64 {
        self.clients.min(layout.slots().into())
    }

    /// Logs that there may be fewer clients than the configuration wants.
    pub(super) fn warn_if_lowered(&self) {
        if let Some(sentence) = &self.lowered {
            log::warn!("{sentence}");
        }
    }
}

/// Returns the most clients with this many workers and descriptors.
///
/// # Errors
/// `System` when no descriptor is left for clients.
pub(super) fn client_limits(
    config: &Config,
    workers: usize,
    descriptors: u64,
) -> Result<ClientLimits, Error> {
    let for_workers = WORKER_DESCRIPTORS * workers as u64;
    let for_exporter = config
        .metrics
        .listen
        .as_ref()
        .map_or(0, |_| EXPORTER_DESCRIPTORS);
    let for_listeners = config.listen.len() as u64 + for_exporter;
    let taken = OWN_DESCRIPTORS + control_clients(descriptors) + for_workers + for_listeners;
    let possible = descriptors
        .saturating_sub(taken)
        .min(u64::from(Layout::max_slots(config.limits.max_frame)));
    if possible == 0 {
        let sentence = format!(
            "the limit of {descriptors} descriptors leaves none for clients: {taken} are needed"
        );
        return Err(Error::System(sentence));
    }
    let (clients, lowered) = match config.limits.max_clients {
        None => (possible.min(MAX_AUTO_CLIENTS), None),
        Some(wanted) if u64::from(wanted.get()) <= possible => (wanted.get().into(), None),
        Some(wanted) => {
            let sentence = format!(
                "max-clients lowered from {wanted} to {possible}: the limit is {descriptors} descriptors, of which \
                 {taken} are needed for other things"
            );
            (possible, Some(sentence))
        }
    };
    Ok(ClientLimits {
        clients,
        slots: u32::try_from(clients).unwrap_or(u32::MAX),
        possible,
        lowered,
    })
}

/// Returns the target of the pool under a configuration. With `is_dev`, one failed start is enough: the next one would
/// fail in the same way, and its output would repeat that of the first.
pub(super) fn target(config: &Config, generation: Generation, is_dev: bool) -> Target {
    Target {
        generation,
        count: worker_count(config.workers.count),
        start_timeout: config.workers.start_timeout,
        drain_timeout: config.limits.drain_timeout,
        max_lifetime: config.workers.max_lifetime,
        tries: if is_dev { 1 } else { 3 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_clients_than_slots_for_the_longest_frame() {
        let config = Config::default();
        let limits = client_limits(&config, 1, 1_000_000).expect("there are descriptors");
        let layout = limits.layout(config.limits.max_frame, 0);
        assert_eq!(limits.clients_in(layout), limits.clients);
        // A client that is connected may still have a frame of the configuration before.
        let layout = limits.layout(256 << 20, 0);
        assert!(limits.clients > u64::from(layout.slots()));
        assert_eq!(limits.clients_in(layout), u64::from(layout.slots()));
    }
}
