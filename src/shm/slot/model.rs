//! Tries, with loom, every order in which a master and a worker can see each other's stores to a slot. It runs the code
//! of the slot on words whose loads return each value that C11's memory model allows, whatever this machine does.
//!
//! The state of a client after turn `n` consists of that number alone, so that a mixture of two turns is recognized.
//! Its bytes are one more number, which is not atomic: any concurrent access to it is an error.
//!
//! The wish for capacity in the header is not covered. It needs sequential consistency, which loom does not implement
//! for loads and stores: it treats them as acquire and release, with which both sides may miss each other's store.

use std::sync::Arc;

use loom::cell::Cell;
use loom::sync::atomic::AtomicU64 as ModelWord;
use loom::thread;

use super::*;

word!(ModelWord);

/// Returns the state of a client after turn `n`.
fn after_turn(n: u32) -> (Cursors, Flags, Claim) {
    let (rx, tx) = ((Region::Small, n), (Region::Large, n));
    let cursors = Cursors {
        in_base: n.into(),
        out_base: n.into(),
        answered: n,
        replied: n,
        rx,
        tx,
        have: n,
    };
    let found = if n.is_multiple_of(2) {
        Claim::Idle
    } else {
        Claim::Parked
    };
    (
        cursors,
        Flags {
            crash_count: n as u8,
            ..Flags::default()
        },
        found,
    )
}

fn state(found: Claim) -> LeaseState {
    match found {
        Claim::Idle => LeaseState::Idle,
        Claim::Parked => LeaseState::Parked,
    }
}

/// Shared memory of one slot.
struct Shm<W> {
    words: [W; 16],
    /// The bytes in the slot's regions.
    bytes: Cell<u32>,
}

impl<W: Word> Shm<W> {
    fn slot(&self) -> Slot<'_, W> {
        Slot::new(&self.words)
    }

    /// Master: leases a client in its state after turn `n`.
    fn lease(&self, lease_number: u32, n: u32) {
        let (cursors, flags, found) = after_turn(n);
        self.bytes.set(n);
        self.slot().preset(
            state(found),
            lease_number,
            cursors,
            flags,
            (n.into(), n.into()),
            n.into(),
        );
    }

    /// Worker: makes the client's next turn, and returns its number; `None` if the lease is not its own.
    fn turn(&self, lease_number: u32) -> Option<u32> {
        let slot = self.slot();
        let n = self.read(slot.claim(lease_number)?) + 1;
        slot.activate(&Cursors::idle(n.into(), n.into()), Flags::default());
        slot.execute(n, 0);
        slot.commit(1, n);
        let (cursors, flags, found) = after_turn(n);
        self.bytes.set(n);
        slot.activate(&cursors, flags);
        slot.set_requests(n.into());
        slot.touch(n.into());
        slot.release(lease_number, state(found));
        Some(n)
    }

    /// Worker: makes a turn in which the client's request leaves for an app; `None` if the lease is not its own.
    fn depart(&self, lease_number: u32) -> Option<u32> {
        let slot = self.slot();
        let n = self.read(slot.claim(lease_number)?) + 1;
        let (cursors, flags, _) = after_turn(n);
        self.bytes.set(n);
        slot.activate(&cursors, flags);
        slot.execute(7, n);
        slot.release(lease_number, LeaseState::Away);
        Some(n)
    }

    /// Worker: makes the turn in which the answer of turn `n` returns.
    fn complete(&self, lease_number: u32, n: u32) -> u32 {
        let (slot, n) = (self.slot(), n + 1);
        assert_eq!(slot.executing(), Some(7), "the request is still away");
        assert!(slot.claim_away(lease_number));
        slot.commit(n, n);
        assert_eq!(slot.executing(), None);
        let (cursors, flags, found) = after_turn(n);
        self.bytes.set(n);
        slot.activate(&cursors, flags);
        slot.set_requests(n.into());
        slot.touch(n.into());
        slot.release(lease_number, state(found));
        n
    }

    /// Worker: closes the client in a turn, and returns the number of its last turn; `None` if the lease is not its own.
    fn close(&self, lease_number: u32) -> Option<u32> {
        let n = self.read(self.slot().claim(lease_number)?);
        self.slot().release(lease_number, LeaseState::Closed);
        Some(n)
    }

    /// Either side: revokes the lease, and returns the number of the last turn.
    fn revoke(&self, lease_number: u32) -> Option<u32> {
        let found = self.slot().revoke(lease_number)?;
        assert!(self.slot().claim(lease_number).is_none());
        Some(self.read(found))
    }

    /// Reads the whole state of a client that was claimed or revoked.
    fn read(&self, found: Claim) -> u32 {
        let (slot, n) = (self.slot(), self.bytes.get());
        assert_eq!((slot.cursors(), slot.flags(), found), after_turn(n));
        assert_eq!(
            (slot.last_active(), slot.requests(), slot.executing()),
            (n.into(), n.into(), None)
        );
        n
    }
}

