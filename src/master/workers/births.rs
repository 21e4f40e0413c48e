//! The births of workers that zygotes fork: requested, reported, withdrawn.

use std::io;
use std::time::{Duration, Instant};

use crate::channel::Incoming;
use crate::master::Token;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::master::workers::zygote::{Birth, BirthNews, Orphaned, Zygote};
use crate::pool::KillDecision;
use crate::proto::control::{About, Kind};
use crate::proto::names::{Generation, WorkerId};
use crate::proto::zygote::{FromZygote, StartZygote, ZygoteFailure};
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::Exit;

impl Workers {
    /// Has the zygote of a generation fork a worker. `start` is the first message to the zygote if there is none: then
    /// it is started. Returns the births that failed.
    pub(crate) fn request_birth(
        &mut self,
        birth: Birth,
        start: Option<StartZygote>,
        poller: &Poller,
        now: Instant,
    ) -> Vec<(Birth, io::Error)> {
        let generation = birth.generation;
        if let Some(start) = start
            && let Err(e) = self.start_zygote(start, false, poller, now)
        {
            return vec![(birth, e)];
        }
        let Some(zygote) = self.zygotes.of_mut(generation) else {
            return Vec::new();
        };
        zygote.births.push_back(birth);
        zygote.request()
    }

    /// Starts a zygote.
    ///
    /// # Errors
    /// Those of [`Executable::spawn`] and of the poller; [`NOT_NOW`] when memory is short.
    pub(crate) fn start_zygote(
        &mut self,
        start: StartZygote,
        is_successor: bool,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<()> {
        let zygote = Zygote::spawn(&self.executable, start, is_successor, now)?;
        let token = Token::Zygote(zygote.generation).into();
        if let Err(e) = poller.add(&zygote.channel, token, Interest::Read) {
            zygote.kill();
            return Err(e);
        }
        log::debug!("{} started", zygote.name());
        self.zygotes.all.push(zygote);
        Ok(())
    }

    /// Handles one message of a zygote. Returns `None` when there is none.
    pub(crate) fn receive_from_zygote(
        &mut self,
        generation: Generation,
        poller: &Poller,
        now: Instant,
    ) -> Option<BirthNews> {
        let zygote = self.zygotes.of_mut(generation)?;
        let received = zygote.channel.receive(&mut self.scratch);
        zygote.note_received(matches!(received, Ok(Incoming::Shortage)), poller, now);
        let (message, descriptors) = match received {
            Ok(Incoming::Message(message, descriptors)) => (message, descriptors),
            Ok(Incoming::Nothing | Incoming::Shortage) => return None,
            Ok(Incoming::Closed) => {
                let _ = poller.remove(&zygote.channel);
                zygote.kill();
                return None;
            }
            Ok(Incoming::Garbage(malformed)) => {
                log::error!("{}: {malformed}; killing it", zygote.name());
                zygote.kill();
                return None;
            }
            Err(e) => {
                log::error!("{}: cannot receive: {e}; killing it", zygote.name());
                zygote.kill();
                return None;
            }
        };
        Some(match message {
            FromZygote::Ready => {
                zygote.is_ready = true;
                let took = now.duration_since(zygote.started).as_millis();
                log::info!("{} is ready after {took} ms", zygote.name());
                BirthNews::Nothing
            }
            FromZygote::Failed(failure) => {
                zygote.failure = Some(failure);
                BirthNews::Nothing
            }
            FromZygote::Forked { worker, pid } => zygote.forked(worker, pid, descriptors),
            FromZygote::Refused { worker, errno } => match zygote.take(worker) {
                Some(birth) => {
                    let error = io::Error::from_raw_os_error(errno);
                    BirthNews::Failed(birth, crate::sys::limit::named(error))
                }
                None => BirthNews::Nothing,
            },
        })
    }

    /// Sends a zygote the requests for births that it has not received. Returns the births that failed.
    pub(crate) fn request_births(&mut self, generation: Generation) -> Vec<(Birth, io::Error)> {
        let zygote = self.zygotes.of_mut(generation);
        zygote.map_or_else(Vec::new, Zygote::request)
    }

    /// Handles the end of a child, if it was a zygote whose last messages were received. Returns the consequence for
    /// the births that waited for it.
    pub(crate) fn zygote_ended(
        &mut self,
        pid: u32,
        exit: Exit,
        poller: &Poller,
    ) -> Option<Orphaned> {
        let index = self.zygotes.all.iter().position(|it| it.pid == pid)?;
        let zygote = self.zygotes.all.remove(index);
        let _ = poller.remove(&zygote.channel);
        let (name, generation, cause) = (zygote.name(), zygote.generation, zygote.cause(exit));
        let orphaned = zygote.orphaned(exit);
        match &orphaned {
            Orphaned::Fail(..) => log::warn!("{name} {cause}"),
            Orphaned::Again(..) => log::warn!("{name} {cause}; starting another one"),
            Orphaned::Execute(_) => {
                log::warn!("{name} {cause}");
                self.abandon_zygotes(generation);
            }
        }
        Some(orphaned)
    }

    /// Has the workers of a generation executed from now on.
    pub(crate) fn abandon_zygotes(&mut self, generation: Generation) {
        if self.zygotes.is_abandoned(generation) {
            return;
        }
        log::warn!(
            "the workers of generation {generation} are executed, not forked, until the next reload"
        );
        self.zygotes.abandoned.push(generation);
    }

    /// Returns the generation of the zygote with this pid.
    pub(crate) fn zygote_with_pid(&self, pid: u32) -> Option<Generation> {
        let found = self.zygotes.all.iter().find(|zygote| zygote.pid == pid);
        found.map(|zygote| zygote.generation)
    }

    /// Reports workers that a zygote could not fork.
    pub(crate) fn report_failed_births(
        &mut self,
        failed: impl IntoIterator<Item = (Birth, io::Error)>,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        for (birth, error) in failed {
            self.report_failed_start(birth.seat, birth.id, &error, telemetry, now);
        }
    }

    /// Gives up a worker that has no process yet. If the zygote is late, it is killed as well.
    pub(super) fn withdraw_birth(
        &mut self,
        id: WorkerId,
        why: KillDecision,
        start_timeout: Duration,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let found = self.zygotes.all.iter_mut();
        let mut found = found.filter_map(|zygote| Some((zygote.take(id)?, zygote)));
        let Some((birth, zygote)) = found.next() else {
            self.pool.exited(id, false, now);
            return;
        };
        if why == KillDecision::NotReady {
            let (what, cause) = match zygote.is_ready {
                true => ("has not forked it", "did not answer in time"),
                false => ("is not ready", "was not ready in time"),
            };
            let reason = format!("was not ready within {start_timeout:?}: its zygote {what}");
            let sentence = format_args!("worker {id} {reason}; killing {}", zygote.name());
            let about = About {
                worker: Some(id),
                seat: Some(birth.seat as u32),
                ..About::default()
            };
            telemetry.events.note(Kind::WorkerFailed, about, sentence);
            let late = ZygoteFailure {
                reason: cause.to_owned(),
                is_unsupported: false,
            };
            zygote.failure.get_or_insert(late);
            zygote.kill();
            telemetry.counts.failed_starts += 1;
            self.seat(birth.seat).last_death = Some(reason.clone());
            self.last_failure = Some(reason);
        }
        self.pool.exited(id, false, now);
    }
}
