//! Sends log lines as datagrams, or over a stream if the listener is one.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::sys::socket::{self, Transfer};

/// A sender to the socket at a path.
///
/// The socket is not connected: each datagram goes to the socket that is at the path then, also after a restart of its
/// owner. A receiver that does not read causes no wait.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UnixDatagram,
    path: PathBuf,
    /// The connection, if the listener is a stream.
    stream: RefCell<Option<OwnedFd>>,
}

impl Datagrams {
    pub(super) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Creates a target for the socket at a path.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(super) fn new(path: impl Into<PathBuf>) -> io::Result<Datagrams> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Datagrams {
            socket,
            path: path.into(),
            stream: RefCell::new(None),
        })
    }

    /// Sends a datagram, at once or not at all.
    ///
    /// # Errors
    /// When there is no receiver, it does not keep up (`WouldBlock`), or the datagram is too long.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match self.socket.send_to(datagram, &self.path) {
            Err(e) if socket::is_of_another_type(&e) => self.send_to_stream(datagram),
            sent => sent.map(|_| ()),
        }
    }

    /// Sends as syslog(3) does to a syslogd that listens on a stream: a NUL ends each message.
    fn send_to_stream(&self, message: &[u8]) -> io::Result<()> {
        let mut stream = self.stream.borrow_mut();
        let terminated = [message, b"\0"].concat();
        // An earlier connection may have ended with a restart of its owner.
        for _ in 0..2 {
            let is_new = stream.is_none();
            let connected = match stream.take() {
                Some(connected) => connected,
                None => socket::connect_unix_at_once(&self.path)?,
            };
            match socket::transmit(&connected, &terminated) {
                Ok(Transfer::Bytes(n)) if n == terminated.len() => {
                    *stream = Some(connected);
                    return Ok(());
                }
                Ok(Transfer::Nothing | Transfer::Shortage) => {
                    *stream = Some(connected);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                // The rest of this message would become the start of the next one, so the connection is closed.
                Ok(Transfer::Bytes(_)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        "only a part of the line was taken",
                    ));
                }
                Ok(Transfer::End) | Err(_) if !is_new => {}
                Ok(Transfer::End) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }
}
