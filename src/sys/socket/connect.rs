//! Connecting, without waiting for longer than a limit.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, UnixAddr, setsockopt,
    sockopt,
};

use super::listener::{stream_socket, unbound};

/// Connects to a TCP listener, within `timeout`. The stream blocks; its type is that of a Unix stream, whose calls are
/// those of all stream sockets.
///
/// # Errors
/// Those of connect(2); `TimedOut` when the listener did not answer in time.
pub fn connect_tcp(to: &SocketAddr, timeout: Duration) -> io::Result<UnixStream> {
    TcpStream::connect_timeout(to, timeout).map(|stream| OwnedFd::from(stream).into())
}

/// Begins to connect to a TCP listener, if wanted from this address, and does not wait for the end. The socket does not
/// block; it becomes writable when it is connected.
///
/// # Errors
/// Those of connect(2) and bind(2).
pub fn begin_tcp(to: &SocketAddr, from: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let socket = stream_socket(match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    })?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    if let Some(from) = from {
        // The kernel chooses the port when it knows the other end, so that ports can be used for several.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        let from = SockaddrIn::from(SocketAddrV4::new(from, 0));
        socket::bind(socket.as_raw_fd(), &from)?;
    }
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(*to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

/// Connects to the Unix socket at `path`, within `timeout`. The stream blocks.
///
/// # Errors
/// Those of connect(2); `TimedOut` when the listener's queue stayed full.
pub fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let stream = UnixStream::from(socket);
    // connect(2) of a Unix socket waits for room in the queue for as long as SO_SNDTIMEO allows (socket(7)).
    stream.set_write_timeout(Some(timeout))?;
    let address = UnixAddr::new(path)?;
    loop {
        match socket::connect(stream.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        }
    }
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Connects to the Unix stream socket at `path` without waiting. The socket does not block.
///
/// # Errors
/// Those of connect(2); `WouldBlock` when the listener's queue is full.
pub fn connect_unix_at_once(path: &Path) -> io::Result<OwnedFd> {
    let stream = unbound()?;
    socket::connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(stream)
}

/// Returns whether a process listens on the Unix socket at `path`. Only a refusal proves that none does.
///
/// # Errors
/// Those of connect(2) that prove neither.
pub fn is_unix_alive(path: &Path) -> io::Result<bool> {
    match connect_unix_at_once(path) {
        Ok(_) => Ok(true),
        // The queue is full, so there is a listener.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(e) => Err(e),
    }
}

/// Returns whether an error of sendto(2) means that a socket of another type is at the path.
#[must_use]
pub fn is_of_another_type(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPROTOTYPE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::listening::{AcceptResult, AcceptTry, accept, listen};
    use crate::sys::socket::bind_unix;

    #[test]
    fn connect_unix_waits_for_room_only_within_its_timeout() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.sock");
        let timeout = Duration::from_millis(20);
        let refused = connect_unix(&path, timeout).expect_err("no socket is there");
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        let listener = bind_unix(&path).expect("bind");
        listen(&listener, 0).expect("listen");
        let _first = connect_unix(&path, timeout).expect("there is room for one");
        let refused = connect_unix(&path, timeout).expect_err("and for no other");
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        let accepted = accept(&listener, AcceptTry::First).expect("accept");
        assert!(matches!(accepted, AcceptResult::Client(_)));
        connect_unix(&path, timeout).expect("there is room again");
    }
}
