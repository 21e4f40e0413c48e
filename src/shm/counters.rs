//! The counters of a worker, exact to its last instruction: one store counts what one store commits.
//!
//! One store into the slot commits a reply, and later stores count it. A death between them must not cause a miscount,
//! so the worker notes before the commit what it will count:
//!
//! ```text
//! note     which counter, what it and the client's own will be, and what `replied` will be     header, one store
//! commit   `answered` and `replied` of the cursors                                                slot, one store
//! count    the client's requests, then the counter                                             two stores
//! ```
//!
//! After a death the note describes the last commit, or one that never came. If `replied` has reached the noted value
//! and the counter has not, the master completes the count ([`MasterShm::settle`]); doing so twice does no harm.
//! Requests are counted only in the counters of methods: all other figures are sums of them.
//!
//! The duration of a request is recorded when its reply is sent. For replies that were committed and not sent it is an
//! estimate ([`Counters::close`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::header::{self, BUCKETS, COUNTED_METHODS, Header, upper};
use super::{MasterShm, Slot};
use crate::proto::channel::MethodName;
use crate::sys::clock;

/// Bits of a note: `replied`, the number of the counter, and the last bits of both counts, enough to distinguish one
/// count from the next.
const REPLIED_BITS: u32 = 30;
const COUNTER_BITS: u32 = 9;
const COUNT_BITS: u32 = 12;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const NOTED: u64 = 1 << 63;

/// The most replies that can be committed and not sent: a turn sends once it has [`super::REPLY_SOFT`] bytes, and no
/// reply is shorter than 24 bytes.
const MAX_UNSENT: u64 = super::REPLY_SOFT as u64 / 24 + 1;

/// The most bytes that a worker can read or write in a nanosecond: no memory is as fast.
const MAX_BYTES_PER_NS: u64 = 1 << 10;

/// The most bytes that one system call may have moved since the counters were read before.
const MAX_BYTES_AT_ONCE: u64 = 1 << 31;

/// The shortest time of a reply, on average over the replies that wait to be sent: no worker answers faster.
const MIN_REPLY_TIME: Duration = Duration::from_nanos(20);

/// A note of the next count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    counter: u64,
    replied: u32,
    count: u64,
    requests: u64,
}

impl Note {
    /// Worker: notes that the next commit, of `replied` bytes, answers a request for this method, by its number, or for
    /// no method (0), with a result or an error.
    #[must_use]
    pub fn new(
        header: Header<'_>,
        slot: Slot<'_>,
        (method, is_error): (u32, bool),
        replied: u32,
    ) -> Note {
        let counter = Header::counter_of(method, is_error);
        let (count, requests) = (
            header.counter(counter).wrapping_add(1),
            slot.requests().wrapping_add(1),
        );
        let note = Note {
            counter: counter as u64,
            replied,
            count,
            requests,
        };
        header.note(note.encode());
        note
    }

    /// Worker: counts the commit that was made.
    pub fn count(self, header: Header<'_>, slot: Slot<'_>) {
        // The counter comes last: while it is unchanged, the whole count is still due.
        slot.set_requests(self.requests);
        header.set_counter(self.counter as usize, self.count);
    }

    fn encode(self) -> u64 {
        let counts = (self.count & COUNT_MASK) << COUNT_BITS | self.requests & COUNT_MASK;
        NOTED | (counts << COUNTER_BITS | self.counter) << REPLIED_BITS | u64::from(self.replied)
    }

    /// Decodes a note; `None` if nothing was noted yet. Only the last bits of both counts are known.
    fn decode(word: u64) -> Option<Note> {
        let bits = |from: u32, count: u32| word >> from & ((1 << count) - 1);
        let counts = REPLIED_BITS + COUNTER_BITS;
        (word & NOTED != 0).then(|| Note {
            counter: bits(REPLIED_BITS, COUNTER_BITS),
            replied: bits(0, REPLIED_BITS) as u32,
            count: bits(counts + COUNT_BITS, COUNT_BITS),
            requests: bits(counts, COUNT_BITS),
        })
    }
}

impl MasterShm {
    /// Counts the reply that a worker, now gone, has committed and not counted, if there is one.
    pub fn settle(&self) {
        let header = self.header();
        let Some(note) = Note::decode(header.noted()) else {
            return;
        };
        let Some(slot) = self.slot(header.last_slot()) else {
            return;
        };
        let counter = note.counter as usize;
        if counter >= 2 * COUNTED_METHODS as usize {
            return;
        }
        let (count, requests) = (
            header.counter(counter).wrapping_add(1),
            slot.requests().wrapping_add(1),
        );
        if count & COUNT_MASK != note.count || slot.cursors().replied < note.replied {
            return;
        }
        if requests & COUNT_MASK == note.requests {
            slot.set_requests(requests);
        }
        header.set_counter(counter, count);
    }
}

