//! A client's slot: its lease word, and two sets of cursors of which one is active.
//!
//! ```text
//! word  0  lease     number << 8 | state                      both sides, by compare-exchange
//!       1  exec      method << 32 | answered + 1              valid only while it matches `answered` of the cursors
//!       2  active    which cursors are active (bit 0), flags (from bit 8)
//!       3  since     when what is timed began: a frame, a stop in sending, or idling  ns of CLOCK_MONOTONIC
//!       4  last      when the client last sent or took a byte                        ns of CLOCK_MONOTONIC
//!       5  requests  answered so far
//!    6-10  cursors 0 in_base · out_base · answered << 32 | replied · where << 32 | where · have
//!   11-15  cursors 1
//! ```
//!
//! **One store makes every change of where bytes lie**: the idle cursors are written, then `active`
//! is flipped. Active cursors never change, except for their progress word, which commits one
//! reply: `answered` and `replied` together. Stores are Release and loads Acquire, so that a
//! process that finds an idle lease word also finds the cursors that belong to it; after a death
//! program order is enough.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::frame::ByteOrder;

const LEASE: usize = 0;
const EXEC: usize = 1;
const ACTIVE: usize = 2;
const SINCE: usize = 3;
const LAST_ACTIVE: usize = 4;
const REQUESTS: usize = 5;
const CURSORS: [usize; 2] = [6, 11];

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
    /// The worker has ended the client.
    Closed = 5,
    /// The lease was ended while bytes of the client lay in the slot's regions.
    RevokedParked = 6,
}

/// The lease word, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseWord {
    /// The number of the lease in this slot: an old event or message carries another number and
    /// does no harm.
    pub number: u32,
    /// The state of the lease.
    pub state: LeaseState,
}

impl LeaseWord {
    fn encode(self) -> u64 {
        u64::from(self.number) << 8 | self.state as u64
    }

    /// Decodes a lease word; `None` for a word that is never written.
    fn decode(word: u64) -> Option<LeaseWord> {
        let state = match word & 0xff {
            0 => LeaseState::Free,
            1 => LeaseState::Idle,
            2 => LeaseState::Parked,
            3 => LeaseState::Busy,
            4 => LeaseState::Revoked,
            5 => LeaseState::Closed,
            6 => LeaseState::RevokedParked,
            _ => return None,
        };
        Some(LeaseWord {
            number: u32::try_from(word >> 8).ok()?,
            state,
        })
    }
}

