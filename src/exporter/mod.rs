//! The exporter answers HTTP requests and agent checks with what it queries over the control socket. It is a process of
//! its own, so that the master handles no HTTP and such a client can delay or harm nothing else.
//!
//! ```text
//!  client   ──connect──▶ listener, bound by the master
//!           ◀───HTTP───▶ connection, a thread each, 16 at most ──control.sock──▶ master
//!           ◀──events─── stream of the page, a thread each, 8 at most
//!  balancer ──connect──▶ another listener
//!           ◀───line──── connection, likewise
//! ```
//!
//! The exporter stores nothing of the daemon but an hour of samples for the plots of its page, so its replies are current
//! and its death loses little. When all threads of a listener are in use and another client connects, the oldest slow
//! connection is closed: 16 silent clients block no other. A connection that waits for the daemon stays, as that wait is
//! short. Streams are not among the 16 and are not closed for others. The exporter ends when its channel does.

mod agent;
mod answers;
mod connection;
mod daemon;
mod host;
mod http;
mod live;
mod page;
mod serving;

#[cfg(any(test, fuzzing))]
pub(crate) use http::fuzz as fuzz_http;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{panic, thread};

use answers::Answers;
use connection::ExporterConnection;
use daemon::DaemonClient;
use live::Live;

use crate::channel::{Channel, Incoming, Scratch};
use crate::logging;
use crate::proto::exporter::{ExporterService, Nothing, StartExporter, ToExporter};
use crate::sys::listening::{ACCEPT_PAUSE, AcceptResult, AcceptTry, accept, is_listening};
use crate::sys::poll::{Interest, PollEvent, Poller};
use crate::sys::{fd, process, signal};

/// The wait for memory of the kernel, whose end nothing reports.
const SHORTAGE_WAIT: Duration = Duration::from_millis(20);

/// The most connections at a time, of each listener, besides streams.
const MAX_CONNECTIONS: usize = 16;

/// The poller's tokens; those of the listeners begin with the last one.
const CHANNEL: u64 = 0;
const CLOSED: u64 = 1;
const LISTENERS: u64 = 2;

/// Why an exporter ended unasked.
#[derive(Debug)]
pub(crate) enum Error {
    /// The process was not started by a master.
    NoMaster(String),
    /// The exporter could not start or continue.
    Failed(String),
}

/// The exporter's OOM score above the master's: it is killed first when memory runs out.
const OOM_SCORE: i32 = 500;

/// Runs an exporter to its end: its standard input is the channel to its master.
pub(crate) fn run() -> Result<(), Error> {
    let no_master =
        |e: io::Error| Error::NoMaster(format!("the exporter is started by its master: {e}"));
    let mut scratch = Scratch::default();
    let channel = Channel::new(fd::take_stdin().map_err(no_master)?);
    let (start, listeners) = receive_start(&channel, &mut scratch).map_err(no_master)?;
    serve(channel, scratch, start, listeners)
        .map_err(|e| Error::Failed(format!("the exporter cannot continue: {e}")))
}

/// Receives the first message, which was sent before this process was started.
fn receive_start(
    channel: &Channel<Nothing, ToExporter>,
    scratch: &mut Scratch,
) -> io::Result<(StartExporter, Vec<OwnedFd>)> {
    if let Incoming::Message(ToExporter::Start(start), listeners) = channel.receive(scratch)?
        && !listeners.is_empty()
    {
        return Ok((start, listeners));
    }
    Err(io::Error::other("standard input is not a channel to one"))
}

fn serve(
    channel: Channel<Nothing, ToExporter>,
    scratch: Scratch,
    start: StartExporter,
    listeners: Vec<OwnedFd>,
) -> io::Result<()> {
    process::set_name(&start.name);
    // The exporter is replaced, as a worker is. If the score cannot be raised, the kernel chooses by size.
    let _ = process::raise_oom_score(OOM_SCORE);
    signal::ignore_group_signals()?;
    let _ = logging::start_anyhow(&start.name, &start.log);
    panic::set_hook(Box::new(|panic| {
        log::error!("the exporter panicked: {panic}")
    }));
    let daemon = DaemonClient::new(PathBuf::from(OsString::from_vec(start.control)));
    let answers = Answers {
        daemon,
        live: Live::default(),
        hosts: start.hosts,
    };
    let listeners = start.services.into_iter().zip(listeners);
    let listeners = listeners.map(|(service, socket)| PolledListener {
        service,
        socket,
        is_paused: false,
        has_ended: false,
    });
    Server::new(channel, scratch, listeners.collect(), answers)?.serve()
}

/// The exporter's main thread: accepts connections, and receives the master's messages.
struct Server {
    channel: Channel<Nothing, ToExporter>,
    scratch: Scratch,
    listeners: Vec<PolledListener>,
    poller: Poller,
    shared: Arc<Shared>,
    /// A byte for each connection that has ended.
    closed: PipeReader,
    /// The number of connections so far.
    accepted: u64,
}

/// A listener in the poller.
struct PolledListener {
    service: ExporterService,
    socket: OwnedFd,
    /// Whether accepting is paused.
    is_paused: bool,
    /// Whether another process that holds the listener has shut it down. The master binds a new one and replaces this
    /// exporter.
    has_ended: bool,
}