/// All counters of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Requests by method and result, at twice the method's number, plus 1 for an error.
    methods: Vec<u64>,
    /// The number of requests in each bucket of durations; [`upper`] is the longest of a bucket.
    pub durations: Vec<u64>,
    /// The duration of all requests together, in ns.
    pub duration_sum: u64,
    /// Methods that panicked.
    pub panics: u64,
    /// Log lines that the worker could not write.
    pub log_errors: u64,
    /// Clients that the worker closed because it could not watch them, read from them or write to them.
    pub lost: u64,
    /// Bytes that the worker has read from clients.
    pub received: u64,
    /// Bytes that the worker has written to clients.
    pub sent: u64,
    /// Requests that had been answered before the durations were read.
    at_least: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        let (methods, durations) = (vec![0; 2 * COUNTED_METHODS as usize], vec![0; BUCKETS]);
        Counters {
            methods,
            durations,
            duration_sum: 0,
            panics: 0,
            log_errors: 0,
            lost: 0,
            received: 0,
            sent: 0,
            at_least: 0,
        }
    }
}

impl Counters {
    /// Returns these counters of another version with as many numbers as this one has.
    #[must_use]
    pub fn in_this_version(mut self) -> Counters {
        self.methods.resize(2 * COUNTED_METHODS as usize, 0);
        self.durations.resize(BUCKETS, 0);
        self
    }

    /// Reads the current counters of a worker.
    #[must_use]
    pub fn read(header: Header<'_>) -> Counters {
        let counters = || (0..2 * COUNTED_METHODS as usize).map(|counter| header.counter(counter));
        let at_least = sum(counters());
        // A request is counted first, then recorded, and added to the sum last. Read in another order, there may be
        // more durations than requests, or their sum may be too large for them.
        let duration_sum = header.duration_sum();
        let durations = header.durations().collect();
        let (panics, log_errors, lost) = (header.panics(), header.log_errors(), header.lost());
        Counters {
            methods: counters().collect(),
            durations,
            duration_sum,
            panics,
            log_errors,
            lost,
            received: header.received(),
            sent: header.sent(),
            at_least,
        }
    }

    /// Accepts the counters of a worker that did not record the duration of requests whose reply could not be sent.
    pub fn accept_unrecorded(&mut self) {
        self.at_least = 0;
    }

    /// Returns the requests answered, with a result or an error.
    #[must_use]
    pub fn requests(&self) -> u64 {
        sum(self.methods.iter().copied())
    }

    /// Returns the requests answered with an error.
    #[must_use]
    pub fn errors(&self) -> u64 {
        sum(self.methods.iter().skip(1).step_by(2).copied())
    }

    /// Returns the requests for this method, by its number, with a result and with an error. Requests for no method,
    /// and for methods without counters of their own, are under 0.
    #[must_use]
    pub fn answered(&self, method: u32) -> [u64; 2] {
        let at = 2 * method as usize;
        if Header::counts_method(method) {
            [self.methods[at], self.methods[at + 1]]
        } else {
            [0; 2]
        }
    }

    /// Returns each of these methods with its requests, and the requests for no method without a name. A method without
    /// a counter counts as none.
    pub fn by_method<'a>(
        &'a self,
        methods: &'a [MethodName],
    ) -> impl Iterator<Item = (Option<&'a str>, [u64; 2])> {
        let named = (1..)
            .zip(methods)
            .filter(|(number, _)| Header::counts_method(*number));
        let named =
            named.map(|(number, method)| (Some(method.name.as_str()), self.answered(number)));
        std::iter::once((None, self.answered(0))).chain(named)
    }

    /// Closes the counters of a worker that is gone. Its replies that were committed and not sent took, as far as can
    /// be known, as long as the turn that made them had lasted.
    pub fn close(&mut self, turn: Duration) {
        let ns = clock::nanoseconds(turn);
        let unsent = self
            .requests()
            .saturating_sub(sum(self.durations.iter().copied()));
        let bucket = &mut self.durations[header::bucket(ns)];
        *bucket = bucket.saturating_add(unsent);
        self.duration_sum = self.duration_sum.saturating_add(unsent.saturating_mul(ns));
    }

    /// Returns why these cannot be the counters of a working worker that had counted `before` this long ago and counts
    /// for `methods` methods; `None` if they can be.
    #[must_use]
    pub fn fault(
        &self,
        before: &Counters,
        passed: Duration,
        methods: usize,
    ) -> Option<&'static str> {
        let counters = |all: &Counters| -> Vec<u64> {
            let others = [all.duration_sum, all.panics, all.log_errors, all.lost];
            let others = others.into_iter().chain([all.received, all.sent]);
            all.methods
                .iter()
                .chain(&all.durations)
                .copied()
                .chain(others)
                .collect()
        };
        if counters(self)
            .iter()
            .zip(counters(before))
            .any(|(now, before)| *now < before)
        {
            return Some("a counter has decreased");
        }
        if self
            .methods
            .iter()
            .skip(2 * (methods + 1))
            .any(|count| *count > 0)
        {
            return Some("requests are counted for unknown methods");
        }
        let (requests, recorded) = (self.requests(), sum(self.durations.iter().copied()));
        if recorded > requests || recorded.saturating_add(MAX_UNSENT) < self.at_least {
            return Some("there are not as many durations as requests");
        }
        if !self.can_follow(before, passed) {
            return Some("the increase is impossible in the time");
        }
        if self.panics > self.errors().saturating_add(1) {
            return Some("there are more panics than errors");
        }
        let longest = self
            .durations
            .iter()
            .zip(0..)
            .map(|(count, bucket)| u128::from(*count) * longest_of(bucket));
        if u128::from(self.duration_sum) > longest.sum() {
            return Some("the durations are not as long as their sum");
        }
        None
    }
}

