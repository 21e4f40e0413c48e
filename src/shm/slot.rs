//! A client's slot: its lease word, and two sets of cursors of which one is active.
//!
//! ```text
//! word  0  lease     number << 8 | state                      both sides, by compare-exchange
//!       1  exec      method << 32 | answered + 1              valid only while it matches `answered` of the cursors
//!       2  active    which cursors are active (bit 0), flags (from bit 8), why the client is closed (from bit 24),
//!                    the state of its PROXY protocol header (from bit 32), whether it wants a last frame (bit 40),
//!                    and why it gets that (bits 41 and 42)
//!       3  since     when what is timed began: a frame, a stop in sending, or idling  ns of CLOCK_MONOTONIC
//!       4  last      when the client last sent or took a byte                        ns of CLOCK_MONOTONIC
//!       5  requests  answered so far
//!    6-10  cursors 0 in_base · out_base · answered << 32 | replied · where << 32 | where · have
//!   11-15  cursors 1
//! ```
//!
//! **One store changes where the bytes of a client are**: the inactive cursors are written, then one store to `active`
//! activates them. Active cursors never change, except for their progress word, which commits one reply: `answered` and
//! `replied` together. Stores are Release and loads Acquire, so that a process that finds an idle lease word also finds
//! the cursors that belong to it; after a death program order is enough.

mod proxy;
mod words;

use std::sync::atomic::{AtomicU64, Ordering};

pub use proxy::ProxyState;
pub(super) use proxy::{SOURCE_LEN, decode_source, encode_source};
pub(super) use words::is_with_its_worker;
use words::progress_bits;
pub use words::{Claim, CloseReason, Cursors, Flags, LeaseState, LeaseWord, Region};

const LEASE: usize = 0;
const EXEC: usize = 1;
const ACTIVE: usize = 2;
const SINCE: usize = 3;
const LAST_ACTIVE: usize = 4;
const REQUESTS: usize = 5;
const CURSORS: [usize; 2] = [6, 11];

