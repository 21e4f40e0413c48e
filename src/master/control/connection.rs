//! The connection of one control client: its request, and the reply to it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::master::control::access::ControlPeer;
use crate::master::control::pending::PendingKind;
use crate::master::control::reply::ControlReply;
use crate::proto::control::{MAX_REQUEST, REQUEST_TIMEOUT, Refusal, RefusalCode};
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::misread;
use crate::sys::passed::{ClientSocket, Passed};
use crate::sys::poll::{Interest, PollEvent};
use crate::sys::socket::{self, Transfer};

/// A control client.
#[derive(Debug)]
pub(crate) struct ControlClient {
    pub(crate) socket: ClientSocket,
    passed: Passed,
    pub(crate) peer: ControlPeer,
    incoming: Vec<u8>,
    /// No more bytes will arrive: the peer has closed the connection or its sending side.
    has_finished: bool,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that have been sent.
    sent: usize,
    /// The condition for the pending reply; `None` if no reply is pending.
    pub(crate) pending: Option<PendingKind>,
    /// The client is closed when its reply is sent.
    pub(crate) is_last: bool,
    /// When the client is closed if no request arrives; `None` while a reply is pending.
    pub(crate) deadline: Option<Instant>,
    /// The kernel has had no memory to read from it or write to it.
    pub(crate) is_refused: bool,
}

/// The connection is over.
pub(crate) struct Over;

/// A control client that waits for the result of an upgrade, or is in the middle of a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ControlSnapshot {
    pub(crate) socket: RawFd,
    pub(crate) is_asker: bool,
    /// The bytes received of its request, and the unsent bytes of its reply.
    pub(crate) incoming: Vec<u8>,
    pub(crate) outgoing: Vec<u8>,
}

impl ControlClient {
    pub(crate) fn new(socket: OwnedFd, peer: ControlPeer, now: Instant) -> ControlClient {
        ControlClient {
            socket: ClientSocket::own(socket),
            passed: Passed::default(),
            peer,
            incoming: Vec::new(),
            has_finished: false,
            outgoing: Vec::new(),
            sent: 0,
            pending: None,
            is_last: false,
            deadline: Some(now + REQUEST_TIMEOUT),
            is_refused: false,
        }
    }

    /// Restores a client from before this process became this program.
    pub(crate) fn from_snapshot(
        socket: OwnedFd,
        peer: ControlPeer,
        snapshot: ControlSnapshot,
        now: Instant,
    ) -> ControlClient {
        let mut client = ControlClient::new(socket, peer, now);
        (client.incoming, client.outgoing) = (snapshot.incoming, snapshot.outgoing);
        if snapshot.is_asker {
            (client.pending, client.deadline) = (Some(PendingKind::Renewed), None);
        }
        client
    }

    /// Returns the snapshot of a client that stays while this process becomes another program.
    pub(crate) fn snapshot(&self) -> ControlSnapshot {
        ControlSnapshot {
            socket: self.socket.as_raw_fd(),
            is_asker: self.pending.is_some(),
            incoming: self.incoming.clone(),
            outgoing: self.outgoing[self.sent..].to_vec(),
        }
    }

    /// Returns what the poller must watch the client for; `None` for its hang-up only.
    pub(crate) fn interest(&self) -> Option<Interest> {
        let is_deaf = self.has_finished || self.is_full();
        if self.is_refused {
            Some(Interest::Paused)
        } else if !self.outgoing.is_empty() {
            Some(Interest::Write)
        } else if self.pending.is_some() {
            (!is_deaf).then_some(Interest::Read)
        } else if self.has_request() {
            // The request is handled in the next iteration, which begins at once because the socket is writable.
            Some(Interest::Write)
        } else {
            Some(Interest::Read)
        }
    }

    /// Returns whether the client must be closed.
    pub(crate) fn is_done(&self) -> bool {
        let has_all = self.has_finished && self.pending.is_none() && !self.has_request();
        self.outgoing.is_empty() && (self.is_last || has_all)
    }

