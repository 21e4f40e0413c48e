//! One connection of a load: requests out, checked replies in.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use super::message::{Framing, LoadMessage, MAX_REPLY};
use crate::proto::misread::{self, Misread, Sender};
use crate::proto::names::Address;
use crate::sys::socket::{Transfer, begin_tcp, connect_unix_at_once, receive, transmit};

/// A request whose reply is awaited.
#[derive(Debug)]
struct AwaitedReply {
    number: u64,
    /// When the request was due: its latency counts from here.
    due: Instant,
}

/// A connection, perhaps not yet established. Its socket does not block.
#[derive(Debug)]
pub(super) struct LoadConnection {
    socket: OwnedFd,
    outbox: Vec<u8>,
    sent: usize,
    has_sent: bool,
    inbox: Vec<u8>,
    asked: VecDeque<AwaitedReply>,
    /// Requests that were issued.
    pub(super) issued: u64,
    /// Requests after which it is closed.
    pub(super) quota: u64,
    /// Requests that a closed loop has reserved for it and that are not yet issued.
    pub(super) reserved: u64,
}

impl LoadConnection {
    /// Begins to connect. The number of the connection chooses the source address on loopback: a client that closes
    /// first keeps its port in TIME_WAIT, and one address has not enough ports for a long run of short connections.
    pub(super) fn open(to: &Address, number: u64) -> io::Result<LoadConnection> {
        let socket = match to {
            Address::Tcp(to) => begin_tcp(to, source_of(*to, number))?,
            Address::Unix(path) => begin_unix(path)?,
        };
        Ok(LoadConnection {
            socket,
            outbox: Vec::new(),
            sent: 0,
            has_sent: false,
            inbox: Vec::new(),
            asked: VecDeque::new(),
            issued: 0,
            quota: u64::MAX,
            reserved: 0,
        })
    }

    /// Returns the number of requests whose reply is awaited.
    pub(super) fn in_flight(&self) -> usize {
        self.asked.len()
    }

    /// Returns the sentence about an error of [`LoadConnection::flush`]: the first write shows whether the connection was made.
    pub(super) fn cannot_write(&self, why: &io::Error) -> String {
        match self.has_sent {
            true => format!("cannot write: {why}"),
            false => format!("cannot connect: {why}"),
        }
    }

    /// Puts a request into the outbox.
    pub(super) fn issue(&mut self, number: u64, due: Instant, message: &mut LoadMessage) {
        message.write(number, &mut self.outbox);
        self.asked.push_back(AwaitedReply { number, due });
        self.issued += 1;
    }

    /// Writes as much of the outbox as there is room for.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.outbox.len() {
            match transmit(&self.socket, &self.outbox[self.sent..])? {
                Transfer::Bytes(n) => {
                    self.sent += n;
                    self.has_sent = true;
                }
                Transfer::Nothing => return Ok(()),
                Transfer::Shortage => return Err(io::Error::other(NO_MEMORY)),
                Transfer::End => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads what has arrived and checks each reply; `answered` gets the due time of each.
    pub(super) fn receive(
        &mut self,
        scratch: &mut [u8],
        message: &mut LoadMessage,
        mut answered: impl FnMut(Instant),
    ) -> Result<(), String> {
        loop {
            let n = match receive(&self.socket, scratch) {
                Ok(Transfer::Bytes(n)) => n,
                Ok(Transfer::Nothing) => return Ok(()),
                Ok(Transfer::Shortage) => return Err(cannot_read(&NO_MEMORY)),
                Ok(Transfer::End) => {
                    let missing = self.asked.len();
                    return Err(format!("closed by the server; replies missing: {missing}"));
                }
                Err(e) => return Err(cannot_read(&e)),
            };
            self.inbox.extend_from_slice(&scratch[..n]);
            self.take_replies(message, &mut answered)?;
            // Edge-triggered: a short read emptied the socket, and what comes later is a new edge.
            if n < scratch.len() {
                return Ok(());
            }
        }
    }

    fn take_replies(
        &mut self,
        message: &mut LoadMessage,
        answered: &mut impl FnMut(Instant),
    ) -> Result<(), String> {
        let mut begin = 0;
        while let Some((prefix, length)) = message.framing.lengths(&self.inbox[begin..])? {
            if length > MAX_REPLY {
                return Err(too_long(length, message.framing));
            }
            let Some(body) = self.inbox[begin + prefix..].get(..length) else {
                break;
            };
            let asked = self.asked.pop_front();
            let asked = asked.ok_or_else(|| "there is a reply without a request".to_owned())?;
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

impl AsFd for LoadConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const NO_MEMORY: &str = "the kernel has no memory for it";

/// Returns the sentence about a reply that announces this length, which may be another protocol instead.
fn too_long(length: usize, framing: Framing) -> String {
    let plain = format!("a reply of {length} bytes was announced");
    let found = match (framing, u32::try_from(length)) {
        (Framing::Frames(order), Ok(length)) => {
            misread::of_length(Sender::Server, length, order, MAX_REPLY as u32)
        }
        _ => None,
    };
    match found {
        Some(other @ Misread::OtherOrder { .. }) => format!("{plain}; {other}"),
        Some(protocol) => format!("the answer is not a frame but {protocol}"),
        None => plain,
    }
}

fn cannot_read(why: &impl std::fmt::Display) -> String {
    format!("cannot read: {why}")
}

/// Returns the address on loopback from which the connection of this number to that address is made.
fn source_of(to: SocketAddr, number: u64) -> Option<Ipv4Addr> {
    let is_loopback = matches!(to, SocketAddr::V4(to) if to.ip().is_loopback());
    is_loopback.then(|| Ipv4Addr::new(127, 0, 1, (number % 250) as u8 + 1))
}

fn begin_unix(path: &Path) -> io::Result<OwnedFd> {
    connect_unix_at_once(path).map_err(|error| match error.kind() {
        // A connection waits in it until the daemon accepts it.
        io::ErrorKind::WouldBlock => io::Error::new(
            error.kind(),
            "the queue of the listener is full (`backlog`)",
        ),
        _ => error,
    })
}
