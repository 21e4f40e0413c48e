//! Listening, and accepting clients from sockets that other processes may hold as well.
//!
//! A listening socket is often shared: with the service manager that has bound it, with the program that started this
//! one, with programs that inherited it. Each holder can end it for all (shutdown(2)), and each can clear its
//! O_NONBLOCK, which belongs to the open file description: systemd does so at each start of a service that gets the
//! socket without `NonBlocking=yes`. In neither case does a call here wait for longer than a tick of the kernel.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;
use std::{io, mem};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFlags, PollTimeout};
use nix::sys::socket::sockopt::{AcceptConn, ReceiveTimeout, ReuseAddr};
use nix::sys::socket::{self, Backlog, SockaddrIn, SockaddrIn6, getsockopt, setsockopt};
use nix::sys::time::TimeVal;

use super::passed::refuse_descriptors;
use super::poll::poll_one;

/// Time without accepting connections after the system was out of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lets clients connect. The kernel caps `backlog` at net.core.somaxconn (listen(2)). On a socket that listens already
/// it changes the backlog, and no waiting client is lost.
///
/// Must not be called for a TCP socket that another process has ended ([`is_listening`]): the kernel would accept
/// clients again, and each of them could be shut down from birth. A socket that this process has ended by
/// [`stop_listening`] listens again if [`can_listen_again`].
///
/// # Errors
/// Those of setsockopt(2) and listen(2), which for TCP reports another listener by EADDRINUSE.
pub fn listen(listener: &OwnedFd, backlog: u32) -> io::Result<()> {
    // One tick of the kernel, the shortest timeout: it bounds an accept(2) that blocks because another holder has
    // cleared O_NONBLOCK and another process has accepted the client. SO_RCVTIMEO applies to accept(2) as well
    // (socket(7)).
    setsockopt(listener, ReceiveTimeout, &TimeVal::new(0, 1))?;
    refuse_descriptors(listener);
    // nix's type refuses values above the C library's SOMAXCONN; the kernel's own limit applies.
    let backlog = i32::try_from(backlog)
        .ok()
        .and_then(|n| Backlog::new(n).ok())
        .unwrap_or(Backlog::MAXCONN);
    Ok(socket::listen(listener, backlog)?)
}

/// Returns whether clients can connect to this socket. A holder that calls shutdown(2), or `ss -K`, ends it for all.
///
/// SO_ACCEPTCONN shows it for TCP. A Unix socket that was shut down still has it set, but hangs up (poll(2)).
#[must_use]
pub fn is_listening(listener: impl AsFd) -> bool {
    const READ_HANGUP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let is_accepting = getsockopt(&listener, AcceptConn).unwrap_or(false);
    is_accepting && !poll_now(&listener, READ_HANGUP).intersects(PollFlags::POLLHUP | READ_HANGUP)
}

/// Has a TCP listener refuse clients, without closing it: the kernel answers a SYN by RST, and resets the connections
/// that no process has accepted yet. The socket keeps its address.
///
/// shutdown(2) of a listening TCP socket makes it one that was never listening (`tcp_disconnect` in the kernel). A port
/// that the kernel has chosen itself, because port 0 was bound, is given back by that, and is bound again here.
///
/// # Errors
/// Those of shutdown(2) and bind(2). After EADDRINUSE the socket has no port any more.
pub fn stop_listening(listener: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Read)?;
    hold_address(listener, address)
}

/// Binds a TCP socket that does not listen, unless it is bound already.
///
/// # Errors
/// Those of bind(2).
pub fn hold_address(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    match super::socket::bind_internet(socket, address) {
        // It has an address: ip(7).
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        bound => bound,
    }
}

/// Returns whether [`listen`] may be called for a bound socket that does not listen. If a holder has shut it down since
/// (shutdown(2) does that although it returns ENOTCONN), or if it is a Unix listener that was shut down, it cannot listen
/// again: poll(2) reports the end of its receiving side, as POLLIN.
#[must_use]
pub fn can_listen_again(socket: impl AsFd) -> bool {
    !poll_now(socket, PollFlags::POLLIN).contains(PollFlags::POLLIN)
}

/// Lets another socket be bound to the address of this one, which was ended: bind(2) requires SO_REUSEADDR of both.
///
/// # Errors
/// Those of setsockopt(2).
pub fn share_address(ended: impl AsFd) -> io::Result<()> {
    Ok(setsockopt(&ended, ReuseAddr, &true)?)
}

/// The position of an attempt to accept, counted from when the poller reported the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptTry {
    /// The first: a client should be there. O_NONBLOCK is set again, in case another holder has cleared it.
    First,
    /// A later one: the queue may be empty, so poll(2) is called first.
    Later,
}

/// A client that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The client's socket, non-blocking.
    pub socket: OwnedFd,
    /// The client's TCP address; none for a Unix client.
    pub address: Option<SocketAddr>,
}

