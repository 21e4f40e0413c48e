//! The lives of workers: what they say, how they end, and what the pool wants of them.

use std::io;
use std::time::Instant;

use super::client::Client;
use super::worker::{Left, Worker};
use super::{Master, Seat, Token};
use crate::channel::Heard;
use crate::proto::channel::{Ready, Settings, Start, ToMaster, VERSION};
use crate::proto::names::WorkerId;
use crate::sys::poll::Interest;
use crate::sys::process::{self, Exit};
use crate::sys::{ledger, socket};

impl Master {
    pub(super) fn reap(&mut self, now: Instant) {
        loop {
            match process::ended() {
                Ok(Some((pid, exit))) => {
                    // Before it is collected, as that is the end of /proc/PID.
                    let written = ledger::written_by(pid).ok();
                    if let Err(e) = process::collect(pid) {
                        return log::error!("cannot collect process {pid}: {e}");
                    }
                    self.take_death(pid, exit, written, now);
                }
                Ok(None) => return,
                Err(e) => return log::error!("cannot collect dead workers: {e}"),
            }
        }
    }

    /// A process has ended. As PID 1 of a container that may be anybody.
    fn take_death(&mut self, pid: u32, exit: Exit, written: Option<u64>, now: Instant) {
        let is_it = |seat: &&mut Seat| seat.worker.as_ref().is_some_and(|worker| worker.pid == pid);
        let Some(seat) = self.seats.iter_mut().find(is_it) else { return };
        let Some(mut worker) = seat.worker.take() else { return };
        let _ = self.poller.remove(&worker.channel);
        // Its last words, which its death did not take away.
        let mut closed = Vec::new();
        while let Ok(Heard::Message(message, _)) = worker.channel.hear(&mut self.scratch) {
            match message {
                ToMaster::Closed(slots) | ToMaster::Freed(slots) => {
                    closed.extend(slots.into_iter().filter_map(|slot| worker.closed(slot)));
                }
                ToMaster::Failed(failed) => worker.failure = Some(failed.reason),
                ToMaster::Ready(_) | ToMaster::Room | ToMaster::Worn => {}
            }
        }
        let has_answered = worker.desk.header().requests() > 0;
        seat.totals = seat.totals.plus(&worker);
        let (id, name) = (worker.id, format!("worker {} (pid {pid}, gen {})", worker.id, self.generation));
        let failure = worker.failure.take();
        let left = worker.into_left(written);
        let mut cause = exit.to_string();
        if let Some(method) = &left.method {
            cause += &format!(" in method {method:?}");
        }
        if let Some(reason) = failure {
            cause += &format!(": {reason}");
        }
        if !self.pool.is_stopping() {
            seat.last_death = Some(cause.clone());
        }
        let (moved, faults, lost) = (left.recovered.len(), left.faults, left.lost.len());
        self.take_over(left, closed);
        match self.pool.exited(id, has_answered, now) {
            Some(delay) => {
                let next = if delay.is_zero() { "now".to_owned() } else { format!("in {} ms", delay.as_millis()) };
                log::warn!(
                    "{name} {cause}; {moved} clients moved, {faults} of them with a request that was executing, {lost} closed; \
                     its successor starts {next}"
                );
            }
            None if exit == Exit::Status(0) => log::info!("{name} finished"),
            None => log::warn!("{name} {cause}; {} clients closed", moved + lost),
        }
    }

    /// What becomes of the clients of a worker that is gone.
    fn take_over(&mut self, left: Left, closed: Vec<Client>) {
        for (reason, client) in left.lost {
            self.lose(&reason, client);
        }
        left.ended.into_iter().chain(closed).for_each(|client| self.forget(client));
        if self.pool.is_stopping() {
            left.recovered.into_iter().for_each(|unleased| self.forget(unleased.client));
        } else {
            self.moved += left.recovered.len() as u64;
            self.unleased.extend(left.recovered);
        }
    }

    /// Closes a client that has no worker and can have none.
    pub(super) fn lose(&mut self, reason: &io::Error, client: Client) {
        log::debug!("client {} ({}) cannot be recovered: {reason}; closing it", client.id, client.peer);
        socket::end(&client.socket);
        self.lost += 1;
        self.forget(client);
    }

    pub(super) fn forget(&mut self, client: Client) {
        log::debug!("client {} ({}) closed", client.id, client.peer);
        self.addresses.leave(&client.peer);
        self.clients -= 1;
        self.gate.relieve();
    }

    /// Takes in what a worker says: one message, as more of them are told by the next wait.
    pub(super) fn hear(&mut self, id: WorkerId, is_writable: bool, now: Instant) {
        let is_it = |seat: &Seat| seat.worker.as_ref().is_some_and(|worker| worker.id == id);
        let Some(index) = self.seats.iter().position(is_it) else { return };
        if is_writable {
            self.channel_takes_again(index, now);
        }
        let Some(worker) = self.seats[index].worker.as_mut() else { return };
        match worker.channel.hear(&mut self.scratch) {
            Ok(Heard::Message(ToMaster::Closed(slots) | ToMaster::Freed(slots), _)) => {
                let closed: Vec<Client> = slots.into_iter().filter_map(|slot| worker.closed(slot)).collect();
                closed.into_iter().for_each(|client| self.forget(client));
            }
            Ok(Heard::Message(ToMaster::Ready(ready), _)) => self.take_ready(id, ready, now),
            Ok(Heard::Message(ToMaster::Failed(failed), _)) => worker.failure = Some(failed.reason),
            // It is enough that the loop turns.
            Ok(Heard::Message(ToMaster::Room | ToMaster::Worn, _) | Heard::Nothing) => {}
            // Not its death: that is told by its being collected. But nothing will be heard of it any more. One that is
            // about to end does so with the status that it wanted.
            Ok(Heard::Closed) => {
                let _ = self.poller.remove(&worker.channel);
                kill(worker);
            }
            Ok(Heard::Garbage(malformed)) => {
                log::error!("worker {id} (pid {}): {malformed}; killing it", worker.pid);
                kill(worker);
            }
            Err(e) => {
                log::error!("worker {id} (pid {}): cannot hear it: {e}; killing it", worker.pid);
                kill(worker);
            }
        }
    }