/// Returns whether, by its lease word, the client of this lease is with the worker, in a turn or
/// not, or was with it and its next place is not known yet. If another worker has the client by
/// now, that worker's lease is the later one.
pub(super) fn is_with_its_worker(word: u64, number: u32) -> bool {
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

/// Positions of a client's bytes in the shared memory: unread ones at `rx[answered..]`, replies at
/// `tx[..replied]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursors {
    /// Position of the first received byte in the stream of all bytes that the client ever sent.
    pub in_base: u64,
    /// Position of the first reply byte in the stream of all bytes ever sent to the client.
    pub out_base: u64,
    /// Received bytes of whole frames that are answered.
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
    /// Returns the cursors of a client that has sent `received` bytes, all answered, and was sent
    /// `sent`.
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

    /// Returns the positions in both streams behind all bytes of these cursors, if the client is
    /// idle.
    #[must_use]
    pub fn ends(&self) -> (u64, u64) {
        (
            self.in_base.wrapping_add(u64::from(self.answered)),
            self.out_base.wrapping_add(u64::from(self.replied)),
        )
    }

    /// Returns the bytes of the client in the slot's own regions, and how many of them are in the
    /// large one, if nothing is answered.
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

    fn encode(&self) -> [u64; 5] {
        let regions = u64::from(region_bits(self.rx)) << 32 | u64::from(region_bits(self.tx));
        [
            self.in_base,
            self.out_base,
            progress_bits(self.answered, self.replied),
            regions,
            u64::from(self.have),
        ]
    }

    pub(super) fn decode(words: [u64; 5]) -> Cursors {
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

fn progress_bits(answered: u32, replied: u32) -> u64 {
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

/// The state of a client besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The client's byte order, once it is known.
    pub order: Option<ByteOrder>,
    /// The client has sent its last byte; it is closed once its replies are written.
    pub half_closed: bool,
    /// The client's last reply has been made; the client is closed once the reply is written and
    /// there was time to read it.
    pub closing: bool,
    /// The client's first unread frame has been executed for the longest time allowed.
    pub timed_out: bool,
    /// The client's unread bytes were dropped for lack of memory; it is closed after a reply that
    /// reports this.
    pub overloaded: bool,
    /// How often the client's first unread frame was being executed when its worker died.
    pub crash_count: u8,
}

impl Flags {
    fn encode(self) -> u64 {
        let order = match self.order {
            None => 0,
            Some(ByteOrder::Little) => 1,
            Some(ByteOrder::Big) => 2,
        };
        let flags = u64::from(self.half_closed) << 2
            | u64::from(self.closing) << 3
            | u64::from(self.timed_out) << 4
            | u64::from(self.overloaded) << 5;
        (order | flags | u64::from(self.crash_count) << 8) << 8
    }

    fn decode(word: u64) -> Flags {
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
        }
    }
}

/// A word of a slot. Types other than [`AtomicU64`] are for the tests only, which try every order
/// in which two processes can see each other's stores.
pub trait Word {
    /// Loads the word, as [`AtomicU64::load`].
    fn load(&self, order: Ordering) -> u64;
    /// Stores the word, as [`AtomicU64::store`].
    fn store(&self, value: u64, order: Ordering);
    /// Exchanges the word, as [`AtomicU64::compare_exchange`].
    ///
    /// # Errors
    /// The present value, if it is not `current`.
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64>;
}

/// Implements [`Word`] for a type by its own methods of these names.
macro_rules! word {
    ($type:ty) => {
        impl Word for $type {
            fn load(&self, order: Ordering) -> u64 {
                self.load(order)
            }

            fn store(&self, value: u64, order: Ordering) {
                self.store(value, order);
            }

            fn compare_exchange(
                &self,
                current: u64,
                new: u64,
                success: Ordering,
                failure: Ordering,
            ) -> Result<u64, u64> {
                self.compare_exchange(current, new, success, failure)
            }
        }
    };
}

word!(AtomicU64);

/// One slot, on either side.
#[derive(Debug)]
pub struct Slot<'a, W = AtomicU64>(&'a [W; 16]);

// Derived implementations would require that a word can be copied.
impl<W> Clone for Slot<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Slot<'_, W> {}

impl<'a, W: Word> Slot<'a, W> {
    pub(super) fn new(words: &'a [W; 16]) -> Slot<'a, W> {
        Slot(words)
    }

    fn load(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Acquire)
    }

