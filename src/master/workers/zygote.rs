//! Zygotes: processes that fork the workers of a generation with `start = "fork"`.
//!
//! ```text
//! Birth requested ── Fork ──▶ zygote ── clone(2) ──▶ process ── waits for Start
//!        │                      │                                   ▲
//!        │                      ╰── Forked: pid, pidfd ──▶ Worker ──╯
//!        ╰── withdrawn: the channel closes, and the process exits without having run anything
//! ```
//!
//! The master is the parent of the process, as of one that it has executed. It waits for nothing: a worker that is
//! requested is a birth until the zygote has reported its pid, and a worker from then on. Only then the master sends
//! `Start` to the process, which does nothing before.
//!
//! If a zygote does not become ready, the births that wait for it fail like workers that do not become ready. One that
//! ends later is replaced; if the next one forks nothing, the workers of this generation are executed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use crate::channel::{Channel, Sent};
use crate::config::variables_of;
use crate::loop_clock::Shortage;
use crate::master::Token;
use crate::master::workers::NOT_NOW;
use crate::proto::channel::{ToMaster, ToWorker};
use crate::proto::names::{Generation, WorkerId};
use crate::proto::zygote::{FromZygote, StartZygote, ToZygote, ZygoteFailure};
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{self, Executable, Exit};

/// The role of the program as a zygote: its first argument.
pub(crate) const ZYGOTE: &str = "zygote";

/// An argument as long as the longest worker id; a forked worker writes its id over it.
const ROOM_FOR_ID: &str = "00000000000000000000";

/// The most requests that a zygote may have without having answered them.
const MAX_REQUESTED: usize = 16;

/// All zygotes, and the generations that have none any more. Dropping this struct kills the zygotes.
#[derive(Debug, Default)]
pub(crate) struct Zygotes {
    pub(super) all: Vec<Zygote>,
    /// Generations whose workers are executed although they should be forked.
    pub(super) abandoned: Vec<Generation>,
}

/// The master's record of a zygote: its process, its channel, and the births that wait for it.
#[derive(Debug)]
pub(super) struct Zygote {
    pub(super) pid: u32,
    pub(super) generation: Generation,
    pub(super) started: Instant,
    pub(super) channel: Channel<ToZygote, FromZygote>,
    /// The wait for memory of the kernel, to receive.
    pub(super) receiving: Shortage<Instant>,
    pub(super) is_ready: bool,
    has_forked: bool,
    /// Whether this zygote replaces one that has ended.
    is_successor: bool,
    pub(super) failure: Option<ZygoteFailure>,
    /// In the order of their requests; those that were sent come first.
    pub(super) births: VecDeque<Birth>,
}

/// A worker that is requested and has no process that the master knows.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) id: WorkerId,
    pub(crate) seat: usize,
    pub(crate) generation: Generation,
    /// Set once the zygote has the other end.
    channel: Option<Channel<ToWorker, ToMaster>>,
}

/// The meaning of a zygote's message for a birth.
#[derive(Debug)]
pub(crate) enum BirthNews {
    /// The message concerns no birth that is still wanted.
    Nothing,
    /// There is a process, which waits for its first message.
    Forked(Birth, ForkedWorker),
    Failed(Birth, io::Error),
}

/// A forked process that does not know yet which worker it is.
#[derive(Debug)]
pub(crate) struct ForkedWorker {
    pub(crate) pid: u32,
    pub(crate) channel: Channel<ToWorker, ToMaster>,
}

/// Consequence of the end of a zygote for the births that waited for it.
#[derive(Debug)]
pub(crate) enum Orphaned {
    /// The births have failed, for this reason.
    Fail(Vec<Birth>, String),
    /// Another zygote must fork them.
    Again(Generation, Vec<Birth>),
    /// The workers are executed.
    Execute(Vec<Birth>),
}

impl Birth {
    pub(crate) fn new(id: WorkerId, seat: usize, generation: Generation) -> Birth {
        Birth {
            id,
            seat,
            generation,
            channel: None,
        }
    }
}