    fn channel_takes_again(&mut self, index: usize, now: Instant) {
        let Some(worker) = self.seats[index].worker.as_mut().filter(|worker| worker.is_full) else { return };
        worker.is_full = false;
        let _ = self.poller.modify(&worker.channel, Token::Worker(worker.id).into(), Interest::Read);
        self.tell_to_stop(index, now);
    }

    fn take_ready(&mut self, id: WorkerId, ready: Ready, now: Instant) {
        let is_it = |worker: &&mut Worker| worker.id == id;
        let Some(worker) = self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut()).find(is_it) else { return };
        if ready.version != VERSION {
            worker.failure = Some(format!("it speaks version {} of the channel, not {VERSION}", ready.version));
            return kill(worker);
        }
        if !self.pool.ready(id, now) {
            return;
        }
        let took = now.duration_since(worker.started);
        worker.methods = ready.methods;
        log::info!("worker {id} (pid {}, gen {}) is ready after {} ms", worker.pid, self.generation, took.as_millis());
        if let Some(announce) = self.announce.take() {
            let addresses: Vec<String> = self.listeners.iter().map(|listener| listener.address.to_string()).collect();
            log::info!("{} {} serves on {}", self.name, self.version, addresses.join(", "));
            announce(&addresses);
        }
    }

    pub(super) fn spawn(&mut self, index: usize, id: WorkerId, now: Instant) {
        let start = Start {
            version: VERSION,
            name: self.name.clone(),
            worker: id,
            seat: index as u32,
            generation: self.generation,
            slots: self.layout.slots(),
            quarantined: Vec::new(),
            settings: self.settings(),
        };
        let spawned = Worker::spawn(&self.executable, start, self.layout, now).and_then(|worker| {
            self.poller.add(&worker.channel, Token::Worker(id).into(), Interest::Read).map(|()| worker)
        });
        let seat = &mut self.seats[index];
        match spawned {
            Ok(worker) => {
                log::debug!("worker {id} (pid {}, gen {}) started", worker.pid, self.generation);
                seat.spawned += 1;
                seat.worker = Some(worker);
            }
            Err(e) => {
                seat.last_death = Some(format!("cannot be started: {e}"));
                let delay = self.pool.exited(id, false, now).unwrap_or_default();
                log::error!("worker {id} cannot be started: {e}; trying again in {} ms", delay.as_millis());
            }
        }
    }

    fn settings(&self) -> Settings {
        let limits = &self.config.limits;
        Settings {
            max_frame: limits.max_frame,
            buffers: limits.buffers,
            idle_timeout: limits.idle_timeout,
            frame_timeout: limits.frame_timeout,
            send_timeout: limits.send_timeout,
            request_timeout: limits.request_timeout,
            worn_at: None,
            max_requests: None,
            log: self.config.log.clone(),
        }
    }

    pub(super) fn kill_late(&mut self, index: usize, id: WorkerId) {
        let Some(worker) = self.seats[index].worker.as_mut().filter(|worker| worker.id == id) else { return };
        if self.pool.is_stopping() {
            self.killed += 1;
            log::warn!("worker {id} (pid {}) has not finished in time; killing it", worker.pid);
        } else {
            let limit = self.config.workers.start_timeout;
            worker.failure = Some(format!("it was not ready within {limit:?}"));
            log::warn!("worker {id} (pid {}) is not ready after {limit:?}; killing it", worker.pid);
        }
        kill(worker);
    }

    pub(super) fn tell_to_stop(&mut self, index: usize, now: Instant) {
        let Some(worker) = self.seats[index].worker.as_mut() else { return };
        // One that cannot be told is killed at its deadline.
        if let Err(e) = worker.tell_to_stop(now) {
            log::error!("worker {} (pid {}): cannot be told to stop: {e}", worker.id, worker.pid);
        }
        self.watch_full(index);
    }

    /// Has the poller tell when a channel that is full takes messages again.
    pub(super) fn watch_full(&mut self, index: usize) {
        let Some(worker) = self.seats[index].worker.as_ref().filter(|worker| worker.is_full) else { return };
        let _ = self.poller.modify(&worker.channel, Token::Worker(worker.id).into(), Interest::Both);
    }
}

/// Kills a worker. Its end is taken in like every other when it is collected.
pub(super) fn kill(worker: &Worker) {
    if let Err(e) = process::kill_child(worker.pid) {
        log::error!("cannot kill worker {} (pid {}): {e}", worker.id, worker.pid);
    }
}
