//! Leaving clients for the next master: what the service manager keeps for us, and the end that is none for them.
//!
//! ```text
//! from the beginning   the state file, both ends of each handoff queue, the listeners lie with the service manager
//! SIGTERM              workers get restart-grace to finish what they execute, then they are killed; their shared memory, as it
//!                      is then, goes into the handoff queues with all clients, and we exit
//! killed               workers notice, and pack themselves
//! ```
//!
//! The next master, which is started with all that, recovers every client as after the death of its worker. `systemctl stop`
//! makes the manager drop it all: then the clients are closed by the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use std::{env, io};

use crate::config::Identities;
use crate::logging;
use crate::master::Master;
use crate::master::handover::canary::Canaries;
use crate::master::handover::inherited::{Stored, queue_names};
use crate::master::handover::queues::{HandoffQueues, OrphanedShm};
use crate::master::handover::state_file::{LISTENER_NAME, STATE_FILE_NAME, SavedState, StateFile};
use crate::master::handover::unpack::Unpacked;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::listener::Listener;
use crate::master::telemetry::counters::{Counts, Loss, Reason};
use crate::master::telemetry::events::Asker;
use crate::master::workers::trust;
use crate::master::workers::worker::Worker;
use crate::proto::control::{About, Kind, Origin};
use crate::proto::handoff::ShmRecord;
use crate::proto::names::{MAX_WORKERS, WorkerId};
use crate::proto::text::Counted;
use crate::sys::byte_counts::Writes;
use crate::sys::{clock, passed};

/// Set by the unit: the service manager keeps descriptors for us (systemd before 254 does not tell so itself).
const KEEP_CLIENTS_VARIABLE: &str = "FDPASSD_KEEP_CLIENTS";

/// How long the service manager may take to take in what it is to keep, at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What the next master will find.
#[derive(Debug)]
pub(crate) struct HandoffStore {
    pub(crate) queues: HandoffQueues,
    state_file: StateFile,
    /// The last event that is in the state file.
    last_written: Option<u64>,
    /// What the service manager has.
    stored: Stored,
    /// Whether it has it.
    pub(crate) canaries: Canaries,
    /// Shared memory of workers that are gone since.
    orphans: Vec<OrphanedShm>,
}

/// The listeners that the service manager is to have, by their names there.
fn kept_listeners(listeners: &[Listener]) -> BTreeMap<String, &Listener> {
    let there = listeners
        .iter()
        .filter(|listener| listener.record().is_some());
    there
        .map(|listener| (format!("{LISTENER_NAME}.{}", listener.number), listener))
        .collect()
}

/// Whether the service manager is to keep clients for us.
pub(crate) fn is_wanted() -> bool {
    let is_set = |key| env::var_os(key).is_some_and(|value| !value.is_empty());
    env::var_os(KEEP_CLIENTS_VARIABLE).is_some_and(|value| value == "1") && is_set("NOTIFY_SOCKET")
}

impl HandoffStore {
    /// With all of it new, for as many clients as there can ever be: a reload may want more than now.
    pub(crate) fn new(clients: u64) -> std::io::Result<HandoffStore> {
        Ok(HandoffStore::from_parts(
            HandoffQueues::new(clients)?,
            StateFile::new()?,
            Stored::default(),
        ))
    }

    /// With what a master before has left, which the service manager has.
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
        }
    }

    pub(crate) fn state_file(&self) -> &StateFile {
        &self.state_file
    }

    /// Names of what the service manager has.
    pub(crate) fn stored(&self) -> &BTreeSet<String> {
        &self.stored.names
    }
}

impl Master {
    /// Gives the service manager all that it is to keep, whatever it has: what it has it ignores.
    pub(crate) fn store_all(&mut self, now: Instant) {
        if let Err(e) = self.store_everything(now) {
            self.lose_store(&format!("cannot make a canary: {e}"), now);
        }
    }

    fn store_everything(&mut self, now: Instant) -> io::Result<()> {
        let Some(store) = &mut self.handover.store else {
            return Ok(());
        };
        for name in std::mem::take(&mut store.stored.spoilt) {
            self.manager.notifier.drop_stored(&name, now);
        }
        store
            .canaries
            .retire(&mut self.manager.notifier, &self.poller, now);
        store
            .canaries
            .send(&mut self.manager.notifier, &self.poller, now)?;
        let state_file = (STATE_FILE_NAME.to_owned(), store.state_file.file().as_fd());
        let ends = store
            .queues
            .ends()
            .iter()
            .enumerate()
            .flat_map(|(number, ends)| {
                let [into, out] = queue_names(number);
                [(into, ends.into.as_fd()), (out, ends.out.as_fd())]
            });
        for (name, descriptor) in std::iter::once(state_file).chain(ends) {
            self.manager.notifier.store(&name, descriptor, now);
            store.stored.names.insert(name);
        }
        self.keep_listeners(now);
        let Some(store) = &mut self.handover.store else {
            return Ok(());
        };
        for (name, listener) in kept_listeners(&self.listeners.all) {
            self.manager.notifier.store(&name, listener.as_fd(), now);
        }
        store
            .canaries
            .send(&mut self.manager.notifier, &self.poller, now)?;
        store
            .canaries
            .confirm(&mut self.manager.notifier, &self.poller, now)
    }

