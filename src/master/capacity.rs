//! The numbers of workers, clients and control clients, by the limits of descriptors and of addresses.

use super::Error;
use crate::config::{Config, Count};
use crate::pool::Target;
use crate::proto::names::{Generation, MAX_WORKERS};
use crate::shm::{Layout, MAX_ADDRESSES};
use crate::sys::memory;

/// Descriptors that the master needs besides those of clients, listeners, workers and control clients: the standard
/// ones, the poller, signals, the program, the log, the watch of the store, and those that are open for a moment only.
pub(super) const OWN_DESCRIPTORS: u64 = 20;

/// The channel, the shared memory and the I/O account of a worker's successor during a replacement.
pub(super) const SUCCESSOR_DESCRIPTORS: u64 = 3;

/// The same of a worker, and those of its successor.
const WORKER_DESCRIPTORS: u64 = 3 + SUCCESSOR_DESCRIPTORS;

/// The exporter's channel.
const EXPORTER_DESCRIPTORS: u64 = 1;

/// A listener of the exporter, and the one that replaces it in a reload.
const EXPORTER_LISTENER_DESCRIPTORS: u64 = 2;

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
    /// Bytes of addresses for each shared memory.
    addresses: u64,
    /// Clients for which there are descriptors and addresses, whatever the configuration wants.
    pub(super) possible: u64,
    /// Why there may be fewer than the configuration wants.
    lowered: Option<String>,
}

impl ClientLimits {
    /// Returns the layout of shared memory for at least this many slots and frames of this length.
    pub(super) fn layout(&self, max_frame: u32, slots: u32) -> Layout {
        Layout::new(
            (self.slots.max(slots)).min(Layout::slots_within(self.addresses, max_frame)),
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
/// `System` when no descriptor or no address is left for clients.
pub(super) fn client_limits(
    config: &Config,
    workers: usize,
    descriptors: u64,
) -> Result<ClientLimits, Error> {
    // A worker needs others for its program, its threads and its heap.
    let addresses = memory::free_addresses(2 * MAX_ADDRESSES) / 2;
    limits_within(config, workers, descriptors, addresses)
}

fn limits_within(
    config: &Config,
    workers: usize,
    descriptors: u64,
    addresses: u64,
) -> Result<ClientLimits, Error> {
    let for_workers = WORKER_DESCRIPTORS * workers as u64;
    let exporter_listeners = [&config.metrics.listen, &config.agent.listen];
    let for_exporter = match exporter_listeners.into_iter().flatten().count() {
        0 => 0,
        count => EXPORTER_DESCRIPTORS + EXPORTER_LISTENER_DESCRIPTORS * count as u64,
    };
    let for_listeners = config.listen.len() as u64 + for_exporter;
    let taken = OWN_DESCRIPTORS + control_clients(descriptors) + for_workers + for_listeners;
    let with_descriptors = descriptors.saturating_sub(taken);
    if with_descriptors == 0 {
        let sentence = format!(
            "the limit of {descriptors} descriptors leaves none for clients: {taken} are needed"
        );
        return Err(Error::System(sentence));
    }
    let max_frame = config.limits.max_frame;
    let with_addresses = u64::from(Layout::slots_within(addresses, max_frame));
    if with_addresses == 0 {
        let sentence = format!(
            "the free address space of a process (ulimit -v, LimitAS=) is too small for a client with max-frame = \
             {max_frame}: {} MiB of it are for clients",
            addresses >> 20
        );
        return Err(Error::System(sentence));
    }
    let possible = with_descriptors.min(with_addresses);
    let cause = if with_addresses < with_descriptors {
        format!(
            "a worker has {} MiB of address space (ulimit -v, LimitAS=) for clients with max-frame = {max_frame}",
            addresses >> 20
        )
    } else {
        format!(
            "the limit is {descriptors} descriptors, of which {taken} are needed for other things"
        )
    };
    let (clients, lowered) = match config.limits.max_clients {
        None => (possible.min(MAX_AUTO_CLIENTS), None),
        Some(wanted) if u64::from(wanted.get()) <= possible => (wanted.get().into(), None),
        Some(wanted) => {
            let sentence = format!("max-clients lowered from {wanted} to {possible}: {cause}");
            (possible, Some(sentence))
        }
    };
    Ok(ClientLimits {
        clients,
        slots: u32::try_from(clients).unwrap_or(u32::MAX),
        addresses,
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
    use std::num::NonZeroU32;

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

    /// Machines with 39 bits of an address give a process 256 or 512 GiB.
    #[test]
    fn there_are_no_more_clients_than_addresses_allow() {
        let mut config = Config::default();
        let limits = limits_within(&config, 1, 1_000_000, 1 << 37).expect("it is enough");
        assert!((10_000..100_000).contains(&limits.clients), "{limits:?}");
        assert_eq!(limits.lowered, None);
        let layout = limits.layout(config.limits.max_frame, 0);
        assert_eq!(u64::from(layout.slots()), limits.clients);
        config.limits.max_clients = NonZeroU32::new(500_000);
        let limits = limits_within(&config, 1, 1_000_000, 1 << 37).expect("it is enough");
        let warning = limits.lowered.expect("there are fewer");
        assert!(warning.contains("131072 MiB of address space"), "{warning}");
        let none = limits_within(&config, 1, 1_000_000, 1 << 20).expect_err("it is too little");
        assert!(none.to_string().contains("(ulimit -v, LimitAS=)"), "{none}");
    }
}
