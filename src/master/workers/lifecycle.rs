//! The lifecycle of workers: their messages, their end, and the effects that the pool decides on.

use std::io;
use std::time::Instant;

use crate::channel::Incoming;
use crate::config::Config;
use crate::master::clients::leases::Done;
use crate::master::telemetry::counters::{Cause, Reason};
use crate::master::workers::worker::{NOT_NOW, Worker};
use crate::master::{Master, Token, memory};
use crate::pool::Late;
use crate::proto::channel::{Ready, Settings, Start, Stop, ToMaster, ToWorker, VERSION};
use crate::proto::control::{About, Kind};
use crate::proto::log::Log;
use crate::proto::names::{Generation, WorkerId};
use crate::proto::text::Counted;
use crate::sys::poll::Interest;

impl Master {
    /// Revokes the leases of all clients of a worker that are in no turn. Returns their number; the
    /// worker must be notified afterwards.
    pub(crate) fn take_all(&mut self, id: WorkerId, reason: Reason) -> usize {
        let Some(worker) = self.workers.all.get_mut(&id) else {
            return 0;
        };
        let taken = worker.leases.revoke_all(&worker.shm);
        self.clients.requeue(taken, reason, &mut self.telemetry)
    }

    /// Reads from a worker's channel, or writes to it again.
    pub(crate) fn attend(&mut self, id: WorkerId, is_writable: bool, now: Instant) {
        if let Some(worker) = self.workers.all.get_mut(&id).filter(|_| is_writable)
            && let Err(e) = worker.channel_takes_again(&self.poller)
        {
            log::error!("cannot send to {}: {e}; killing it", worker.name());
            worker.kill();
        }
        // One message is enough: the next wait reports further ones.
        self.hear_one(id, now);
    }

    /// Handles one message of a worker. Returns whether there was one.
    pub(crate) fn hear_one(&mut self, id: WorkerId, now: Instant) -> bool {
        let Some(worker) = self.workers.all.get_mut(&id) else {
            return false;
        };
        match worker.channel.receive(&mut self.scratch) {
            Ok(Incoming::Message(message, _)) => {
                self.take_message(id, message, now);
                true
            }
            Ok(Incoming::Nothing) => false,
            // This is not the worker's death, which its collection reports. But no message can
            // arrive any more. A worker that is about to end does so with the status that it chose.
            Ok(Incoming::Closed) => {
                let _ = self.poller.remove(&worker.channel);
                worker.kill();
                false
            }
            Ok(Incoming::Garbage(malformed)) => {
                log::error!("{}: {malformed}; killing it", worker.name());
                worker.kill();
                false
            }
            Err(e) => {
                log::error!("cannot receive from {}: {e}; killing it", worker.name());
                worker.kill();
                false
            }
        }
    }

    fn take_message(&mut self, id: WorkerId, message: ToMaster, now: Instant) {
        match message {
            ToMaster::Closed(slots) => self.take_done(id, &slots, |worker, slot| {
                worker.leases.closed(slot, &worker.shm)
            }),
            // A client that the worker gives up now belongs to the next master.
            ToMaster::Released(_) if self.lifecycle.is_restarting() => {}
            ToMaster::Released(slots) => self.take_done(id, &slots, |worker, slot| {
                worker.leases.released(slot, &worker.shm)
            }),
            ToMaster::Ready(ready) => self.take_ready(id, ready, now),
            ToMaster::Failed(failed) => {
                if let Some(worker) = self.workers.all.get_mut(&id) {
                    worker.failure = Some(failed.reason);
                }
            }
            // Waking the loop is enough.
            ToMaster::HasCapacity => {}
            ToMaster::NearRequestLimit => self.workers.pool.near_request_limit(id),
        }
    }

    fn take_done(&mut self, id: WorkerId, slots: &[u32], done: impl Fn(&mut Worker, u32) -> Done) {
        let mut given_up = Vec::new();
        for slot in slots {
            let Some(worker) = self.workers.all.get_mut(&id) else {
                return;
            };
            match done(worker, *slot) {
                Done::Known => {}
                Done::Ended(client) => self.clients.remove(client, &self.telemetry),
                Done::GivenUp(recovered) => given_up.push(recovered),
                Done::Nonsense => {
                    log::error!(
                        "{}: protocol error: released slot {slot}, which holds no client; killing it",
                        worker.name()
                    );
                    worker.kill();
                    break;
                }
            }
        }
        self.clients
            .requeue(given_up, Reason::Drain, &mut self.telemetry);
    }