impl Counters {
    /// Returns whether a worker can count as much in this time. No counter has decreased.
    fn can_follow(&self, before: &Counters, passed: Duration) -> bool {
        let most = u64::try_from(passed.as_nanos() / MIN_REPLY_TIME.as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_add(MAX_UNSENT);
        let events = [
            self.requests().saturating_sub(before.requests()),
            self.log_errors - before.log_errors,
            self.lost - before.lost,
        ];
        let most_bytes = clock::nanoseconds(passed)
            .saturating_mul(MAX_BYTES_PER_NS)
            .saturating_add(MAX_BYTES_AT_ONCE);
        let bytes = [self.received - before.received, self.sent - before.sent];
        events.iter().all(|count| *count <= most) && bytes.iter().all(|count| *count <= most_bytes)
    }
}

/// Returns the longest duration of a request in this bucket, in ns; the last bucket has no end.
fn longest_of(bucket: usize) -> u128 {
    if bucket + 1 == BUCKETS {
        u64::MAX.into()
    } else {
        upper(bucket).into()
    }
}

fn sum(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::super::{Cursors, Flags, Layout, WorkerShm};
    use super::*;
    use proptest::prelude::*;

    fn shm() -> (MasterShm, WorkerShm) {
        let layout = Layout::new(2, 1 << 20);
        let master = MasterShm::new(layout).expect("memfd");
        let worker = WorkerShm::map(master.file().try_clone().expect("dup"), layout).expect("mmap");
        (master, worker)
    }

    #[test]
    fn counters_of_another_version_have_as_many_numbers_as_this_one() {
        for record in ["{}", r#"{"methods":[1,2,3],"durations":[4],"other":5}"#] {
            let counters: Counters = serde_json::from_str(record).expect("it is a record");
            let counters = counters.in_this_version();
            assert_eq!(counters.methods.len(), 2 * COUNTED_METHODS as usize);
            assert_eq!(counters.durations.len(), BUCKETS);
        }
    }

    /// Commits and counts a reply of ten bytes as a turn does, up to this many stores. Returns whether it was
    /// committed.
    fn answer(
        worker: &WorkerShm,
        slot: u32,
        (method, is_error): (u32, bool),
        stores: usize,
    ) -> bool {
        let (header, slot) = (worker.header(), worker.slot(slot).expect("a slot"));
        let (answered, replied) = (slot.cursors().answered + 5, slot.cursors().replied + 10);
        if stores == 0 {
            return false;
        }
        let note = Note::new(header, slot, (method, is_error), replied);
        if stores > 1 {
            slot.commit(answered, replied);
        }
        if stores > 2 {
            slot.set_requests(note.requests);
        }
        if stores > 3 {
            note.count(header, slot);
        }
        stores > 1
    }

    #[test]
    fn a_reply_counts_once_wherever_its_worker_dies() {
        for stores in 0..=4 {
            for before in [0, 1, 4094, 4095, 4096] {
                let (master, worker) = shm();
                let header = worker.header();
                for slot in [0, 1] {
                    let slot = worker.slot(slot).expect("a slot");
                    slot.preset_idle(1, 7);
                }
                // A long turn of the other client, which leaves replies behind.
                header.begin_turn(0, 1);
                (0..before).for_each(|_| assert!(answer(&worker, 0, (3, false), 4)));
                header.begin_turn(1, 1);
                (0..3).for_each(|_| assert!(answer(&worker, 1, (3, true), 4)));
                // Bytes sent midway are in other cursors.
                let slot = worker.slot(1).expect("a slot");
                slot.activate(&Cursors::idle(15, 30), Flags::default());
                let is_committed = answer(&worker, 1, (3, false), stores);
                for _ in 0..2 {
                    master.settle();
                    let counters = Counters::read(master.header());
                    let expected = before + u64::from(is_committed);
                    assert_eq!(
                        counters.answered(3),
                        [expected, 3],
                        "{stores} stores after {before}"
                    );
                    assert_eq!((counters.requests(), counters.errors()), (expected + 3, 3));
                    assert_eq!(
                        slot.requests(),
                        10 + u64::from(is_committed),
                        "{stores} stores after {before}"
                    );
                }
            }
        }
    }

    #[test]
    fn methods_without_a_counter_count_as_none() {
        let (master, worker) = shm();
        worker.slot(0).expect("a slot").preset_idle(1, 0);
        for counted in [
            (1, false),
            (1, true),
            (191, false),
            (192, false),
            (u32::MAX, true),
            (0, true),
        ] {
            answer(&worker, 0, counted, 4);
        }
        let counters = Counters::read(master.header());
        let found = [0, 1, 191, 192, u32::MAX].map(|method| counters.answered(method));
        assert_eq!(found, [[1, 2], [1, 1], [1, 0], [0, 0], [0, 0]]);
        assert_eq!((counters.requests(), counters.errors()), (6, 3));
        let (name, idempotent) = ("m".to_owned(), false);
        let methods = vec![MethodName { name, idempotent }; 200];
        let all = counters.by_method(&methods).map(|(_, counts)| counts);
        assert_eq!(all.flatten().sum::<u64>(), 6);
    }

    #[test]
    fn unsent_replies_count_with_the_duration_of_their_turn() {
        let (_, worker) = shm();
        worker.slot(0).expect("a slot").preset_idle(1, 0);
        (0..5).for_each(|_| assert!(answer(&worker, 0, (1, false), 4)));
        worker.header().record(5, 2, 1000);
        let mut counters = Counters::read(worker.header());
        counters.close(Duration::from_millis(1));
        assert_eq!(
            (
                sum(counters.durations.iter().copied()),
                counters.duration_sum
            ),
            (5, 2 * 1000 + 3 * 1_000_000)
        );
        assert_eq!(counters.durations[header::bucket(1_000_000)], 3);
    }

    #[test]
    fn impossible_counters_are_detected() {
        let second = Duration::from_secs(1);
        let counted = |requests: u64| {
            let mut counters = Counters::default();
            (counters.methods[2], counters.at_least) = (requests, requests);
            (counters.durations[9], counters.duration_sum) = (requests, requests * 1000);
            counters
        };
        let (before, now) = (counted(1000), counted(2000));
        assert_eq!(now.fault(&before, second, 1), None);
        assert_eq!(before.fault(&before, Duration::ZERO, 1), None);
        let broken = |change: fn(&mut Counters)| {
            let mut broken = now.clone();
            change(&mut broken);
            broken.fault(&before, second, 1)
        };
        type Change = fn(&mut Counters);
        let changes: [Change; 12] = [
            |c| c.methods[2] = 999,
            |c| c.methods[2] += 1_000_000_000,
            |c| (c.methods[3], c.at_least) = (1 << 40, 1 << 40),
            |c| c.methods[9] = 1,
            |c| c.durations[9] = 999,
            |c| c.durations[8] = 1 << 50,
            |c| c.duration_sum = 1 << 60,
            |c| c.panics = 2,
            |c| c.log_errors = u64::MAX,
            |c| c.lost = 1 << 40,
            |c| c.received = 1 << 41,
            |c| c.sent = u64::MAX,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(broken(change).is_some(), "{number}");
        }
        let soon = Duration::from_micros(1);
        assert!(
            counted(1_000_000).fault(&before, soon, 1).is_some(),
            "not so fast"
        );
        // As many replies as can be made before they are sent.
        let mut unsent = now.clone();
        (unsent.methods[2], unsent.at_least) = (2000 + MAX_UNSENT, 2000 + MAX_UNSENT);
        assert_eq!(unsent.fault(&before, second, 1), None);
    }

    proptest! {
        /// A broken worker may leave any words.
        #[test]
        fn arbitrary_words_do_not_panic(note: u64, slot: u32, counts: [u64; 4]) {
            let (master, worker) = shm();
            let header = worker.header();
            header.note(note);
            header.begin_turn(slot, 1);
            (0..4).for_each(|counter| header.set_counter(counter * 100, counts[counter]));
            master.settle();
            let mut counters = Counters::read(header);
            let _ = counters.fault(&Counters::default(), Duration::MAX, 3);
            counters.close(Duration::MAX);
        }

        #[test]
        fn a_note_is_decoded_as_encoded(replied in 0..1u32 << 30, counter in 0..384u64, count: u64, requests: u64) {
            let note = Note { counter, replied, count, requests };
            let shortened = Note { count: count & COUNT_MASK, requests: requests & COUNT_MASK, ..note };
            prop_assert_eq!(Note::decode(note.encode()), Some(shortened));
        }
    }
}
