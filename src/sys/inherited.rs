//! Descriptors that the parent has left open for this process, from number 3 on (sd_listen_fds(3)).

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::sockopt::{AcceptConn, SockType as KindOfSocket};
use nix::sys::socket::{SockType, SockaddrStorage, getpeername, getsockname, getsockopt};
use nix::{getsockopt_impl, libc, sockopt_impl};

use super::listening::set_nonblocking;
use super::socket::{internet_address, set_client_options};

/// The number of the first descriptor: SD_LISTEN_FDS_START.
const FIRST: RawFd = 3;

/// Takes the first `count` descriptors, in their order, and makes them close-on-exec. A second call returns none.
///
/// Must be called before this process opens anything, so that the descriptors of these numbers are those that were left
/// open.
///
/// # Errors
/// EBADF when one of them is not open; then none is taken.
pub fn take(count: u32) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if count == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let end = i32::try_from(count)
        .ok()
        .and_then(|count| FIRST.checked_add(count))
        .ok_or(Errno::EBADF)?;
    for number in FIRST..end {
        set_close_on_exec(number)?;
    }
    // SAFETY: they are open, as fcntl has just shown, and this is the only time that they get an owner.
    Ok((FIRST..end)
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect())
}

fn set_close_on_exec(number: RawFd) -> nix::Result<()> {
    // SAFETY: it returns EBADF for a number that is not a descriptor, and changes only whether it outlives exec.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, FdFlag::FD_CLOEXEC.bits()) };
    Errno::result(result).map(drop)
}

/// Descriptors that this process has left open for itself when it was another program
/// ([`Executable::become_it`](super::process::Executable::become_it)).
#[derive(Debug, Default)]
pub struct LeftOpen {
    taken: BTreeSet<RawFd>,
}

impl LeftOpen {
    /// Returns the descriptor of this number, close-on-exec again.
    ///
    /// # Errors
    /// EBADF when it is not open, or was taken before.
    pub fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        if number < FIRST || !self.taken.insert(number) {
            return Err(Errno::EBADF.into());
        }
        set_close_on_exec(number)?;
        // SAFETY: it is open, and each number is taken once: the previous program of this process has left it for this.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

/// The kind of a descriptor that another program has created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A TCP listener, bound to this address.
    Tcp(SocketAddr),
    /// The listener of a Unix stream socket, bound to this path.
    Unix(PathBuf),
    /// The listener of a Unix stream socket in the abstract namespace, or without a name.
    UnixWithoutPath,
    /// A TCP socket that is bound to this address, has no peer and does not listen: a listener that a holder has ended.
    Ended(SocketAddr),
    /// A stream socket that does not listen: a connection, for example.
    NoListener,
    /// A socket, but neither of TCP nor of Unix streams.
    OtherSocket,
    /// No socket.
    NoSocket,
}

/// Returns the kind of a descriptor.
///
/// # Errors
/// Those of getsockopt(2) and getsockname(2) that do not show it.
pub fn examine(descriptor: &OwnedFd) -> io::Result<Found> {
    match getsockopt(descriptor, KindOfSocket) {
        Ok(SockType::Stream) => {}
        Ok(_) => return Ok(Found::OtherSocket),
        Err(Errno::ENOTSOCK) => return Ok(Found::NoSocket),
        Err(e) => return Err(e.into()),
    }
    let address: SockaddrStorage = getsockname(descriptor.as_raw_fd())?;
    // An MPTCP or SCTP socket has the same address and kind, but not the byte counts of TCP.
    let is_tcp = || Ok::<bool, Errno>(getsockopt(descriptor, SocketProtocol)? == libc::IPPROTO_TCP);
    let found = match (internet_address(&address), address.as_unix_addr()) {
        (Some(address), _) if is_tcp()? => Found::Tcp(address),
        (None, Some(unix)) => unix
            .path()
            .map_or(Found::UnixWithoutPath, |path| Found::Unix(path.to_owned())),
        _ => return Ok(Found::OtherSocket),
    };
    Ok(match found {
        found if getsockopt(descriptor, AcceptConn)? => found,
        Found::Tcp(address) if address.port() > 0 && has_no_peer(descriptor) => {
            Found::Ended(address)
        }
        _ => Found::NoListener,
    })
}

