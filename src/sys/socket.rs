//! Sockets: listening, accepting, reading and writing, and passing descriptors.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{self, PeerCredentials};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrIn, SockaddrIn6,
    SockaddrStorage, UnixAddr, getsockopt, setsockopt,
};
use nix::{libc, setsockopt_impl, sockopt_impl};

/// Most descriptors that one message can carry: `SCM_MAX_FD` (unix(7)).
pub const MAX_PASSED: usize = 253;

/// A TCP listener that is bound and not yet listening.
///
/// What is set here is inherited by every socket that it accepts: TCP_NODELAY, and SO_OOBINLINE, without which a byte of
/// urgent data would stand between the kernel's count of unread bytes and ours. IPv6 listeners take IPv6 only, whatever
/// the system's default is (ipv6(7)).
///
/// With `freebind` the address need not be one of this host (IP_FREEBIND of ip(7)).
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
    match address {
        SocketAddr::V4(a) => socket::bind(listener.as_raw_fd(), &SockaddrIn::from(a))?,
        SocketAddr::V6(a) => socket::bind(listener.as_raw_fd(), &SockaddrIn6::from(a))?,
    }
    Ok(listener)
}

sockopt_impl!(
    /// Whether an address may be bound that no interface has: IPV6_FREEBIND, as IP_FREEBIND of ip(7).
    Ipv6Freebind,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_FREEBIND,
    bool
);

/// A TCP socket that is to be bound to this address, and is not.
///
/// # Errors
/// Those of socket(2) and setsockopt(2).
pub fn unbound_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket::socket(family, SockType::Stream, flags, None)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    set_client_options(&listener)?;
    if address.is_ipv6() {
        setsockopt(&listener, sockopt::Ipv6V6Only, &true)?;
    }
    Ok(listener)
}

/// Whether an error is that of a family of addresses that this process may not use, or the kernel cannot: EAFNOSUPPORT.
#[must_use]
pub fn is_family_unavailable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// What all sockets that a TCP listener accepts are to have, but for [`set_keepalive`].
pub(super) fn set_client_options(listener: &OwnedFd) -> io::Result<()> {
    setsockopt(listener, sockopt::TcpNoDelay, &true)?;
    setsockopt(listener, sockopt::OobInline, &true)?;
    Ok(())
}

/// A client that says nothing for `idle` is probed; one that answers none of five probes is gone. Of a listener it holds
/// for those that it accepts from then on.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_keepalive(socket: &OwnedFd, idle: Option<Duration>) -> io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &idle.is_some())?;
    if let Some(idle) = idle {
        let idle = u32::try_from(idle.as_secs())
            .unwrap_or(u32::MAX)
            .clamp(1, 32_767); // tcp(7): MAX_TCP_KEEPIDLE
        setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
        setsockopt(socket, sockopt::TcpKeepInterval, &(idle / 5).clamp(1, 75))?;
        setsockopt(socket, sockopt::TcpKeepCount, &5)?;
    }
    Ok(())
}

/// What [`set_keepalive`] set, or what was inherited of it.
#[cfg(test)]
pub fn keepalive(socket: &OwnedFd) -> Option<Duration> {
    let on = getsockopt(socket, sockopt::KeepAlive).expect("SO_KEEPALIVE");
    on.then(|| {
        Duration::from_secs(
            getsockopt(socket, sockopt::TcpKeepIdle)
                .expect("TCP_KEEPIDLE")
                .into(),
        )
    })
}

/// A Unix stream socket that is bound and not yet listening, so that its file can still get its mode and owner.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    let listener = unix_stream()?;
    socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(listener)
}

