//! Restores the state of an earlier master, or of this process before an upgrade.

use std::mem;
use std::rc::Rc;
use std::time::Instant;

use crate::logging;
use crate::master::clients::place::OrphanedShm;
use crate::master::handover::carried_over::CarriedOver;
use crate::master::handover::origin::MasterOrigin;
use crate::master::handover::state_file::SavedState;
use crate::master::handover::store::{self, HandoffStore};
use crate::master::handover::unleased::EarlierDatagrams;
use crate::master::handover::unpack::Unpacked;
use crate::master::listeners::listener::Listener;
use crate::master::telemetry::counters::{Counts, Loss, Reason};
use crate::master::workers::outgoing::Outgoing;
use crate::master::workers::trust;
use crate::master::{Error, Master, Token};
use crate::proto::control::{About, Kind, Origin};
use crate::proto::names::MAX_WORKERS;
use crate::proto::text::Counted;
use crate::sys::poll::Interest;

/// Most seats: as many as there can be workers, and some for those that retire.
const MAX_SEATS: usize = 1024;

impl Master {
    /// Restores everything that an earlier master has left, and stores it again. From here on no error closes the
    /// clients. `limit` is the limit of descriptors.
    ///
    /// # Errors
    /// When the handoff queues of a first master cannot be made.
    pub(crate) fn restore(
        &mut self,
        origin: MasterOrigin,
        limit: u64,
        now: Instant,
    ) -> Result<(), Error> {
        let (inherited, carried_over) = match origin {
            MasterOrigin::Fresh => (None, None),
            MasterOrigin::Restarted(inherited) => (Some(*inherited), None),
            MasterOrigin::Upgraded(inherited, carried_over) => {
                (Some(*inherited), Some(*carried_over))
            }
        };
        let mut unpacked = Unpacked::default();
        let mut saved_state = None;
        let mut earlier = EarlierDatagrams::default();
        if let Some(inherited) = inherited {
            saved_state = Some(inherited.saved_state);
            if let Some((state_file, handoff)) = inherited.kept {
                let queues;
                (queues, unpacked) = handoff.take_over();
                earlier.counts = mem::take(&mut unpacked.datagrams);
                earlier.descriptors = unpacked.descriptors;
                self.handover.store = Some(HandoffStore::from_parts(
                    queues,
                    state_file,
                    inherited.stored,
                ));
            }
        }
        if self.handover.store.is_none() && store::is_wanted() {
            let new = HandoffStore::new(limit).map_err(Error::system("make handoff queues"))?;
            self.handover.store = Some(new);
        }
        let store = self.handover.store.as_ref();
        self.clients.figures = store.map(|store| store.state_file.figures().clone());
        self.listeners.all.iter_mut().for_each(Listener::own);
        if let Some(saved_state) = saved_state {
            self.restore_state(saved_state);
            self.restore_clients(unpacked, &mut earlier, now);
        }
        if let Some(exporter) = &mut self.exporter {
            exporter.watch(&self.poller, now);
        }
        if let Some(carried_over) = carried_over {
            self.adopt_carried_over(carried_over, now);
        }
        self.continue_with_clients(now);
        // Those that have left, or were lost, must not be counted again if this master is killed.
        self.clients.write_figures(&self.telemetry);
        self.store_all(now);
        // The totals must include the counters of the shared memory that is packed again.
        if !earlier.counts.is_empty() {
            self.write_state();
        }
        self.keep_packed(&earlier, now);
        Ok(())
    }

    /// Restores the counters, and the changes that operators made at run time.
    fn restore_state(&mut self, saved_state: SavedState) {
        self.telemetry.counts = Counts {
            applied_at: self.telemetry.counts.applied_at,
            ..saved_state.counts
        };
        self.clients.without_client = self.telemetry.counts.without_client.total();
        self.telemetry.tally = saved_state.tally;
        self.telemetry.events.continue_after(saved_state.events);
        self.settings.last_reload = saved_state.last_reload;
        self.settings.log_level = saved_state.log_level;
        saved_state
            .log_level
            .into_iter()
            .for_each(logging::set_level);
        self.workers.seats = saved_state.seats;
        self.workers.seats.truncate(MAX_SEATS);
        self.workers.crash_limits.restore(saved_state.quarantined);
        let count = saved_state.count;
        if let Some(count) = count.filter(|count| (1..=MAX_WORKERS).contains(count)) {
            self.workers.pool.scale(count as usize);
            self.settings.count_origin = Origin::Runtime;
        }
        if let Some(store) = &self.handover.store {
            let figures = store.state_file.figures();
            self.clients.next_id = figures.next_client();
            self.telemetry.counts.refused = figures.refused();
            self.clients.without_client = self.clients.without_client.max(figures.without_client());
        }
    }

