//! Every order in which a master and a worker can see each other's stores to a slot, tried by loom. What runs is the code
//! above, on words for which a load gives each value that C11's memory model lets it see, whatever this machine does.
//!
//! What is left of a client after turn `n` is made of that number alone, so that a mixture of two turns shows. Its bytes
//! are one more number, and not an atomic one: it is a fault already if both sides may be at it at once.
//!
//! Not here: the wish for room in the header. It needs sequential consistency, which loom does not know of loads and
//! stores; it takes them for acquire and release, under which both sides may miss each other.

use std::sync::Arc;

use loom::cell::Cell;
use loom::sync::atomic::AtomicU64 as ModelWord;
use loom::thread;

use super::*;

word!(ModelWord);

/// What turn `n` leaves of a client.
fn left(n: u32) -> (Cursors, Flags, Claim) {
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
    /// What lies in the slot's regions.
    bytes: Cell<u32>,
}

impl<W: Word> Shm<W> {
    fn slot(&self) -> Slot<'_, W> {
        Slot::new(&self.words)
    }

    /// Master: it leases a client that was left so.
    fn lease(&self, lease_number: u32, n: u32) {
        let (cursors, flags, found) = left(n);
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

    /// Worker: the turn behind the one that the client was left by; which that is. None if the client is not its own.
    fn turn(&self, lease_number: u32) -> Option<u32> {
        let slot = self.slot();
        let n = self.read(slot.claim(lease_number)?) + 1;
        slot.flip(&Cursors::idle(n.into(), n.into()), Flags::default());
        slot.execute(n, 0);
        slot.commit(1, n);
        let (cursors, flags, found) = left(n);
        self.bytes.set(n);
        slot.flip(&cursors, flags);
        slot.set_requests(n.into());
        slot.touch(n.into());
        slot.release(lease_number, state(found));
        Some(n)
    }

    /// Either side: it ends the lease, and learns which turn was the last.
    fn take(&self, lease_number: u32) -> Option<u32> {
        let found = self.slot().revoke(lease_number)?;
        assert!(self.slot().claim(lease_number).is_none());
        Some(self.read(found))
    }

    /// Reads the whole of a client that was claimed or taken.
    fn read(&self, found: Claim) -> u32 {
        let (slot, n) = (self.slot(), self.bytes.get());
        assert_eq!((slot.cursors(), slot.flags(), found), left(n));
        assert_eq!(
            (slot.last_active(), slot.requests(), slot.executing()),
            (n.into(), n.into(), None)
        );
        n
    }
}

/// Runs `worker` and `master` on one shared memory with a client, in every way; `end` gets what they returned.
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
        // In this order: loom begins with the thread that is there, and if that were the one which only looks, the other's
        // own loads would hide from it that their stores must also be tried before the look.
        let there = thread::spawn({
            let shm = Arc::clone(&shm);
            move || master(&shm)
        });
        let worker = worker(&shm);
        let master = there.join().expect("it does not panic");
        end(&shm, worker, master);
    });
}

/// The turns that were made up to the last one: all of them, and none behind it.
fn up_to(last: u32) -> Vec<u32> {
    (1..=last).collect()
}

/// The worker makes three turns if it can, while the master takes the client.
fn turns_and_a_revocation<W: Word + 'static>(word: fn(u64) -> W) {
    model(
        word,
        |shm| [shm.turn(1), shm.turn(1), shm.turn(1)],
        |shm| shm.take(1),
        |shm, turns, taken| {
            assert_eq!(
                turns.into_iter().flatten().collect::<Vec<_>>(),
                up_to(taken.unwrap_or(3))
            );
            assert_eq!(shm.turn(1).is_some(), taken.is_none());
        },
    );
}

#[test]
fn a_lease_is_revoked_as_its_last_turn_left_it_or_not() {
    turns_and_a_revocation(ModelWord::new);
}

/// A word without any order, to see that the model would notice.
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
fn without_an_order_it_would_not_be() {
    turns_and_a_revocation(|value| Unordered(ModelWord::new(value)));
}

#[test]
fn of_revoking_and_giving_up_exactly_one_succeeds() {
    model(
        ModelWord::new,
        |shm| (shm.turn(1), shm.take(1)),
        |shm| shm.take(1),
        |_, (turn, given_up), taken| {
            assert!(given_up.is_some() != taken.is_some());
            assert_eq!(given_up.or(taken), Some(turn.unwrap_or(0)));
        },
    );
}

/// An event of the old lease may come as late as it likes, also when the slot is another client's already. A worker that
/// finds the new lease there needs nobody to tell it that it is whole.
#[test]
fn an_old_event_does_no_harm_to_the_next_client_of_the_slot() {
    const NEXT: u32 = 10;
    model(
        ModelWord::new,
        |shm| [shm.turn(1), shm.turn(1), shm.turn(2), shm.turn(1)],
        |shm| {
            let taken = shm.take(1)?;
            shm.slot().clear();
            shm.lease(2, NEXT);
            Some(taken)
        },
        |shm, [first, second, new, late], taken| {
            assert_eq!(
                [first, second, late]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>(),
                up_to(taken.unwrap_or(3))
            );
            assert_eq!(shm.take(2), taken.map(|_| new.unwrap_or(NEXT)));
        },
    );
}

/// Every moment is one at which the worker may be killed, or the master look without a take.
#[test]
fn cursors_are_whole_in_the_middle_of_a_flip() {
    model(
        ModelWord::new,
        |shm| {
            shm.slot().flip(&left(1).0, Flags::default());
            shm.slot().commit(2, 3);
        },
        |shm| shm.slot().cursors(),
        |shm, (), seen| {
            let [before, flipped] = [left(0).0, left(1).0];
            let committed = Cursors {
                answered: 2,
                replied: 3,
                ..flipped
            };
            assert!([before, flipped, committed].contains(&seen), "{seen:?}");
            assert_eq!(shm.slot().cursors(), committed);
        },
    );
}
