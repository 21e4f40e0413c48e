//! The zygote: executed once for each generation, it forks the workers of that generation, as siblings.
//!
//! The zygote has one thread and does not serve: it waits for requests of the master. A forked worker is a copy of it,
//! so what the workers must not have is dropped in the copy before anything else: the channel of the zygote, its
//! poller, and the arguments that ps(1) shows. A zygote never has the channel of more than one worker open.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};

use super::apps::AppZygote;
use super::methods::Methods;
use super::panics::{last_panic, remember_panics};
use super::preload::Preload;
use super::start::{Error, OOM_SCORE, ProcessOrigin, RETRY_INTERVAL, WorkerRole};
use super::{BATCH, CHANNEL};
use crate::channel::{Channel, Incoming, Scratch};
use crate::logging;
use crate::proto::names::WorkerId;
use crate::proto::text::shortened;
use crate::proto::zygote::{FromZygote, StartZygote, ToZygote, ZygoteFailure};
use crate::sys::poll::{self, Interest, PollEvent, Poller};
use crate::sys::process::{self, Forked, ProcessTitle, SiblingForker};
use crate::sys::{fd, signal};

/// How long threads that are ending may take to end.
const THREADS_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs a zygote to its end, and returns in each worker that it forks: its standard input is the channel to its master.
pub(crate) fn run<S: 'static>(methods: &Methods<S>) -> Result<WorkerRole, Error> {
    let no_master =
        |e: io::Error| Error::NoMaster(format!("zygotes are started by their master: {e}"));
    let mut zygote = ZygoteLoop {
        channel: Channel::new(fd::take_stdin().map_err(no_master)?),
        poller: Poller::new(BATCH).map_err(no_master)?,
        scratch: Scratch::default(),
        app: None,
    };
    let watched = zygote.poller.add(&zygote.channel, CHANNEL, Interest::Read);
    watched.map_err(no_master)?;
    let start = match zygote.receive() {
        Ok(Some((ToZygote::Start(start), _))) => start,
        Ok(_) => {
            let reason = io::Error::other("standard input is not a channel to one");
            return Err(no_master(reason));
        }
        Err(e) => return Err(no_master(e)),
    };
    let prepared = prepare(&start).and_then(|equipment| {
        load(methods.preload.as_ref(), &start.own_table)?;
        check_threads()?;
        zygote.start_app(&start)?;
        Ok(equipment)
    });
    match prepared {
        Ok(equipment) => zygote.serve(&start.name, equipment),
        Err(failure) => {
            let _ = zygote.send(&FromZygote::Failed(failure), &[]);
            Err(Error::Failed)
        }
    }
}

/// The means of a zygote to fork a worker.
struct Equipment {
    forker: SiblingForker,
    title: Option<ProcessTitle>,
}

/// Sets the signals, limits and log of this process, which its workers have as well.
fn prepare(start: &StartZygote) -> Result<Equipment, ZygoteFailure> {
    // Its channel ends with the master as well, but nothing is read from it before the zygote is ready.
    process::end_with_parent();
    let forker = SiblingForker::new(start.master).map_err(|e| ZygoteFailure {
        reason: format!("cannot fork workers on this system: {e}"),
        is_unsupported: true,
    })?;
    if !forker.has_parent() {
        return Err(failure("has no master any more".to_owned()));
    }
    check_threads()?;
    process::set_name(&start.name);
    let mut title = ProcessTitle::find();
    if let Some(title) = &mut title {
        title.set(&[&start.name, "zygote", &start.generation.to_string()]);
    }
    signal::ignore_group_signals().map_err(|e| failure(format!("cannot catch signals: {e}")))?;
    let _ = fd::raise_limit();
    // The master has opened the log, or continues without it.
    let _ = logging::start_anyhow(&start.name, &start.log);
    if let Err(e) = process::raise_oom_score(OOM_SCORE) {
        log::debug!("cannot raise the OOM score of this process: {e}");
    }
    Ok(Equipment { forker, title })
}

/// The memory for the stack of a thread that loads, as the first thread has by default.
const STACK: usize = 8 << 20;

/// Loads what the workers share, in a thread of its own, whose thread-local values the workers do not inherit.
fn load(preload: Option<&Preload>, table: &str) -> Result<(), ZygoteFailure> {
    let Some(preload) = preload else {
        return Ok(());
    };
    let load = || {
        remember_panics();
        panic::catch_unwind(AssertUnwindSafe(|| preload(table)))
            .unwrap_or_else(|_| Err(last_panic()))
    };
    let loaded = thread::scope(|scope| {
        let named = thread::Builder::new().name("preload".to_owned());
        let thread = named.stack_size(STACK).spawn_scoped(scope, load)?;
        Ok(thread.join())
    });
    let reason = match loaded {
        Ok(Ok(Ok(()))) => return Ok(()),
        Ok(Ok(Err(why))) => why,
        Ok(Err(_)) => "it panicked".to_owned(),
        Err(e) => io::Error::to_string(&e),
    };
    Err(failure(format!("could not preload: {reason}")))
}

fn failure(reason: String) -> ZygoteFailure {
    ZygoteFailure {
        reason: shortened(reason),
        is_unsupported: false,
    }
}

