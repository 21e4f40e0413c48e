//! Connections to sockets and hosts.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::ConnectionError;
use super::options::ClientOptions;
use crate::proto::names::Address;
use crate::sys::fd;
use crate::sys::socket::{connect_tcp, connect_unix, is_of_another_type};

/// A socket that is connected to a daemon. It does not block.
#[derive(Debug)]
pub(super) struct DaemonSocket {
    pub(super) socket: UnixStream,
    /// The daemon, as users of the client read it.
    pub(super) name: Arc<str>,
}

/// A daemon to which no connection was made, and why.
pub(super) type ConnectFailure = (Arc<str>, ConnectionError);

/// A host with addresses that only the resolver knows.
#[derive(Debug)]
pub(super) struct NamedHost {
    pub(super) host: String,
    pub(super) port: u16,
    /// A lookup that was not finished in time; the next connection waits for the same one.
    lookup: Mutex<Option<Receiver<Resolved>>>,
}

/// The result of a lookup.
type Resolved = io::Result<Vec<SocketAddr>>;

impl NamedHost {
    pub(super) fn new(host: &str, port: u16) -> NamedHost {
        NamedHost {
            host: host.to_owned(),
            port,
            lookup: Mutex::default(),
        }
    }

    /// Returns the addresses of the name. A thread looks it up, because the resolver knows no deadline.
    pub(super) fn look_up(&self, timeout: Duration) -> Resolved {
        let mut earlier = self.lookup.lock().unwrap_or_else(PoisonError::into_inner);
        let lookup = match earlier.take() {
            Some(lookup) => lookup,
            None => self.begin()?,
        };
        match lookup.recv_timeout(timeout) {
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout) => {
                *earlier = Some(lookup);
                Err(io::Error::new(
                    ErrorKind::TimedOut,
                    "the name was not looked up in time",
                ))
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the lookup has failed")),
        }
    }

    fn begin(&self) -> io::Result<Receiver<Resolved>> {
        let (found, lookup) = mpsc::channel();
        let (host, port) = (self.host.clone(), self.port);
        thread::Builder::new()
            .name("lookup".to_owned())
            .spawn(move || {
                let addresses = (host.as_str(), port).to_socket_addrs();
                // Its client may be gone.
                let _ = found.send(addresses.map(Iterator::collect));
            })?;
        Ok(lookup)
    }
}

/// Returns the time for the next attempt to connect, or for the next lookup.
pub(super) fn left_of(options: &ClientOptions, deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    options.connect_timeout.min(left)
}

/// Connects to the first address that accepts, each within the time that is left.
pub(super) fn connect_to_one_of(
    addresses: Vec<SocketAddr>,
    left: impl Fn() -> Duration,
) -> io::Result<UnixStream> {
    let mut last = io::Error::from(ErrorKind::NotFound);
    for address in addresses {
        match connect_to(&Address::Tcp(address), left()) {
            Ok(connected) => return Ok(connected),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to an address of a socket. The socket does not block.
pub(super) fn connect_to(address: &Address, timeout: Duration) -> io::Result<UnixStream> {
    if timeout.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    let connected = match address {
        Address::Tcp(to) => without_delay(connect_tcp(to, timeout)?)?,
        Address::Unix(path) => {
            connect_unix(path, timeout).map_err(|cause| explain_unix(path, cause))?
        }
    };
    connected.set_nonblocking(true)?;
    Ok(connected)
}

/// Sends each write of a TCP connection at once, and refuses a connection to itself: on loopback the kernel may choose
/// the port of the destination for this end if nothing listens there.
fn without_delay(stream: UnixStream) -> io::Result<UnixStream> {
    let stream = TcpStream::from(OwnedFd::from(stream));
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(OwnedFd::from(stream).into())
}

/// Replaces the error of connect(2) for a path where no daemon can listen. Other files are refused like a socket whose
/// daemon has ended.
pub(crate) fn explain_unix(path: &Path, cause: io::Error) -> io::Error {
    if is_of_another_type(&cause) {
        return io::Error::other("it is a socket of another type");
    }
    match fs::metadata(path) {
        Ok(found)
            if cause.kind() == ErrorKind::ConnectionRefused && !found.file_type().is_socket() =>
        {
            io::Error::other(format!("it is {}, not a socket", fd::kind(&found)))
        }
        _ => cause,
    }
}