    /// Adds the counters of orphaned shared memory that are in no totals yet. Returns this shared memory.
    fn count_orphans(&mut self, unpacked: &mut Unpacked) -> Vec<Rc<OrphanedShm>> {
        for orphan in unpacked.shms().filter(|orphan| !orphan.record.is_counted) {
            let OrphanedShm { record, shm } = orphan;
            match trust::counters_of(shm, record.methods.len()) {
                Ok(counters) => {
                    let seat = (record.seat as usize).min(MAX_SEATS - 1);
                    self.workers.add_counters(
                        seat,
                        &counters,
                        &record.methods,
                        &mut self.telemetry,
                    );
                    self.telemetry.tally.add_own(shm.own_metrics());
                }
                Err(why) => {
                    let name = format!("worker {} of the previous master", record.worker);
                    trust::reject_counters(&name, why, &mut self.telemetry);
                }
            }
        }
        unpacked.set_counted()
    }

    /// Takes over the clients that were left, and reports them. Completes what is known about their datagrams.
    fn restore_clients(
        &mut self,
        mut unpacked: Unpacked,
        earlier: &mut EarlierDatagrams,
        now: Instant,
    ) {
        earlier.counted = self.count_orphans(&mut unpacked);
        let is_restart = unpacked.shms().next().is_some();
        let before = self.telemetry.counts.losses.clone();
        let mut moved = 0;
        for recovery in unpacked.recover_all() {
            for (reason, client) in recovery.lost {
                self.clients.add(1);
                let loss = Loss::from_error(&reason);
                self.clients
                    .lose(loss, &reason, client, &mut self.telemetry);
            }
            self.clients.add(recovery.recovered.len() as u64);
            let pending = recovery.recovered.iter();
            let pending = pending.filter(|(unleased, _)| unleased.client.is_pending());
            self.clients.pending += pending.count() as u64;
            moved += self.clients.requeue_left(
                recovery.recovered,
                recovery.app,
                Reason::Restart,
                &mut self.telemetry,
                now,
            );
        }
        earlier.has_stray = unpacked.has_stray;
        earlier.is_unfinished = unpacked.is_unfinished;
        self.telemetry.counts.losses.add_all(&unpacked.lost);
        unpacked.forget_not_packed();
        let ids = self.clients.all_unleased();
        let next_id = ids.map(|unleased| unleased.client.id.0 + 1).max();
        self.clients.next_id = self.clients.next_id.max(next_id.unwrap_or(1));
        if self.clients.count() > 0 {
            // Clients wait for workers even if the first ones fail.
            self.workers.pool.disable_give_up();
        }
        let losses = self.telemetry.counts.losses.since(&before);
        let lost = match losses.total() {
            0 if !is_restart => return,
            0 => "none lost".to_owned(),
            lost => format!("{lost} lost: {losses}"),
        };
        let about = About {
            clients: Some(moved as u64),
            ..About::default()
        };
        let sentence = format_args!(
            "took over {} from the previous master; {lost}",
            Counted(moved, "client")
        );
        self.telemetry.events.note(Kind::TookOver, about, sentence);
    }

    /// Continues with the workers and the control clients that this process had before an upgrade.
    fn adopt_carried_over(&mut self, carried_over: CarriedOver, now: Instant) {
        self.handover.is_same_program = carried_over.is_same;
        self.handover.executable_path = carried_over.executable;
        self.clients.next_id = carried_over.next_client;
        self.telemetry.counts.refused = carried_over.refused;
        // The addresses were announced before.
        self.manager.announce = None;
        self.manager.notifier.send_unsent(carried_over.unsent, now);
        for (mut worker, is_held) in carried_over.workers {
            let (token, id) = (Token::Worker(worker.id), worker.id);
            let added = self
                .poller
                .add(&worker.channel, token.into(), Interest::Read);
            if let Err(e) = added {
                worker.kill_for_error(&format_args!("its channel cannot be watched: {e}"));
            }
            if !carried_over.are_foreign {
                self.workers
                    .pool
                    .adopt(id, worker.seat, worker.generation, is_held, now);
            }
            self.clients.add(worker.leases.clients() as u64);
            let leased = worker.leases.iter();
            let pending = leased.filter(|(_, client)| client.is_pending()).count();
            self.clients.pending += pending as u64;
            self.workers.insert(worker);
        }
        if carried_over.are_foreign {
            self.workers.pool.disable_give_up();
            let grace = self.settings.config.limits.restart_grace;
            self.workers.outgoing = Some(Outgoing::new(now, grace));
        }
        let control = &mut self.control.clients;
        control.adopt(carried_over.control_clients, &self.poller, now);
        self.workers
            .watch_from(&self.settings.config, &self.clients, now);
        self.report_upgrade();
    }

    /// Counts all clients for their addresses, and gives those that an operator has closed under the previous master
    /// their time to leave.
    fn continue_with_clients(&mut self, now: Instant) {
        let (clients, workers) = (&mut self.clients, &self.workers);
        clients.recount_addresses(&self.settings.config.limits, workers.leased());
        clients.await_kicked_before(workers.leased(), now);
    }

    fn report_upgrade(&mut self) {
        let clients = self.clients.count();
        let about = About {
            clients: Some(clients),
            ..About::default()
        };
        let sentence = format_args!(
            "upgraded to {} {}{}; kept {} and {}; replacing the workers",
            self.name,
            self.version,
            if self.handover.is_same_program {
                " (the program has not changed)"
            } else {
                ""
            },
            Counted(self.workers.all.len(), "worker"),
            Counted(clients, "client")
        );
        self.telemetry.events.note(Kind::Upgraded, about, sentence);
    }
}
