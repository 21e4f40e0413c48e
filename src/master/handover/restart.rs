//! The exit that keeps the clients for the next master.
//!
//! ```text
//! always     the state file, both ends of each handoff queue and the listeners are with the service manager
//! SIGTERM    workers get restart-grace for running requests, then they are killed; their shared memory goes into the
//!            handoff queues as it is then, with all clients, and the master exits
//! SIGKILL    workers notice that the master is gone, and pack their clients themselves
//! ```
//!
//! The next master recovers every client as after the death of its worker. On `systemctl stop`, `ExecStop=` stops the
//! daemon gracefully first. Without it, the manager closes all stored descriptors when the unit has stopped, and the
//! kernel closes the clients.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::clients::leases::Leases;
use crate::master::handover::queues::OrphanedShm;
use crate::master::lifecycle::Lifecycle;
use crate::master::telemetry::counters::Loss;
use crate::master::telemetry::events::Asker;
use crate::master::workers::worker::Worker;
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::shm::MasterShm;
use crate::sys::byte_counts::Writes;
use crate::sys::passed;

/// How long the exit waits for the service manager to receive the descriptors.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of the worker in whose shared memory the clients without a worker are packed. No worker ever has it.
pub(crate) const NO_WORKER: WorkerId = WorkerId(u64::MAX);

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
        self.clients.end_app(shm.header().app(), now);
        self.workers.pool.exited(id, true, now);
        let orphan = OrphanedShm::new((id, seat as u32, generation), methods, shm, leases);
        self.handover.add_orphan(orphan);
        // The worker's counters are in the totals: a SIGKILL now must not lose them.
        self.write_state();
    }

    /// Packs all clients whose workers are gone, for the next master. Workers that still run pack their clients when
    /// this process is gone.
    pub(crate) fn hand_over(mut self) {
        let next = self
            .settings
            .read_next(self.settings.next_file().as_deref());
        // The next master reports the errors of an invalid file, and then keeps all listeners.
        if let Ok(next) = next {
            let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
            self.listeners
                .yield_to_systemd(&next.config, clients, telemetry, &self.poller);
            self.update_stored_listeners(Instant::now());
        }
        passed::leave_clients();
        self.pack_waiting();
        // The exit of a worker that was asked to exit is no event, so the state may not have been written since.
        self.write_state();
        let Some(store) = &mut self.handover.store else {
            return;
        };
        let orphans = std::mem::take(&mut store.orphans).into_iter();
        let without_space: u64 = orphans
            .map(|orphan| store.queues.pack(&orphan) as u64)
            .sum();
        let is_in_doubt = store.canaries.outage().is_some();
        if without_space > 0 {
            self.clients.subtract(without_space);
            self.telemetry.counts.losses.add(Loss::Store, without_space);
            self.write_state();
        }
        self.clients.write_figures(&self.telemetry);
        if is_in_doubt {
            self.store_all(Instant::now());
        }
        self.manager.notifier.flush(FLUSH_TIMEOUT);
        if let Some(store) = self.handover.store.as_ref().filter(|_| is_in_doubt) {
            store.canaries.await_rejection();
        }
        let clients = self.clients.count();
        match without_space {
            _ if self.handover.has_store_ended() => log::error!(
                "the service manager has kept nothing: {} lost",
                Counted(clients, "client")
            ),
            0 => log::info!("left {} to the next master", Counted(clients, "client")),
            _ => log::error!(
                "no space: {} closed, {clients} left to the next master",
                Counted(without_space, "client"),
            ),
        }
        self.listeners
            .all
            .iter_mut()
            .for_each(|listener| listener.leave_file());
    }

    /// Puts clients without a worker into shared memory of their own, as if their worker were gone.
    fn pack_waiting(&mut self) {
        let now = Instant::now();
        self.clients.lose_handshakes(&mut self.telemetry, now);
        self.clients.give_up_ending_apps(&mut self.telemetry, now);
        if let Some(store) = &mut self.handover.store {
            store.waiting.empty(&store.queues);
        }
        let waiting = std::mem::take(&mut self.clients.unleased);
        if waiting.is_empty() {
            return;
        }
        let shm = match MasterShm::new(self.clients.layout) {
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
        let mut leases = Leases::new(self.clients.layout.slots());
        for unleased in waiting {
            if let Err((reason, client)) = leases.give(unleased, &shm) {
                let loss = Loss::from_error(&reason);
                self.clients
                    .lose(loss, &reason, client, &mut self.telemetry);
            }
        }
        let worker = (NO_WORKER, 0, self.settings.generation);
        self.handover
            .add_orphan(OrphanedShm::new(worker, Vec::new(), shm, leases));
    }
}
