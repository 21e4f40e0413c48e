//! A client in its worker, between its turns.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::reply::Call;
use crate::logging::LimitedLine;
use crate::loop_clock::{LoopClock, Shortage};
use crate::proto::channel::Settings;
use crate::proto::frame::OrderRule;
use crate::proto::lease::Lease;
use crate::proto::names::{ClientId, Peer};
use crate::shm::{LeaseState, Slot};
use crate::sys::passed::Passed;
use crate::sys::poll::{Interest, Poller};
use crate::sys::socket::{self, Transfer};
use crate::sys::{byte_counts, clock};

/// No deadline.
pub(super) const NEVER: u64 = u64::MAX;

/// How many bytes a client may send after its last reply before it is closed: a reset could destroy that reply before
/// it is read.
const MAX_LINGER_BYTES: u32 = 8 << 20;

/// Bytes read from a Unix client after which the kernel's count is rearmed: far fewer than it counts, far more than a
/// turn reads.
const REARM_BYTES: u32 = 1 << 28;

/// How long a client may take to read its last reply.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// A client whose lease this worker has. Its bytes are in the shared memory.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// The lowest 32 bits of the socket's cookie, if the kernel has cookies.
    cookie: Option<NonZeroU32>,
    pub(super) client: ClientId,
    /// The client's address: that of the other end, or the one in its PROXY protocol header.
    pub(super) peer: Peer,
    /// The state that few clients have.
    rare: Option<Box<RareState>>,
    is_unix: bool,
    pub(super) lease_number: u32,
    /// How the byte order is learnt.
    pub(super) order: OrderRule,
    pub(super) waits: WaitingFor,
    /// The event that the poller watches it for; `None` until it is added.
    pub(super) watched: Option<Interest>,
    /// The deadline of its entry in the timers: ns of CLOCK_MONOTONIC.
    pub(super) armed: u64,
    /// The worker's executor has executed a request of this client.
    pub(super) has_used_executor: bool,
    /// The client's PROXY protocol header is not complete.
    pub(super) awaits_header: bool,
    /// The master must count it for its address before its first request.
    pub(super) awaits_count: bool,
    /// In this turn the kernel had no memory to read or write.
    pub(super) is_refused: bool,
}

// The worker's part of the memory of an idle client.
const _: () = assert!(size_of::<Option<Connection>>() <= 64);

/// The state that few clients have, apart from the others so that an idle client is small.
#[derive(Debug)]
struct RareState {
    /// The other end, if the client's PROXY protocol header has the address.
    via: Option<Peer>,
    /// Bytes that the client may still send during the lingering close.
    linger_bytes: u32,
    /// The wait for memory of the kernel.
    shortage: Shortage<u64>,
    /// The number of descriptors that a Unix client has passed.
    passed: Passed,
    /// Bytes read from a Unix client since the kernel's count was last rearmed; at most `u32::MAX`. The first read rearms
    /// it, so this begins with [`REARM_BYTES`].
    bytes_since_rearm: u32,
}

impl Default for RareState {
    fn default() -> RareState {
        RareState {
            via: None,
            linger_bytes: MAX_LINGER_BYTES,
            shortage: Shortage::default(),
            passed: Passed::default(),
            bytes_since_rearm: REARM_BYTES,
        }
    }
}

/// The event that the worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitingFor {
    /// The next request: the client is idle.
    Request,
    /// The rest of a frame.
    Bytes,
    /// Room for its replies.
    Writable,
    /// The client's next turn: complete frames are left.
    Turn,
    /// The end: the client has received its last reply.
    End,
    /// A permit for its next request.
    Permit,
    /// The answer to its request, which is away.
    Answer,
}

impl WaitingFor {
    /// Returns the state of the lease of a client for which the worker waits so.
    pub(super) fn lease_state(self) -> LeaseState {
        match self {
            WaitingFor::Request => LeaseState::Idle,
            WaitingFor::Answer => LeaseState::Away,
            _ => LeaseState::Parked,
        }
    }
}