    fn take_ready(&mut self, id: WorkerId, ready: Ready, now: Instant) {
        let Some(worker) = self.workers.all.get_mut(&id) else {
            return;
        };
        if ready.version != VERSION {
            worker.failure = Some(format!(
                "its channel has version {}, not {VERSION}",
                ready.version
            ));
            return worker.kill();
        }
        if !self.workers.pool.ready(id, now) {
            return;
        }
        let took = now.duration_since(worker.started);
        (worker.methods, worker.has_been_ready) = (ready.methods, true);
        let sentence = format_args!("{} is ready after {} ms", worker.name(), took.as_millis());
        self.telemetry
            .events
            .note(Kind::WorkerReady, worker.about(), sentence);
        if let Some(announce) = self.manager.announce.take() {
            let addresses: Vec<String> = self
                .listeners
                .all
                .iter()
                .map(|listener| listener.address.to_string())
                .collect();
            let sentence = format_args!(
                "{} {} serves on {}",
                self.name,
                self.version,
                addresses.join(", ")
            );
            self.telemetry
                .events
                .note(Kind::Started, About::default(), sentence);
            announce(&addresses);
            self.manager.notify_ready();
        }
    }

    pub(crate) fn spawn(
        &mut self,
        index: usize,
        id: WorkerId,
        generation: Generation,
        now: Instant,
    ) {
        let next = self
            .reloads
            .current
            .as_ref()
            .filter(|reload| reload.generation == generation);
        let config = next.map_or(&self.settings.config, |reload| reload.config());
        let layout = self
            .reloads
            .current
            .as_ref()
            .map_or(self.clients.layout, |reload| reload.layout);
        let level = self
            .settings
            .log_level
            .filter(|_| next.is_none())
            .unwrap_or(config.log.level);
        let log = Log {
            level,
            ..config.log.clone()
        };
        let memory = next.map_or(self.settings.memory, |reload| reload.memory);
        let buffers = memory::buffers(&config.limits, memory, self.workers.pool.target().count);
        let start = Start {
            version: VERSION,
            name: self.name.clone(),
            worker: id,
            seat: index as u32,
            generation,
            slots: layout.slots(),
            longest: layout.max_frame(),
            quarantined: self.workers.strikes.quarantined().to_vec(),
            handoff_queues: self
                .handover
                .store
                .as_ref()
                .map_or(0, |store| store.queues.ends().len() as u32),
            settings: Settings {
                log,
                ..settings(config, id, buffers)
            },
        };
        let queues = self
            .handover
            .store
            .iter()
            .flat_map(|store| store.queues.descriptors())
            .collect();
        let spawned = Worker::spawn(&self.workers.executable, start, queues, layout, now).and_then(
            |worker| {
                self.poller
                    .add(&worker.channel, Token::Worker(id).into(), Interest::Read)
                    .map(|()| worker)
            },
        );
        match spawned {
            Ok(worker) => {
                self.telemetry.events.note(
                    Kind::WorkerStarted,
                    worker.about(),
                    format_args!("{} started", worker.name()),
                );
                self.workers.seat(index).spawned += 1;
                self.workers.all.insert(id, worker);
            }
            Err(e) => self.not_started(index, id, &e, now),
        }
    }

    fn not_started(&mut self, index: usize, id: WorkerId, error: &io::Error, now: Instant) {
        let reason = format!("cannot be started: {error}");
        let (delay, is_known) = match error.kind() {
            // This is no fault of the worker, so the pool does not give up because of it.
            NOT_NOW => (
                self.workers.pool.postponed(id, now),
                self.workers.last_failure.as_ref() == Some(&reason),
            ),
            _ => (
                self.workers.pool.exited(id, false, now).unwrap_or_default(),
                false,
            ),
        };
        self.workers.last_failure = Some(reason.clone());
        self.telemetry.counts.failed_starts += 1;
        self.workers.seat(index).last_death = Some(reason.clone());
        let sentence = format_args!(
            "worker {id} {reason}; trying again in {} ms",
            delay.as_millis()
        );
        let about = About {
            worker: Some(id),
            seat: Some(index as u32),
            ..About::default()
        };
        if is_known {
            log::debug!("{sentence}");
        } else {
            self.telemetry
                .events
                .note(Kind::WorkerFailed, about, sentence);
        }
    }

