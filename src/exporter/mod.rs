//! The exporter answers HTTP requests with what it queries over the control socket. It is a process of its own, so that
//! the master handles no HTTP and an HTTP client can delay or harm nothing else.
//!
//! ```text
//!  client ──connect──▶ listener, bound by the master
//!         ◀───HTTP───▶ HTTP connection, a thread each, 16 at most ──control.sock──▶ master
//! ```
//!
//! The exporter stores nothing of the daemon, so its replies are current and its death loses nothing. When all threads
//! are in use and another client connects, the oldest slow connection is closed: 16 silent clients block no other. A
//! connection that waits for the daemon stays, as that wait is short. The exporter ends when its channel does.

mod answers;
mod connection;
mod daemon;
mod host;
mod http;

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
use connection::HttpConnection;
use daemon::DaemonClient;

use crate::channel::{Channel, Incoming, Scratch};
use crate::logging;
use crate::proto::exporter::{Nothing, StartExporter, ToExporter};
use crate::sys::listening::{ACCEPT_PAUSE, AcceptResult, AcceptTry, accept, is_listening};
use crate::sys::poll::{Interest, PollEvent, Poller};
use crate::sys::{fd, process, signal};

/// The wait for memory of the kernel, whose end nothing reports.
const SHORTAGE_WAIT: Duration = Duration::from_millis(20);

/// The most HTTP connections at a time.
const MAX_CONNECTIONS: usize = 16;

/// The poller's tokens.
const CHANNEL: u64 = 0;
const CLOSED: u64 = 1;
const LISTENER: u64 = 2;

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
    let (start, listener) = receive_start(&channel, &mut scratch).map_err(no_master)?;
    serve(channel, scratch, start, listener)
        .map_err(|e| Error::Failed(format!("the exporter cannot continue: {e}")))
}

/// Receives the first message, which was sent before this process was started.
fn receive_start(
    channel: &Channel<Nothing, ToExporter>,
    scratch: &mut Scratch,
) -> io::Result<(StartExporter, OwnedFd)> {
    if let Incoming::Message(ToExporter::Start(start), mut descriptors) =
        channel.receive(scratch)?
        && let Some(listener) = descriptors.pop()
    {
        return Ok((start, listener));
    }
    Err(io::Error::other("standard input is not a channel to one"))
}

fn serve(
    channel: Channel<Nothing, ToExporter>,
    scratch: Scratch,
    start: StartExporter,
    listener: OwnedFd,
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
        hosts: start.hosts,
    };
    Server::new(channel, scratch, listener, answers)?.serve()
}

/// The exporter's main thread: accepts connections, and receives the master's messages.
struct Server {
    channel: Channel<Nothing, ToExporter>,
    scratch: Scratch,
    listener: OwnedFd,
    poller: Poller,
    shared: Arc<Shared>,
    /// A byte for each HTTP connection that has ended.
    closed: PipeReader,
    /// The number of HTTP connections so far.
    accepted: u64,
    /// Whether accepting is paused.
    is_paused: bool,
    /// Whether another process that holds the listener has shut it down. The master binds a new one and replaces this
    /// exporter.
    has_ended: bool,
}

/// The state that the threads share.
struct Shared {
    answers: Answers,
    connections: Mutex<BTreeMap<u64, Arc<HttpConnection>>>,
    closed: PipeWriter,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<HttpConnection>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    fn new(
        channel: Channel<Nothing, ToExporter>,
        scratch: Scratch,
        listener: OwnedFd,
        answers: Answers,
    ) -> io::Result<Server> {
        let (closed, writer) = io::pipe()?;
        let poller = Poller::new(8)?;
        poller.add(&channel, CHANNEL, Interest::Read)?;
        poller.add(&closed, CLOSED, Interest::Read)?;
        poller.add(&listener, LISTENER, Interest::Clients)?;
        let shared = Arc::new(Shared {
            answers,
            connections: Mutex::default(),
            closed: writer,
        });
        Ok(Server {
            channel,
            scratch,
            listener,
            poller,
            shared,
            closed,
            accepted: 0,
            is_paused: false,
            has_ended: false,
        })
    }

    /// Runs until the channel to the master is closed.
    fn serve(&mut self) -> io::Result<()> {
        let mut events: Vec<PollEvent> = Vec::new();
        loop {
            self.poller
                .wait(&mut events, self.is_paused.then_some(ACCEPT_PAUSE))?;
            if std::mem::take(&mut self.is_paused) && !self.has_ended {
                self.poller
                    .modify(&self.listener, LISTENER, Interest::Clients)?;
            }
            for event in &events {
                match event.token {
                    CHANNEL if self.handle_message()? => return Ok(()),
                    CLOSED => {
                        let _bytes = self.closed.read(&mut [0; MAX_CONNECTIONS])?;
                    }
                    LISTENER if event.has_ended && !is_listening(&self.listener) => {
                        self.remove_listener()?
                    }
                    LISTENER => self.accept_next()?,
                    _ => {}
                }
            }
        }
    }

    /// Stops polling the listener, whose hang-up would be reported for ever.
    fn remove_listener(&mut self) -> io::Result<()> {
        self.has_ended = true;
        self.poller.remove(&self.listener)
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

    /// Accepts one connection; the poller reports the next. With all threads in use, a slow connection is closed first.
    fn accept_next(&mut self) -> io::Result<()> {
        if !self.has_capacity() {
            return self.pause();
        }
        let accepted = match accept(&self.listener, AcceptTry::First) {
            Ok(AcceptResult::Empty | AcceptResult::Ended) => return Ok(()),
            Ok(AcceptResult::Client(client)) => self.spawn(HttpConnection::new(client.socket)),
            Err(e) => Err(e),
        };
        accepted.or_else(|e| {
            log::warn!("cannot accept HTTP connections: {e}");
            self.pause()
        })
    }

    /// Returns whether a thread is free; if not, closes the oldest slow connection.
    fn has_capacity(&self) -> bool {
        let connections = self.shared.connections();
        let is_full = connections.len() >= MAX_CONNECTIONS;
        // Connections are in the order in which they were accepted.
        if is_full && let Some(slow) = connections.values().find(|connection| connection.is_slow())
        {
            slow.shut_down();
        }
        !is_full
    }

    /// Serves an HTTP connection in its own thread.
    fn spawn(&mut self, connection: HttpConnection) -> io::Result<()> {
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

    /// Leaves new connections in the kernel's queue for [`ACCEPT_PAUSE`].
    fn pause(&mut self) -> io::Result<()> {
        self.is_paused = true;
        if self.has_ended {
            Ok(())
        } else {
            self.poller.modify(&self.listener, LISTENER, Interest::End)
        }
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