impl Connection {
    /// Returns a client that was leased, in the state that its slot shows. `cookie` is that of its socket, if there is
    /// one; `source` is the address that its PROXY protocol header has reported.
    pub(super) fn new(
        lease: &Lease,
        socket: OwnedFd,
        cookie: Option<u64>,
        source: Option<Peer>,
        slot: Slot<'_>,
    ) -> Connection {
        let is_parked = slot
            .lease()
            .is_some_and(|lease| lease.state == LeaseState::Parked);
        let is_lingering = slot.flags().closing && slot.cursors().replied == 0;
        let mut connection = Connection {
            socket,
            cookie: cookie.and_then(short_cookie),
            client: lease.record.client,
            peer: lease.peer,
            rare: None,
            is_unix: matches!(lease.peer, Peer::Unix { .. }),
            lease_number: lease.record.lease_number,
            order: lease.record.order,
            // A partial frame and a lingering close continue with the time that is left.
            waits: match (is_parked, is_lingering) {
                (false, _) => WaitingFor::Request,
                (true, false) => WaitingFor::Bytes,
                (true, true) => WaitingFor::End,
            },
            watched: None,
            armed: NEVER,
            has_used_executor: false,
            awaits_header: slot.flags().proxy.is_awaited(),
            awaits_count: false,
            is_refused: false,
        };
        connection.set_source(source);
        connection
    }

    /// Sets the address that the client's PROXY protocol header has reported, if it has one.
    pub(super) fn set_source(&mut self, source: Option<Peer>) {
        if let Some(source) = source {
            let via = std::mem::replace(&mut self.peer, source);
            self.rare().via = Some(via);
        }
    }

    fn rare(&mut self) -> &mut RareState {
        self.rare.get_or_insert_default()
    }

    /// Returns the other end, if the client's PROXY protocol header has reported the client's address.
    pub(super) fn via(&self) -> Option<Peer> {
        self.rare.as_ref()?.via
    }

    /// Counts bytes that the client has sent during the lingering close. Returns whether it may send more.
    pub(super) fn linger(&mut self, bytes: u32) -> bool {
        let rare = self.rare();
        let left = rare.linger_bytes.checked_sub(bytes);
        rare.linger_bytes = left.unwrap_or(0);
        left.is_some()
    }

    /// Returns when the wait for memory of the kernel ends, if the client waits for it: ns of CLOCK_MONOTONIC.
    pub(super) fn shortage_until(&self) -> Option<u64> {
        self.rare.as_ref()?.shortage.until()
    }

    /// Returns how many attempts in a row the kernel refused for lack of memory.
    pub(super) fn refusals(&self) -> u32 {
        self.rare
            .as_ref()
            .map_or(0, |rare| rare.shortage.refusals())
    }

    /// Ends the wait for memory if it is over. Returns whether it is.
    pub(super) fn end_shortage_if_over(&mut self, now: u64) -> bool {
        let rare = self.rare.as_mut();
        rare.is_some_and(|rare| rare.shortage.end_if_over(now))
    }

    /// Logs why the client is closed before its first frame, unless there are many such lines.
    pub(super) fn log_refused_header(&self, why: &str) {
        static LINE: LimitedLine = LimitedLine::new();
        LINE.warn(
            clock::monotonic(),
            &format_args!(
                "connection {} from {}: {why}; closing it",
                self.client, self.peer
            ),
        );
    }

    /// Returns the client, its address, and the load balancer that has reported that address.
    pub(super) fn caller(&self) -> (ClientId, Peer, Option<Peer>) {
        (self.client, self.peer, self.via())
    }

