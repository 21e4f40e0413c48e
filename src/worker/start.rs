//! How a worker comes to serve: it hears who it is, makes what it needs, and says that it is ready.

use std::fs::File;
use std::io;

use super::death;
use super::methods::{Methods, Running, Service, WorkerInfo, remember_panics};
use super::{CHANNEL, Worker};
use crate::channel::{Channel, Heard, Scratch};
use crate::desk::{Layout, WorkerDesk};
use crate::logging;
use crate::proto::channel::{Failed, Ready, Start, ToMaster, ToWorker, VERSION};
use crate::sys::poll::{Interest, Poller};
use crate::sys::{fd, process, signal};

/// Why a worker ended that was not told to.
#[derive(Debug)]
pub(crate) enum Error {
    /// It was not started by a master.
    NoMaster(String),
    /// It could not start or not go on. The master was told why.
    Failed,
}

/// Runs a worker to its end: its standard input is the channel to its master.
pub(crate) fn run<S: 'static>(methods: Methods<S>) -> Result<(), Error> {
    let no_master = |e: io::Error| Error::NoMaster(format!("workers are started by their master: {e}"));
    let mut channel = Channel::over(fd::take_stdin().map_err(no_master)?);
    let (start, file) = hear_start(&channel).map_err(no_master)?;
    let served = serve(&mut channel, start, file, methods).map_err(|reason| {
        // A master that does not hear it, as it is gone, has no use for it.
        let _ = channel.send(&ToMaster::Failed(Failed { reason }), &[]);
        Error::Failed
    });
    // It closes with the process: the master takes the end of the channel of a process that lives for a fault.
    std::mem::forget(channel);
    served
}

/// The first message. Its sender may still be on its way to sending it.
fn hear_start(channel: &Channel<ToMaster, ToWorker>) -> io::Result<(Start, File)> {
    let mut scratch = Scratch::default();
    loop {
        match channel.hear(&mut scratch)? {
            Heard::Message(ToWorker::Start(start), mut desk) if start.version == VERSION => {
                let desk = desk.pop().ok_or_else(|| io::Error::other("there is no desk"))?;
                return Ok((*start, File::from(desk)));
            }
            Heard::Message(ToWorker::Start(start), _) => {
                let sentence = format!("it speaks version {} of the channel, not {VERSION}", start.version);
                return Err(io::Error::other(sentence));
            }
            Heard::Nothing => {
                let mut poller = Poller::new(1)?;
                poller.add(channel, CHANNEL, Interest::Read)?;
                poller.wait(&mut Vec::new(), None)?;
            }
            Heard::Message(..) | Heard::Garbage(_) | Heard::Closed => {
                return Err(io::Error::other("standard input is not a channel to one"));
            }
        }
    }
}

/// Makes all that this worker needs, says that it is ready, and serves.
fn serve<S: 'static>(
    channel: &mut Channel<ToMaster, ToWorker>,
    start: Start,
    file: File,
    methods: Methods<S>,
) -> Result<(), String> {
    process::set_name(&start.name);
    death::arm()?;
    remember_panics();
    signal::ignore_group_signals().map_err(|e| format!("cannot catch signals: {e}"))?;
    // It serves as many clients as its master may have; a lower limit shows when they come.
    let _ = fd::raise_limit();
    logging::start(&start.name, &start.settings.log).map_err(|e| format!("cannot open the log: {e}"))?;
    let layout = Layout::new(start.slots, start.longest);
    let desk = WorkerDesk::map(file, layout).map_err(|e| format!("cannot map the desk: {e}"))?;
    let Start { name, worker, seat, generation, quarantined, settings, .. } = start;
    let mut service = Running::start(methods, WorkerInfo { name, worker, seat, generation })?;
    let greeting = ToMaster::Ready(Ready { version: VERSION, methods: service.names() });
    channel.send(&greeting, &[]).map_err(|e| format!("cannot greet the master: {e}"))?;
    let mut worker = Worker::new(channel, desk, settings).map_err(|e| format!("cannot make a poller: {e}"))?;
    worker.quarantine(&quarantined, &service);
    worker.serve(&mut service).map_err(|e| e.to_string())
}
