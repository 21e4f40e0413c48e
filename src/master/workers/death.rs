//! The death of a worker: collected, attributed, its clients leased again, and reported.

use std::mem;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::clients::place::OrphanedShm;
use crate::master::lifecycle::Lifecycle;
use crate::master::memory;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Cause;
use crate::master::workers::Workers;
use crate::master::workers::app::WorkerEnd;
use crate::master::workers::crash::{self, Attribution};
use crate::master::workers::messages::MessageOutcome;
use crate::master::workers::worker::{KillReason, Worker};
use crate::pool::MemberState;
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::byte_counts::Writes;
use crate::sys::poll::Poller;
use crate::sys::process::Exit;

/// The death of a worker, as it is reported.
struct Death {
    name: String,
    about: About,
    seat: usize,
    /// The cause, as the messages describe it.
    description: String,
    cause: Cause,
    /// The consequence for the requests that were executing.
    outcome: String,
    /// Clients that are leased to other workers, and clients that are closed.
    moved: usize,
    lost: usize,
    /// Unfinished frames that are dropped because memory is short.
    dropped: usize,
    has_served: bool,
    /// Whether the worker ended because it was not needed any more, or ended in order.
    is_finished: bool,
    /// The wait before the successor starts, if there is one.
    delay: Option<Duration>,
}

/// A worker that has ended. Its last messages are received; its process is not collected yet.
pub(crate) struct DeadWorker {
    worker: Worker,
    /// All that its thread, or its process, has written, if that is known.
    written: Option<Writes>,
    /// `Ready` was among the last messages.
    pub(crate) has_become_ready: bool,
}

impl DeadWorker {
    /// Returns the record of the worker, and what it has written.
    pub(crate) fn into_parts(self) -> (Worker, Option<Writes>) {
        (self.worker, self.written)
    }
}

impl Workers {
    /// Removes the worker whose process has ended and is not collected yet: until then /proc/PID exists, and the pid is
    /// its own. Returns `None` if the process is not a worker.
    pub(crate) fn remove_dead(
        &mut self,
        pid: u32,
        lifecycle: Lifecycle,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) -> Option<DeadWorker> {
        let worker = self.all.values_mut().find(|worker| worker.pid == pid)?;
        worker.channel_state.has_ended = true;
        let id = worker.id;
        self.end_descendants(pid);
        // The last messages of a worker survive its death.
        let mut has_become_ready = false;
        loop {
            match self.receive(id, lifecycle, clients, telemetry, poller, now) {
                MessageOutcome::Nothing => break,
                MessageOutcome::Message => {}
                MessageOutcome::Ready => has_become_ready = true,
            }
        }
        let mut worker = self.all.remove(&id)?;
        let written = worker.writes.total(worker.shm.header());
        let _ = poller.remove(&worker.channel);
        self.add_last_counters(&mut worker, telemetry);
        Some(DeadWorker {
            worker,
            written,
            has_become_ready,
        })
    }

    /// Attributes a death, has the clients of the worker leased again, lets the pool decide on its successor, and
    /// reports the death. Returns whether the kernel killed the worker, or its app, because memory was out.
    pub(crate) fn settle_death(
        &mut self,
        dead: DeadWorker,
        exit: Exit,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) -> bool {
        let (worker, written) = dead.into_parts();
        let has_answered = worker.trusted.counters().requests() > 0;
        let (name, about, record) = (worker.name(), worker.about(), worker.shm_record());
        let Worker {
            id,
            seat,
            shm,
            leases,
            failure,
            app,
            life,
            ..
        } = worker;
        let kill_reason = life.kill_reason();
        let end = WorkerEnd::new(exit, app.gone.as_ref(), kill_reason.is_some());
        let is_timed_out = kill_reason == Some(KillReason::TimedOut);
        let orphan = Rc::new(OrphanedShm::new(record, shm, written));
        let mut recovery = clients.recover_left(&orphan, leases, written, is_timed_out);
        let attribution = self.attribute(end, &orphan.record.methods, &recovery, telemetry, now);
        recovery.set_suspects(attribution.is_of_a_request);
        if attribution.has_quarantined {
            self.send_quarantined(poller);
        }
        let in_handshake = mem::take(&mut recovery.in_handshake);
        clients.await_handshakes(orphan, in_handshake, is_timed_out, now);
        let lost = recovery.lost.len();
        let moved = clients.recover(recovery, telemetry, now);
        let is_out_of_memory = attribution.is_out_of_memory;
        let dropped = is_out_of_memory.then(|| memory::relieve(clients));
        crash::close_crashers(&attribution.crashers, clients, telemetry);
        let (is_well, delay) =
            self.replace(id, end, &attribution, (has_answered, kill_reason), now);
        let clients = Some((moved + lost) as u64);
        let death = Death {
            name,
            about: About { clients, ..about },
            seat,
            description: attribution.cause(end, failure),
            cause: end.cause(is_out_of_memory, kill_reason.and_then(KillReason::cause)),
            outcome: attribution.outcome,
            moved,
            lost,
            dropped: dropped.unwrap_or(0),
            has_served: life.has_served(),
            is_finished: is_well || kill_reason == Some(KillReason::Unneeded),
            delay,
        };
        self.report_death(death, telemetry);
        is_out_of_memory
    }

    /// Lets the pool decide on the successor of a worker that has ended. Returns whether the worker ended well, and the
    /// wait before the successor starts, if there is one.
    fn replace(
        &mut self,
        id: WorkerId,
        end: WorkerEnd<'_>,
        attribution: &Attribution,
        (has_answered, kill_reason): (bool, Option<KillReason>),
        now: Instant,
    ) -> (bool, Option<Duration>) {
        let is_no_loss = self
            .pool
            .member(id)
            .is_none_or(|member| !matches!(member.state, MemberState::Ready { .. }));
        let is_own_doing = end.is_own_doing()
            || attribution.is_out_of_memory
            || kill_reason == Some(KillReason::Broken);
        // A worker that was killed from outside or by a request does not predict that its successor will fail, so the
        // successor starts without delay.
        let was_useful = has_answered || attribution.request.is_some() || !is_own_doing;
        let is_well =
            end.is_orderly() && attribution.request.is_none() && (has_answered || is_no_loss);
        (is_well, self.pool.exited(id, was_useful, now))
    }

    fn report_death(&mut self, death: Death, telemetry: &mut Telemetry) {
        let Death {
            name,
            about,
            description,
            moved,
            lost,
            outcome,
            ..
        } = death;
        let (counts, events) = (&mut telemetry.counts, &mut telemetry.events);
        if death.is_finished {
            let moved = match moved {
                0 => String::new(),
                _ => format!("; {} moved", Counted(moved, "client")),
            };
            let sentence = format_args!("{name} finished{moved}");
            return events.note(Kind::WorkerFinished, about, sentence);
        }
        if death.has_served {
            counts.deaths.add(death.cause, 1);
            counts.rescues.add(death.cause, moved as u64);
        } else {
            counts.failed_starts += 1;
        }
        if self.pool.is_stopping() {
            let sentence = format_args!(
                "{name} {description}; {} closed",
                Counted(moved + lost, "client")
            );
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
            "{name} {description}; {} moved, {lost} closed, {outcome}{dropped}{next}",
            Counted(moved, "client")
        );
        events.note(Kind::WorkerDied, about, sentence);
        self.last_failure = Some(description.clone());
        self.seat(death.seat).last_death = Some(description);
    }
}