/// Runs `worker` and `master` on one slot with a client, in every order; `end` gets their results.
fn model<W: Word + 'static, A: 'static, B: 'static>(
    word: fn(u64) -> W,
    worker: fn(&Shm<W>) -> A,
    master: fn(&Shm<W>) -> B,
    end: fn(&Shm<W>, A, B),
) {
    loom::model(move || {
        let shm = Arc::new(Shm {
            words: std::array::from_fn(|_| word(0)),
            bytes: Cell::new(0),
        });
        shm.lease(1, 0);
        // The worker is the first thread: loom starts with it, and if it started with the side that only reads, the
        // loads of the other side would hide that their stores must also be tried before the read.
        let other = thread::spawn({
            let shm = Arc::clone(&shm);
            move || master(&shm)
        });
        let worker = worker(&shm);
        let master = other.join().expect("it does not panic");
        end(&shm, worker, master);
    });
}

/// Returns the turns up to the last one: all of them, and none after it.
fn up_to(last: u32) -> Vec<u32> {
    (1..=last).collect()
}

/// The worker makes up to three turns while the master revokes the lease.
fn turns_and_a_revocation<W: Word + 'static>(word: fn(u64) -> W) {
    model(
        word,
        |shm| [shm.turn(1), shm.turn(1), shm.turn(1)],
        |shm| shm.revoke(1),
        |shm, turns, revoked| {
            assert_eq!(
                turns.into_iter().flatten().collect::<Vec<_>>(),
                up_to(revoked.unwrap_or(3))
            );
            assert_eq!(shm.turn(1).is_some(), revoked.is_none());
        },
    );
}

#[test]
fn a_revoked_lease_has_the_state_after_its_last_turn() {
    turns_and_a_revocation(ModelWord::new);
}

/// A word without any order, to show that the model would notice.
struct Unordered(ModelWord);

impl Word for Unordered {
    fn load(&self, _: Ordering) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn store(&self, value: u64, _: Ordering) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        _: Ordering,
        _: Ordering,
    ) -> Result<u64, u64> {
        self.0
            .compare_exchange(current, new, Ordering::Relaxed, Ordering::Relaxed)
    }
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_memory_order_the_model_fails() {
    turns_and_a_revocation(|value| Unordered(ModelWord::new(value)));
}

/// The master finds the client before its request leaves or after its answer, and never while it is away.
#[test]
fn a_request_that_is_away_cannot_be_revoked() {
    model(
        ModelWord::new,
        |shm| {
            let left = shm.depart(1)?;
            Some([left, shm.complete(1, left)])
        },
        |shm| shm.revoke(1),
        |shm, turns, revoked| match (turns, revoked) {
            (None, revoked) => assert_eq!(revoked, Some(0)),
            (Some([1, 2]), None) => assert_eq!(shm.revoke(1), Some(2)),
            (Some([1, 2]), Some(2)) => assert_eq!(shm.turn(1), None),
            other => panic!("{other:?}"),
        },
    );
}

