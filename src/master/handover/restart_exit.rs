//! The exit that keeps the clients for the next master.
//!
//! ```text
//! always     the state file, both ends of each handoff queue and the listeners are with the service manager
//! SIGTERM    all clients and the shared memory of their workers go into the handoff queues, in case this master is
//!            killed; workers get restart-grace for running requests, then they are killed, and the master exits
//! SIGKILL    workers notice that the master is gone, and pack their clients themselves
//! ```
//!
//! The next master recovers every client as after the death of its worker. On `systemctl stop`, `ExecStop=` stops the
//! daemon gracefully first. Without it, the manager closes all stored descriptors when the unit has stopped, and the
//! kernel closes the clients.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::clients::client::Unleased;
use crate::master::clients::leases::Leases;
use crate::master::clients::place::OrphanedShm;
use crate::master::handover::queues::OrphanedClients;
use crate::master::handover::store::HandoffStore;
use crate::master::lifecycle::Lifecycle;
use crate::master::telemetry::counters::Loss;
use crate::master::telemetry::events::Asker;
use crate::master::workers::worker::Worker;
use crate::proto::control::{About, Kind};
use crate::proto::handoff::ShmRecord;
use crate::proto::text::Counted;
use crate::shm::MasterShm;
use crate::sys::byte_counts::Writes;
use crate::sys::{clock, passed};

/// How long the exit waits for the service manager to receive the descriptors.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the exit waits for the configuration file.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

impl Master {
    /// Begins the exit that keeps the clients, or ends its grace. Returns false if the clients cannot be kept: then the
    /// daemon must be stopped.
    pub(crate) fn begin_restart(&mut self, asker: Asker, now: Instant) -> bool {
        match self.lifecycle {
            Lifecycle::Restarting => {
                self.workers.pool.stop(now);
                return true;
            }
            Lifecycle::Stopping => return false,
            Lifecycle::Running | Lifecycle::Reloading(..) | Lifecycle::Upgrading => {}
        }
        let clients = self.clients.count();
        if self.handover.store.is_none() {
            return false;
        }
        if !self.store_and_confirm(now) {
            self.check_store(now);
            self.telemetry.counts.losses.add(Loss::Store, clients);
            log::error!(
                "the service manager does not keep clients for the next master; closing {}",
                Counted(clients, "client")
            );
            return false;
        }
        let grace = self.settings.config.limits.restart_grace;
        self.lifecycle = Lifecycle::Restarting;
        self.pack_leased();
        self.workers.pool.stop(now + grace);
        self.workers.hurry_outgoing(now);
        self.abandon_reload("the daemon is being restarted".to_owned());
        let about = About {
            clients: Some(clients),
            ..asker.about()
        };
        let sentence = format_args!(
            "{asker}: keeping {} for the next master; running requests get {grace:?}",
            Counted(clients, "client")
        );
        self.telemetry.events.note(Kind::Stopping, about, sentence);
        self.manager.notify_stopping(grace);
        true
    }

    /// Keeps, unchanged, the shared memory of a worker that has exited during the restart. `written` is the amount that
    /// its thread wrote.
    pub(crate) fn keep_orphan(&mut self, worker: Worker, written: Option<Writes>, now: Instant) {
        let record = worker.shm_record();
        let Worker {
            id, shm, leases, ..
        } = worker;
        self.clients.end_app(shm.header().app(), now);
        self.workers.pool.exited(id, true, now);
        leases.note_goaways(&shm);
        let orphan = OrphanedShm::new(record, shm, written);
        if let Some(store) = &mut self.handover.store {
            pack_early(store, &orphan.record, &orphan.shm, &leases, leases.slots());
        }
        self.handover
            .add_orphans(OrphanedClients { orphan, leases });
        // The worker's counters are in the totals: a SIGKILL now must not lose them.
        self.write_state();
    }

    /// Packs all clients whose workers are gone, for the next master. Workers that still run pack their clients when
    /// this process is gone.
    pub(crate) fn hand_over(mut self) {
        passed::leave_clients();
        self.orphan_unleased();
        let mut without_space = self.pack_orphans();
        // All clients are in the queues, whatever happens to the file now.
        if self.yield_listeners() {
            self.orphan_unleased();
            without_space += self.pack_orphans();
        }
        let Some(store) = &self.handover.store else {
            return;
        };
        let is_in_doubt = store.canaries.outage().is_some();
        if is_in_doubt {
            self.store_all(Instant::now());
        }
        self.manager.notifier.flush(FLUSH_TIMEOUT);
        if let Some(store) = self.handover.store.as_ref().filter(|_| is_in_doubt) {
            store.canaries.await_rejection();
        }
        self.report_handed_over(without_space);
        self.listeners
            .all
            .iter_mut()
            .for_each(|listener| listener.leave_file());
    }

    /// Gives up the listeners that the next configuration leaves to systemd. Returns whether clients waited there.
    fn yield_listeners(&mut self) -> bool {
        // The next master reports the errors of an invalid file, and then keeps all listeners.
        let Some(next) = self.read_next(READ_TIMEOUT) else {
            return false;
        };
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        self.listeners
            .yield_to_systemd(&next, clients, telemetry, &self.poller);
        self.update_stored_listeners(Instant::now());
        !self.clients.unleased.is_empty()
    }

