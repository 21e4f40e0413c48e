//! Notifications to a service manager (sd_notify(3)), sent without waiting.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr,
};

/// A socket that sends datagrams to one address, without ever blocking.
#[derive(Debug)]
pub struct NotifySocket {
    socket: OwnedFd,
    manager: UnixAddr,
}

impl NotifySocket {
    /// Returns a socket for an address in the form of `$NOTIFY_SOCKET`: an absolute path, or `@` and a name in the
    /// abstract namespace (unix(7)).
    ///
    /// # Errors
    /// `InvalidInput` for any other address, and those of socket(2). A missing listener is not an error here.
    pub fn new(address: &OsStr) -> io::Result<NotifySocket> {
        let manager = match address.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => UnixAddr::new_abstract(name)?,
            [b'/', ..] => UnixAddr::new(Path::new(address))?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        Ok(NotifySocket { socket, manager })
    }

    /// Sends one datagram, with copies of some descriptors.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room for it now, and those of sendmsg(2), such as that of a missing listener.
    pub fn send(&self, message: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[_] = if raw.is_empty() { &[] } else { &rights };
        let (parts, to) = ([io::IoSlice::new(message)], Some(&self.manager));
        loop {
            match socket::sendmsg(
                self.socket.as_raw_fd(),
                &parts,
                control,
                MsgFlags::MSG_NOSIGNAL,
                to,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                // ETOOMANYREFS: too many descriptors are in flight (unix(7)).
                Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS) => {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn received(by: &UnixDatagram) -> String {
        let mut datagram = [0; 64];
        let length = by.recv(&mut datagram).expect("a datagram");
        String::from_utf8_lossy(&datagram[..length]).into_owned()
    }

    #[test]
    fn an_address_is_a_path_or_an_abstract_name() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bind");
        NotifySocket::new(path.as_os_str())
            .expect("an address")
            .send(b"READY=1", &[])
            .expect("there is room");
        assert_eq!(received(&by_path), "READY=1");

        let name = path.display().to_string();
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&address).expect("bind");
        NotifySocket::new(format!("@{name}").as_ref())
            .expect("an address")
            .send(b"STOPPING=1", &[])
            .expect("there is room");
        assert_eq!(received(&by_name), "STOPPING=1");

        for bad in ["", "@", "relative", "vsock:2:1234"] {
            let error = NotifySocket::new(bad.as_ref()).expect_err(bad);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn send_does_not_wait_for_the_manager() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bind");
        let socket = NotifySocket::new(path.as_os_str()).expect("an address");
        let full = (0..100_000)
            .find_map(|_| socket.send(b"WATCHDOG=1", &[]).err())
            .expect("it is full some time");
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        received(&manager);
        socket
            .send(b"WATCHDOG=1", &[])
            .expect("there is room again");
        drop(manager);
        // A process that another test is starting may have a copy of the socket for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        let is_refused = |sent: io::Result<()>| {
            sent.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
        };
        while !is_refused(socket.send(b"WATCHDOG=1", &[])) {
            assert!(Instant::now() < deadline, "there is a listener");
            thread::yield_now();
        }
    }
}