    /// Returns the circumstances of a request of the client.
    pub(super) fn call(&self, attempt: u32, deadline: Option<Instant>) -> Call<'_> {
        Call {
            client: self.client,
            peer: self.peer,
            via: self.via(),
            attempt,
            deadline,
            socket: Some(self.socket.as_fd()),
        }
    }

    /// Watches for the event that the client waits for.
    pub(super) fn watch(&mut self, poller: &Poller, index: u32) -> io::Result<()> {
        let wanted = match self.waits {
            _ if self.shortage_until().is_some() => Interest::Paused,
            WaitingFor::Request | WaitingFor::Bytes | WaitingFor::End => Interest::Read,
            WaitingFor::Writable => Interest::Write,
            WaitingFor::Turn => return Ok(()),
            // Whether more arrives is looked at only if it does, see `watch_end_only`.
            WaitingFor::Permit | WaitingFor::Answer
                if self
                    .watched
                    .is_some_and(|watched| watched != Interest::Paused) =>
            {
                return Ok(());
            }
            WaitingFor::Permit | WaitingFor::Answer => Interest::HangUp,
        };
        let token = u64::from(self.lease_number) << 32 | u64::from(index);
        match self.watched {
            None => poller.add(&self.socket, token, wanted)?,
            Some(before) if before != wanted => poller.modify(&self.socket, token, wanted)?,
            Some(_) => {}
        }
        self.watched = Some(wanted);
        Ok(())
    }

    /// Watches for the end only: bytes that have arrived are read when the request was answered.
    pub(super) fn watch_end_only(&mut self, poller: &Poller, index: u32) -> io::Result<()> {
        let token = u64::from(self.lease_number) << 32 | u64::from(index);
        poller.modify(&self.socket, token, Interest::HangUp)?;
        self.watched = Some(Interest::HangUp);
        Ok(())
    }

    /// Ensures that the kernel can count the bytes that are about to be read.
    pub(super) fn rearm(&mut self) {
        if self.is_tcp() || self.rare().bytes_since_rearm < REARM_BYTES {
            return;
        }
        // If it fails, the master loses this one client if the worker dies in its turn.
        let _ = byte_counts::rearm(&self.socket);
        self.rare().bytes_since_rearm = 0;
    }

    /// Counts bytes that were read from a Unix client, for [`Connection::rearm`].
    pub(super) fn count_for_rearm(&mut self, bytes: usize) {
        let count = &mut self.rare().bytes_since_rearm;
        *count = count.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Reads available bytes into `buffer`, which must not be empty.
    ///
    /// # Errors
    /// Those that end the connection.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Transfer> {
        if self.is_tcp() {
            return socket::receive(&self.socket, buffer);
        }
        let rare = self.rare.get_or_insert_default();
        rare.passed.receive(&self.socket, buffer)
    }

    /// Returns whether the descriptor still is the client's socket. Other code of this process may have closed it, and
    /// its number may have been reused.
    pub(super) fn has_its_socket(&self) -> bool {
        socket::cookie(&self.socket)
            .is_ok_and(|cookie| cookie.and_then(short_cookie) == self.cookie)
    }

    /// Returns whether the client is connected by TCP.
    pub(super) fn is_tcp(&self) -> bool {
        !self.is_unix
    }

    /// Records whether the kernel had memory in the turn that has ended at `now`: ns of CLOCK_MONOTONIC.
    pub(super) fn note_shortage(&mut self, now: u64) {
        if !self.is_refused && self.refusals() == 0 {
            return;
        }
        let is_refused = std::mem::take(&mut self.is_refused);
        let waits_for_socket = !matches!(
            self.waits,
            WaitingFor::Turn | WaitingFor::Permit | WaitingFor::Answer
        );
        if is_refused && waits_for_socket {
            self.begin_shortage(now);
        } else if let Some(rare) = &mut self.rare {
            rare.shortage.end();
        }
    }

    /// Lets the client wait for memory, longer each time: `now` is in ns of CLOCK_MONOTONIC.
    pub(super) fn begin_shortage(&mut self, now: u64) {
        self.rare().shortage.begin(|wait| clock::after(now, wait));
    }

    /// Returns the deadline of the wait: ns of CLOCK_MONOTONIC. Time in which this process could not run does not
    /// count, and no deadline ends while the kernel has no memory.
    pub(super) fn deadline(&self, slot: Slot<'_>, settings: &Settings, clock: &LoopClock) -> u64 {
        if let Some(until) = self.shortage_until() {
            return until;
        }
        let (begin, limit) = match self.waits {
            WaitingFor::Request if self.awaits_header && settings.frame_timeout.is_some() => {
                (slot.since(), settings.frame_timeout)
            }
            WaitingFor::Request => (slot.last_active(), settings.idle_timeout),
            WaitingFor::Bytes => (slot.since(), settings.frame_timeout),
            WaitingFor::Writable => (slot.since(), settings.send_timeout),
            WaitingFor::End => (slot.since(), Some(LINGER_TIMEOUT)),
            WaitingFor::Turn | WaitingFor::Permit | WaitingFor::Answer => (0, None),
        };
        let ns = limit.map_or(NEVER, clock::nanoseconds);
        begin
            .saturating_add(ns)
            .saturating_add(clock.gaps_since(begin))
    }
}

/// Returns the lowest 32 bits of a cookie. The kernel counts sockets: two that are open at a time have the same bits
/// only if more than four billion were made between them.
fn short_cookie(cookie: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(cookie as u32)
}