impl Zygote {
    /// Records whether the kernel had memory to deliver a message. If not, the poller does not report the channel for a
    /// while.
    pub(super) fn note_received(&mut self, is_refused: bool, poller: &Poller, now: Instant) {
        if !is_refused {
            return self.receiving.end();
        }
        self.receiving.begin(|wait| now + wait);
        // If it fails, the poller reports the channel at once.
        let token = Token::Zygote(self.generation).into();
        let _ = poller.modify(&self.channel, token, Interest::Paused);
    }

    /// Has the poller report the channel again, if it is time.
    pub(super) fn retry(&mut self, poller: &Poller, now: Instant) -> io::Result<()> {
        match self.receiving.end_if_over(now) {
            true => {
                let token = Token::Zygote(self.generation).into();
                poller.modify(&self.channel, token, Interest::Read)
            }
            false => Ok(()),
        }
    }

    pub(super) fn spawn(
        executable: &Executable,
        start: StartZygote,
        is_successor: bool,
        now: Instant,
    ) -> io::Result<Zygote> {
        let (mut channel, theirs) = Channel::pair()?;
        let (name, generation) = (start.name.clone(), start.generation);
        // The message is sent before the process starts, so that the process finds it in the channel. A new queue
        // accepts it unless memory is short.
        if channel.send(&ToZygote::Start(Box::new(start)), &[])? != Sent::Queued {
            return Err(io::Error::new(NOT_NOW, "memory is short"));
        }
        let pid = executable.spawn(&name, &[ZYGOTE, ROOM_FOR_ID], theirs, &variables_of(&name))?;
        Ok(Zygote {
            pid,
            generation,
            started: now,
            channel,
            receiving: Shortage::default(),
            is_ready: false,
            has_forked: false,
            is_successor,
            failure: None,
            births: VecDeque::new(),
        })
    }

    pub(super) fn name(&self) -> String {
        format!("zygote (pid {}, gen {})", self.pid, self.generation)
    }

    pub(super) fn kill(&self) {
        if let Err(e) = process::kill_child(self.pid) {
            log::error!("cannot kill {}: {e}", self.name());
        }
    }

    fn has_requested(&self) -> bool {
        self.births.iter().any(|birth| birth.channel.is_some())
    }

    /// Sends as many requests as the zygote should have. Returns the births that failed.
    pub(super) fn request(&mut self) -> Vec<(Birth, io::Error)> {
        let mut failed = Vec::new();
        let mut index = 0;
        while self.is_ready && index < self.births.len().min(MAX_REQUESTED) {
            if self.births[index].channel.is_some() {
                index += 1;
                continue;
            }
            let id = self.births[index].id;
            match request(&mut self.channel, id) {
                Ok(Some(channel)) => self.births[index].channel = Some(channel),
                // It is tried again after the next answer.
                Ok(None) if self.has_requested() => break,
                sent => {
                    let refused = || io::Error::new(NOT_NOW, "too many descriptors are under way");
                    let error = sent.err().unwrap_or_else(refused);
                    failed.extend(self.births.remove(index).map(|birth| (birth, error)));
                }
            }
        }
        failed
    }

    /// Removes the birth of this worker.
    pub(super) fn take(&mut self, id: WorkerId) -> Option<Birth> {
        let index = self.births.iter().position(|birth| birth.id == id)?;
        self.births.remove(index)
    }

    /// Returns the consequence of the zygote's end.
    pub(super) fn orphaned(mut self, exit: Exit) -> Orphaned {
        let births = self.births.drain(..).map(|birth| Birth {
            channel: None,
            ..birth
        });
        let births = births.collect();
        let is_unsupported = self
            .failure
            .as_ref()
            .is_some_and(|failure| failure.is_unsupported);
        if is_unsupported || self.is_successor && !self.has_forked {
            return Orphaned::Execute(births);
        }
        match self.is_ready {
            true => Orphaned::Again(self.generation, births),
            false => Orphaned::Fail(births, self.cause(exit)),
        }
    }