/// Whether somebody listens on the Unix socket at `path`. Only a refusal proves that nobody does.
///
/// # Errors
/// Those of connect(2) that say neither.
pub fn is_unix_alive(path: &Path) -> io::Result<bool> {
    match socket::connect(unix_stream()?.as_raw_fd(), &UnixAddr::new(path)?) {
        // EAGAIN: its queue is full, so there is one.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Connects to the Unix socket at `path`. For room in its queue it waits no longer than `within`; the stream blocks.
///
/// # Errors
/// Those of connect(2); `TimedOut` when there was no room.
pub fn connect_unix(path: &Path, within: Duration) -> io::Result<UnixStream> {
    let socket = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let stream = UnixStream::from(socket);
    // The one timeout that connect(2) knows, of a Unix socket too; zero would be none.
    stream.set_write_timeout(Some(within))?;
    let address = UnixAddr::new(path)?;
    loop {
        match socket::connect(stream.as_raw_fd(), &address) {
            Ok(()) => return Ok(stream),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Connects to the Unix stream socket at `path` without waiting. The socket does not block.
///
/// # Errors
/// Those of connect(2); `WouldBlock` when its queue is full.
pub fn connect_unix_at_once(path: &Path) -> io::Result<OwnedFd> {
    let stream = unix_stream()?;
    socket::connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(stream)
}

/// Whether an error of sendto(2) says that another type of socket is at the path.
#[must_use]
pub fn is_of_another_type(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPROTOTYPE)
}

/// A Unix socket that is bound to nothing, so that nobody can connect to it.
///
/// # Errors
/// Those of socket(2).
pub fn unbound() -> io::Result<OwnedFd> {
    unix_stream()
}

fn unix_stream() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        flags,
        None,
    )?)
}

/// The address that a TCP socket is bound to; none for a Unix socket.
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
    address
        .as_sockaddr_in6()
        .map(|v6| SocketAddr::V6((*v6).into()))
}

/// Who is at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The process, as seen from here; 0 if it cannot be seen.
    pub pid: u32,
    /// Its user when it connected.
    pub uid: u32,
    /// Its group when it connected.
    pub gid: u32,
}

/// Who connected to us: SO_PEERCRED of unix(7).
///
/// # Errors
/// Those of getsockopt(2).
pub fn credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let found = getsockopt(&socket, PeerCredentials)?;
    Ok(Credentials {
        pid: found.pid().unsigned_abs(),
        uid: found.uid(),
        gid: found.gid(),
    })
}

/// The supplementary groups of whoever connected to us, as they were then: SO_PEERGROUPS, which is to [`credentials`] what
/// getgroups(2) is to getgid(2).
///
/// # Errors
/// Those of getsockopt(2); ENOPROTOOPT before Linux 4.13.
pub fn groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    const GROUP: usize = mem::size_of::<libc::gid_t>();
    let fd = socket.as_fd().as_raw_fd();
    // Most users have fewer; NGROUPS_MAX is 65,536.
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut length = (groups.len() * GROUP) as libc::socklen_t;
        let value = groups.as_mut_ptr().cast();
        // SAFETY: `value` points to `length` bytes that are ours to write.
        let told = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                value,
                &raw mut length,
            )
        };
        let count = length as usize / GROUP;
        match Errno::result(told) {
            // Too short by so much. They do not change any more, so the next call is the last one.
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(e) => return Err(e.into()),
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
        }
    }
}

/// Clients that wait in the queue of a TCP listener, and how many can: `tcpi_unacked` and `tcpi_sacked`, which
/// mean that for a listener (tcp_get_info() in the kernel).
///
/// # Errors
/// Those of getsockopt(2).
pub fn queue(listener: impl AsFd) -> io::Result<(u32, u32)> {
    // SAFETY: all-zero bytes are a tcp_info.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = mem::size_of_val(&info) as libc::socklen_t;
    let fd = listener.as_fd().as_raw_fd();
    let value = (&raw mut info).cast();
    // SAFETY: `value` points to `length` bytes that are ours to write.
    Errno::result(unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            value,
            &raw mut length,
        )
    })?;
    Ok((info.tcpi_unacked, info.tcpi_sacked))
}

/// Connections that the kernel dropped because the queue of their listener was full, of all listeners in the network
/// namespace: `ListenOverflows` of `TcpExt` in /proc/net/netstat.
#[must_use]
pub fn listen_overflows() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?.split(' '), lines.next()?.split(' '));
    names
        .zip(values)
        .find(|(name, _)| *name == "ListenOverflows")?
        .1
        .parse()
        .ok()
}

/// Sends the ACK of what was read now, and the next ones at once: tcp(7), TCP_QUICKACK. A client that writes the
/// prefix and the body of a frame apart, without TCP_NODELAY, waits for the first ACK before it sends the second
/// part: 44 ms a call without this. It is not permanent, so it is said after every partial read. Of a Unix socket
/// it is not asked.
pub fn acknowledge_quickly(socket: impl AsFd) {
    let on: libc::c_int = 1;
    let length = mem::size_of_val(&on) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the value is one int that outlives the call. It may fail (a socket in a state without ACKs), which
    // costs time and nothing else.
    let _ = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            (&raw const on).cast(),
            length,
        )
    };
}