/// Checks that this process has no other thread: its workers would not have it.
fn check_threads() -> Result<(), ZygoteFailure> {
    let began = Instant::now();
    loop {
        match SiblingForker::threads() {
            1 => return Ok(()),
            threads if began.elapsed() >= THREADS_TIMEOUT => {
                return Err(failure(format!(
                    "has {threads} threads, and a forked worker would have only one of them: threads belong in the \
                     state, or workers.start must be \"exec\""
                )));
            }
            // A thread that was joined may be in the list for a moment.
            _ => poll::pause(RETRY_INTERVAL),
        }
    }
}

struct ZygoteLoop {
    channel: Channel<FromZygote, ToZygote>,
    poller: Poller,
    scratch: Scratch,
    /// The zygote of the workers' apps, if these are forked.
    app: Option<AppZygote>,
}

impl ZygoteLoop {
    /// Starts the zygote of the apps, if these are forked, and waits until it is ready.
    fn start_app(&mut self, start: &StartZygote) -> Result<(), ZygoteFailure> {
        let Some(spec) = &start.app else {
            return Ok(());
        };
        let of_app = |reason| failure(format!("has no zygote of the app, which {reason}"));
        let not_watched = |e| of_app(format!("cannot be watched: {e}"));
        let app = self.app.insert(AppZygote::spawn(spec).map_err(of_app)?);
        let mut poller = Poller::new(BATCH).map_err(not_watched)?;
        app.watch(&poller).map_err(not_watched)?;
        let mut ready = Vec::new();
        loop {
            poller.wait(&mut ready, None).map_err(not_watched)?;
            for event in &ready {
                if app.attend(event.token, &poller).map_err(of_app)? {
                    return app.watch(&self.poller).map_err(not_watched);
                }
            }
        }
    }

    /// Waits for the next message. Returns `None` when the master has closed the channel.
    fn receive(&mut self) -> io::Result<Option<(ToZygote, Vec<OwnedFd>)>> {
        let mut ready = Vec::new();
        loop {
            self.poller.wait(&mut ready, None)?;
            self.attend_app(&ready)?;
            match self.channel.receive(&mut self.scratch)? {
                Incoming::Message(message, descriptors) => return Ok(Some((message, descriptors))),
                Incoming::Nothing => {}
                Incoming::Shortage => poll::pause(RETRY_INTERVAL),
                Incoming::Closed => return Ok(None),
                Incoming::Garbage(malformed) => return Err(io::Error::other(malformed)),
            }
        }
    }

    /// Handles events of the zygote of the apps. Its end is reported: both are replaced then.
    fn attend_app(&mut self, ready: &[PollEvent]) -> io::Result<()> {
        for event in ready.iter().filter(|event| event.token != CHANNEL) {
            let Some(app) = &mut self.app else {
                continue;
            };
            if let Err(reason) = app.attend(event.token, &self.poller) {
                let reason = format!("has lost the zygote of the app, which {reason}");
                let lost = FromZygote::Failed(failure(reason.clone()));
                self.send(&lost, &[])?;
                return Err(io::Error::other(reason));
            }
        }
        Ok(())
    }

    /// Sends a message to the master, which no client waits for.
    fn send(&mut self, message: &FromZygote, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        while self.channel.send(message, descriptors)?.is_refused() {
            poll::pause(RETRY_INTERVAL);
        }
        Ok(())
    }

    /// Forks workers until the master needs no more. Returns in each of them.
    fn serve(mut self, name: &str, mut equipment: Equipment) -> Result<WorkerRole, Error> {
        let failed = |e: io::Error| {
            log::error!("zygote: {e}");
            Error::Failed
        };
        self.send(&FromZygote::Ready, &[]).map_err(failed)?;
        loop {
            let (worker, channel) = match self.receive().map_err(failed)? {
                Some((ToZygote::Fork(worker), mut descriptors)) => (worker, descriptors.pop()),
                Some((ToZygote::Reopen, _)) => {
                    if let Err(e) = logging::reopen() {
                        log::error!("cannot open the log file again: {e}");
                    }
                    continue;
                }
                Some((ToZygote::Start(_), _)) => return Err(Error::Failed),
                None => return Ok(WorkerRole::Zygote),
            };
            let Some(channel) = channel else {
                return Err(Error::Failed);
            };
            if !equipment.forker.has_parent() {
                return Ok(WorkerRole::Zygote);
            }
            if self.fork(&equipment.forker, worker).map_err(failed)? {
                let forker = self.app.take().map(AppZygote::into_forker);
                drop(self);
                if let Some(title) = &mut equipment.title {
                    title.set(&[name, "worker", &worker.to_string()]);
                }
                return Ok(WorkerRole::Worker(channel, ProcessOrigin::Forked(forker)));
            }
        }
    }

    /// Forks a worker and reports it. Returns whether this process is the worker.
    fn fork(&mut self, forker: &SiblingForker, worker: WorkerId) -> io::Result<bool> {
        // Otherwise each worker would write it once more.
        log::logger().flush();
        let _ = io::stdout().flush();
        process::flush_streams();
        match forker.fork() {
            Ok(Forked::Child) => return Ok(true),
            Ok(Forked::Parent { pid, pidfd }) => {
                self.send(&FromZygote::Forked { worker, pid }, &[pidfd.as_fd()])?;
            }
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or_default();
                self.send(&FromZygote::Refused { worker, errno }, &[])?;
            }
        }
        Ok(false)
    }
}
