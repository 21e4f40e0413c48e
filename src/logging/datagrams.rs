//! Log lines by datagram.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// To whoever has a socket at a path.
///
/// Not connected: each finds the socket that is there then, also after a restart of its owner. Who does not read makes
/// nobody wait.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UnixDatagram,
    path: PathBuf,
}

impl AsRawFd for Datagrams {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Datagrams {
    /// # Errors
    /// When there is no descriptor left.
    pub(super) fn to(path: impl Into<PathBuf>) -> io::Result<Datagrams> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Datagrams { socket, path: path.into() })
    }

    /// # Errors
    /// Nobody is there, does not keep up (`WouldBlock`), or takes no datagram as long as this.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, &self.path).map(|_| ())
    }
}
