//! Ports that are reserved for a daemon that binds them itself.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockname, setsockopt,
    socket, sockopt,
};

/// A TCP port that a process gets only by asking for its number.
///
/// A socket is bound to the port and does not listen. So the kernel chooses this port for no socket that is bound to
/// port 0 or connects. A socket with SO_REUSEADDR, as every listener of the daemon, can bind it and listen.
#[derive(Debug)]
pub struct Reserved {
    /// With its port.
    pub address: SocketAddr,
    _sockets: Vec<OwnedFd>,
}

impl Reserved {
    /// A port of 127.0.0.1.
    #[track_caller]
    pub fn new() -> Reserved {
        let socket = new(AddressFamily::Inet);
        let port = reserve(&socket, Ipv4Addr::LOCALHOST, 0).expect("there is a free port");
        Reserved {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            _sockets: vec![socket],
        }
    }

    /// A port of all addresses, of IPv6 and of IPv4; its address is `[::]`.
    #[track_caller]
    pub fn of_both_families() -> Reserved {
        // The kernel knows of no port for both: one that is free for the first is tried for the second. Those that are
        // not are held until then, so that each is tried once.
        let mut held = Vec::new();
        loop {
            let (v6, v4) = (new(AddressFamily::Inet6), new(AddressFamily::Inet));
            setsockopt(&v6, sockopt::Ipv6V6Only, &true).expect("an IPv6 socket takes it");
            let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0));
            bind(v6.as_raw_fd(), &any).expect("there is a free port");
            let port = getsockname::<SockaddrIn6>(v6.as_raw_fd())
                .expect("it is bound")
                .port();
            match reserve(&v4, Ipv4Addr::UNSPECIFIED, port) {
                Ok(_) => {
                    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
                    return Reserved {
                        address,
                        _sockets: vec![v6, v4],
                    };
                }
                Err(Errno::EADDRINUSE) => held.push(v6),
                Err(error) => panic!("cannot bind port {port}: {error}"),
            }
        }
    }
}

fn new(family: AddressFamily) -> OwnedFd {
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("a socket takes it");
    socket
}

/// Binds the socket; the port.
fn reserve(socket: &OwnedFd, ip: Ipv4Addr, port: u16) -> Result<u16, Errno> {
    let address = SockaddrIn::from(SocketAddrV4::new(ip, port));
    bind(socket.as_raw_fd(), &address)?;
    Ok(getsockname::<SockaddrIn>(socket.as_raw_fd())?.port())
}