    /// Packs the shared memory of workers that are gone, with its clients. Returns the number of clients without space.
    fn pack_orphans(&mut self) -> u64 {
        // The exit of a worker that was asked to exit is not an event, so the state may not have been written since.
        self.write_state();
        let Some(store) = &mut self.handover.store else {
            return 0;
        };
        let orphans = std::mem::take(&mut store.orphans).into_iter();
        let without_space: u64 = orphans
            .map(|clients| {
                let is_packed = |slot: &u32| {
                    let worker = clients.orphan.record.worker;
                    let early = store.packed_early.get(&(worker, *slot));
                    early.is_some_and(|is_packed| *is_packed)
                };
                let mut slots = clients.leases.slots();
                slots.retain(|slot| !is_packed(slot));
                store.queues.pack(&clients, &slots) as u64
            })
            .sum();
        if without_space > 0 {
            self.clients.subtract(without_space);
            self.telemetry.counts.losses.add(Loss::Store, without_space);
            self.write_state();
        }
        self.clients.write_figures(&self.telemetry);
        without_space
    }

    /// Logs how many clients are handed over to the next master.
    fn report_handed_over(&self, without_space: u64) {
        let clients = self.clients.count();
        match without_space {
            _ if self.handover.has_store_ended() => log::error!(
                "the service manager has kept nothing: {} lost",
                Counted(clients, "client")
            ),
            0 => log::info!(
                "handed over {} to the next master",
                Counted(clients, "client")
            ),
            _ => log::error!(
                "the handoff queues are full: closed {}, handed over {clients}",
                Counted(without_space, "client"),
            ),
        }
    }

    /// Packs the clients of all workers, before these give them up or exit: if this master is killed before the end of
    /// the restart, the next one has them.
    fn pack_leased(&mut self) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        for worker in self.workers.all.values_mut() {
            let record = worker.shm_record();
            let (shm, leases) = (&worker.shm, &worker.leases);
            let are_packed = pack_early(store, &record, shm, leases, leases.slots());
            worker.leases.set_packed();
            if are_packed {
                shm.header().set_packed_at(clock::monotonic());
            }
        }
    }

    /// Puts clients without a worker into shared memory of their own, as if their worker were gone. Those that are in a
    /// queue stay there.
    fn orphan_unleased(&mut self) {
        let now = Instant::now();
        self.clients.lose_handshakes(&mut self.telemetry, now);
        self.clients.give_up_ending_apps(&mut self.telemetry, now);
        let all = std::mem::take(&mut self.clients.unleased).into_iter();
        let (packed, others): (Vec<_>, Vec<_>) = all.partition(Unleased::is_packed);
        // Dropping them would close their places and free their bytes.
        packed.into_iter().for_each(std::mem::forget);
        let mut others = others.into_iter().peekable();
        let slots = self.clients.layout.slots().max(1) as usize;
        while others.peek().is_some() {
            self.orphan_in_new_shm(others.by_ref().take(slots).collect());
        }
    }

    /// Puts these clients into new shared memory, which has slots for all of them.
    fn orphan_in_new_shm(&mut self, clients: Vec<Unleased>) {
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let number = store.unleased.next_number();
        let shm = match MasterShm::new(self.clients.layout) {
            Ok(shm) => shm,
            Err(e) => {
                log::error!(
                    "cannot make shared memory for {} without a worker: {e}",
                    Counted(clients.len(), "client")
                );
                for unleased in clients {
                    self.clients
                        .lose(Loss::Memory, &e, unleased.client, &mut self.telemetry);
                }
                return;
            }
        };
        let mut leases = Leases::new(self.clients.layout.slots());
        for unleased in clients {
            if let Err((reason, client)) = leases.grant(unleased, &shm) {
                let loss = Loss::from_error(&reason);
                self.clients
                    .lose(loss, &reason, client, &mut self.telemetry);
            }
        }
        let worker = (number, 0, self.settings.generation);
        let record = shm.layout().record(worker, Vec::new());
        let orphan = OrphanedShm::new(record, shm, None);
        self.handover
            .add_orphans(OrphanedClients { orphan, leases });
    }
}

/// Packs these clients of a worker, except those tried before. Always packs the shared memory; of two records the later
/// one counts. Clients for which there is no space are tried again at the end. Returns whether there was space for all.
fn pack_early(
    store: &mut HandoffStore,
    record: &ShmRecord,
    shm: &MasterShm,
    leases: &Leases,
    mut slots: Vec<u32>,
) -> bool {
    let worker = record.worker;
    slots.retain(|slot| !store.packed_early.contains_key(&(worker, *slot)));
    let records = leases.records(&slots);
    let records: Vec<_> = records
        .map(|(lease, socket)| (lease.record, socket))
        .collect();
    let count = records.len();
    let without_space = store.queues.pack_all(record, shm, records);
    let packed = count - without_space;
    for (index, slot) in slots.into_iter().enumerate() {
        store.packed_early.insert((worker, slot), index < packed);
    }
    without_space == 0
}