    /// The service manager has the listeners that there are, and no others.
    pub(crate) fn keep_listeners(&mut self, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let there = kept_listeners(&self.listeners.all);
        let is_gone =
            |name: &&String| name.starts_with(LISTENER_NAME) && !there.contains_key(*name);
        for gone in store
            .stored
            .names
            .iter()
            .filter(is_gone)
            .cloned()
            .collect::<Vec<_>>()
        {
            self.manager.notifier.drop_stored(&gone, now);
            store.stored.names.remove(&gone);
        }
        for (name, listener) in there {
            if !store.stored.names.contains(&name) {
                self.manager.notifier.store(&name, listener.as_fd(), now);
                store.stored.names.insert(name);
            }
        }
    }

    /// The service manager gets the socket that a listener has now, in place of one that has ended.
    pub(crate) fn store_listener_anew(&mut self, number: u32, now: Instant) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let name = format!("{LISTENER_NAME}.{number}");
        if store.stored.names.remove(&name) {
            self.manager.notifier.drop_stored(&name, now);
        }
        self.keep_listeners(now);
    }

    /// Writes the state file anew, if something has happened since it was written.
    pub(crate) fn keep_state(&mut self) {
        let last = self.telemetry.events.last();
        if self
            .handover
            .store
            .as_ref()
            .is_none_or(|store| store.last_written == Some(last))
        {
            return;
        }
        self.write_state_now();
    }

    /// Writes the state file anew, whatever has happened since.
    fn write_state_now(&mut self) {
        let Some(mut store) = self.handover.store.take() else {
            return;
        };
        self.write_state(&mut store);
        self.handover.store = Some(store);
    }

    fn write_state(&self, store: &mut HandoffStore) {
        let saved_state = SavedState {
            handoff_queues: store.queues.ends().len(),
            ..self.saved_state()
        };
        if let Err(e) = store.state_file.write(&saved_state) {
            log::error!("cannot write the state file for the next master: {e}");
        }
        store.last_written = Some(self.telemetry.events.last());
    }

    /// All that the next master has to know.
    pub(crate) fn saved_state(&self) -> SavedState {
        SavedState {
            config: self.settings.config.to_toml(),
            identities: Some(Identities::from_config(&self.settings.config)),
            user: Some(self.control.clients.roles.user()),
            config_file: self.settings.file.clone(),
            config_keys: self.settings.keys.clone(),
            config_files: self.settings.files.clone(),
            last_generation: self.settings.last_generation.0,
            next_worker: self.workers.pool.next(),
            listener_number: self.listeners.last_number,
            listeners: self
                .listeners
                .all
                .iter()
                .filter_map(|listener| listener.record())
                .collect(),
            // Those of the handoff store, who writes it down.
            handoff_queues: 0,
            count: (self.settings.count_origin == Origin::Runtime)
                .then(|| self.workers.pool.target().count as u32),
            log_level: self.settings.log_level,
            is_drained: self.listeners.is_drained,
            quarantined: self.workers.strikes.quarantined().to_vec(),
            last_reload: self.settings.last_reload.clone(),
            counts: Counts {
                log_errors: self.telemetry.counts.log_errors + logging::errors(),
                ..self.telemetry.counts.clone()
            },
            tally: self.telemetry.tally.clone(),
            seats: self.workers.seats.clone(),
            events: self.telemetry.events.last(),
        }
    }

    /// SIGTERM, with clients that another master is to have.
    pub(crate) fn terminate(&mut self, asker: Asker, now: Instant) {
        match self.lifecycle {
            Lifecycle::Restarting => self.workers.pool.stop(now),
            Lifecycle::Stopping => self.stop(asker, now),
            Lifecycle::Running | Lifecycle::Reloading(..) | Lifecycle::Upgrading => {
                if self.is_kept(now) {
                    self.restart(asker, now);
                } else {
                    self.stop_unkept(asker, now);
                }
            }
        }
    }

    /// Begins the exit that keeps the clients.
    fn restart(&mut self, asker: Asker, now: Instant) {
        let grace = self.settings.config.limits.restart_grace;
        self.lifecycle = Lifecycle::Restarting;
        self.workers.pool.stop(now + grace);
        self.hurry_outgoing(now);
        self.abandon_reload("the daemon is being restarted".to_owned());
        let about = About {
            clients: Some(self.clients.count()),
            ..asker.about()
        };
        let sentence = format_args!(
            "{asker}: keeping {} for the next master; running requests get {grace:?}",
            Counted(self.clients.count(), "client")
        );
        self.telemetry.events.note(Kind::Stopping, about, sentence);
        self.manager.notify_stopping(grace);
    }

    /// A worker is gone while we leave: its shared memory stays as it is, for the next master. `written` is what its thread wrote.
    pub(crate) fn keep_orphan(&mut self, worker: Worker, written: Option<Writes>, now: Instant) {
        let Worker {
            id,
            seat,
            generation,
            shm,
            leases,
            methods,
            ..
        } = worker;
        if let Some(written) = written {
            shm.header().set_final_writes(written);
        }
        shm.header().set_packed_at(clock::monotonic());
        self.workers.pool.exited(id, true, now);
        let (slots, longest) = (shm.layout().slots(), shm.layout().max_frame());
        let layout = shm.layout().version();
        let (seat, is_counted) = (seat as u32, true);
        let record = ShmRecord {
            worker: id,
            seat,
            generation,
            slots,
            longest,
            methods,
            is_counted,
            layout,
        };
        if let Some(store) = &mut self.handover.store {
            store.orphans.push(OrphanedShm {
                record,
                shm,
                leases,
            });
        }
        // What it has counted is in the totals: nothing is to be forgotten of it if this process is killed now.
        self.write_state_now();
    }

    /// Packs all clients whose workers are gone, and leaves everything where the next master finds it. Workers that are there
    /// still pack theirs when this one is gone.
    pub(crate) fn hand_over(mut self) {
        self.yield_listeners(Instant::now());
        passed::leave_clients();
        self.lay_waiting();
        // Workers that were asked to end have done so without an event.
        self.write_state_now();
        let Some(mut store) = self.handover.store.take() else {
            return;
        };
        let mut left = 0;
        for orphan in std::mem::take(&mut store.orphans) {
            left += store.queues.pack(&orphan);
        }
        if left > 0 {
            self.clients.subtract(left as u64);
            self.telemetry.counts.losses.add(Loss::Store, left as u64);
            self.write_state(&mut store);
        }
        self.clients.write_figures(&self.telemetry);
        let is_in_doubt = store.canaries.outage().is_some();
        self.handover.store = Some(store);
        if is_in_doubt {
            self.store_all(Instant::now());
        }
        self.manager.notifier.flush(FLUSH_TIMEOUT);
        match left {
            _ if self.has_store_ended() => {
                log::error!(
                    "the service manager has kept nothing: {} lost",
                    Counted(self.clients.count(), "client")
                )
            }
            0 => log::info!(
                "left {} to the next master",
                Counted(self.clients.count(), "client")
            ),
            left => log::error!(
                "no space: {} closed, {} left to the next master",
                Counted(left, "client"),
                self.clients.count()
            ),
        }
        self.listeners
            .all
            .iter_mut()
            .for_each(|listener| listener.leave_file());
    }

    /// Clients that have no worker are laid in shared memory of their own, as if they had one that is gone.
    fn lay_waiting(&mut self) {
        self.clients.lose_handshakes(&mut self.telemetry);
        let waiting = std::mem::take(&mut self.clients.unleased);
        if waiting.is_empty() {
            return;
        }
        // No worker has had that number, nor will any.
        let (worker, generation) = (WorkerId(u64::MAX), self.settings.generation);
        let shm = match crate::shm::MasterShm::new(self.clients.layout) {
            Ok(shm) => shm,
            Err(e) => {
                log::error!(
                    "cannot make shared memory for {} without a worker: {e}",
                    Counted(waiting.len(), "client")
                );
                for unleased in waiting {
                    self.clients
                        .lose(Loss::Memory, &e, unleased.client, &mut self.telemetry);
                }
                return;
            }
        };
        shm.header().set_packed_at(clock::monotonic());
        let mut leases = crate::master::clients::leases::Leases::new(self.clients.layout.slots());
        for unleased in waiting {
            if let Err((reason, client)) = leases.give(unleased, &shm) {
                self.clients.lose(
                    Loss::from_error(&reason),
                    &reason,
                    client,
                    &mut self.telemetry,
                );
            }
        }
        let (slots, longest) = (self.clients.layout.slots(), self.clients.layout.max_frame());
        let (layout, methods, is_counted) = (self.clients.layout.version(), Vec::new(), true);
        let record = ShmRecord {
            worker,
            seat: 0,
            generation,
            slots,
            longest,
            methods,
            is_counted,
            layout,
        };
        if let Some(store) = &mut self.handover.store {
            store.orphans.push(OrphanedShm {
                record,
                shm,
                leases,
            });
        }
    }

    /// Takes over what a master before this one has left: figures, changes made at run time, and
    /// clients.
    pub(crate) fn take_over(&mut self, saved_state: SavedState, mut unpacked: Unpacked) {
        self.restore_figures(saved_state);
        self.count_orphans(&mut unpacked);
        let is_restart = unpacked.shms().next().is_some();
        let before = self.telemetry.counts.losses.clone();
        let moved = self.restore_clients(unpacked);
        let losses = self.telemetry.counts.losses.since(&before);
        let lost = losses.total();
        if !is_restart && lost == 0 {
            return;
        }
        let about = About {
            clients: Some(moved as u64),
            ..About::default()
        };
        let lost = if lost > 0 {
            format!("{lost} lost: {losses}")
        } else {
            "none lost".to_owned()
        };
        let sentence = format_args!(
            "took over {} from the previous master; {lost}",
            Counted(moved, "client")
        );
        self.telemetry.events.note(Kind::TookOver, about, sentence);
    }

    /// Restores the figures, and the changes that operators made at run time.
    fn restore_figures(&mut self, saved_state: SavedState) {
        self.telemetry.counts = Counts {
            applied_at: self.telemetry.counts.applied_at,
            ..saved_state.counts
        };
        self.telemetry.tally = saved_state.tally;
        self.telemetry.events.go_on_from(saved_state.events);
        self.listeners.is_drained = saved_state.is_drained;
        self.settings.last_reload = saved_state.last_reload;
        self.settings.log_level = saved_state.log_level;
        saved_state
            .log_level
            .into_iter()
            .for_each(logging::set_level);
        self.workers.seats = saved_state.seats;
        self.workers.seats.truncate(MAX_SEATS);
        self.workers.strikes.go_on(saved_state.quarantined);
        let count = saved_state.count;
        if let Some(count) = count.filter(|count| (1..=MAX_WORKERS).contains(count)) {
            self.workers.pool.scale(count as usize);
            self.settings.count_origin = Origin::Runtime;
        }
        if let Some(store) = &self.handover.store {
            let figures = store.state_file.figures();
            self.clients.next_id = figures.next_client();
            self.telemetry.counts.refused = figures.refused();
        }
    }

    /// Adds the counters of orphaned shared memories that nothing has counted yet.
    fn count_orphans(&mut self, unpacked: &mut Unpacked) {
        for (record, shm) in unpacked.shms().filter(|(record, _)| !record.is_counted) {
            match trust::counted_on(shm, record.methods.len()) {
                Ok(counters) => {
                    let seat = (record.seat as usize).min(MAX_SEATS - 1);
                    self.add_counters(seat, &counters, &record.methods);
                }
                Err(why) => self.reject_counters(
                    &format!("worker {} of the previous master", record.worker),
                    why,
                ),
            }
        }
    }

    /// Takes in the clients that were left. Returns how many there are.
    fn restore_clients(&mut self, mut unpacked: Unpacked) -> usize {
        let mut moved = 0;
        for left in unpacked.take_left() {
            for (reason, client) in left.lost {
                self.clients.add(1);
                self.clients.lose(
                    Loss::from_error(&reason),
                    &reason,
                    client,
                    &mut self.telemetry,
                );
            }
            let recovered = left.recovered.into_iter();
            self.clients.add(recovered.len() as u64);
            let recovered = recovered.map(|(unleased, _)| Ok(unleased));
            moved += self
                .clients
                .requeue(recovered, Reason::Restart, &mut self.telemetry);
        }
        self.telemetry.counts.losses.add_all(&unpacked.lost);
        let ids = self.clients.unleased.iter();
        let next_id = ids.map(|unleased| unleased.client.id.0 + 1).max();
        self.clients.next_id = self.clients.next_id.max(next_id.unwrap_or(1));
        self.clients.addresses = self
            .workers
            .count_addresses(&self.settings.config, &self.clients);
        if self.clients.count() > 0 {
            // They wait for workers, whatever becomes of the first ones.
            self.workers.pool.disable_give_up();
        }
        moved
    }
}

/// As many as there can be workers, and some for those that leave.
const MAX_SEATS: usize = 1024;
