//! The contents of a slot's words, encoded and decoded: the lease, the cursors and the flags.

use super::proxy::ProxyState;
use crate::proto::frame::ByteOrder;
use crate::proto::rpc::GoawayReason;

/// The state of the lease in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LeaseState {
    /// The slot has no client.
    Free = 0,
    /// No bytes of the client are in the shared memory.
    Idle = 1,
    /// Bytes of it lie in the slot's regions.
    Parked = 2,
    /// The worker is in the client's turn.
    Busy = 3,
    /// The lease was ended while no bytes of the client were in the shared memory.
    Revoked = 4,
    /// The worker has ended the client, or the client has left the slot after its lease was revoked.
    Closed = 5,
    /// The lease was ended while bytes of the client lay in the slot's regions.
    RevokedParked = 6,
    /// A request of the client is away: an app or a runtime executes it. Its bytes lie in the slot's regions.
    Away = 7,
}

/// The lease word, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseWord {
    /// The number of the lease in this slot: an old event or message carries another number and does no harm.
    pub number: u32,
    /// The state of the lease.
    pub state: LeaseState,
}

impl LeaseWord {
    pub(super) fn encode(self) -> u64 {
        u64::from(self.number) << 8 | self.state as u64
    }

    /// Decodes a lease word; `None` for a word that is never written.
    pub(super) fn decode(word: u64) -> Option<LeaseWord> {
        let state = match word & 0xff {
            0 => LeaseState::Free,
            1 => LeaseState::Idle,
            2 => LeaseState::Parked,
            3 => LeaseState::Busy,
            4 => LeaseState::Revoked,
            5 => LeaseState::Closed,
            6 => LeaseState::RevokedParked,
            7 => LeaseState::Away,
            _ => return None,
        };
        Some(LeaseWord {
            number: u32::try_from(word >> 8).ok()?,
            state,
        })
    }
}

/// Returns whether, by its lease word, the client of this lease is with the worker, in a turn or not, or was with it
/// and its next place is not known yet. If another worker has the client by now, that worker's lease is the later one.
pub(in crate::shm) fn is_with_its_worker(word: u64, number: u32) -> bool {
    let is_over = |state| matches!(state, LeaseState::Free | LeaseState::Closed);
    LeaseWord::decode(word).is_some_and(|lease| lease.number == number && !is_over(lease.state))
}

/// The result of a claim or a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing of the client is in the shared memory.
    Idle,
    /// Bytes of it lie in the slot's regions.
    Parked,
}

/// The region that holds bytes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The buffers of the turn in progress.
    Shared,
    /// The slot's small region.
    Small,
    /// The slot's large region.
    Large,
}

/// Positions of a client's bytes in the shared memory: unread ones at `rx[answered..]`, replies at `tx[..replied]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursors {
    /// Position of the first received byte in the stream of all bytes that the client ever sent.
    pub in_base: u64,
    /// Position of the first reply byte in the stream of all bytes ever sent to the client.
    pub out_base: u64,
    /// Received bytes of complete frames that are answered.
    pub answered: u32,
    /// Bytes of their replies.
    pub replied: u32,
    /// The region of received bytes, and their offset in it.
    pub rx: (Region, u32),
    /// The region of replies, and their offset in it.
    pub tx: (Region, u32),
    /// Received bytes present when these cursors became active; the kernel counts later ones.
    pub have: u32,
}

impl Cursors {
    /// Returns the cursors of a client that has sent `received` bytes, all answered, and was sent `sent`.
    #[must_use]
    pub fn idle(received: u64, sent: u64) -> Cursors {
        let nowhere = (Region::Shared, 0);
        Cursors {
            in_base: received,
            out_base: sent,
            answered: 0,
            replied: 0,
            rx: nowhere,
            tx: nowhere,
            have: 0,
        }
    }

    /// Returns the positions in both streams after all bytes of these cursors, if the client is idle.
    #[must_use]
    pub fn ends(&self) -> (u64, u64) {
        (
            self.in_base.wrapping_add(u64::from(self.answered)),
            self.out_base.wrapping_add(u64::from(self.replied)),
        )
    }

    /// Returns the bytes of the client in the slot's own regions, and how many of them are in the large one, if nothing
    /// is answered.
    #[must_use]
    pub fn parked(&self) -> (u64, u64) {
        let in_large = |(region, _), bytes: u32| {
            if region == Region::Large {
                u64::from(bytes)
            } else {
                0
            }
        };
        let bytes = u64::from(self.have) + u64::from(self.replied);
        (
            bytes,
            in_large(self.rx, self.have) + in_large(self.tx, self.replied),
        )
    }

    pub(super) fn encode(&self) -> [u64; 5] {
        let regions = u64::from(region_bits(self.rx)) << 32 | u64::from(region_bits(self.tx));
        [
            self.in_base,
            self.out_base,
            progress_bits(self.answered, self.replied),
            regions,
            u64::from(self.have),
        ]
    }

    pub(in crate::shm) fn decode(words: [u64; 5]) -> Cursors {
        let [in_base, out_base, progress, regions, have] = words;
        Cursors {
            in_base,
            out_base,
            answered: (progress >> 32) as u32,
            replied: progress as u32,
            rx: region_from_bits((regions >> 32) as u32),
            tx: region_from_bits(regions as u32),
            have: have as u32,
        }
    }
}

pub(super) fn progress_bits(answered: u32, replied: u32) -> u64 {
    u64::from(answered) << 32 | u64::from(replied)
}

fn region_bits((region, offset): (Region, u32)) -> u32 {
    offset << 2
        | match region {
            Region::Shared => 0,
            Region::Small => 1,
            Region::Large => 2,
        }
}

