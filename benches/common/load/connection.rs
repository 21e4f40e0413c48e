//! One connection of the load: requests out, checked replies in.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};

use super::payload::{MAX_REPLY_LEN, Message, Order};

/// A request whose reply is awaited.
struct Asked {
    number: u64,
    /// When it was meant to be sent: its latency counts from here.
    due: Instant,
}

/// A connection, perhaps not yet established: non-blocking, and edge-triggered in the load's epoll.
pub(crate) struct Connection {
    stream: TcpStream,
    outbox: Vec<u8>,
    sent: usize,
    inbox: Vec<u8>,
    asked: VecDeque<Asked>,
    /// Requests issued so far.
    pub(crate) issued: u64,
    /// Requests after which it is over.
    pub(crate) quota: u64,
    /// Requests that a closed loop has set aside for it and that are not yet issued.
    pub(crate) reserved: u64,
}

impl Connection {
    /// Begins to connect from `source`: a client that closes first keeps its port in TIME_WAIT, and
    /// one source address has not ports enough for a long run of short connections.
    pub(crate) fn open(
        to: SocketAddrV4,
        source: Ipv4Addr,
        epoll: &Epoll,
        token: u64,
    ) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        socket::setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        socket::bind(
            fd.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(source, 0)),
        )?;
        match socket::connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&fd, EpollEvent::new(interest, token))?;
        Ok(Connection {
            stream: TcpStream::from(fd),
            outbox: Vec::new(),
            sent: 0,
            inbox: Vec::new(),
            asked: VecDeque::new(),
            issued: 0,
            quota: u64::MAX,
            reserved: 0,
        })
    }

    /// Requests whose reply is awaited.
    pub(crate) fn in_flight(&self) -> usize {
        self.asked.len()
    }

    /// Puts a request into the outbox.
    pub(crate) fn issue(&mut self, number: u64, due: Instant, message: &mut Message) {
        message.write(number, &mut self.outbox);
        self.asked.push_back(Asked { number, due });
        self.issued += 1;
    }

    /// Writes as much of the outbox as there is room for.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.outbox.len() {
            match self.stream.write(&self.outbox[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads what is there and checks every reply; `answered` gets the due time of each.
    pub(crate) fn receive(
        &mut self,
        scratch: &mut [u8],
        order: Order,
        message: &mut Message,
        mut answered: impl FnMut(Instant),
    ) -> Result<(), String> {
        loop {
            let n = match self.stream.read(scratch) {
                Ok(0) => {
                    return Err(format!(
                        "closed by the server, {} replies missing",
                        self.asked.len()
                    ));
                }
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(format!("cannot read: {e}")),
            };
            self.inbox.extend_from_slice(&scratch[..n]);
            self.take_replies(order, message, &mut answered)?;
            // Edge-triggered: a short read emptied the socket, and what comes later is a new edge.
            if n < scratch.len() {
                return Ok(());
            }
        }
    }

    fn take_replies(
        &mut self,
        order: Order,
        message: &mut Message,
        answered: &mut impl FnMut(Instant),
    ) -> Result<(), String> {
        let mut begin = 0;
        while let Some((prefix, length)) = order.lengths(&self.inbox[begin..])? {
            if length > MAX_REPLY_LEN {
                return Err(format!("a reply of {length} bytes was announced"));
            }
            let Some(body) = self.inbox[begin + prefix..].get(..length) else {
                break;
            };
            let asked = self
                .asked
                .pop_front()
                .ok_or("a reply that nothing was asked for")?;
            if let Err(why) = message.check(asked.number, body) {
                self.asked.push_front(asked);
                return Err(why);
            }
            answered(asked.due);
            begin += prefix + length;
        }
        self.inbox.drain(..begin);
        Ok(())
    }
}