    /// Returns whether the client has begun a request and none of its replies is under way.
    pub(crate) fn has_begun(&self) -> bool {
        self.outgoing.is_empty() && !self.incoming.is_empty()
    }

    /// Returns whether a request must be answered or refused.
    fn has_request(&self) -> bool {
        !matches!(
            frame::next(&self.incoming, ByteOrder::Little, MAX_REQUEST),
            Next::Partial { .. }
        )
    }

    fn is_full(&self) -> bool {
        self.incoming.len() > PREFIX + MAX_REQUEST as usize
    }

    /// Handles an event on the socket. Returns the body of the request that must be answered now, or its refusal.
    pub(crate) fn receive(
        &mut self,
        event: &PollEvent,
    ) -> Result<Option<Result<Vec<u8>, Refusal>>, Over> {
        // This is its hang-up: a peer that has closed has no use for a later reply. Its earlier requests are executed
        // all the same.
        if self.interest().is_none() {
            return Err(Over);
        }
        let received = if event.readable { self.read() } else { Ok(()) };
        // The next request is handled when the reply before it is sent: a client that does not read is not served.
        let is_free = self.send()? && self.pending.is_none() && !self.is_last;
        let request = is_free.then(|| self.next_request()).flatten();
        match (request, received) {
            (None, Err(over)) => Err(over),
            (request, received) => {
                self.is_last |= received.is_err();
                Ok(request)
            }
        }
    }

    fn next_request(&mut self) -> Option<Result<Vec<u8>, Refusal>> {
        match frame::next(&self.incoming, ByteOrder::Little, MAX_REQUEST) {
            Next::Partial { .. } => None,
            Next::TooLarge { length } => {
                self.is_last = true;
                let sentence = misread::too_large(
                    format!("a request is at most {MAX_REQUEST} bytes, not {length}"),
                    "the control socket",
                    (length, ByteOrder::Little, MAX_REQUEST),
                );
                Some(Err(Refusal::new(RefusalCode::TooLarge, sentence)))
            }
            Next::Complete { total } => {
                Some(Ok(self.incoming.drain(..total).skip(PREFIX).collect()))
            }
        }
    }

    /// Reads the bytes that have arrived: at most one request beyond the current one.
    fn read(&mut self) -> Result<(), Over> {
        let mut buffer = [0; 4096];
        while !self.has_finished && !self.is_full() {
            match self.passed.receive(&self.socket, &mut buffer) {
                Ok(Transfer::Bytes(n)) => self.incoming.extend_from_slice(&buffer[..n]),
                Ok(Transfer::Nothing) => return Ok(()),
                Ok(Transfer::Shortage) => {
                    self.is_refused = true;
                    return Ok(());
                }
                Ok(Transfer::End) => self.has_finished = true,
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }

    /// Queues a reply, and sends what the socket takes of it.
    pub(crate) fn reply(&mut self, result: &Result<ControlReply, Refusal>) -> Result<(), Over> {
        match result {
            Ok(reply) => self.outgoing.extend_from_slice(reply.bytes()),
            Err(refusal) => {
                let reply = ControlReply::from_refusal(refusal);
                self.outgoing.extend_from_slice(reply.bytes());
            }
        }
        self.send().map(|_| ())
    }

    /// Sends the queued bytes. Returns whether all are sent.
    fn send(&mut self) -> Result<bool, Over> {
        while self.sent < self.outgoing.len() {
            match socket::transmit(&self.socket, &self.outgoing[self.sent..]) {
                Ok(Transfer::Bytes(n)) => self.sent += n,
                Ok(Transfer::Nothing) => return Ok(false),
                Ok(Transfer::Shortage) => {
                    self.is_refused = true;
                    return Ok(false);
                }
                Ok(Transfer::End) | Err(_) => return Err(Over),
            }
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Ok(true)
    }
}
