//! The messages of workers.

use std::time::{Duration, Instant};

use crate::channel::Incoming;
use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::clients::leases::reports::SlotReport;
use crate::master::lifecycle::Lifecycle;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::Workers;
use crate::master::workers::proxied::is_uncounted;
use crate::master::workers::retire::to_successor;
use crate::master::workers::worker::{KillReason, Life, Worker};
use crate::pool::Why;
use crate::proto::channel::{Ready, SpentReason, Stop, ToMaster, ToWorker, VERSION};
use crate::proto::control::Kind;
use crate::proto::names::WorkerId;
use crate::sys::poll::Poller;
use crate::sys::process;

/// The outcome of reading from a worker's channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageOutcome {
    Nothing,
    Message,
    /// The worker has become ready.
    Ready,
}

impl Workers {
    /// Handles the poller's report that the channel of a worker accepts messages again.
    pub(crate) fn resume_channel(&mut self, id: WorkerId, poller: &Poller) {
        if let Some(worker) = self.all.get_mut(&id)
            && let Err(e) = worker.resume_channel(poller)
        {
            worker.kill_for_error(&format_args!("cannot send: {e}"));
        }
    }

    /// Handles one message of a worker.
    pub(crate) fn receive(
        &mut self,
        id: WorkerId,
        lifecycle: Lifecycle,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) -> MessageOutcome {
        let Some(worker) = self.all.get_mut(&id) else {
            return MessageOutcome::Nothing;
        };
        let received = worker.channel.receive(&mut self.scratch);
        worker.note_received(matches!(received, Ok(Incoming::Shortage)), poller, now);
        match received {
            Ok(Incoming::Message(message, _)) => {
                let context = (lifecycle, poller);
                return self.handle(id, message, context, clients, telemetry, now);
            }
            Ok(Incoming::Nothing | Incoming::Shortage) => {}
            // A closed channel does not prove a death; collecting the process does. A worker that is already ending
            // keeps the status that it chose. Any other one is killed, because no message can arrive from it any more.
            Ok(Incoming::Closed) if worker.channel_state.has_ended => {}
            Ok(Incoming::Closed) => {
                let _ = poller.remove(&worker.channel);
                match process::is_ending(worker.pid) {
                    true => worker.kill(),
                    false => worker.kill_for_error(&"it closed its channel"),
                }
            }
            Ok(Incoming::Garbage(malformed)) => worker.kill_for_error(&malformed),
            Err(e) => worker.kill_for_error(&format_args!("cannot receive: {e}")),
        }
        MessageOutcome::Nothing
    }

    fn handle(
        &mut self,
        id: WorkerId,
        message: ToMaster,
        (lifecycle, poller): (Lifecycle, &Poller),
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> MessageOutcome {
        match message {
            ToMaster::Closed(slots) => {
                self.empty_slots(id, &slots, clients, telemetry, |worker, slot| {
                    worker.leases.closed(slot, &worker.shm)
                });
            }
            // A client that the worker gives up now belongs to the next master.
            ToMaster::Released(_) if lifecycle.is_restarting() => {}
            ToMaster::Released(slots) => {
                self.empty_slots(id, &slots, clients, telemetry, |worker, slot| {
                    worker.leases.released(slot, &worker.shm)
                });
            }
            ToMaster::Proxied(slots) => self.update_proxied(id, &slots, clients, telemetry, poller),
            ToMaster::Ready(ready) => return self.set_ready(id, ready, clients, telemetry, now),
            ToMaster::Failed(failed) => {
                if let Some(worker) = self.all.get_mut(&id) {
                    worker.failure = Some(failed.reason);
                }
            }
            ToMaster::AppStarted(started) => {
                if let Some(worker) = self.all.get_mut(&id) {
                    worker.set_app(started);
                }
            }
            ToMaster::AppGone(gone) => {
                if let Some(worker) = self.all.get_mut(&id) {
                    worker.app.gone = Some(gone);
                }
                // The worker waits for this answer before it ends. Until then it can pack its clients.
                let within = Duration::ZERO;
                self.send(id, ToWorker::Stop(Stop { within }), poller);
            }
            // The message only wakes the loop, which then leases.
            ToMaster::HasCapacity => {}
            ToMaster::NearRequestLimit => self.pool.spent(id, Why::NearRequestLimit),
            ToMaster::Spent(spent) => self.pool.spent(
                id,
                match spent.reason {
                    SpentReason::Memory => Why::Memory,
                    SpentReason::Panic => Why::Panic,
                },
            ),
            ToMaster::Retiring => self.pool.retires(id),
            ToMaster::Health(health) => {
                self.set_health(id, health.unhealthy, clients, telemetry, poller, now);
            }
        }
        MessageOutcome::Message
    }

    /// Empties the slots that a worker has reported as closed or released. `empty` empties one slot.
    fn empty_slots(
        &mut self,
        id: WorkerId,
        slots: &[u32],
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        empty: impl Fn(&mut Worker, u32) -> SlotReport,
    ) {
        let Some(worker) = self.all.get_mut(&id) else {
            return;
        };
        let mut given_up = Vec::new();
        for slot in slots {
            match empty(worker, *slot) {
                SlotReport::AlreadyRevoked => {}
                SlotReport::Ended(client, reason) => clients.end(client, reason, telemetry),
                SlotReport::GivenUp(recovered) => given_up.push(recovered),
                SlotReport::Contradiction => {
                    worker.kill_for_error(&format_args!(
                        "protocol error: released slot {slot}, which holds no client"
                    ));
                    break;
                }
            }
        }
        let (uncounted, given_up): (Vec<_>, Vec<_>) = given_up.into_iter().partition(is_uncounted);
        for unleased in uncounted.into_iter().flatten() {
            let to = self.pool.successor(id).or(Some(id));
            clients.requeue_uncounted(Unleased { to, ..unleased }, telemetry);
        }
        let given_up = to_successor(given_up, self.pool.successor(id));
        clients.requeue(given_up, Reason::Drain, telemetry);
    }

    fn set_ready(
        &mut self,
        id: WorkerId,
        ready: Ready,
        clients: &Clients,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> MessageOutcome {
        let Some(worker) = self.all.get_mut(&id) else {
            return MessageOutcome::Message;
        };
        if ready.version != VERSION {
            worker.failure = Some(format!(
                "its channel has version {}, not {VERSION}",
                ready.version
            ));
            worker.kill_for(KillReason::Broken);
            return MessageOutcome::Message;
        }
        if !self.pool.ready(id, now) {
            return MessageOutcome::Message;
        }
        let took = now.duration_since(worker.started);
        worker.methods = ready.methods;
        if worker.life == Life::Starting {
            worker.life = Life::Serving;
        }
        worker.app.info = ready.app;
        worker.runtime = ready.runtime;
        let executor = worker.describe_executor();
        let executor =
            executor.map_or_else(String::new, |executor| format!(" with its {executor}"));
        let name = worker.name();
        let sentence = format_args!("{name}{executor} is ready after {} ms", took.as_millis());
        telemetry
            .events
            .note(Kind::WorkerReady, worker.about(), sentence);
        self.expect_shares(clients, now);
        self.expect_moves(now);
        MessageOutcome::Ready
    }
}
