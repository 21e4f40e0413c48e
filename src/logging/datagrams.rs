//! Log lines by datagram, or to a stream where a stream listens.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::sys::socket::{self, Moved};

/// To whoever has a socket at a path.
///
/// Not connected: each finds the socket that is there then, also after a restart of its owner. Who does not read makes
/// nobody wait.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UnixDatagram,
    path: PathBuf,
    /// The connection, if a stream listens there.
    stream: RefCell<Option<OwnedFd>>,
}

impl AsRawFd for Datagrams {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Datagrams {
    /// # Errors
    /// When there is no descriptor left.
    pub(super) fn new(path: impl Into<PathBuf>) -> io::Result<Datagrams> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Datagrams {
            socket,
            path: path.into(),
            stream: RefCell::new(None),
        })
    }

    /// # Errors
    /// Nobody is there, does not keep up (`WouldBlock`), or takes no datagram as long as this.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match self.socket.send_to(datagram, &self.path) {
            Err(e) if socket::is_of_another_type(&e) => self.send_to_stream(datagram),
            sent => sent.map(|_| ()),
        }
    }

    /// As syslog(3) does where syslogd listens on a stream: a NUL ends each message.
    fn send_to_stream(&self, message: &[u8]) -> io::Result<()> {
        let mut stream = self.stream.borrow_mut();
        let terminated = [message, b"\0"].concat();
        // One that was connected before may have ended, as its owner was started again.
        for _ in 0..2 {
            let is_new = stream.is_none();
            let connected = match stream.take() {
                Some(connected) => connected,
                None => socket::connect_unix_at_once(&self.path)?,
            };
            match socket::transmit(&connected, &terminated) {
                Ok(Moved::Bytes(n)) if n == terminated.len() => {
                    *stream = Some(connected);
                    return Ok(());
                }
                Ok(Moved::Nothing) => {
                    *stream = Some(connected);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                // The rest of this message would become the next one: the connection is given up.
                Ok(Moved::Bytes(_)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        "only a part of the line was taken",
                    ));
                }
                Ok(Moved::End) | Err(_) if !is_new => {}
                Ok(Moved::End) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }
}
