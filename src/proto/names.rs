//! Numbers of clients, workers and configurations; addresses of clients and listeners.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::address_mistake::why_no_address;

/// The most workers of a daemon.
pub const MAX_WORKERS: u32 = 256;

/// A client, from accept to close. Counts up for as long as the daemon lives; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u64);

/// A worker process. Counts up for as long as the daemon lives; never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WorkerId(pub u64);

/// Counts the configurations that were applied; the one read at start is generation 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Returns whether this is a daemon's name: `[a-z][a-z0-9_-]{0,31}`. It is part of file names, and the name of a table
/// in the configuration, of processes and of a user.
#[must_use]
pub fn is_daemon_name(name: &str) -> bool {
    matches!(name.as_bytes(), [b'a'..=b'z', rest @ ..]
        if rest.len() <= 31 && rest.iter().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')))
}

macro_rules! show_number {
    ($($Number:ident)*) => {
        $(impl fmt::Display for $Number {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        })*
    };
}

show_number!(ClientId WorkerId Generation);

/// The other end of a client's socket, as the kernel reported it at accept.
///
/// Smaller than [`SocketAddr`] (20 bytes, not 32) because master and worker keep one for each client. The scope of a
/// link-local IPv6 address is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Peer {
    /// A TCP client over IPv4.
    V4 {
        /// The client's address.
        address: Ipv4Addr,
        /// The client's port.
        port: u16,
    },
    /// A TCP client over IPv6.
    V6 {
        /// The client's address.
        address: Ipv6Addr,
        /// The client's port.
        port: u16,
    },
    /// A client of a Unix socket, as `SO_PEERCRED` (unix(7)) names it.
    Unix {
        /// The process that connected; 0 in another pid namespace.
        pid: u32,
        /// The user of that process.
        uid: u32,
        /// The group of that process.
        gid: u32,
    },
}

#[cfg(test)]
impl Peer {
    /// A client of a Unix socket, for tests.
    pub(crate) const UNIX: Peer = Peer::Unix {
        pid: 1,
        uid: 2,
        gid: 3,
    };
}

impl Peer {
    /// Returns the client's address; none for a Unix client.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match *self {
            Peer::V4 { address, .. } => Some(IpAddr::V4(address)),
            Peer::V6 { address, .. } => Some(IpAddr::V6(address)),
            Peer::Unix { .. } => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    /// Makes an IPv4 client of an IPv4-mapped address, which a listener for both families has (ipv6(7)).
    fn from(address: SocketAddr) -> Peer {
        let port = address.port();
        match address.ip().to_canonical() {
            IpAddr::V4(address) => Peer::V4 { address, port },
            IpAddr::V6(address) => Peer::V6 { address, port },
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::V4 { address, port } => write!(f, "{address}:{port}"),
            Peer::V6 { address, port } => write!(f, "[{address}]:{port}"),
            Peer::Unix { pid, uid, .. } => write!(f, "pid {pid} (uid {uid})"),
        }
    }
}

/// The differences between the positions in a connection's two streams and the kernel's byte counts. Both are 0 for a
/// connection that the kernel has counted from its first byte; a connection restored by another kernel counts from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// Bytes received before the kernel began to count.
    pub received: u64,
    /// Bytes sent before that.
    pub sent: u64,
}

impl Offsets {
    /// Returns whether both are 0.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Offsets::default()
    }
}

/// The address of a listener: `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/fdpassd/rpc.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP. Port 0 makes the kernel choose a free one.
    Tcp(SocketAddr),
    /// A Unix stream socket at an absolute path of at most [`MAX_UNIX_PATH`] bytes.
    Unix(PathBuf),
}

/// The longest path of a Unix socket, in bytes: `sun_path` less its final NUL (unix(7)).
pub const MAX_UNIX_PATH: usize = 107;

impl Address {
    /// Returns the address by which a client on this machine reaches a listener: loopback instead of a wildcard.
    #[must_use]
    pub fn reachable(mut self) -> Address {
        if let Address::Tcp(tcp) = &mut self
            && tcp.ip().is_unspecified()
        {
            let is_v4 = tcp.is_ipv4();
            tcp.set_ip(if is_v4 {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
        }
        self
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return check_unix_path(path).map(|()| Address::Unix(PathBuf::from(path)));
        }
        text.parse().map(Address::Tcp).map_err(|_| {
            let why = why_no_address(text).map_or_else(String::new, |why| format!("{why}; "));
            format!(
                "{text:?} is not a valid address: {why}expected an IP address and a port (\"127.0.0.1:8080\", \"[::1]:8080\") \
                 or a Unix socket (\"unix:/run/fdpassd/rpc.sock\")"
            )
        })
    }
}

/// Checks whether a Unix socket can be at `path`.
///
/// # Errors
/// A sentence for the operator.
pub fn check_unix_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        Err(format!(
            "the path {path:?} of a Unix socket must be absolute"
        ))
    } else if path.len() > MAX_UNIX_PATH {
        Err(format!(
            "the path of a Unix socket is at most {MAX_UNIX_PATH} bytes long, this one has {}",
            path.len()
        ))
    } else if path.contains('\0') {
        Err("the path of a Unix socket must not hold a NUL byte".to_owned())
    } else {
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_reachable_by_loopback() {
        for (listens, reachable) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("[::2]:1", "[::2]:1"),
            ("unix:/x", "unix:/x"),
        ] {
            let address: Address = listens.parse().expect("an address");
            assert_eq!(address.reachable().to_string(), reachable);
        }
    }
}