/// The state that the threads share.
struct Shared {
    answers: Answers,
    connections: Mutex<BTreeMap<u64, Arc<ExporterConnection>>>,
    closed: PipeWriter,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<ExporterConnection>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    fn new(
        channel: Channel<Nothing, ToExporter>,
        scratch: Scratch,
        listeners: Vec<PolledListener>,
        answers: Answers,
    ) -> io::Result<Server> {
        let (closed, writer) = io::pipe()?;
        let poller = Poller::new(8)?;
        poller.add(&channel, CHANNEL, Interest::Read)?;
        poller.add(&closed, CLOSED, Interest::Read)?;
        for (token, listener) in (LISTENERS..).zip(&listeners) {
            poller.add(&listener.socket, token, Interest::Clients)?;
        }
        let shared = Arc::new(Shared {
            answers,
            connections: Mutex::default(),
            closed: writer,
        });
        Ok(Server {
            channel,
            scratch,
            listeners,
            poller,
            shared,
            closed,
            accepted: 0,
        })
    }

    /// Runs until the channel to the master is closed.
    fn serve(&mut self) -> io::Result<()> {
        let mut events: Vec<PollEvent> = Vec::new();
        loop {
            let is_paused = self.listeners.iter().any(|listener| listener.is_paused);
            self.poller
                .wait(&mut events, is_paused.then_some(ACCEPT_PAUSE))?;
            self.end_pauses()?;
            for event in &events {
                match event.token {
                    CHANNEL => {
                        if self.handle_message()? {
                            return Ok(());
                        }
                    }
                    CLOSED => {
                        let _bytes = self.closed.read(&mut [0; 2 * MAX_CONNECTIONS])?;
                    }
                    token => self.attend_listener(token, event.has_ended)?,
                }
            }
        }
    }

    /// Polls listeners again where accepting was paused.
    fn end_pauses(&mut self) -> io::Result<()> {
        for (token, listener) in (LISTENERS..).zip(&mut self.listeners) {
            if std::mem::take(&mut listener.is_paused) && !listener.has_ended {
                self.poller
                    .modify(&listener.socket, token, Interest::Clients)?;
            }
        }
        Ok(())
    }

    /// Handles an event of a listener.
    fn attend_listener(&mut self, token: u64, has_ended: bool) -> io::Result<()> {
        let index = (token - LISTENERS) as usize;
        let Some(listener) = self.listeners.get_mut(index) else {
            return Ok(());
        };
        if has_ended && !is_listening(&listener.socket) {
            // Its hang-up would be reported for ever.
            listener.has_ended = true;
            return self.poller.remove(&listener.socket);
        }
        self.accept_next(index)
    }

    /// Receives a message of the master. Returns whether the channel is closed.
    fn handle_message(&mut self) -> io::Result<bool> {
        match self.channel.receive(&mut self.scratch)? {
            Incoming::Message(ToExporter::Reopen, _) => {
                if let Err(e) = logging::reopen() {
                    log::warn!("{e}; still writing to the previous log file");
                }
                Ok(false)
            }
            Incoming::Nothing => Ok(false),
            // Other threads serve the connections, so this one may wait.
            Incoming::Shortage => {
                crate::sys::poll::pause(SHORTAGE_WAIT);
                Ok(false)
            }
            Incoming::Closed => Ok(true),
            Incoming::Message(ToExporter::Start(_), _) => Err(io::Error::other("a second start")),
            Incoming::Garbage(malformed) => Err(io::Error::other(malformed)),
        }
    }

    /// Accepts one connection at this listener; the poller reports the next. With all threads in use, a slow connection
    /// is closed first.
    fn accept_next(&mut self, index: usize) -> io::Result<()> {
        let PolledListener {
            service, socket, ..
        } = &self.listeners[index];
        let service = *service;
        if !self.has_capacity(service) {
            return self.pause(index);
        }
        let accepted = match accept(socket, AcceptTry::First) {
            Ok(AcceptResult::Empty | AcceptResult::Ended) => return Ok(()),
            Ok(AcceptResult::Client(client)) => {
                self.spawn(ExporterConnection::new(service, client.socket))
            }
            Err(e) => Err(e),
        };
        accepted.or_else(|e| {
            log::warn!("cannot accept connections for {service}: {e}");
            self.pause(index)
        })
    }

    /// Returns whether a thread is free for this service; if not, closes its oldest slow connection.
    fn has_capacity(&self, service: ExporterService) -> bool {
        let connections = self.shared.connections();
        let same = || {
            let connections = connections.values();
            connections.filter(|c| c.service == service && !c.is_stream())
        };
        let is_full = same().count() >= MAX_CONNECTIONS;
        // Connections are in the order in which they were accepted.
        if is_full && let Some(slow) = same().find(|connection| connection.is_slow()) {
            slow.shut_down();
        }
        !is_full
    }

    /// Serves a connection in its own thread.
    fn spawn(&mut self, connection: ExporterConnection) -> io::Result<()> {
        self.accepted += 1;
        let connection = Arc::new(connection);
        self.shared
            .connections()
            .insert(self.accepted, Arc::clone(&connection));
        // Dropped in any case: when the thread ends for any reason, or does not start.
        let guard = ConnectionGuard {
            shared: Arc::clone(&self.shared),
            number: self.accepted,
        };
        thread::Builder::new()
            .spawn(move || connection.serve(&guard.shared.answers))
            .map(drop)
    }

    /// Leaves new connections of a listener in the kernel's queue for [`ACCEPT_PAUSE`].
    fn pause(&mut self, index: usize) -> io::Result<()> {
        let listener = &mut self.listeners[index];
        listener.is_paused = true;
        if listener.has_ended {
            return Ok(());
        }
        let token = LISTENERS + index as u64;
        self.poller.modify(&listener.socket, token, Interest::End)
    }
}

/// Removes a connection from the shared state when its thread ends.
struct ConnectionGuard {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.shared.connections().remove(&self.number);
        // The main thread always reads it; if it does not, the process is ending.
        let _ = (&self.shared.closed).write(&[0]);
    }
}
