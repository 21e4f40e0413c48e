//! The other end of a connection: its address, or its process, user and groups.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::{io, mem};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{self, SockaddrStorage, getsockopt};

use super::internet_address;

/// The process at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The process, as seen from here; 0 if it cannot be seen.
    pub pid: u32,
    /// The user of the process when it connected.
    pub uid: u32,
    /// The group of the process when it connected.
    pub gid: u32,
}

/// Returns the process that connected: SO_PEERCRED of unix(7).
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

/// Returns the supplementary groups of the process that connected, as they were then: SO_PEERGROUPS, which completes
/// [`credentials`] as getgroups(2) completes getgid(2).
///
/// # Errors
/// Those of getsockopt(2); ENOPROTOOPT before Linux 4.13.
pub fn groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    const GROUP: usize = mem::size_of::<libc::gid_t>();
    let (fd, option) = (socket.as_fd().as_raw_fd(), libc::SO_PEERGROUPS);
    // Most users have fewer; NGROUPS_MAX is 65,536.
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut length = (groups.len() * GROUP) as libc::socklen_t;
        let value = groups.as_mut_ptr().cast();
        // SAFETY: `value` points to `length` bytes that this function may write.
        let result =
            unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, value, &raw mut length) };
        let count = length as usize / GROUP;
        match Errno::result(result) {
            // Too short, and `count` is enough: the groups do not change any more.
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(e) => return Err(e.into()),
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
        }
    }
}

/// Returns the other end of a connection: the address of a TCP client, or the credentials of a Unix client.
///
/// # Errors
/// Those of getpeername(2): ENOTCONN when the connection is over; those of getsockopt(2).
pub fn peer(socket: &OwnedFd) -> io::Result<Result<SocketAddr, Credentials>> {
    let address: SockaddrStorage = socket::getpeername(socket.as_raw_fd())?;
    match internet_address(&address) {
        Some(address) => Ok(Ok(address)),
        None => credentials(socket).map(Err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_the_peer_are_those_it_has() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        let own = nix::unistd::getgroups().expect("getgroups");
        let own: Vec<u32> = own.into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(groups(&ours).expect("SO_PEERGROUPS"), own);
        assert!(groups(std::io::pipe().expect("a pipe").0).is_err());
    }
}
