//! How a worker comes to serve: it hears who it is, makes what it needs, and says that it is ready.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::death;
use super::methods::{Methods, RunningService, Service, WorkerInfo, remember_panics};
use super::{CHANNEL, WorkerLoop, handoff};
use crate::channel::{Channel, Incoming, Scratch, Sent};
use crate::logging;
use crate::proto::channel::{Failed, Ready, Start, ToMaster, ToWorker, VERSION};
use crate::proto::handoff::ShmRecord;
use crate::shm::{Layout, WorkerShm};
use crate::sys::poll::{self, Interest, Poller};
use crate::sys::{fd, fork, process, signal};

/// By how much a worker is likelier than its master to be killed for want of memory: it is replaced and its clients stay.
/// It is more than the share of the limit that a master has in memory of its own.
const OOM_SCORE: i32 = 500;

/// Why a worker ended without a request to stop.
#[derive(Debug)]
pub(crate) enum Error {
    /// The worker was not started by a master.
    NoMaster(String),
    /// The worker could not start or not continue. The master received the reason.
    Failed,
}

/// Runs a worker to its end: its standard input is the channel to its master.
pub(crate) fn run<S: 'static>(methods: Methods<S>) -> Result<(), Error> {
    let no_master =
        |e: io::Error| Error::NoMaster(format!("workers are started by their master: {e}"));
    let mut channel = Channel::new(fd::take_stdin().map_err(no_master)?);
    let (start, descriptors) = receive_start(&channel).map_err(no_master)?;
    // So that what methods start can be told from all others, and ends with this process. It fails for one that was run by
    // hand, which has no methods to run.
    let _ = process::begin_session();
    let served = serve(&mut channel, start, descriptors, methods).map_err(|reason| {
        // A master that does not hear it, as it is gone, has no use for it.
        let _ = send(&mut channel, &ToMaster::Failed(Failed { reason }));
        Error::Failed
    });
    // It closes with the process: the master takes the end of the channel of a process that lives for a fault.
    std::mem::forget(channel);
    if served? {
        log::logger().flush();
        // A master would kill what methods of this worker have started.
        process::end_group_with_its_leader();
    }
    Ok(())
}

/// The first message. Its sender may still be on its way to sending it.
fn receive_start(channel: &Channel<ToMaster, ToWorker>) -> io::Result<(Start, Vec<OwnedFd>)> {
    let mut scratch = Scratch::default();
    loop {
        match channel.receive(&mut scratch)? {
            Incoming::Message(ToWorker::Start(start), descriptors) if start.version == VERSION => {
                return Ok((*start, descriptors));
            }
            Incoming::Message(ToWorker::Start(start), _) => {
                let sentence = format!("its channel has version {}, not {VERSION}", start.version);
                return Err(io::Error::other(sentence));
            }
            Incoming::Nothing => {
                let mut poller = Poller::new(1)?;
                poller.add(channel, CHANNEL, Interest::Read)?;
                poller.wait(&mut Vec::new(), None)?;
            }
            Incoming::Message(..) | Incoming::Garbage(_) | Incoming::Closed => {
                return Err(io::Error::other("standard input is not a channel to one"));
            }
        }
    }
}

/// Says something before there is a loop that would say it later. Its queue is empty: it can only be memory that the kernel
/// does not have.
fn send(channel: &mut Channel<ToMaster, ToWorker>, message: &ToMaster) -> io::Result<()> {
    while channel.send(message, &[])? == Sent::Full {
        // The master says nothing before it has heard this; its end is one.
        poll::wait_for(&*channel, Interest::Read, NO_MEMORY)?;
    }
    Ok(())
}

/// How long a worker waits until it tries again to send a message.
const NO_MEMORY: Duration = Duration::from_millis(10);

/// Makes all that this worker needs, says that it is ready, and serves; whether it ended because its master is gone.
fn serve<S: 'static>(
    channel: &mut Channel<ToMaster, ToWorker>,
    start: Start,
    mut descriptors: Vec<OwnedFd>,
    methods: Methods<S>,
) -> Result<bool, String> {
    process::set_name(&start.name);
    death::arm()?;
    if let Err(e) = process::raise_oom_score(OOM_SCORE) {
        log::debug!("cannot raise the OOM score of this process: {e}");
    }
    fork::remember();
    remember_panics();
    signal::ignore_group_signals().map_err(|e| format!("cannot catch signals: {e}"))?;
    // It serves as many clients as its master may have; a lower limit shows when they come.
    let _ = fd::raise_limit();
    // The master has opened it, or goes on without it.
    let _ = logging::start_anyhow(&start.name, &start.settings.log);
    let layout = Layout::new(start.slots, start.longest);
    // The others are handoff queues.
    let file = File::from(descriptors.remove(0));
    let last_shm = file
        .try_clone()
        .map_err(|e| format!("cannot copy the shared memory: {e}"))?;
    let shm =
        WorkerShm::map(file, layout).map_err(|e| format!("cannot map the shared memory: {e}"))?;
    let Start {
        name,
        worker,
        seat,
        generation,
        quarantined,
        settings,
        slots,
        longest,
        ..
    } = start;
    let mut service = RunningService::start(
        methods,
        WorkerInfo {
            name,
            worker,
            seat,
            generation,
        },
    )?;
    let methods = service.names();
    let handoff = if descriptors.is_empty() {
        None
    } else {
        let (methods, layout) = (methods.clone(), layout.version());
        let record = ShmRecord {
            worker,
            seat,
            generation,
            slots,
            longest,
            methods,
            is_counted: false,
            layout,
        };
        let ready = handoff::prepare(
            channel,
            descriptors,
            last_shm,
            &record,
            shm.layout(),
            settings.restart_grace,
        );
        Some(ready.map_err(|e| format!("cannot prepare the emergency handoff: {e}"))?)
    };
    let greeting = ToMaster::Ready(Ready {
        version: VERSION,
        methods,
    });
    send(channel, &greeting).map_err(|e| format!("cannot greet the master: {e}"))?;
    let mut worker = WorkerLoop::new(channel, shm, settings, handoff)
        .map_err(|e| format!("cannot make a poller: {e}"))?;
    worker.quarantine(&quarantined, &service);
    worker.serve(&mut service).map_err(|e| e.to_string())
}