    fn store(&self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Release);
    }

    /// Returns the lease word; `None` when its value is never written.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseWord> {
        LeaseWord::decode(self.load(LEASE))
    }

    /// Master: fills the slot, before the lease is sent. `state` is [`LeaseState::Idle`], or
    /// [`LeaseState::Parked`] if bytes of the client lie in the slot's regions; `since` and
    /// `active` are as returned by [`Slot::since`] and [`Slot::last_active`].
    pub fn preset(
        &self,
        state: LeaseState,
        number: u32,
        cursors: Cursors,
        flags: Flags,
        (since, active): (u64, u64),
        requests: u64,
    ) {
        self.store(EXEC, 0);
        self.store(SINCE, since);
        self.store(LAST_ACTIVE, active);
        self.store(REQUESTS, requests);
        for (word, value) in (CURSORS[0]..).zip(cursors.encode()) {
            self.store(word, value);
        }
        self.store(ACTIVE, flags.encode());
        self.store(LEASE, LeaseWord { number, state }.encode());
    }

    /// Master: frees the slot, once the worker has reported that it no longer uses it.
    pub fn clear(&self) {
        self.store(
            LEASE,
            LeaseWord {
                number: 0,
                state: LeaseState::Free,
            }
            .encode(),
        );
    }

    /// Worker: begins a turn, if the lease is still its own. Uses compare-exchange, because the
    /// master may revoke the lease at the same instant; exactly one of the two succeeds.
    #[must_use]
    pub fn claim(&self, number: u32) -> Option<Claim> {
        self.exchange(number, [LeaseState::Busy, LeaseState::Busy])
    }

    /// Ends the lease of a client that is in no turn: the master revokes it, or the worker gives it
    /// up. From then on the worker touches neither the slot nor its regions, and their contents are
    /// complete. Returns `None` if the client is in a turn, or the lease is another one.
    #[must_use]
    pub fn revoke(&self, number: u32) -> Option<Claim> {
        self.exchange(number, [LeaseState::Revoked, LeaseState::RevokedParked])
    }

    fn exchange(&self, number: u32, [from_idle, from_parked]: [LeaseState; 2]) -> Option<Claim> {
        let ways = [
            (LeaseState::Idle, from_idle, Claim::Idle),
            (LeaseState::Parked, from_parked, Claim::Parked),
        ];
        for (from, to, found) in ways {
            let [from, to] = [from, to].map(|state| LeaseWord { number, state }.encode());
            if self.0[LEASE]
                .compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                return Some(found);
            }
        }
        None
    }

    /// Worker: ends the client's turn.
    pub fn release(&self, number: u32, state: LeaseState) {
        self.store(LEASE, LeaseWord { number, state }.encode());
    }

    /// Returns the active cursors.
    #[must_use]
    pub fn cursors(&self) -> Cursors {
        let begin = CURSORS[(self.load(ACTIVE) & 1) as usize];
        Cursors::decode(std::array::from_fn(|i| self.load(begin + i)))
    }

    /// Worker: makes `cursors` and `flags` active, in one store, and notes that no method is
    /// executing.
    pub fn flip(&self, cursors: &Cursors, flags: Flags) {
        let next = self.load(ACTIVE) & 1 ^ 1;
        let begin = CURSORS[next as usize];
        for (word, value) in (begin..).zip(cursors.encode()) {
            self.store(word, value);
        }
        self.store(EXEC, 0);
        self.store(ACTIVE, next | flags.encode());
    }

    /// Worker: notes that `method` is about to run for the frame that begins behind `answered`
    /// bytes of the cursors. The store comes before the handler, so that a death in the handler is
    /// recognized.
    pub fn execute(&self, method: u32, answered: u32) {
        self.store(
            EXEC,
            u64::from(method) << 32 | u64::from(answered.wrapping_add(1)),
        );
    }

    /// Worker: commits the answered frame and its reply, both in one store.
    pub fn commit(&self, answered: u32, replied: u32) {
        self.store(
            CURSORS[(self.load(ACTIVE) & 1) as usize] + 2,
            progress_bits(answered, replied),
        );
    }

    /// Returns the method that was executing when the worker died, if there was one.
    #[must_use]
    pub fn executing(&self) -> Option<u32> {
        let exec = self.load(EXEC);
        let matches = exec as u32 == self.cursors().answered.wrapping_add(1);
        (exec != 0 && matches).then_some((exec >> 32) as u32)
    }

    /// Returns the flags of the client.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags::decode(self.load(ACTIVE))
    }

    /// Worker: changes the flags of the client; the cursors stay.
    pub fn set_flags(&self, flags: Flags) {
        self.store(ACTIVE, self.load(ACTIVE) & 1 | flags.encode());
    }

    /// Returns when the timed state began (a frame, a stop in sending, or idling): ns of
    /// CLOCK_MONOTONIC.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.load(SINCE)
    }

    /// Worker: notes that a timed state begins.
    pub fn set_since(&self, now: u64) {
        self.store(SINCE, now);
    }

    /// Returns when the client last sent or took a byte: ns of CLOCK_MONOTONIC.
    #[must_use]
    pub fn last_active(&self) -> u64 {
        self.load(LAST_ACTIVE)
    }

    /// Worker: notes that the client sent or took a byte now.
    pub fn touch(&self, now: u64) {
        self.store(LAST_ACTIVE, now);
    }

    /// Returns the requests of the client that were answered so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.load(REQUESTS)
    }

    /// Sets the requests of the client that were answered so far.
    pub(super) fn set_requests(&self, requests: u64) {
        self.store(REQUESTS, requests);
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot(test: impl FnOnce(Slot)) {
        let words = [const { AtomicU64::new(0) }; 16];
        test(Slot::new(&words));
    }

    fn some_cursors() -> Cursors {
        Cursors {
            in_base: 1 << 40,
            out_base: 7,
            answered: 3,
            replied: u32::MAX,
            rx: (Region::Large, (1 << 30) - 1),
            tx: (Region::Small, 1),
            have: 99,
        }
    }

    #[test]
    fn a_claim_succeeds_once_and_only_for_the_lease_it_is_for() {
        slot(|slot| {
            assert_eq!(slot.claim(0), None, "a free slot is nobody's");
            slot.preset(
                LeaseState::Idle,
                5,
                Cursors::idle(10, 20),
                Flags::default(),
                (1, 1),
                2,
            );
            assert_eq!(slot.claim(4), None);
            assert_eq!(slot.claim(5), Some(Claim::Idle));
            assert_eq!(slot.claim(5), None, "it is in a turn");
            slot.release(5, LeaseState::Parked);
            assert_eq!(slot.claim(5), Some(Claim::Parked));
            slot.release(5, LeaseState::Closed);
            assert_eq!(slot.claim(5), None);
            assert_eq!(
                slot.lease(),
                Some(LeaseWord {
                    number: 5,
                    state: LeaseState::Closed
                })
            );
        });
    }

    #[test]
    fn a_lease_is_revoked_only_between_turns() {
        slot(|slot| {
            slot.preset(
                LeaseState::Idle,
                5,
                Cursors::idle(10, 20),
                Flags::default(),
                (1, 1),
                2,
            );
            assert_eq!(slot.revoke(4), None);
            assert_eq!(slot.claim(5), Some(Claim::Idle));
            assert_eq!(slot.revoke(5), None, "it is in a turn");
            slot.release(5, LeaseState::Parked);
            assert_eq!(slot.revoke(5), Some(Claim::Parked));
            assert_eq!((slot.claim(5), slot.revoke(5)), (None, None));
        });
    }

    #[test]
    fn a_flip_replaces_all_cursors_at_once() {
        slot(|slot| {
            let order = Some(ByteOrder::Big);
            let flags = Flags {
                order,
                half_closed: true,
                closing: false,
                timed_out: true,
                overloaded: true,
                crash_count: 200,
            };
            slot.preset(
                LeaseState::Idle,
                1,
                Cursors::idle(10, 20),
                Flags::default(),
                (1, 1),
                0,
            );
            slot.flip(&some_cursors(), flags);
            assert_eq!((slot.cursors(), slot.flags()), (some_cursors(), flags));
            slot.commit(8, 9);
            assert_eq!(
                slot.cursors(),
                Cursors {
                    answered: 8,
                    replied: 9,
                    ..some_cursors()
                }
            );
            assert_eq!(slot.cursors().ends(), ((1 << 40) + 8, 16));
            slot.flip(&Cursors::idle(1, 2), Flags::default());
            assert_eq!(slot.cursors(), Cursors::idle(1, 2));
        });
    }

    #[test]
    fn a_method_is_executing_from_before_it_runs_until_its_reply_is_committed() {
        slot(|slot| {
            slot.preset(
                LeaseState::Idle,
                1,
                Cursors::idle(0, 0),
                Flags::default(),
                (1, 1),
                0,
            );
            assert_eq!(slot.executing(), None);
            slot.execute(7, 0);
            assert_eq!(slot.executing(), Some(7));
            slot.commit(40, 44);
            assert_eq!(slot.executing(), None);
            slot.execute(8, 40);
            assert_eq!(slot.executing(), Some(8));
            slot.flip(&Cursors::idle(80, 88), Flags::default());
            assert_eq!(slot.executing(), None);
        });
    }

    proptest! {
        /// A broken worker may have written anything.
        #[test]
        fn no_words_panic(bits in proptest::array::uniform16(any::<u64>())) {
            let words = bits.map(AtomicU64::new);
            let slot = Slot::new(&words);
            let _ = (slot.lease(), slot.cursors().ends(), slot.flags(), slot.executing(), slot.requests());
        }
    }
}