/// The result of an accept.
#[derive(Debug)]
pub enum AcceptResult {
    /// The next client.
    Client(Accepted),
    /// No client now.
    Empty,
    /// No client any more: the listener was ended. For a Unix listener only [`is_listening`] shows it: accept(2)
    /// returns EAGAIN.
    Ended,
}

/// The most connections that one call of [`accept`] skips. A security module or a filter that refuses the call leaves the
/// connection in the queue, so that skipping would not end.
const MAX_SKIPPED: u32 = 64;

/// Accepts the next client from the queue of a listener. Skips clients that left while they waited.
///
/// # Errors
/// Those of accept4(2), also those of a connection if there are 64 in succession. EINTR is [`AcceptResult::Empty`]: the
/// poller will report the listener again, after the signal was handled.
pub fn accept(listener: impl AsFd, attempt: AcceptTry) -> io::Result<AcceptResult> {
    let listener = listener.as_fd();
    let (mut attempt, mut skipped) = (attempt, 0);
    loop {
        match attempt {
            AcceptTry::First => set_nonblocking(listener)?,
            AcceptTry::Later if poll_now(listener, PollFlags::POLLIN).is_empty() => {
                return Ok(AcceptResult::Empty);
            }
            AcceptTry::Later => {}
        }
        attempt = AcceptTry::Later;
        match accept_now(listener) {
            Ok(accepted) => return Ok(AcceptResult::Client(accepted)),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(AcceptResult::Empty),
            Err(Errno::EINVAL) => return Ok(AcceptResult::Ended),
            // accept(2): errors of the connection itself, to be treated like "try again".
            Err(
                Errno::ECONNABORTED
                | Errno::EPROTO
                | Errno::EPERM
                | Errno::ENETDOWN
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH,
            ) if skipped < MAX_SKIPPED => skipped += 1,
            Err(e) => return Err(e.into()),
        }
    }
}

fn accept_now(listener: BorrowedFd<'_>) -> Result<Accepted, Errno> {
    // SAFETY: all-zero bytes are a sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut length = mem::size_of_val(&storage) as libc::socklen_t;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let name = (&raw mut storage).cast();
    // SAFETY: `name` points to `length` bytes that this function may write. nix's accept4 does not return the address.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), name, &raw mut length, flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: accept4 has just created this descriptor; it has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Accepted {
        socket,
        address: address_in(&storage),
    })
}

fn address_in(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel wrote a sockaddr_in here, and the storage is aligned for every address.
            let v4 = unsafe { *(&raw const *storage).cast::<libc::sockaddr_in>() };
            Some(SocketAddr::V4(SockaddrIn::from(v4).into()))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, a sockaddr_in6.
            let v6 = unsafe { *(&raw const *storage).cast::<libc::sockaddr_in6>() };
            Some(SocketAddr::V6(SockaddrIn6::from(v6).into()))
        }
        _ => None,
    }
}