    pub(crate) fn kill_late(&mut self, id: WorkerId, why: Late) {
        let Some(worker) = self.workers.all.get_mut(&id) else {
            return;
        };
        let (about, name) = (worker.about(), worker.name());
        match why {
            Late::NotReady => {
                worker.killed_for = Some(Cause::Late);
                // Its generation may be rolled back because of it: then the pool wants another
                // worker already, and the death will be known only later.
                let config = self
                    .reloads
                    .current
                    .as_ref()
                    .filter(|reload| reload.generation == worker.generation);
                let limit = config
                    .map_or(&self.settings.config, |reload| reload.config())
                    .workers
                    .start_timeout;
                worker.failure = Some(format!("it was not ready within {limit:?}"));
                self.workers.last_failure = Some(format!("was not ready within {limit:?}"));
                let sentence = format_args!("{name} is not ready after {limit:?}; killing it");
                self.telemetry
                    .events
                    .note(Kind::WorkerKilled, about, sentence);
            }
            Late::NotGone => {
                worker.killed_for = Some(Cause::Late);
                self.telemetry.counts.killed += 1;
                self.telemetry.events.note(
                    Kind::WorkerKilled,
                    about,
                    format_args!("{name} did not finish in time; killing it"),
                );
            }
            Late::Stalled => {
                worker.killed_for = Some(Cause::Timeout);
                worker.is_timed_out = worker.is_executing();
                let what = match worker.method_in_turn() {
                    Some(method) if worker.is_timed_out => {
                        format!("exceeded request-timeout in method {method:?}")
                    }
                    _ if worker.is_timed_out => "exceeded request-timeout".to_owned(),
                    _ => "has been stuck for request-timeout".to_owned(),
                };
                self.telemetry.events.note(
                    Kind::WorkerKilled,
                    about,
                    format_args!("{name} {what}; killing it"),
                );
            }
            Late::Unneeded => {
                worker.is_unneeded = true;
                let sentence = format_args!("{name} is not needed any more; killing it");
                self.telemetry
                    .events
                    .note(Kind::WorkerDraining, about, sentence);
            }
        }
        worker.kill();
    }

    /// Sends a worker a message that it must receive at some time.
    pub(crate) fn tell(&mut self, id: WorkerId, message: ToWorker) {
        let Some(worker) = self.workers.all.get_mut(&id) else {
            return;
        };
        if let Err(e) = worker.say(message) {
            log::error!("cannot send to {}: {e}; killing it", worker.name());
            worker.kill();
        }
        worker.watch_channel(&self.poller);
    }

    pub(crate) fn tell_to_stop(&mut self, id: WorkerId, by: Instant, now: Instant) {
        self.tell(
            id,
            ToWorker::Stop(Stop {
                within: by.saturating_duration_since(now),
            }),
        );
    }

    /// Ends a worker's leases. The worker itself gives up clients that are in a turn, and exits.
    pub(crate) fn drain_worker(&mut self, id: WorkerId, reason: &str) {
        let moved = self.take_all(id, Reason::Drain);
        let Some(worker) = self.workers.all.get(&id) else {
            return;
        };
        let about = About {
            clients: Some(moved as u64),
            ..worker.about()
        };
        let sentence = format_args!(
            "{} retires: {reason}; {} moved",
            worker.name(),
            Counted(moved, "client")
        );
        self.telemetry
            .events
            .note(Kind::WorkerDraining, about, sentence);
        self.tell(id, ToWorker::Retire);
    }
}

/// Returns the settings that a worker must use.
fn settings(config: &Config, id: WorkerId, buffers: u64) -> Settings {
    let limits = &config.limits;
    let max_requests = config
        .workers
        .max_requests
        .map(|most| u64::from(most.get()));
    Settings {
        max_frame: limits.max_frame,
        buffers,
        idle_timeout: limits.idle_timeout,
        frame_timeout: limits.frame_timeout,
        send_timeout: limits.send_timeout,
        request_timeout: limits.request_timeout,
        restart_grace: limits.restart_grace,
        near_limit_at: max_requests.map(|most| worn_at(most, id)),
        max_requests,
        log: config.log.clone(),
    }
}

/// Returns after how many requests a worker's successor is prepared: from nine tenths to nineteen
/// twentieths of the request limit, by the worker's id, so that workers that started together do
/// not end together.
fn worn_at(most: u64, id: WorkerId) -> u64 {
    let spread = most / 20;
    most - spread - id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (spread + 1)
}
