//! Another process that holds a socket of the daemon's, as a service manager or a program started with it may.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use fdpassd::proto::names::Address;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::sockopt::AcceptConn;
use nix::sys::socket::{Shutdown, SockaddrStorage, getsockname, getsockopt, shutdown};

use super::kernel;
use super::needs::skip;

/// Returns a copy of a listener of process `pid`. Skips the test where this process may not have one.
pub fn listener_of(pid: u32, address: &Address) -> Option<OwnedFd> {
    let pidfd = owned(libc::SYS_pidfd_open, [pid as i32, 0, 0]).expect("the process is there");
    for (link, name) in kernel::descriptors(pid) {
        if !name.starts_with("socket:") {
            continue;
        }
        let number: i32 = link
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
            .expect("a number");
        match owned(libc::SYS_pidfd_getfd, [pidfd.as_raw_fd(), number, 0]) {
            Ok(copy) if listens_at(&copy, address) => return Some(copy),
            Ok(_) | Err(Errno::EBADF) => {}
            Err(e) => {
                skip(
                    "root",
                    &format!("cannot get a descriptor of the daemon's: pidfd_getfd(2) says {e}"),
                );
                return None;
            }
        }
    }
    panic!("process {pid} has no listener at {address}");
}

fn listens_at(socket: &OwnedFd, address: &Address) -> bool {
    let Ok(bound) = getsockname::<SockaddrStorage>(socket.as_raw_fd()) else {
        return false;
    };
    let is_there = match address {
        Address::Tcp(wanted) => bound.to_string() == wanted.to_string(),
        Address::Unix(path) => bound.as_unix_addr().and_then(|unix| unix.path()) == Some(path),
    };
    is_there && getsockopt(socket, AcceptConn) == Ok(true)
}

fn owned(call: libc::c_long, [a, b, c]: [i32; 3]) -> Result<OwnedFd, Errno> {
    // SAFETY: both calls read three numbers.
    let number = Errno::result(unsafe { libc::syscall(call, a, b, c) })?;
    // SAFETY: the call has just created it; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number as i32) })
}

/// Ends a listener for all that hold it.
pub fn end(listener: &OwnedFd, how: Shutdown) {
    shutdown(listener.as_raw_fd(), how).expect("it listens");
}

/// Clears O_NONBLOCK of a socket for all that hold it.
pub fn make_blocking(socket: &OwnedFd) {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).expect("it is open"));
    fcntl(socket, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).expect("it is open");
}
