//! Sockets: reading and writing a connection, and facts about it.

mod connect;
mod listener;
mod message;
mod peer;
mod silence;

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::{io, mem};

use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, Shutdown, SockaddrStorage, setsockopt};
use nix::{libc, setsockopt_impl, sockopt_impl};

pub use connect::{
    begin_tcp, connect_tcp, connect_unix, connect_unix_at_once, is_of_another_type, is_unix_alive,
};
#[cfg(test)]
pub use listener::keepalive;
pub(super) use listener::{bind_internet, set_client_options};
pub use listener::{
    bind_tcp, bind_unix, is_family_unavailable, listen_overflows, queue, set_keepalive, unbound,
    unbound_tcp,
};
pub use message::{
    MAX_PASSED, Received, Sent, message_pair, peek_bytes, peek_from, peek_message, receive_message,
    send_message, set_send_buffer,
};
pub use peer::{Credentials, credentials, groups, peer};
#[cfg(test)]
pub use silence::drop_everything;
pub use silence::{is_silent, probe_every};

sockopt_impl!(
    /// Sends ACKs at once: TCP_QUICKACK of tcp(7).
    TcpQuickAck,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_QUICKACK,
    bool
);

/// Returns the address that a TCP socket is bound to; none for a Unix socket.
///
/// # Errors
/// Those of getsockname(2).
pub fn local_address(socket: impl AsFd) -> io::Result<Option<SocketAddr>> {
    let address: SockaddrStorage = socket::getsockname(socket.as_fd().as_raw_fd())?;
    Ok(internet_address(&address))
}

pub(super) fn internet_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    let v6 = address.as_sockaddr_in6()?;
    Some(SocketAddr::V6((*v6).into()))
}

/// Sends the ACK of a partial read now, and the next ones at once (TCP_QUICKACK of tcp(7)).
///
/// A client that writes the prefix and the body of a frame separately, without TCP_NODELAY, sends the second part after
/// the first ACK: 44 ms a call without this. The option is not permanent, so it is set after every partial read.
pub fn acknowledge_quickly(socket: impl AsFd) {
    // An error (a socket in a state without ACKs) costs time and nothing else.
    let _ = setsockopt(&socket, TcpQuickAck, &true);
}

/// The result of a read or write of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The number of bytes, at least 1.
    Bytes(usize),
    /// No bytes now: the kernel's buffer is empty, or full.
    Nothing,
    /// No bytes now: the kernel has no memory for them. No poller reports the end of that.
    Shortage,
    /// The end: of the stream when reading, of the connection when writing.
    End,
}

/// Reads available bytes into `buffer`, which must not be empty.
///
/// # Errors
/// Those of recv(2) that end the connection (ECONNRESET, ETIMEDOUT, …).
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Transfer> {
    loop {
        match socket::recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Ok(Transfer::End),
            Ok(n) => return Ok(Transfer::Bytes(n)),
            Err(Errno::EAGAIN) => return Ok(Transfer::Nothing),
            // For the bytes or, with EFAULT, for a page of the buffer: nothing was read.
            Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::EFAULT) => return Ok(Transfer::Shortage),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Writes as much of `bytes`, which must not be empty, as the kernel accepts.
///
/// # Errors
/// Those of send(2) except EPIPE and ECONNRESET, which are [`Transfer::End`].
pub fn transmit(socket: impl AsFd, bytes: &[u8]) -> io::Result<Transfer> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    write(|| socket::send(socket.as_fd().as_raw_fd(), bytes, flags))
}

/// Writes like [`transmit`] from several pieces, of which the first must not be empty.
///
/// # Errors
/// As for [`transmit`].
pub fn transmit_pieces(socket: impl AsFd, pieces: &[IoSlice<'_>]) -> io::Result<Transfer> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    write(|| socket::sendmsg::<()>(socket.as_fd().as_raw_fd(), pieces, &[], flags, None))
}

/// Writes like [`transmit`], but by write(2), which the kernel counts for the thread ([`super::byte_counts`]). The
/// socket must not block. std ignores SIGPIPE.
///
/// # Errors
/// Those of write(2) except EPIPE and ECONNRESET, which are [`Transfer::End`].
pub fn transmit_summed(socket: impl AsFd, bytes: &[u8]) -> io::Result<Transfer> {
    write(|| nix::unistd::write(socket.as_fd(), bytes))
}

#[inline]
fn write(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<Transfer> {
    loop {
        match call() {
            Ok(n) => return Ok(Transfer::Bytes(n)),
            Err(Errno::EAGAIN) => return Ok(Transfer::Nothing),
            // ENOBUFS: out of memory right now (send(2)), which passes.
            Err(Errno::ENOBUFS | Errno::ENOMEM) => return Ok(Transfer::Shortage),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(Transfer::End),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Shuts down the writing side for every holder of a copy of the socket.
pub fn finish_writing(socket: impl AsFd) {
    // ENOTCONN: the other end has closed before.
    let _ = socket::shutdown(socket.as_fd().as_raw_fd(), Shutdown::Write);
}

/// Ends the connection for every holder of a copy of the socket. close(2) alone would delay the FIN until the last copy
/// is closed.
pub fn end(socket: impl AsFd) {
    let _ = socket::shutdown(socket.as_fd().as_raw_fd(), Shutdown::Both);
}

/// Returns a number that no other socket has while this system runs: SO_COOKIE of socket(7). `None` before Linux 4.12,
/// where the kernel has no such numbers.
///
/// # Errors
/// Those of getsockopt(2): EBADF and ENOTSOCK for a descriptor that is not a socket.
pub fn cookie(socket: impl AsFd) -> io::Result<Option<u64>> {
    raw_cookie(socket.as_fd().as_raw_fd())
}

/// Returns the [`cookie`] of the socket that has this number now, if one has. Safe in a signal handler.
///
/// # Errors
/// As for [`cookie`].
pub(super) fn raw_cookie(fd: RawFd) -> io::Result<Option<u64>> {
    let mut cookie: u64 = 0;
    let mut length = mem::size_of_val(&cookie) as libc::socklen_t;
    let (value, option) = ((&raw mut cookie).cast(), libc::SO_COOKIE);
    // SAFETY: `value` points to `length` bytes that this function may write. nix would need a descriptor that is open.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, value, &raw mut length) };
    match Errno::result(result) {
        Ok(_) => Ok(Some(cookie)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Returns whether a connection failed because of the peer or the network, including what ICMP reports (tcp(7), ip(7)),
/// rather than because of this machine.
#[must_use]
pub fn is_broken_by_peer(error: &io::Error) -> bool {
    const BY_PEER: [Errno; 15] = [
        // The peer has passed too many descriptors (sys::passed).
        Errno::ETOOMANYREFS,
        Errno::ECONNRESET,
        Errno::EPIPE,
        Errno::ETIMEDOUT,
        Errno::ECONNABORTED,
        Errno::ECONNREFUSED,
        Errno::ENOTCONN,
        Errno::EHOSTUNREACH,
        Errno::EHOSTDOWN,
        Errno::ENETUNREACH,
        Errno::ENETDOWN,
        Errno::ENONET,
        Errno::EPROTO,
        Errno::ENOPROTOOPT,
        Errno::EACCES,
    ];
    let errno = error.raw_os_error().map(Errno::from_raw);
    errno.is_some_and(|errno| BY_PEER.contains(&errno))
}