fn region_from_bits(bits: u32) -> (Region, u32) {
    let region = match bits & 3 {
        1 => Region::Small,
        2 => Region::Large,
        _ => Region::Shared,
    };
    (region, bits >> 2)
}

/// Reasons why a client is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseReason {
    /// The client has closed its connection, or the connection broke.
    #[default]
    Left,
    /// The client sent nothing for `idle-timeout`.
    Idle,
    /// The client's frame was not complete within `frame-timeout`.
    FrameTimeout,
    /// The client received nothing for `send-timeout`.
    SendTimeout,
    /// The client's frame is longer than `max-frame`.
    TooLarge,
    /// There was too little memory for the client's bytes.
    Overloaded,
    /// The daemon stops.
    Stopping,
    /// The worker could not watch the client, read from it or write to it.
    Lost,
    /// The daemon is drained, and the client got a goaway.
    Goaway,
    /// An operator has closed the client, which got a goaway.
    Kicked,
    /// The connection did not begin with a PROXY protocol header.
    HeaderMissing,
    /// The header is of a version that the listener does not accept.
    HeaderVersion,
    /// The header is not a valid one.
    HeaderMalformed,
    /// The checksum of the header is wrong.
    HeaderChecksum,
    /// The connection ended in the middle of the header.
    HeaderIncomplete,
    /// The header was not complete within `frame-timeout`.
    HeaderTimeout,
}

impl From<GoawayReason> for CloseReason {
    fn from(reason: GoawayReason) -> CloseReason {
        match reason {
            GoawayReason::Draining => CloseReason::Goaway,
            GoawayReason::Stopping => CloseReason::Stopping,
            GoawayReason::Kicked => CloseReason::Kicked,
        }
    }
}

impl CloseReason {
    /// All reasons. The shared memory contains the index of one, so none may change its place.
    const ALL: [CloseReason; 16] = [
        CloseReason::Left,
        CloseReason::Idle,
        CloseReason::FrameTimeout,
        CloseReason::SendTimeout,
        CloseReason::TooLarge,
        CloseReason::Overloaded,
        CloseReason::Stopping,
        CloseReason::Lost,
        CloseReason::Goaway,
        CloseReason::Kicked,
        CloseReason::HeaderMissing,
        CloseReason::HeaderVersion,
        CloseReason::HeaderMalformed,
        CloseReason::HeaderChecksum,
        CloseReason::HeaderIncomplete,
        CloseReason::HeaderTimeout,
    ];

    pub(super) const MASK: u64 = 0xff << CloseReason::SHIFT;
    const SHIFT: u32 = 24;

    /// Returns the bits of the reason in the word of the flags.
    pub(super) fn encode(self) -> u64 {
        (self as u64) << CloseReason::SHIFT
    }

    fn decode(word: u64) -> CloseReason {
        let index = (word & CloseReason::MASK) >> CloseReason::SHIFT;
        let reason = CloseReason::ALL.get(index as usize);
        reason.copied().unwrap_or_default()
    }
}

/// The state of a client besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The client's byte order, once it is known.
    pub order: Option<ByteOrder>,
    /// The client has sent its last byte; it is closed once its replies are written.
    pub half_closed: bool,
    /// The client's last reply has been made; the client is closed once the reply is written and there was time to read
    /// it.
    pub closing: bool,
    /// The client's first unread frame has been executed for the longest time allowed.
    pub timed_out: bool,
    /// The client's unread bytes were dropped for lack of memory; it is closed after a reply that reports this.
    pub overloaded: bool,
    /// How often the client's first unread frame was being executed when its worker died.
    pub crash_count: u8,
    /// Whether the frame may have caused the last of these deaths. Deaths from outside have no cause here.
    pub is_suspect: bool,
    /// Why the client is closed, once it is, or once its last reply has been made.
    pub close_reason: CloseReason,
    /// The client has asked for a last frame when its connection ends.
    pub wants_goaway: bool,
    /// Why the client gets that frame once its requests are answered, if it does.
    pub goaway: Option<GoawayReason>,
    /// The state of its PROXY protocol header.
    pub proxy: ProxyState,
}

/// The places of the last two flags in their word.
const WANTS_GOAWAY_SHIFT: u32 = 40;
const GOAWAY_SHIFT: u32 = 41;

impl Flags {
    pub(super) fn encode(self) -> u64 {
        let order = match self.order {
            None => 0,
            Some(ByteOrder::Little) => 1,
            Some(ByteOrder::Big) => 2,
        };
        let flags = u64::from(self.half_closed) << 2
            | u64::from(self.closing) << 3
            | u64::from(self.timed_out) << 4
            | u64::from(self.overloaded) << 5
            | u64::from(self.is_suspect) << 6;
        let goaway = self.goaway.map_or(0, GoawayReason::number);
        (order | flags | u64::from(self.crash_count) << 8) << 8
            | self.close_reason.encode()
            | self.proxy.encode()
            | u64::from(self.wants_goaway) << WANTS_GOAWAY_SHIFT
            | u64::from(goaway) << GOAWAY_SHIFT
    }

    pub(super) fn decode(word: u64) -> Flags {
        let bits = word >> 8;
        Flags {
            order: match bits & 3 {
                1 => Some(ByteOrder::Little),
                2 => Some(ByteOrder::Big),
                _ => None,
            },
            half_closed: bits & 4 != 0,
            closing: bits & 8 != 0,
            timed_out: bits & 16 != 0,
            overloaded: bits & 32 != 0,
            crash_count: (bits >> 8) as u8,
            is_suspect: bits & 64 != 0,
            close_reason: CloseReason::decode(word),
            wants_goaway: word >> WANTS_GOAWAY_SHIFT & 1 != 0,
            goaway: GoawayReason::from_number((word >> GOAWAY_SHIFT & 3) as u8),
            proxy: ProxyState::decode(word),
        }
    }
}
