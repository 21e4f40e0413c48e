//! Listening sockets: creating and binding them, the options that their clients inherit, and their queue.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use std::{fs, io, mem};

use nix::errno::Errno;
#[cfg(test)]
use nix::sys::socket::getsockopt;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, setsockopt, sockopt,
};
use nix::{libc, setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// Whether an address may be bound that no interface has: IPV6_FREEBIND, as IP_FREEBIND of ip(7).
    Ipv6Freebind,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_FREEBIND,
    bool
);

/// Returns a TCP socket that is bound and not yet listening.
///
/// Every socket that it accepts inherits TCP_NODELAY and SO_OOBINLINE; without the latter a byte of urgent data would
/// make the kernel's count of unread bytes differ from ours. IPv6 listeners accept IPv6 only, whatever the system's
/// default is (ipv6(7)). With `freebind` the address need not be one of this host (IP_FREEBIND of ip(7)).
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2).
pub fn bind_tcp(address: SocketAddr, freebind: bool) -> io::Result<OwnedFd> {
    let listener = unbound_tcp(address)?;
    match address {
        SocketAddr::V4(_) if freebind => setsockopt(&listener, sockopt::IpFreebind, &true)?,
        SocketAddr::V6(_) if freebind => setsockopt(&listener, Ipv6Freebind, &true)?,
        _ => {}
    }
    bind_internet(&listener, address)?;
    Ok(listener)
}

/// Binds a TCP socket.
pub(in crate::sys) fn bind_internet(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(a) => socket::bind(socket.as_raw_fd(), &SockaddrIn::from(a))?,
        SocketAddr::V6(a) => socket::bind(socket.as_raw_fd(), &SockaddrIn6::from(a))?,
    }
    Ok(())
}

/// Returns a TCP socket that can be bound to this address, and is not.
///
/// # Errors
/// Those of socket(2) and setsockopt(2).
pub fn unbound_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let listener = stream_socket(family)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    set_client_options(&listener)?;
    if address.is_ipv6() {
        setsockopt(&listener, sockopt::Ipv6V6Only, &true)?;
    }
    Ok(listener)
}

/// Returns whether an error means that this process, or the kernel, has no addresses of a family: EAFNOSUPPORT.
#[must_use]
pub fn is_family_unavailable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Sets what all sockets inherit that a TCP listener accepts, except for [`set_keepalive`].
pub(in crate::sys) fn set_client_options(listener: &OwnedFd) -> io::Result<()> {
    setsockopt(listener, sockopt::TcpNoDelay, &true)?;
    setsockopt(listener, sockopt::OobInline, &true)?;
    Ok(())
}

/// Probes clients that have been silent for `idle`; a client that answers none of five probes is gone. Sockets inherit
/// this from the listener that accepts them.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_keepalive(socket: &OwnedFd, idle: Option<Duration>) -> io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &idle.is_some())?;
    if let Some(idle) = idle {
        let idle = u32::try_from(idle.as_secs()).unwrap_or(u32::MAX);
        let idle = idle.clamp(1, 32_767); // tcp(7): MAX_TCP_KEEPIDLE
        setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
        setsockopt(socket, sockopt::TcpKeepInterval, &(idle / 5).clamp(1, 75))?;
        setsockopt(socket, sockopt::TcpKeepCount, &5)?;
    }
    Ok(())
}

/// Returns the value of [`set_keepalive`], set or inherited.
#[cfg(test)]
pub fn keepalive(socket: &OwnedFd) -> Option<Duration> {
    let is_on = getsockopt(socket, sockopt::KeepAlive).expect("SO_KEEPALIVE");
    let idle = getsockopt(socket, sockopt::TcpKeepIdle).expect("TCP_KEEPIDLE");
    is_on.then(|| Duration::from_secs(idle.into()))
}

/// Returns a Unix stream socket that is bound and not yet listening, so that its file can get its mode and owner first.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    let listener = unbound()?;
    socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(listener)
}

/// Returns a Unix stream socket that is bound to no path, so that no client can connect to it.
///
/// # Errors
/// Those of socket(2).
pub fn unbound() -> io::Result<OwnedFd> {
    stream_socket(AddressFamily::Unix)
}

pub(super) fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(family, SockType::Stream, flags, None)?)
}

/// Returns how many clients wait in the queue of a TCP listener, and how many can: `tcpi_unacked` and `tcpi_sacked`,
/// which have that meaning for a listener (tcp_get_info() in the kernel).
///
/// # Errors
/// Those of getsockopt(2).
pub fn queue(listener: impl AsFd) -> io::Result<(u32, u32)> {
    let info = tcp_info(listener)?;
    Ok((info.tcpi_unacked, info.tcpi_sacked))
}

/// Returns the facts about a TCP socket that the kernel has at least since Linux 2.6: TCP_INFO of tcp(7).
pub(super) fn tcp_info(socket: impl AsFd) -> io::Result<libc::tcp_info> {
    // SAFETY: all-zero bytes are a tcp_info.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = mem::size_of_val(&info) as libc::socklen_t;
    let (fd, value) = (socket.as_fd().as_raw_fd(), (&raw mut info).cast());
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: `value` points to `length` bytes that this function may write. nix would panic where the kernel writes
    // fewer.
    Errno::result(unsafe { libc::getsockopt(fd, level, option, value, &raw mut length) })?;
    Ok(info)
}

/// Returns how many connections the kernel has dropped because the queue of their listener was full, over all listeners
/// in the network namespace: `ListenOverflows` of `TcpExt` in /proc/net/netstat.
#[must_use]
pub fn listen_overflows() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?.split(' '), lines.next()?.split(' '));
    let (_, count) = names
        .zip(values)
        .find(|(name, _)| *name == "ListenOverflows")?;
    count.parse().ok()
}
