//! The descriptors that this master keeps with the service manager for the next one: the state file, both ends of each
//! handoff queue, and the listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;
use std::{env, io};

use crate::config::Identities;
use crate::logging;
use crate::master::Master;
use crate::master::handover::canary::{Canaries, cannot_send};
use crate::master::handover::queues::{HandoffQueues, OrphanedClients};
use crate::master::handover::state_file::{
    LISTENER_NAME, STATE_FILE_NAME, SavedState, StateFile, queue_names,
};
use crate::master::handover::unleased::PackedUnleased;
use crate::master::listeners::listener::Listener;
use crate::master::service_manager::Notifier;
use crate::master::telemetry::counters::Counts;
use crate::proto::control::Origin;
use crate::proto::names::WorkerId;
use crate::sys::poll::Poller;

/// Set by the unit if the service manager keeps descriptors: systemd before 254 does not announce it.
const KEEP_CLIENTS_VARIABLE: &str = "FDPASSD_KEEP_CLIENTS";

/// The store of the service manager, and the state for the next master.
#[derive(Debug)]
pub(crate) struct HandoffStore {
    pub(crate) queues: HandoffQueues,
    pub(crate) state_file: StateFile,
    /// The number of the last event when the state file was written.
    last_written: Option<u64>,
    pub(crate) stored: Stored,
    pub(crate) canaries: Canaries,
    /// Clients of workers that are gone, to be packed at the end.
    pub(crate) orphans: Vec<OrphanedClients>,
    /// Clients of workers, by their slots, which this master has tried to pack before the end of a restart, and whether
    /// there was space.
    pub(crate) packed_early: BTreeMap<(WorkerId, u32), bool>,
    pub(crate) unleased: PackedUnleased,
}

/// The descriptors that the service manager has.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Names that are in use.
    pub(crate) names: BTreeSet<String>,
    /// Names of stored descriptors that are unusable; they are dropped before everything is stored again.
    pub(crate) spoilt: BTreeSet<String>,
}

/// Returns whether the service manager should keep the clients.
pub(crate) fn is_wanted() -> bool {
    let is_set = |key| env::var_os(key).is_some_and(|value| !value.is_empty());
    env::var_os(KEEP_CLIENTS_VARIABLE).is_some_and(|value| value == "1") && is_set("NOTIFY_SOCKET")
}

impl Stored {
    /// Returns the store with descriptors of these names.
    pub(crate) fn with_names(names: BTreeSet<String>) -> Stored {
        Stored {
            names,
            spoilt: BTreeSet::new(),
        }
    }

    /// Marks the descriptor of this name as one that must be replaced.
    pub(crate) fn spoil(&mut self, name: &str) {
        if self.names.remove(name) {
            self.spoilt.insert(name.to_owned());
        }
    }

    /// Stores a descriptor.
    ///
    /// # Errors
    /// Those of dup(2).
    fn add(
        &mut self,
        name: String,
        fd: BorrowedFd<'_>,
        notifier: &mut Notifier,
        now: Instant,
    ) -> io::Result<()> {
        notifier.store(&name, fd, now)?;
        self.names.insert(name);
        Ok(())
    }

    fn remove(&mut self, name: &str, notifier: &mut Notifier, now: Instant) {
        if self.names.remove(name) {
            notifier.drop_stored(name, now);
        }
    }
}

/// Returns the listeners that are stored, by their names in the store.
fn named(listeners: &[Listener]) -> BTreeMap<String, &Listener> {
    let stored = listeners.iter().filter(|listener| listener.is_storable());
    stored
        .map(|listener| (listener_name(listener.number), listener))
        .collect()
}

fn listener_name(number: u32) -> String {
    format!("{LISTENER_NAME}.{number}")
}

impl HandoffStore {
    /// Creates a store for as many clients as there can ever be: a reload may allow more than now.
    pub(crate) fn new(clients: u64) -> io::Result<HandoffStore> {
        Ok(HandoffStore::from_parts(
            HandoffQueues::new(clients)?,
            StateFile::new()?,
            Stored::default(),
        ))
    }

    /// Returns the store of an earlier master.
    pub(crate) fn from_parts(
        queues: HandoffQueues,
        state_file: StateFile,
        stored: Stored,
    ) -> HandoffStore {
        HandoffStore {
            queues,
            state_file,
            last_written: None,
            stored,
            canaries: Canaries::default(),
            orphans: Vec::new(),
            packed_early: BTreeMap::new(),
            unleased: PackedUnleased::default(),
        }
    }