    /// Returns why the zygote has ended, in words that follow its name.
    pub(super) fn cause(&self, exit: Exit) -> String {
        let own = self.failure.as_ref().map(|failure| failure.reason.clone());
        own.unwrap_or_else(|| exit.to_string())
    }
}

/// Sends the zygote one end of a new channel. Returns the other; `None` if the queue accepts nothing now.
fn request(
    to: &mut Channel<ToZygote, FromZygote>,
    id: WorkerId,
) -> io::Result<Option<Channel<ToWorker, ToMaster>>> {
    let (channel, theirs) = Channel::pair()?;
    Ok(match to.send(&ToZygote::Fork(id), &[theirs.as_fd()])? {
        // A zygote that has ended is replaced when it is collected.
        Sent::Queued | Sent::Closed => Some(channel),
        Sent::Full | Sent::Shortage => None,
    })
}

impl Zygotes {
    /// Returns whether the workers of a generation are executed although they should be forked.
    pub(crate) fn is_abandoned(&self, generation: Generation) -> bool {
        self.abandoned.contains(&generation)
    }

    /// Returns the pid of the zygote of a generation.
    pub(crate) fn pid(&self, generation: Generation) -> Option<u32> {
        self.of(generation).map(|zygote| zygote.pid)
    }

    /// Returns the pids of all zygotes.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.all.iter().map(|zygote| zygote.pid)
    }

    pub(super) fn of(&self, generation: Generation) -> Option<&Zygote> {
        let mut zygotes = self.all.iter();
        zygotes.find(|zygote| zygote.generation == generation)
    }

    pub(super) fn of_mut(&mut self, generation: Generation) -> Option<&mut Zygote> {
        let mut zygotes = self.all.iter_mut();
        zygotes.find(|zygote| zygote.generation == generation)
    }

    /// Returns the generations whose zygotes have requests that they have not answered.
    pub(crate) fn asked(&self) -> Vec<Generation> {
        let asked = self.all.iter().filter(|zygote| zygote.has_requested());
        asked.map(|zygote| zygote.generation).collect()
    }

    /// Returns whether the zygote of a generation has requests that it has not answered.
    pub(crate) fn is_asked(&self, generation: Generation) -> bool {
        self.of(generation).is_some_and(Zygote::has_requested)
    }

    /// Has the zygotes open the log file again.
    pub(crate) fn reopen_log(&mut self) {
        for zygote in &mut self.all {
            // A zygote that does not read keeps the previous file until it is replaced.
            let _ = zygote.channel.send(&ToZygote::Reopen, &[]);
        }
    }

    /// Ends the zygotes of generations that start no more workers.
    pub(crate) fn keep_only(&mut self, wanted: &[Generation], poller: &Poller) {
        self.abandoned.retain(|it| wanted.contains(it));
        self.all.retain(|zygote| {
            let stays = wanted.contains(&zygote.generation) || !zygote.births.is_empty();
            if !stays {
                // The channel may be open in a process that was just forked.
                let _ = poller.remove(&zygote.channel);
                zygote.kill();
            }
            stays
        });
    }
}

impl Zygote {
    /// Handles the report that the zygote has forked a worker.
    pub(super) fn forked(
        &mut self,
        id: WorkerId,
        pid: u32,
        descriptors: Vec<OwnedFd>,
    ) -> BirthNews {
        self.has_forked = true;
        // The channel of a birth that was withdrawn is closed, so its process exits.
        let Some(mut birth) = self.take(id) else {
            return BirthNews::Nothing;
        };
        let Some(channel) = birth.channel.take() else {
            return BirthNews::Failed(birth, io::Error::other("it was forked without a request"));
        };
        // A process that has ended and is not collected is a worker that dies. If it was collected, its pid may be that
        // of another process.
        if descriptors.first().is_none_or(process::is_collected) {
            let error = io::Error::other("its process ended before it was known");
            return BirthNews::Failed(birth, error);
        }
        BirthNews::Forked(birth, ForkedWorker { pid, channel })
    }
}

impl Drop for Zygotes {
    fn drop(&mut self) {
        self.all.iter().for_each(Zygote::kill);
    }
}