/// What a read or write of a stream came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// None now: the buffer of the kernel is empty, or full.
    Nothing,
    /// The end: of the stream when reading, of the connection when writing.
    End,
}

/// Reads what is there into `buffer`, which is not empty.
///
/// # Errors
/// Those of recv(2) that end the connection (ECONNRESET, ETIMEDOUT, …).
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Moved> {
    loop {
        match socket::recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Ok(Moved::End),
            Ok(n) => return Ok(Moved::Bytes(n)),
            Err(Errno::EAGAIN) => return Ok(Moved::Nothing),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Writes what the kernel takes of `bytes`, which are not none.
///
/// # Errors
/// Those of send(2) but EPIPE and ECONNRESET, which are [`Moved::End`].
pub fn transmit(socket: impl AsFd, bytes: &[u8]) -> io::Result<Moved> {
    loop {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match socket::send(socket.as_fd().as_raw_fd(), bytes, flags) {
            Ok(n) => return Ok(Moved::Bytes(n)),
            // ENOBUFS: out of memory for it right now (send(2)), which passes.
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return Ok(Moved::Nothing),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(Moved::End),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// As [`transmit`], by write(2), which the kernel sums up for the process ([`super::byte_counts`]); for a socket that does not
/// block. std ignores SIGPIPE.
///
/// # Errors
/// Those of write(2) but EPIPE and ECONNRESET, which are [`Moved::End`].
pub fn transmit_summed(socket: impl AsFd, bytes: &[u8]) -> io::Result<Moved> {
    loop {
        match nix::unistd::write(socket.as_fd(), bytes) {
            Ok(n) => return Ok(Moved::Bytes(n)),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return Ok(Moved::Nothing),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(Moved::End),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Says that nothing more will be written, to everybody who holds a copy of the socket.
pub fn finish_writing(socket: impl AsFd) {
    // ENOTCONN: the other side has said so before.
    let _ = socket::shutdown(socket.as_fd().as_raw_fd(), Shutdown::Write);
}

/// Ends the connection for everybody who holds a copy of the socket: close(2) alone would keep the FIN back for as
/// long as another copy lives.
pub fn end(socket: impl AsFd) {
    let _ = socket::shutdown(socket.as_fd().as_raw_fd(), Shutdown::Both);
}

/// Two connected sockets that keep the borders of messages and tell when the other end is gone.
///
/// # Errors
/// Those of socketpair(2).
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        flags,
    )?)
}

/// Wants room for so many bytes of messages that nobody has received yet. What is allowed is taken: with CAP_NET_ADMIN all
/// of it, else what net.core.wmem_max says (socket(7)).
///
/// # Errors
/// Those of setsockopt(2).
pub fn want_send_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        setsockopt(socket, sockopt::SndBuf, &bytes)?;
    }
    Ok(())
}

/// Who is at the other end of a connection: the address of a TCP client, or the credentials of a Unix client.
///
/// # Errors
/// Those of getpeername(2): ENOTCONN when the connection is over, and of getsockopt(2).
pub fn peer(socket: &OwnedFd) -> io::Result<Result<SocketAddr, Credentials>> {
    let address: SockaddrStorage = socket::getpeername(socket.as_raw_fd())?;
    match internet_address(&address) {
        Some(address) => Ok(Ok(address)),
        None => credentials(socket).map(Err),
    }
}

/// A number that no other socket has as long as this system runs: SO_COOKIE of socket(7). `None` where the kernel has no such
/// numbers, before Linux 4.12.
///
/// # Errors
/// Those of getsockopt(2): EBADF and ENOTSOCK for what is no socket.
pub fn cookie(socket: impl AsFd) -> io::Result<Option<u64>> {
    raw_cookie(socket.as_fd().as_raw_fd())
}

/// As [`cookie`], of whatever has this number. Safe in a signal handler.
///
/// # Errors
/// As for [`cookie`].
pub(super) fn raw_cookie(fd: RawFd) -> io::Result<Option<u64>> {
    let mut cookie: u64 = 0;
    let mut length = mem::size_of_val(&cookie) as libc::socklen_t;
    let value = (&raw mut cookie).cast();
    // SAFETY: `value` points to `length` bytes that are ours to write.
    match Errno::result(unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            value,
            &raw mut length,
        )
    }) {
        Ok(_) => Ok(Some(cookie)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Whether a connection has failed because of the peer or of the network between, and not because of this machine. What
/// ICMP reports is among it (tcp(7), ip(7)).
#[must_use]
pub fn is_broken_by_peer(error: &io::Error) -> bool {
    const BY_PEER: [Errno; 15] = [
        // It has passed too many descriptors (sys::passed).
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
    error
        .raw_os_error()
        .is_some_and(|errno| BY_PEER.contains(&Errno::from_raw(errno)))
}

/// What sending a message came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an unsent message must be sent again, or abandoned with its purpose"]
pub enum Sent {
    /// It is in the other's queue, copies of the descriptors with it.
    Queued,
    /// There is no room: its queue is full, or too many descriptors are under way (ETOOMANYREFS, unix(7)).
    Full,
    /// The other end is closed.
    Closed,
}

/// Sends one message with copies of some descriptors. An empty message would look like the end: there is none.
///
/// # Errors
/// Those of sendmsg(2) other than the three outcomes; `InvalidInput` for more than [`MAX_PASSED`] descriptors or no bytes.
pub fn send_message(
    channel: impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<Sent> {
    if message.is_empty() || descriptors.len() > MAX_PASSED {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<libc::c_int> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [socket::ControlMessage::ScmRights(&raw)];
    let control: &[_] = if raw.is_empty() { &[] } else { &rights };
    let parts = [io::IoSlice::new(message)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match socket::sendmsg::<()>(channel.as_fd().as_raw_fd(), &parts, control, flags, None) {
            Ok(_) => return Ok(Sent::Queued),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS) => {
                return Ok(Sent::Full);
            }
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(Sent::Closed),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// What receiving a message came to.
#[derive(Debug)]
pub enum Received {
    /// So many bytes of the buffer, and these descriptors. `cut` when some of either could not be delivered: the
    /// buffer was too small, or this process is out of descriptors and the kernel closed the rest.
    Message {
        /// Length in bytes.
        length: usize,
        /// What came along.
        descriptors: Vec<OwnedFd>,
        /// Something is missing.
        cut: bool,
    },
    /// No message now.
    Nothing,
    /// The other end is closed and nothing is left.
    Closed,
}

/// Space for the control message of [`MAX_PASSED`] descriptors, aligned as cmsghdr wants it (1,032 bytes).
#[repr(C, align(8))]
struct ControlBuffer([u8; ControlBuffer::SIZE]);

impl ControlBuffer {
    const SIZE: usize =
        mem::size_of::<libc::cmsghdr>() + MAX_PASSED * mem::size_of::<libc::c_int>() + 4;
}

/// Receives one message and whatever descriptors it carries.
///
/// By hand: nix lists no descriptor when some were cut off, and those that did arrive would leak, their clients
/// hanging for ever. ECONNRESET is not the end: it comes once, before the messages that are still queued.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive_message(channel: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = ControlBuffer([0; ControlBuffer::SIZE]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    loop {
        // SAFETY: all-zero bytes are a msghdr (it has padding on some systems, hence no literal).
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = ControlBuffer::SIZE as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: every pointer in `header` is to live memory of the length that stands beside it.
        let length = unsafe { libc::recvmsg(channel.as_fd().as_raw_fd(), &raw mut header, flags) };
        match Errno::result(length) {
            Ok(length) => {
                let descriptors = descriptors_in(&header);
                if length == 0 && descriptors.is_empty() {
                    return Ok(Received::Closed);
                }
                let cut = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
                return Ok(Received::Message {
                    length: length.unsigned_abs(),
                    descriptors,
                    cut,
                });
            }
            Err(Errno::EAGAIN) => return Ok(Received::Nothing),
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Takes over the descriptors that the kernel has installed for a message.
fn descriptors_in(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: `header` is as recvmsg left it, and its control buffer is alive; the macros stay within it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header in the buffer.
        let head = unsafe { &*next };
        if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: as above; the data of this message begins there.
            let data: *const libc::c_int = unsafe { libc::CMSG_DATA(next) }.cast();
            // SAFETY: pure arithmetic.
            let headless = head.cmsg_len as usize - unsafe { libc::CMSG_LEN(0) } as usize;
            for i in 0..headless / mem::size_of::<libc::c_int>() {
                // SAFETY: cmsg_len says that so many are there; each is a new descriptor that is ours alone.
                found.push(unsafe { OwnedFd::from_raw_fd(data.add(i).read_unaligned()) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::listening::{Look, Offer, accept, listen};
    use std::fs::File;

    fn null() -> OwnedFd {
        File::open("/dev/null").expect("/dev/null").into()
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_carries_arrive_in_order_and_no_more_are_sent() {
        let (a, b) = message_pair().expect("socketpair");
        let all: Vec<OwnedFd> = (0..MAX_PASSED).map(|_| null()).collect();
        let lent: Vec<BorrowedFd> = all.iter().map(AsFd::as_fd).collect();
        assert_eq!(
            send_message(&a, b"x", &lent).expect("sendmsg"),
            Sent::Queued
        );
        let mut buffer = [0; 8];
        match receive_message(&b, &mut buffer).expect("recvmsg") {
            Received::Message {
                length,
                descriptors,
                cut,
            } => {
                assert_eq!((length, descriptors.len(), cut), (1, MAX_PASSED, false));
            }
            other => panic!("{other:?}"),
        }
        assert!(send_message(&a, b"x", &[lent[0]; MAX_PASSED + 1]).is_err());
        assert!(send_message(&a, b"", &lent[..1]).is_err());
    }

    #[test]
    fn room_in_the_queue_of_a_unix_socket_is_waited_for_no_longer_than_was_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.sock");
        let timeout = Duration::from_millis(20);
        let refused = connect_unix(&path, timeout).expect_err("nobody is there");
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        let listener = bind_unix(&path).expect("bind");
        listen(&listener, 0).expect("listen");
        let _first = connect_unix(&path, timeout).expect("there is room for one");
        let refused = connect_unix(&path, timeout).expect_err("and for no other");
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        assert!(matches!(
            accept(&listener, Look::First).expect("accept"),
            Offer::Client(_)
        ));
        connect_unix(&path, timeout).expect("there is room again");
    }

    #[test]
    fn what_was_queued_is_read_after_the_other_end_died_with_unread_messages() {
        let (a, b) = message_pair().expect("socketpair");
        assert_eq!(
            send_message(&a, b"unread", &[]).expect("sendmsg"),
            Sent::Queued
        );
        assert_eq!(
            send_message(&b, b"last words", &[null().as_fd()]).expect("sendmsg"),
            Sent::Queued
        );
        drop(b);
        let mut buffer = [0; 64];
        match receive_message(&a, &mut buffer).expect("recvmsg") {
            Received::Message {
                length,
                descriptors,
                ..
            } => {
                assert_eq!(
                    (&buffer[..length], descriptors.len()),
                    (&b"last words"[..], 1)
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            receive_message(&a, &mut buffer).expect("recvmsg"),
            Received::Closed
        ));
        assert_eq!(send_message(&a, b"x", &[]).expect("sendmsg"), Sent::Closed);
    }

    #[test]
    fn the_groups_of_the_other_end_are_told() {
        let (a, _b) = message_pair().expect("socketpair");
        let own: Vec<u32> = nix::unistd::getgroups()
            .expect("getgroups")
            .into_iter()
            .map(|gid| gid.as_raw())
            .collect();
        assert_eq!(groups(&a).expect("SO_PEERGROUPS"), own);
        assert!(groups(null()).is_err(), "no socket");
    }

    #[test]
    fn a_full_queue_is_said_and_a_message_over_the_buffer_is_cut() {
        let (a, b) = message_pair().expect("socketpair");
        let mut queued = 0;
        while send_message(&a, b"12345678", &[]).expect("sendmsg") == Sent::Queued {
            queued += 1;
        }
        assert!(queued > 100, "{queued}");
        let mut small = [0; 4];
        match receive_message(&b, &mut small).expect("recvmsg") {
            Received::Message { length, cut, .. } => assert_eq!((length, cut), (4, true)),
            other => panic!("{other:?}"),
        }
    }
}