    /// Sends the service manager everything. It ignores what it has already.
    ///
    /// # Errors
    /// When no canary can be made, or a descriptor cannot be copied.
    fn send_all(
        &mut self,
        listeners: &[Listener],
        notifier: &mut Notifier,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<()> {
        for name in std::mem::take(&mut self.stored.spoilt) {
            notifier.drop_stored(&name, now);
        }
        self.canaries.remove_all(notifier, poller, now);
        self.canaries.send(notifier, poller, now)?;
        let state_file = self.state_file.file().as_fd();
        self.stored
            .add(STATE_FILE_NAME.to_owned(), state_file, notifier, now)?;
        for (number, ends) in self.queues.ends().iter().enumerate() {
            let [into, out] = queue_names(number);
            self.stored.add(into, ends.into.as_fd(), notifier, now)?;
            self.stored.add(out, ends.out.as_fd(), notifier, now)?;
        }
        let listeners = named(listeners);
        self.stored.names.retain(|name| {
            let is_gone = name.starts_with(LISTENER_NAME) && !listeners.contains_key(name);
            if is_gone {
                notifier.drop_stored(name, now);
            }
            !is_gone
        });
        for (name, listener) in listeners {
            self.stored.add(name, listener.as_fd(), notifier, now)?;
        }
        self.canaries.send(notifier, poller, now)?;
        self.canaries.send_barrier(notifier, poller, now)
    }

    /// Writes the state file.
    pub(crate) fn write(&mut self, saved_state: SavedState) {
        let saved_state = SavedState {
            handoff_queues: self.queues.ends().len(),
            ..saved_state
        };
        if let Err(e) = self.state_file.write(&saved_state) {
            log::error!("cannot write the state file for the next master: {e}");
        }
        self.last_written = Some(saved_state.events);
    }
}

impl Master {
    /// Sends the service manager all descriptors.
    pub(crate) fn store_all(&mut self, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let (listeners, notifier) = (&self.listeners.all, &mut self.manager.notifier);
        if let Err(e) = store.send_all(listeners, notifier, &self.poller, now) {
            self.mark_store_failed(&e, now);
        }
    }

    /// Notes that a descriptor could not be sent to the service manager: everything is stored again later.
    fn mark_store_failed(&mut self, error: &io::Error, now: Instant) {
        if let Some(store) = &mut self.handover.store {
            let (notifier, events) = (&mut self.manager.notifier, &mut self.telemetry.events);
            let reason = cannot_send(error);
            store
                .canaries
                .mark_failed(&reason, notifier, &self.poller, events, now);
        }
    }

    /// Updates the stored sockets of listeners that were closed or bound again.
    pub(crate) fn update_stored_listeners(&mut self, now: Instant) {
        let changed = std::mem::take(&mut self.listeners.changed);
        let Some(store) = self.handover.store.as_mut().filter(|_| !changed.is_empty()) else {
            return;
        };
        let (stored, notifier) = (&mut store.stored, &mut self.manager.notifier);
        for number in changed {
            stored.remove(&listener_name(number), notifier, now);
        }
        let mut new = named(&self.listeners.all);
        new.retain(|name, _| !stored.names.contains(name));
        let added = (new.into_iter())
            .try_for_each(|(name, listener)| stored.add(name, listener.as_fd(), notifier, now));
        if let Err(e) = added {
            self.mark_store_failed(&e, now);
        }
    }

    /// Writes the state file if an event has occurred since it was written.
    pub(crate) fn write_changed_state(&mut self) {
        let last = Some(self.telemetry.events.last());
        let store = self.handover.store.as_ref();
        if store.is_some_and(|store| store.last_written != last) {
            self.write_state();
        }
    }

    /// Writes the state file.
    pub(crate) fn write_state(&mut self) {
        if self.handover.store.is_some() {
            let saved_state = self.saved_state();
            if let Some(store) = &mut self.handover.store {
                store.write(saved_state);
            }
        }
    }

    /// Returns the state for the next master, without the number of handoff queues.
    pub(crate) fn saved_state(&self) -> SavedState {
        let (settings, counts) = (&self.settings, &self.telemetry.counts);
        let listeners = self.listeners.all.iter();
        SavedState {
            config: settings.config.to_toml(),
            identities: Some(Identities::from_config(&settings.config)),
            user: Some(self.control.clients.roles.user()),
            config_file: settings.file.clone(),
            command_line: settings.command_line.clone(),
            is_dev: settings.is_dev,
            config_keys: settings.given.files.clone(),
            config_variables: settings.given.variables.clone(),
            config_files: settings.files.clone(),
            last_generation: settings.last_generation.0,
            next_worker: self.workers.pool.next(),
            listener_number: self.listeners.last_number,
            listeners: listeners.filter_map(Listener::record).collect(),
            handoff_queues: 0,
            count: (settings.count_origin == Origin::Runtime)
                .then(|| self.workers.pool.target().count as u32),
            log_level: settings.log_level,
            is_drained: self.listeners.is_drained(),
            drain: self
                .listeners
                .drain
                .map(|drain| drain.saved(self.clock.now())),
            quarantined: self.workers.crash_limits.quarantined().to_vec(),
            last_reload: settings.last_reload.clone(),
            counts: Counts {
                log_errors: counts.log_errors + logging::errors(),
                ..counts.clone()
            },
            tally: self.telemetry.tally.clone(),
            seats: self.workers.seats.clone(),
            events: self.telemetry.events.last(),
        }
    }
}