/// A word of a slot. Types other than [`AtomicU64`] are for the tests only, which try every order in which two
/// processes can see each other's stores.
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

    /// Master: fills the slot, before the lease is sent. `state` is [`LeaseState::Idle`], or [`LeaseState::Parked`] if
    /// bytes of the client lie in the slot's regions; `since` and `active` are as returned by [`Slot::since`] and
    /// [`Slot::last_active`].
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
        self.release(number, state);
    }

    /// Fills the slot with an idle client without bytes.
    #[cfg(test)]
    pub(super) fn preset_idle(&self, number: u32, requests: u64) {
        let (cursors, flags) = (Cursors::idle(10, 20), Flags::default());
        self.preset(LeaseState::Idle, number, cursors, flags, (1, 1), requests);
    }

    /// Master: frees the slot, once the worker has reported that it no longer uses it.
    pub fn clear(&self) {
        self.release(0, LeaseState::Free);
    }

    /// Worker: begins a turn, if the lease is still its own. Uses compare-exchange, because the master may revoke the
    /// lease at the same instant; exactly one of the two succeeds.
    #[must_use]
    pub fn claim(&self, number: u32) -> Option<Claim> {
        self.exchange(number, [LeaseState::Busy, LeaseState::Busy])
    }

    /// Ends the lease of a client that is in no turn: the master revokes it, or the worker gives it up. From then on
    /// the worker touches neither the slot nor its regions, and their contents are complete. Returns `None` if the
    /// client is in a turn, or the lease is another one.
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

    /// Worker: returns whether the client of a lease that is over may be nowhere else: the lease was revoked, and the
    /// master has not closed the slot.
    #[must_use]
    pub fn must_be_kept(&self, number: u32) -> bool {
        let lease = self.lease().filter(|lease| lease.number == number);
        let state = lease.map(|lease| lease.state);
        matches!(state, Some(LeaseState::Revoked | LeaseState::RevokedParked))
    }

    /// Master: closes the slot that a client has left, unless its word has changed since. Only the master changes the
    /// word of a revoked lease.
    pub fn close_left(&self, number: u32) {
        if self.must_be_kept(number) {
            self.release(number, LeaseState::Closed);
        }
    }

    /// Worker: begins the turn in which a request that was away is answered. Returns false if none of this lease is
    /// away. Only the worker ends this state, so no other process can come first.
    #[must_use]
    pub fn claim_away(&self, number: u32) -> bool {
        let state = LeaseState::Away;
        let is_away = self.lease() == Some(LeaseWord { number, state });
        if is_away {
            self.release(number, LeaseState::Busy);
        }
        is_away
    }

    /// Stores the lease word: the worker ends the client's turn, or the master changes a word that only it changes.
    pub fn release(&self, number: u32, state: LeaseState) {
        self.store(LEASE, LeaseWord { number, state }.encode());
    }

    /// Returns the active cursors.
    #[must_use]
    pub fn cursors(&self) -> Cursors {
        let begin = CURSORS[(self.load(ACTIVE) & 1) as usize];
        Cursors::decode(std::array::from_fn(|i| self.load(begin + i)))
    }

    /// Worker: makes `cursors` and `flags` active, in one store, and notes that no method is executing.
    pub fn activate(&self, cursors: &Cursors, flags: Flags) {
        let next = self.load(ACTIVE) & 1 ^ 1;
        let begin = CURSORS[next as usize];
        for (word, value) in (begin..).zip(cursors.encode()) {
            self.store(word, value);
        }
        self.store(EXEC, 0);
        self.store(ACTIVE, next | flags.encode());
    }

    /// Worker: notes that `method` is about to run for the frame that begins after `answered` bytes of the cursors.
    /// The store comes before the handler, so that a death in the handler is recognized.
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

    /// Worker: notes why it closes the client, which is in a turn.
    pub fn set_close_reason(&self, reason: CloseReason) {
        let others = self.load(ACTIVE) & !CloseReason::MASK;
        self.store(ACTIVE, others | reason.encode());
    }

    /// Returns when the timed state began (a frame, a stop in sending, or idling): ns of CLOCK_MONOTONIC.
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
    use crate::proto::frame::ByteOrder;
    use crate::proto::rpc::GoawayReason;
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
    fn a_claim_succeeds_once_and_only_for_its_own_lease() {
        slot(|slot| {
            assert_eq!(slot.claim(0), None, "a free slot has no client");
            slot.preset_idle(5, 2);
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
            slot.preset_idle(5, 2);
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
                is_suspect: true,
                close_reason: CloseReason::TooLarge,
                wants_goaway: true,
                goaway: Some(GoawayReason::Stopping),
                proxy: ProxyState::Used,
            };
            slot.preset_idle(1, 0);
            slot.activate(&some_cursors(), flags);
            assert_eq!((slot.cursors(), slot.flags()), (some_cursors(), flags));
            slot.set_close_reason(CloseReason::Lost);
            let changed = Flags {
                close_reason: CloseReason::Lost,
                ..flags
            };
            assert_eq!((slot.cursors(), slot.flags()), (some_cursors(), changed));
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
            slot.activate(&Cursors::idle(1, 2), Flags::default());
            assert_eq!(slot.cursors(), Cursors::idle(1, 2));
        });
    }

    #[test]
    fn a_method_executes_until_its_reply_is_committed() {
        slot(|slot| {
            slot.preset_idle(1, 0);
            assert_eq!(slot.executing(), None);
            slot.execute(7, 0);
            assert_eq!(slot.executing(), Some(7));
            slot.commit(40, 44);
            assert_eq!(slot.executing(), None);
            slot.execute(8, 40);
            assert_eq!(slot.executing(), Some(8));
            slot.activate(&Cursors::idle(80, 88), Flags::default());
            assert_eq!(slot.executing(), None);
        });
    }

    proptest! {
        /// A broken worker may have written anything.
        #[test]
        fn arbitrary_words_do_not_panic(bits in proptest::array::uniform16(any::<u64>())) {
            let words = bits.map(AtomicU64::new);
            let slot = Slot::new(&words);
            let _ = (slot.lease(), slot.cursors().ends(), slot.flags(), slot.executing(), slot.requests());
        }
    }
}
