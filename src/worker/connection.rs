//! A client as its worker has it, between its turns.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::timers::NEVER;
use crate::loop_clock::LoopClock;
use crate::proto::channel::Settings;
use crate::proto::frame::OrderRule;
use crate::proto::lease::Lease;
use crate::proto::names::{ClientId, Peer};
use crate::shm::{LeaseState, Slot};
use crate::sys::byte_counts;
use crate::sys::passed::Passed;
use crate::sys::poll::Interest;
use crate::sys::socket::{self, Moved};

/// What a client may still send after its last reply, in bytes, before it is cut off: a reset would destroy that
/// reply before it is read.
const MAX_LINGER_BYTES: u32 = 8 << 20;

/// Bytes of a Unix client after which the kernel's count of them is seen to: far less than it counts, far more than a turn
/// reads.
const REARM_BYTES: u32 = 1 << 28;

/// How long it is given to read its last reply.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// A client whose lease this worker has. What it sent or is to be sent is not here: that lies in the shared memory.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// The kernel's cookie of that socket, if it has one.
    cookie: Option<u64>,
    passed: Passed,
    pub(super) client: ClientId,
    pub(super) peer: Peer,
    /// Of the lease.
    pub(super) lease_number: u32,
    /// How its byte order is learnt.
    pub(super) order: OrderRule,
    pub(super) waits: WaitingFor,
    /// What the poller watches it for; `None` until it was first added.
    pub(super) watched: Option<Interest>,
    /// Bytes read since the kernel's count of them was last seen to, for a Unix client.
    pub(super) unarmed: u32,
    /// Bytes that the client may still send although they are no longer read.
    pub(super) linger_bytes: u32,
    /// When the timers look at it: ns of CLOCK_MONOTONIC.
    pub(super) armed: u64,
}

/// What the worker waits for from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitingFor {
    /// The next request: the client is idle.
    Request,
    /// The rest of a frame.
    Bytes,
    /// Room for its replies.
    Writable,
    /// The client's next turn: whole frames are left.
    Turn,
    /// The end: it has had its last reply.
    End,
}

impl Connection {
    /// A client whose lease was found, and what its slot tells of it. `cookie` is that of its socket, if the kernel has one.
    pub(super) fn new(
        lease: &Lease,
        socket: OwnedFd,
        cookie: Option<u64>,
        slot: Slot<'_>,
    ) -> Connection {
        let is_parked = slot
            .lease()
            .is_some_and(|lease| lease.state == LeaseState::Parked);
        let is_told_all = slot.flags().closing && slot.cursors().replied == 0;
        Connection {
            socket,
            cookie,
            passed: Passed::default(),
            client: lease.record.client,
            peer: lease.peer,
            lease_number: lease.record.lease_number,
            order: lease.record.order,
            // So that half a frame goes on being half a frame, and an end an end, with what time it has left.
            waits: match (is_parked, is_told_all) {
                (false, _) => WaitingFor::Request,
                (true, false) => WaitingFor::Bytes,
                (true, true) => WaitingFor::End,
            },
            watched: None,
            unarmed: REARM_BYTES,
            linger_bytes: MAX_LINGER_BYTES,
            armed: NEVER,
        }
    }

    /// Sees to it that the kernel can count what is about to be read.
    pub(super) fn rearm(&mut self) {
        if !self.is_tcp() && self.unarmed >= REARM_BYTES {
            // If it fails, the master finds so, and loses this one client if its worker dies in its turn.
            let _ = byte_counts::rearm(&self.socket);
            self.unarmed = 0;
        }
    }

    /// Reads what is there into `buffer`, which is not empty.
    ///
    /// # Errors
    /// Those that end the connection.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Moved> {
        if self.is_tcp() {
            socket::receive(&self.socket, buffer)
        } else {
            self.passed.receive(&self.socket, buffer)
        }
    }

    /// Whether the descriptor still is the client's socket. Other code of this process may have closed it, and its number may be
    /// of something else by now.
    pub(super) fn has_its_socket(&self) -> bool {
        socket::cookie(&self.socket).is_ok_and(|cookie| cookie == self.cookie)
    }

    /// Whether it came over TCP.
    pub(super) fn is_tcp(&self) -> bool {
        !matches!(self.peer, Peer::Unix { .. })
    }

    /// When it has been waited for long enough: ns of CLOCK_MONOTONIC.
    ///
    /// Time in which this process could not run is none that it was waited for.
    pub(super) fn deadline(&self, slot: Slot<'_>, settings: &Settings, clock: &LoopClock) -> u64 {
        let (begin, limit) = match self.waits {
            WaitingFor::Request => (slot.last_active(), settings.idle_timeout),
            WaitingFor::Bytes => (slot.since(), settings.frame_timeout),
            WaitingFor::Writable => (slot.since(), settings.send_timeout),
            WaitingFor::End => (slot.since(), Some(LINGER_TIMEOUT)),
            WaitingFor::Turn => (0, None),
        };
        let ns = limit.map_or(NEVER, |limit| {
            u64::try_from(limit.as_nanos()).unwrap_or(NEVER)
        });
        begin
            .saturating_add(ns)
            .saturating_add(clock.gaps_since(begin))
    }
}