fn has_no_peer(socket: &OwnedFd) -> bool {
    matches!(
        getpeername::<SockaddrStorage>(socket.as_raw_fd()),
        Err(Errno::ENOTCONN)
    )
}

sockopt_impl!(
    /// The protocol of a socket: SO_PROTOCOL of socket(7).
    SocketProtocol,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_PROTOCOL,
    libc::c_int
);

/// Returns a copy of a listener that another program has created, with the options of our own: it does not block, and
/// TCP clients inherit the options of [`bind_tcp`](super::socket::bind_tcp), except for the probes.
///
/// # Errors
/// Those of fcntl(2) and setsockopt(2).
pub fn copy_listener(theirs: &OwnedFd, is_tcp: bool) -> io::Result<OwnedFd> {
    let listener = theirs.try_clone()?;
    set_nonblocking(listener.as_fd())?;
    if is_tcp {
        set_client_options(&listener)?;
    }
    Ok(listener)
}

/// Leaves these descriptors open for the program that `command` runs, as systemd does: from number 3 on, in this order.
///
/// # Errors
/// Those of fcntl(2).
pub fn leave(command: &mut Command, descriptors: &[OwnedFd]) -> io::Result<()> {
    let end = FIRST + i32::try_from(descriptors.len()).map_err(|_| Errno::EMFILE)?;
    // The numbers that they will have may be those that others of them have: all are moved away first.
    let aside = |descriptor: &OwnedFd| {
        let number = fcntl(descriptor.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(end))?;
        // SAFETY: fcntl has just created it; it has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    let aside = descriptors
        .iter()
        .map(aside)
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    let place = move || {
        for (number, descriptor) in (FIRST..).zip(&aside) {
            // SAFETY: in the child between fork and exec no code uses the descriptor of this number.
            Errno::result(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })?;
        }
        Ok(())
    };
    // SAFETY: the child calls dup2(2) only, which is async-signal-safe; nothing is allocated.
    unsafe { command.pre_exec(place) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    use nix::fcntl::OFlag;
    use nix::sys::socket::sockopt::{OobInline, TcpNoDelay};

    use crate::sys::listening::listen;
    use crate::sys::socket::bind_tcp;

    #[test]
    fn a_copied_listener_has_the_options_of_our_own() {
        let theirs: OwnedFd = TcpListener::bind("127.0.0.1:0")
            .expect("a free port")
            .into();
        let ours = copy_listener(&theirs, true).expect("it is a socket");
        assert!(getsockopt(&ours, TcpNoDelay).expect("it is of TCP"));
        assert!(getsockopt(&ours, OobInline).expect("a socket"));
        let flags = |command| fcntl(&ours, command).expect("it is open");
        assert_ne!(flags(FcntlArg::F_GETFL) & OFlag::O_NONBLOCK.bits(), 0);
        assert_eq!(flags(FcntlArg::F_GETFD), FdFlag::FD_CLOEXEC.bits());
    }

    #[test]
    fn examine_distinguishes_tcp_and_listeners() {
        let examine = |socket| examine(socket).expect("it is a socket");
        let any = "127.0.0.1:0".parse().expect("an address");
        let socket = bind_tcp(any, false).expect("a free port");
        assert!(matches!(examine(&socket), Found::Ended(address) if address.port() > 0));
        listen(&socket, 1).expect("it is bound");
        assert!(matches!(examine(&socket), Found::Tcp(address) if address.port() > 0));

        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) reads three numbers.
        let number = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_MPTCP) };
        if number >= 0 {
            // SAFETY: socket(2) has just created it; it has no other owner.
            let multipath = unsafe { OwnedFd::from_raw_fd(number) };
            listen(&multipath, 1).expect("it binds itself");
            assert_eq!(examine(&multipath), Found::OtherSocket);
        }
    }
}
