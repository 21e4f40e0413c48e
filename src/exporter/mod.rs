//! THE EXPORTER: answers over HTTP what it asks of the control socket. A process of its own, so that no HTTP comes near the
//! master and nobody who speaks it can delay or harm anything else.
//!
//! ```text
//!  who asks ──connect──▶ listener, bound by the master
//!           ◀───HTTP───▶ HTTP connection, a thread each, 16 at most ──control.sock──▶ master
//! ```
//!
//! It keeps nothing of the daemon, so that nothing it says is old and its own death costs nobody anything. When all threads
//! are taken and somebody else wants in, who has been slow for longest has to go: 16 who say nothing keep nobody out. Who
//! waits for the daemon stays, as that is over soon. It ends when its channel does.

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
use std::panic;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use answers::Answers;
use connection::HttpConnection;
use daemon::DaemonClient;

use crate::channel::{Channel, Incoming, Scratch};
use crate::logging;
use crate::proto::exporter::{Nothing, StartExporter, ToExporter};
use crate::sys::listening::{ACCEPT_PAUSE, Look, Offer, accept, is_listening};
use crate::sys::poll::{Interest, PollEvent, Poller};
use crate::sys::{fd, process, signal};

/// Most HTTP connections at a time.
const MAX_CONNECTIONS: usize = 16;

/// What the poller tells an event by.
const CHANNEL: u64 = 0;
const LEFT: u64 = 1;
const LISTENER: u64 = 2;

/// Why an exporter ended that was not told to.
#[derive(Debug)]
pub(crate) enum Error {
    /// It was not started by a master.
    NoMaster(String),
    /// It could not start or not go on.
    Failed(String),
}

/// By how much the exporter is likelier than its master to be killed for want of memory.
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

/// The first message, which was sent before this process was started.
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
    // It is replaced as a worker is. Where it cannot be done, the kernel chooses by size.
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

/// The exporter's own thread: accepts, and hears the master.
struct Server {
    channel: Channel<Nothing, ToExporter>,
    scratch: Scratch,
    listener: OwnedFd,
    poller: Poller,
    shared: Arc<Shared>,
    /// A byte for each HTTP connection that has left.
    left: PipeReader,
    /// HTTP connections that there ever were.
    visits: u64,
    /// Nobody is accepted at the moment.
    is_closed: bool,
    /// Another process that holds the listener has ended it. The master binds a new one and replaces this exporter.
    has_ended: bool,
}

/// What the threads share.
struct Shared {
    answers: Answers,
    connections: Mutex<BTreeMap<u64, Arc<HttpConnection>>>,
    left: PipeWriter,
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
        let (left, leave) = io::pipe()?;
        let poller = Poller::new(8)?;
        poller.add(&channel, CHANNEL, Interest::Read)?;
        poller.add(&left, LEFT, Interest::Read)?;
        poller.add(&listener, LISTENER, Interest::Clients)?;
        let shared = Arc::new(Shared {
            answers,
            connections: Mutex::default(),
            left: leave,
        });
        Ok(Server {
            channel,
            scratch,
            listener,
            poller,
            shared,
            left,
            visits: 0,
            is_closed: false,
            has_ended: false,
        })
    }

    /// Until the master is gone, or wants no more of it.
    fn serve(&mut self) -> io::Result<()> {
        let mut events: Vec<PollEvent> = Vec::new();
        loop {
            self.poller
                .wait(&mut events, self.is_closed.then_some(ACCEPT_PAUSE))?;
            if std::mem::take(&mut self.is_closed) && !self.has_ended {
                self.poller
                    .modify(&self.listener, LISTENER, Interest::Clients)?;
            }
            for event in &events {
                match event.token {
                    CHANNEL if self.receive_end()? => return Ok(()),
                    LEFT => {
                        let _bytes = self.left.read(&mut [0; MAX_CONNECTIONS])?;
                    }
                    LISTENER if event.has_ended && !is_listening(&self.listener) => {
                        self.leave_listener()?
                    }
                    LISTENER => self.admit()?,
                    _ => {}
                }
            }
        }
    }

    /// Its hang-up would be reported for ever.
    fn leave_listener(&mut self) -> io::Result<()> {
        self.has_ended = true;
        self.poller.remove(&self.listener)
    }

    /// Hears the master; whether that was the last of it.
    fn receive_end(&mut self) -> io::Result<bool> {
        match self.channel.receive(&mut self.scratch)? {
            Incoming::Message(ToExporter::Reopen, _) => {
                if let Err(e) = logging::reopen() {
                    log::warn!("{e}; still writing to the previous log file");
                }
                Ok(false)
            }
            Incoming::Nothing => Ok(false),
            Incoming::Closed => Ok(true),
            Incoming::Message(ToExporter::Start(_), _) => Err(io::Error::other("a second start")),
            Incoming::Garbage(malformed) => Err(io::Error::other(malformed)),
        }
    }

    /// Lets in one who waits; the poller tells of the next. If there are enough, the slowest has to go first.
    fn admit(&mut self) -> io::Result<()> {
        if !self.has_room() {
            return self.close();
        }
        let admitted = match accept(&self.listener, Look::First) {
            Ok(Offer::Empty | Offer::Ended) => return Ok(()),
            Ok(Offer::Client(accepted)) => self.attend(HttpConnection::new(accepted.socket)),
            Err(e) => Err(e),
        };
        admitted.or_else(|e| {
            log::warn!("cannot accept HTTP connections: {e}");
            self.close()
        })
    }

    /// Whether there is room for one more; if not, whoever is the slowest is on its way out now.
    fn has_room(&self) -> bool {
        let connections = self.shared.connections();
        let is_full = connections.len() >= MAX_CONNECTIONS;
        // They are in the order in which they came.
        if is_full && let Some(slow) = connections.values().find(|connection| connection.is_slow())
        {
            slow.cut();
        }
        !is_full
    }

    /// Serves an HTTP connection in a thread of its own.
    fn attend(&mut self, connection: HttpConnection) -> io::Result<()> {
        self.visits += 1;
        let connection = Arc::new(connection);
        self.shared
            .connections()
            .insert(self.visits, Arc::clone(&connection));
        // Dropped in any case: when the thread ends, whatever by, or if there is none.
        let visit = ConnectionGuard {
            shared: Arc::clone(&self.shared),
            number: self.visits,
        };
        thread::Builder::new()
            .spawn(move || connection.serve(&visit.shared.answers))
            .map(drop)
    }

    /// Has those who want in wait in the kernel's queue until the next look.
    fn close(&mut self) -> io::Result<()> {
        self.is_closed = true;
        if self.has_ended {
            Ok(())
        } else {
            self.poller.modify(&self.listener, LISTENER, Interest::End)
        }
    }
}

/// Somebody is inside.
struct ConnectionGuard {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.shared.connections().remove(&self.number);
        // It is read all the time; if it is not, the process is on its way out.
        let _ = (&self.shared.left).write(&[0]);
    }
}
