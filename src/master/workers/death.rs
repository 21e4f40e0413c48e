//! The death of a worker: collected, attributed, its clients leased again, and reported.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::clients::leases::DeadWorkerClients;
use crate::master::telemetry::counters::{Cause, Loss, Reason};
use crate::master::workers::worker::Worker;
use crate::pool::MemberState;
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::byte_counts::{self, Writes};
use crate::sys::process::{self, Exit};

/// The death of a worker, as it is reported.
struct Death {
    name: String,
    about: About,
    seat: usize,
    cause: String,
    kind: Cause,
    /// The consequence for the request that was executing.
    outcome: &'static str,
    /// Clients that are leased to other workers, and clients that are closed.
    moved: usize,
    lost: usize,
    /// Unfinished frames that are dropped because memory is short.
    dropped: usize,
    has_been_ready: bool,
    /// The worker was wanted to end, or ended well.
    is_finished: bool,
    /// The wait before the successor starts, if there is one.
    delay: Option<Duration>,
}

impl Master {
    /// Collects all children that have ended.
    pub(crate) fn reap(&mut self, now: Instant) {
        loop {
            match process::ended() {
                Ok(Some((pid, exit))) => {
                    self.take_death(pid, exit, now);
                    if let Err(e) = process::collect(pid) {
                        return log::error!("cannot collect process {pid}: {e}");
                    }
                }
                Ok(None) => return self.end_sessions(),
                Err(e) => return log::error!("cannot collect dead workers: {e}"),
            }
        }
    }

    /// Handles the end of a process. For PID 1 of a container it may be any process.
    fn take_death(&mut self, pid: u32, exit: Exit, now: Instant) {
        if let Some(exporter) = &mut self.exporter
            && exporter.take_death(pid, exit, now)
        {
            return;
        }
        let mut workers = self.workers.all.values();
        let id = workers
            .find(|worker| worker.pid == pid)
            .map(|worker| worker.id);
        match id {
            Some(id) => self.end_worker(id, pid, exit, now),
            None if self.reading_ended(pid, exit) => {}
            None => self.candidate_ended(pid, exit, now),
        }
    }

    fn end_worker(&mut self, id: WorkerId, pid: u32, exit: Exit, now: Instant) {
        self.end_descendants(pid);
        // The last messages of a worker survive its death.
        while self.hear_one(id, now) {}
        let Some(mut worker) = self.workers.all.remove(&id) else {
            return;
        };
        // The worker is not collected yet: until then /proc/PID exists, and the pid is its own.
        let written = match worker.shm.header().writer() {
            Some(thread) => byte_counts::written_by_thread(pid, thread).ok(),
            None => byte_counts::written_by_process(pid).ok(),
        };
        let _ = self.poller.remove(&worker.channel);
        self.count_in(&mut worker);
        if self.lifecycle.is_restarting() {
            return self.keep_orphan(worker, written, now);
        }
        let death = self.attribute_death(worker, written, exit, now);
        self.report_death(death);
    }

    /// Attributes a death, leases the clients of the worker again, and lets the pool decide on its
    /// successor.
    fn attribute_death(
        &mut self,
        worker: Worker,
        written: Option<Writes>,
        exit: Exit,
        now: Instant,
    ) -> Death {
        let has_answered = worker.believed.counters().requests() > 0;
        let (name, about) = (worker.name(), worker.about());
        let Worker {
            id,
            seat,
            shm,
            leases,
            methods,
            failure,
            is_timed_out,
            is_unneeded,
            killed_for,
            has_been_ready,
            ..
        } = worker;
        let mut left = leases.into_left(&shm, written, is_timed_out);
        let blame = self.lay_blame(exit, is_timed_out, &methods, &left, now);
        let waiting = std::mem::take(&mut left.waiting);
        self.clients
            .await_handshakes(shm, waiting, is_timed_out, now);
        let cause = blame.cause(exit, failure);
        let kind = Cause::from_exit(exit, blame.is_out_of_memory, killed_for);
        let lost = left.lost.len();
        let moved = self.recover_clients(left);
        let dropped = if blame.is_out_of_memory {
            self.relieve_memory()
        } else {
            0
        };
        if let Some((client, peer)) = blame.culprit {
            self.close_culprit(client, peer);
        }
        let is_no_loss = self
            .workers
            .pool
            .member(id)
            .is_none_or(|member| !matches!(member.state, MemberState::Ready { .. }));
        // A worker killed from outside, or by a request, was no worse than its successor: the
        // successor starts without delay.
        let is_own_doing = exit.is_own_doing() || blame.is_out_of_memory;
        let was_useful = has_answered || blame.request.is_some() || !is_own_doing;
        let delay = self.workers.pool.exited(id, was_useful, now);
        let is_well =
            exit == Exit::Status(0) && blame.request.is_none() && (has_answered || is_no_loss);
        Death {
            name,
            about: About {
                clients: Some((moved + lost) as u64),
                ..about
            },
            seat,
            cause,
            kind,
            outcome: blame.outcome,
            moved,
            lost,
            dropped,
            has_been_ready,
            is_finished: is_well || is_unneeded,
            delay,
        }
    }

    /// Closes or leases again the clients that a dead worker had. Returns the number of clients that
    /// are leased again.
    fn recover_clients(&mut self, left: DeadWorkerClients) -> usize {
        for (reason, client) in left.lost {
            self.clients.lose(
                Loss::from_error(&reason),
                &reason,
                client,
                &mut self.telemetry,
            );
        }
        for client in left.ended {
            self.clients.remove(client, &self.telemetry);
        }
        let recovered = left.recovered.into_iter();
        let recovered = recovered.map(|(unleased, _)| Ok(unleased));
        self.clients
            .requeue(recovered, Reason::Death, &mut self.telemetry)
    }

    fn report_death(&mut self, death: Death) {
        let Death {
            name,
            about,
            cause,
            moved,
            lost,
            outcome,
            ..
        } = death;
        let (counts, events) = (&mut self.telemetry.counts, &mut self.telemetry.events);
        if death.is_finished {
            let moved = match moved {
                0 => String::new(),
                _ => format!("; {} moved", Counted(moved, "client")),
            };
            let sentence = format_args!("{name} finished{moved}");
            return events.note(Kind::WorkerFinished, about, sentence);
        }
        if death.has_been_ready {
            counts.deaths.add(death.kind, 1);
            counts.rescues.add(death.kind, moved as u64);
        } else {
            counts.failed_starts += 1;
        }
        if self.lifecycle.is_ending() {
            let sentence =
                format_args!("{name} {cause}; {} closed", Counted(moved + lost, "client"));
            return events.note(Kind::WorkerDied, about, sentence);
        }
        let next = match death.delay {
            Some(delay) if delay.is_zero() => "; its successor starts now".to_owned(),
            Some(delay) => format!("; its successor starts in {} ms", delay.as_millis()),
            None => String::new(),
        };
        let dropped = match death.dropped {
            0 => String::new(),
            frames => format!(
                "; {} dropped, as memory is short",
                Counted(frames, "unfinished frame")
            ),
        };
        let sentence = format_args!(
            "{name} {cause}; {} moved, {lost} closed, {outcome}{dropped}{next}",
            Counted(moved, "client")
        );
        events.note(Kind::WorkerDied, about, sentence);
        self.workers.last_failure = Some(cause.clone());
        self.workers.seat(death.seat).last_death = Some(cause);
    }
}