#[test]
fn exactly_one_of_two_revocations_succeeds() {
    model(
        ModelWord::new,
        |shm| (shm.turn(1), shm.revoke(1)),
        |shm| shm.revoke(1),
        |_, (turn, returned), revoked| {
            assert!(returned.is_some() != revoked.is_some());
            assert_eq!(returned.or(revoked), Some(turn.unwrap_or(0)));
        },
    );
}

/// An event of the old lease may arrive at any time, even when the slot has another client. A worker that finds the new
/// lease there may use it without any other synchronization.
#[test]
fn an_old_event_does_not_affect_the_slots_next_client() {
    const NEXT: u32 = 10;
    model(
        ModelWord::new,
        |shm| [shm.turn(1), shm.turn(1), shm.turn(2), shm.turn(1)],
        |shm| {
            let revoked = shm.revoke(1)?;
            shm.slot().clear();
            shm.lease(2, NEXT);
            Some(revoked)
        },
        |shm, [first, second, new, late], revoked| {
            assert_eq!(
                [first, second, late]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>(),
                up_to(revoked.unwrap_or(3))
            );
            assert_eq!(shm.revoke(2), revoked.map(|_| new.unwrap_or(NEXT)));
        },
    );
}

/// The worker may be killed, or the master may read without a revocation, at any instant.
#[test]
fn cursors_are_consistent_during_a_flip() {
    model(
        ModelWord::new,
        |shm| {
            shm.slot().activate(&after_turn(1).0, Flags::default());
            shm.slot().commit(2, 3);
        },
        |shm| shm.slot().cursors(),
        |shm, (), seen| {
            let [before, activated] = [after_turn(0).0, after_turn(1).0];
            let committed = Cursors {
                answered: 2,
                replied: 3,
                ..activated
            };
            assert!([before, activated, committed].contains(&seen), "{seen:?}");
            assert_eq!(shm.slot().cursors(), committed);
        },
    );
}

/// The slot of a client that the worker has closed gets another client; an event of the old one may still arrive.
#[test]
fn a_client_is_either_closed_or_revoked() {
    const NEXT: u32 = 10;
    model(
        ModelWord::new,
        |shm| (shm.turn(1), shm.close(1), shm.turn(1)),
        |shm| {
            let revoked = shm.revoke(1);
            let state = LeaseState::Closed;
            let is_closed = shm.slot().lease() == Some(LeaseWord { number: 1, state });
            if is_closed {
                assert_eq!(revoked, None);
                shm.slot().clear();
                shm.lease(2, NEXT);
            }
            (revoked, is_closed)
        },
        |shm, (turn, closed, late), (revoked, is_closed)| {
            assert_eq!(closed.or(revoked), Some(turn.unwrap_or(0)));
            assert!(closed.is_some() != revoked.is_some() && late.is_none());
            assert_eq!(shm.revoke(1), None);
            assert_eq!(shm.revoke(2), is_closed.then_some(NEXT));
        },
    );
}

/// A worker closes its copy of a revoked client's socket when it finds the slot closed: then the client is elsewhere.
#[test]
fn a_worker_finds_a_slot_closed_after_its_client_has_moved() {
    const MOVED: u32 = 10;
    model(
        ModelWord::new,
        |shm| {
            let turns = [shm.turn(1), shm.turn(1)];
            if turns[1].is_none() && !shm.slot().must_be_kept(1) {
                assert_eq!(shm.bytes.get(), MOVED);
            }
            turns
        },
        |shm| {
            let revoked = shm.revoke(1)?;
            assert!(shm.slot().must_be_kept(1));
            shm.bytes.set(MOVED);
            shm.slot().close_left(1);
            Some(revoked)
        },
        |shm, turns, revoked| {
            let turns: Vec<u32> = turns.into_iter().flatten().collect();
            assert_eq!(turns, up_to(revoked.unwrap_or(2)));
            if revoked.is_none() {
                return;
            }
            assert!(!shm.slot().must_be_kept(1));
            assert_eq!((shm.turn(1), shm.revoke(1)), (None, None));
        },
    );
}