/// Sets O_NONBLOCK of the open file description, for all its holders.
///
/// # Errors
/// Those of fcntl(2).
pub(super) fn set_nonblocking(socket: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// Returns the events of a socket now; none if poll(2) fails, too.
fn poll_now(socket: impl AsFd, events: PollFlags) -> PollFlags {
    poll_one(socket, events, PollTimeout::ZERO).unwrap_or(PollFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    use nix::sys::socket::Shutdown as How;

    use super::*;

    fn clear(listener: &OwnedFd) {
        let flags =
            OFlag::from_bits_retain(fcntl(listener, FcntlArg::F_GETFL).expect("it is open"));
        fcntl(listener, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).expect("it is open");
    }

    #[test]
    fn accept_never_blocks_on_a_listener_made_blocking() {
        let std = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let at = std.local_addr().expect("it is bound");
        let listener = OwnedFd::from(std);
        listen(&listener, 8).expect("it is bound");
        let _client = TcpStream::connect(at).expect("it listens");
        clear(&listener);
        assert!(matches!(
            accept(&listener, AcceptTry::First).expect("accept"),
            AcceptResult::Client(_)
        ));
        clear(&listener);
        for attempt in [AcceptTry::Later, AcceptTry::First] {
            let result = accept(&listener, attempt).expect("accept");
            assert!(matches!(result, AcceptResult::Empty), "{attempt:?}");
        }
        // The remaining race: the flag was cleared, and the client accepted, after poll(2).
        clear(&listener);
        let began = Instant::now();
        assert_eq!(accept_now(listener.as_fd()).map(|_| ()), Err(Errno::EAGAIN));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    /// Makes accept4(2) fail with EPERM in this thread, as a security module does: the connection stays in the queue.
    fn refuse_to_accept() {
        let step = |code: u32, value: u32, (yes, no): (u8, u8)| libc::sock_filter {
            code: code as u16,
            jt: yes,
            jf: no,
            k: value,
        };
        let (load, compare, end) = (
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::BPF_RET | libc::BPF_K,
        );
        let mut steps = [
            // The number of the call is at the beginning of struct seccomp_data.
            step(load, 0, (0, 0)),
            step(compare, libc::SYS_accept4 as u32, (0, 1)),
            step(end, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, (0, 0)),
            step(end, libc::SECCOMP_RET_ALLOW, (0, 0)),
        ];
        let program = libc::sock_fprog {
            len: steps.len() as u16,
            filter: steps.as_mut_ptr(),
        };
        let filter = libc::SECCOMP_MODE_FILTER;
        // SAFETY: the kernel copies the program, which outlives the call. Both change only this thread.
        let results = unsafe {
            [
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                libc::prctl(libc::PR_SET_SECCOMP, filter, &raw const program),
            ]
        };
        assert_eq!(results, [0, 0]);
    }

    #[test]
    fn accept_gives_up_when_each_connection_is_refused() {
        let std = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let at = std.local_addr().expect("it is bound");
        let listener = OwnedFd::from(std);
        let _client = TcpStream::connect(at).expect("it listens");
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            refuse_to_accept();
            let result = accept(&listener, AcceptTry::First);
            let _ = send.send(result.map(|_| ()).map_err(|e| e.kind()));
        });
        let result = receive.recv_timeout(Duration::from_secs(10));
        assert_eq!(result, Ok(Err(io::ErrorKind::PermissionDenied)));
    }

    #[test]
    fn is_listening_is_false_for_an_ended_listener() {
        let tcp = OwnedFd::from(TcpListener::bind("127.0.0.1:0").expect("a free port"));
        assert!(is_listening(&tcp));
        socket::shutdown(tcp.as_raw_fd(), How::Read).expect("it listens");
        assert!(!is_listening(&tcp));
        assert!(matches!(
            accept(&tcp, AcceptTry::First).expect("accept"),
            AcceptResult::Ended
        ));

        let directory = tempfile::tempdir().expect("a directory");
        for (name, how) in [("both", How::Both), ("read", How::Read)] {
            let path = directory.path().join(name);
            let unix = OwnedFd::from(UnixListener::bind(&path).expect("the path is free"));
            let _waits = UnixStream::connect(&path).expect("it listens");
            assert!(is_listening(&unix));
            socket::shutdown(unix.as_raw_fd(), how).expect("it listens");
            assert!(!is_listening(&unix), "{name}");
            let [waited, other] =
                [AcceptTry::First, AcceptTry::Later].map(|attempt| accept(&unix, attempt));
            assert!(matches!(waited, Ok(AcceptResult::Client(_))), "{name}");
            assert!(matches!(other, Ok(AcceptResult::Empty)), "{name}");
        }
        let (connection, _theirs) = UnixStream::pair().expect("a pair");
        connection
            .shutdown(Shutdown::Both)
            .expect("it is connected");
        assert!(!is_listening(&connection), "no listener");
    }

    #[test]
    fn a_listener_that_refuses_keeps_its_port_and_listens_again() {
        // Port 0: the kernel gives the port back at a shutdown.
        let any = "127.0.0.1:0".parse().expect("an address");
        let chosen = super::super::socket::bind_tcp(any, false).expect("a free port");
        listen(&chosen, 8).expect("it is bound");
        let at = super::super::socket::local_address(&chosen)
            .expect("it is bound")
            .expect("of TCP");
        let mut client = TcpStream::connect(at).expect("it listens");
        let AcceptResult::Client(accepted) = accept(&chosen, AcceptTry::First).expect("accept")
        else {
            panic!("the client waits")
        };
        for _ in 0..3 {
            stop_listening(&chosen, at).expect("it listens");
            assert!(!is_listening(&chosen) && can_listen_again(&chosen));
            let refused = TcpStream::connect(at).expect_err("it refuses");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            listen(&chosen, 8).expect("it is bound");
            TcpStream::connect(at).expect("it listens");
        }
        // The client that was there is not affected.
        let mut theirs = TcpStream::from(accepted.socket);
        std::io::Write::write_all(&mut theirs, b"x").expect("it is connected");
        let mut byte = [0];
        std::io::Read::read_exact(&mut client, &mut byte).expect("it was sent");

        stop_listening(&chosen, at).expect("it listens");
        let shut_down = socket::shutdown(chosen.as_raw_fd(), How::Both);
        assert_eq!(shut_down, Err(Errno::ENOTCONN));
        assert!(!can_listen_again(&chosen), "its clients would be shut down");
    }

    #[test]
    fn the_address_of_an_ended_listener_can_be_bound_again() {
        let held = socket::socket(
            socket::AddressFamily::Inet,
            socket::SockType::Stream,
            socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        socket::bind(held.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a free port");
        listen(&held, 1).expect("it is bound");
        let at = super::super::socket::local_address(&held)
            .expect("it is bound")
            .expect("of TCP");
        socket::shutdown(held.as_raw_fd(), How::Both).expect("it listens");
        share_address(&held).expect("SO_REUSEADDR");
        let again = super::super::socket::bind_tcp(at, false).expect("the address is free");
        listen(&again, 1).expect("nothing listens there");
        TcpStream::connect(at).expect("it listens");
    }
}
