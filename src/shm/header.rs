//! The header of shared memory: the counters of a worker and the durations of its requests.
//!
//! ```text
//! word  0  leases picked up          5  the method being executed, its number; 0 if none
//!       1  free                      6  the master wants to be told of room (set by it, cleared by the worker)
//!       2  free                      7  bytes parked
//!       3  handlers that panicked    8  bytes that the thread had written before the write in progress to a Unix client
//!       4  log lines lost            9  where in that client's stream it is; 0 if none is  10  the client's slot
//!      11  whether 8 and 20 are known
//!      12  beats: turns begun and probes heard        13  since when the turn or the method in progress is; 0 if none is
//!      14  the slot of the turn in progress
//!      15  bytes that the thread had written in all when its master was gone, plus 1; 0 while that is there
//!      16  what the next commit counts, see `shm/counters.rs`
//!      17  clients that were closed because they could not be watched, read from or written to
//!      18  clients that found no room in a handoff queue when the master was gone
//!      19  when the shared memory was packed for the next master: ns of CLOCK_MONOTONIC; 0 if it was not
//!      20  calls that the thread had written with before that write   21  bytes that the write took, plus 1; 0 until it is over
//!      22  the thread that serves and writes; 0 in version 1, where 8 and 15 are of the whole process
//!      23  calls that the thread had written with in all when its master was gone
//!  from 64  twelve seconds of 120 words: which second, requests, busy ns, then how many requests took how long
//!    1504  how many requests took how long, of all   1616  how long they took in all, in ns
//!    1664  for each method, by its number, how many were answered with a result, and with an error;
//!          the first is for what is no method
//! ```
//!
//! The worker itself writes the last seconds, so that no process has to wake up to sample them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::byte_counts::Writes;

const PICKED_UP: usize = 0;
const PANICS: usize = 3;
const LOG_ERRORS: usize = 4;
const EXECUTING: usize = 5;
const WANTS_CAPACITY: usize = 6;
const PARKED: usize = 7;
const WRITE_SUM: usize = 8;
const WRITE_AT: usize = 9;
const WRITE_SLOT: usize = 10;
const KNOWS_WRITES: usize = 11;
const HEARTBEATS: usize = 12;
const TURN_SINCE: usize = 13;
const TURN_SLOT: usize = 14;
pub(super) const FINAL_WRITES: usize = 15;
const NOTE: usize = 16;
const LOST: usize = 17;
pub(super) const LEFT_BEHIND: usize = 18;
pub(super) const PACKED_AT: usize = 19;
const WRITE_CALLS: usize = 20;
const WRITE_TOOK: usize = 21;
const WRITER: usize = 22;
pub(super) const FINAL_WRITE_CALLS: usize = 23;

const SECONDS: usize = 64;
const KEPT_SECONDS: u64 = 12;
const SECOND_WORDS: usize = 120;
const BUCKETS_AT: usize = 8;
/// The number of buckets of durations.
pub const BUCKETS: usize = SECOND_WORDS - BUCKETS_AT;

const DURATIONS: usize = SECONDS + KEPT_SECONDS as usize * SECOND_WORDS;
const DURATION_SUM: usize = DURATIONS + BUCKETS;
const METHODS: usize = 1664;
/// The number of methods with counters, with number 0 for requests of no method and of methods
/// without counters of their own.
pub(super) const COUNTED_METHODS: u32 = 192;

/// The full seconds that rates and percentiles cover.
const WINDOW: u64 = 10;

const NANOSECONDS: u64 = 1_000_000_000;

/// The counters of a worker. Each has one writer, the worker, and is only ever shown or compared.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a>(&'a [AtomicU64]);

/// The rate and durations of a worker in the last ten full seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Recent {
    /// Requests a second.
    pub rate: f64,
    /// The median duration; `None` without requests.
    pub p50: Option<Duration>,
    /// The 99th percentile of durations; `None` without requests.
    pub p99: Option<Duration>,
}

/// A write to a Unix client that a worker began in its present turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The kernel took this many bytes.
    Took(u64),
    /// It is not known whether the write is over. Holds what the thread had written before, if that
    /// is known.
    Began(Option<Writes>),
}

/// The present turn of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnInProgress {
    /// The slot of the turn's client.
    pub slot: u32,
    /// When the turn began, or the executing method if that is not an inline one: ns of
    /// CLOCK_MONOTONIC.
    pub since: u64,
}

impl<'a> Header<'a> {
    pub(super) fn new(words: &'a [AtomicU64]) -> Header<'a> {
        Header(words)
    }

    fn load(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn add(&self, word: usize, n: u64) {
        self.0[word].store(self.load(word).wrapping_add(n), Ordering::Relaxed);
    }

    /// Returns the leases that the worker has received from its channel.
    #[must_use]
    pub fn picked_up(&self) -> u64 {
        self.0[PICKED_UP].load(Ordering::Acquire)
    }

    /// Worker: counts `n` more leases. Returns true if the master asked for a message.
    #[must_use]
    pub fn pick_up(&self, n: u64) -> bool {
        // Sequentially consistent with `want_capacity`. Each side stores first and loads then: here
        // the count and the wish, there the wish and the count. At least one side sees the other's
        // store.
        self.0[PICKED_UP].fetch_add(n, Ordering::SeqCst);
        self.0[WANTS_CAPACITY].load(Ordering::SeqCst) != 0
            && self.0[WANTS_CAPACITY].swap(0, Ordering::SeqCst) != 0
    }

    /// Master: asks for a message when more leases are picked up than the count that it returns.
    #[must_use]
    pub fn want_capacity(&self) -> u64 {
        self.0[WANTS_CAPACITY].store(1, Ordering::SeqCst);
        self.0[PICKED_UP].load(Ordering::SeqCst)
    }

    /// Returns whether this method has counters of its own.
    #[must_use]
    pub fn counts_method(method: u32) -> bool {
        method < COUNTED_METHODS
    }

    /// Returns the number of the counter for requests for this method that are answered with a
    /// result or an error.
    pub(super) fn counter_of(method: u32, is_error: bool) -> usize {
        let method = if Header::counts_method(method) {
            method as usize
        } else {
            0
        };
        2 * method + usize::from(is_error)
    }

    /// Returns a counter, by its number.
    pub(super) fn counter(&self, counter: usize) -> u64 {
        self.load(METHODS + counter)
    }

    /// Sets a counter, by its number. The store is a release, so that it comes after the commit
    /// that it counts.
    pub(super) fn set_counter(&self, counter: usize, count: u64) {
        self.0[METHODS + counter].store(count, Ordering::Release);
    }

    /// Notes what the next commit counts.
    pub(super) fn note(&self, word: u64) {
        self.0[NOTE].store(word, Ordering::Release);
    }

    /// Returns the note of the next commit.
    pub(super) fn noted(&self) -> u64 {
        self.0[NOTE].load(Ordering::Acquire)
    }

    /// Returns the slot of the turn in progress, or of the last one.
    pub(super) fn last_slot(&self) -> u32 {
        self.load(TURN_SLOT) as u32
    }

    /// Returns the number of requests so far in each of the [`BUCKETS`] buckets of durations;
    /// [`upper`] is the longest of a bucket.
    pub fn durations(&self) -> impl Iterator<Item = u64> {
        self.0[DURATIONS..DURATIONS + BUCKETS]
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
    }

    /// Returns the duration of all requests together, in ns.
    #[must_use]
    pub fn duration_sum(&self) -> u64 {
        self.load(DURATION_SUM)
    }

    /// Returns the number of handlers that panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.load(PANICS)
    }

    /// Worker: counts a handler that panicked.
    pub fn add_panic(&self) {
        self.add(PANICS, 1);
    }

    /// Returns the number of log lines that the worker could not write.
    #[must_use]
    pub fn log_errors(&self) -> u64 {
        self.load(LOG_ERRORS)
    }

    /// Worker: sets the number of log lines that it could not write.
    pub fn set_log_errors(&self, n: u64) {
        self.0[LOG_ERRORS].store(n, Ordering::Relaxed);
    }

    /// Returns when the shared memory was packed for the next master, in ns of CLOCK_MONOTONIC, if
    /// it was and that is known.
    #[must_use]
    pub fn packed_at(&self) -> Option<u64> {
        Some(self.load(PACKED_AT)).filter(|at| *at > 0)
    }

    /// Notes that the shared memory is packed now, or is about to be.
    pub fn set_packed_at(&self, now: u64) {
        self.0[PACKED_AT].store(now, Ordering::Release);
    }

    /// Returns the number of clients that the worker closed because it could not watch them, read
    /// from them or write to them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.load(LOST)
    }

    /// Worker: counts a client that it closes for such a failure.
    pub fn add_lost(&self) {
        self.add(LOST, 1);
    }

    /// Returns the parked bytes of all clients.
    #[must_use]
    pub fn parked(&self) -> u64 {
        self.load(PARKED)
    }

    /// Worker: sets the parked bytes of all clients.
    pub fn set_parked(&self, bytes: u64) {
        self.0[PARKED].store(bytes, Ordering::Relaxed);
    }

    /// Returns the number of the method that is executing; `None` between two methods.
    #[must_use]
    pub fn executing(&self) -> Option<u32> {
        u32::try_from(self.load(EXECUTING)).ok().filter(|n| *n != 0)
    }

    /// Worker: notes that it runs this method, which is no inline one, from `now` on.
    pub fn begin_method(&self, method: u32, now: u64) {
        self.0[TURN_SINCE].store(now.max(1), Ordering::Relaxed);
        self.0[EXECUTING].store(method.into(), Ordering::Relaxed);
    }

    /// Worker: notes that the method returned at `now`.
    pub fn end_method(&self, now: u64) {
        self.0[EXECUTING].store(0, Ordering::Relaxed);
        self.0[TURN_SINCE].store(now.max(1), Ordering::Relaxed);
    }

    /// Worker: shows that its loop turns.
    pub fn heartbeat(&self) {
        self.add(HEARTBEATS, 1);
    }

    /// Returns the number of heartbeats. A count that stays the same may be that of a worker
    /// without work.
    #[must_use]
    pub fn heartbeats(&self) -> u64 {
        self.load(HEARTBEATS)
    }

    /// Worker: begins the turn of the client in this slot.
    pub fn begin_turn(&self, slot: u32, now: u64) {
        self.heartbeat();
        self.0[TURN_SLOT].store(slot.into(), Ordering::Relaxed);
        self.0[TURN_SINCE].store(now.max(1), Ordering::Relaxed);
    }

    /// Worker: ends the turn.
    pub fn end_turn(&self) {
        self.0[TURN_SINCE].store(0, Ordering::Relaxed);
    }

    /// Returns the turn in progress, if there is one. Its fields may belong to two turns, if one
    /// has just ended.
    #[must_use]
    pub fn turn(&self) -> Option<TurnInProgress> {
        let since = self.load(TURN_SINCE);
        (since != 0).then(|| TurnInProgress {
            slot: self.load(TURN_SLOT) as u32,
            since,
        })
    }

    /// Worker: notes a write that is about to begin, to the Unix client in this slot, at this
    /// position of its stream. `before` is what its thread had written until now, if that is known.
    /// The note holds until the turn ends: a death before that happened in the write or after it.
    pub fn begin_write(&self, slot: u32, at: u64, before: Option<Writes>) {
        self.end_write();
        self.0[WRITE_TOOK].store(0, Ordering::Release);
        self.0[KNOWS_WRITES].store(before.is_some().into(), Ordering::Release);
        let Writes { bytes, calls } = before.unwrap_or_default();
        self.0[WRITE_SUM].store(bytes, Ordering::Release);
        self.0[WRITE_CALLS].store(calls, Ordering::Release);
        self.0[WRITE_SLOT].store(slot.into(), Ordering::Release);
        self.0[WRITE_AT].store(at.wrapping_add(1), Ordering::Release);
    }

    /// Worker: notes that the kernel took `took` bytes. Later writes of the thread are not counted
    /// as that client's.
    pub fn complete_write(&self, took: u64) {
        self.0[WRITE_TOOK].store(took.wrapping_add(1), Ordering::Release);
    }

    /// Worker: notes that later writes are not for that client.
    pub fn end_write(&self) {
        self.0[WRITE_AT].store(0, Ordering::Release);
    }

    /// Worker: notes that this thread of its process serves and writes to clients.
    pub fn set_writer(&self, thread: u32) {
        self.0[WRITER].store(thread.into(), Ordering::Release);
    }

    /// Returns the thread that writes; `None` for a worker of version 1, which noted the writes of
    /// its whole process.
    #[must_use]
    pub fn writer(&self) -> Option<u32> {
        u32::try_from(self.0[WRITER].load(Ordering::Acquire))
            .ok()
            .filter(|thread| *thread != 0)
    }

    /// Returns all that the thread had written when it packed its clients, if it did and the kernel
    /// keeps account.
    #[must_use]
    pub fn final_writes(&self) -> Option<Writes> {
        let bytes = self.0[FINAL_WRITES]
            .load(Ordering::Acquire)
            .checked_sub(1)?;
        Some(Writes {
            bytes,
            calls: self.load(FINAL_WRITE_CALLS),
        })
    }

    /// Returns the number of clients that the worker could not pack when its master was gone.
    #[must_use]
    pub fn left_behind(&self) -> u64 {
        self.0[LEFT_BEHIND].load(Ordering::Acquire)
    }

    /// Master: sets all that the worker, now gone, had written.
    pub fn set_final_writes(&self, Writes { bytes, calls }: Writes) {
        self.0[FINAL_WRITE_CALLS].store(calls, Ordering::Relaxed);
        self.0[FINAL_WRITES].store(bytes.wrapping_add(1), Ordering::Release);
    }

    /// Returns the write in progress, if it is to the client in this slot at this position.
    #[must_use]
    pub fn writing(&self, slot: u32, at: u64) -> Option<Write> {
        let is_it = self.0[WRITE_AT].load(Ordering::Acquire) == at.wrapping_add(1)
            && self.load(WRITE_SLOT) == u64::from(slot);
        let took = self.0[WRITE_TOOK]
            .load(Ordering::Acquire)
            .checked_sub(1)
            .filter(|_| self.writer().is_some());
        let before = Writes {
            bytes: self.load(WRITE_SUM),
            calls: self.load(WRITE_CALLS),
        };
        let began = Write::Began(Some(before).filter(|_| self.load(KNOWS_WRITES) != 0));
        is_it.then(|| took.map_or(began, Write::Took))
    }

    /// Returns whether a write in progress would have been noted: always since version 2, in
    /// version 1 only if the writes were known.
    #[must_use]
    pub fn notes_every_write(&self) -> bool {
        self.writer().is_some() || self.load(KNOWS_WRITES) != 0
    }

    fn second(&self, second: u64) -> &[AtomicU64] {
        let begin = SECONDS + (second % KEPT_SECONDS) as usize * SECOND_WORDS;
        &self.0[begin..begin + SECOND_WORDS]
    }

    /// Worker: records that `requests` were answered `took` ns after they had been read; `now` is
    /// ns of CLOCK_MONOTONIC.
    pub fn record(&self, now: u64, requests: u64, took: u64) {
        let cell = self.this_second(now);
        bump(&cell[1], requests);
        bump(&cell[BUCKETS_AT + bucket(took)], requests);
        self.add(DURATIONS + bucket(took), requests);
        // A corrupt sum must not wrap round to a plausible one.
        let sum = self
            .load(DURATION_SUM)
            .saturating_add(requests.saturating_mul(took));
        self.0[DURATION_SUM].store(sum, Ordering::Relaxed);
    }

    /// Worker: records that its loop was busy for `busy` ns up to `now`.
    pub fn record_busy(&self, now: u64, busy: u64) {
        bump(&self.this_second(now)[2], busy);
    }

    fn this_second(&self, now: u64) -> &[AtomicU64] {
        let second = now / NANOSECONDS;
        let cell = self.second(second);
        if cell[0].load(Ordering::Relaxed) != second {
            cell.iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
            cell[0].store(second, Ordering::Release);
        }
        cell
    }

    /// Returns the share of the last one to two seconds in which the worker was busy, from 0 to 1.
    #[must_use]
    pub fn busy(&self, now: u64) -> f64 {
        let second = now / NANOSECONDS;
        let ns: u64 = [second, second.wrapping_sub(1)]
            .iter()
            .map(|s| self.second(*s))
            .zip([second, second.wrapping_sub(1)])
            .filter(|(cell, s)| cell[0].load(Ordering::Acquire) == *s)
            .map(|(cell, _)| cell[2].load(Ordering::Relaxed).min(NANOSECONDS))
            .sum();
        ns as f64 / (NANOSECONDS + now % NANOSECONDS) as f64
    }

    /// Returns the rate and durations in the ten full seconds before `now`.
    #[must_use]
    pub fn recent(&self, now: u64) -> Recent {
        let this = now / NANOSECONDS;
        let mut requests = 0u64;
        let mut buckets = [0u64; BUCKETS];
        for second in this.saturating_sub(WINDOW)..this {
            let cell = self.second(second);
            if cell[0].load(Ordering::Acquire) != second {
                continue;
            }
            requests = requests.saturating_add(cell[1].load(Ordering::Relaxed));
            for (sum, word) in buckets.iter_mut().zip(&cell[BUCKETS_AT..]) {
                *sum = sum.saturating_add(word.load(Ordering::Relaxed));
            }
        }
        let rate = requests as f64 / WINDOW as f64;
        Recent {
            rate,
            p50: quantile(&buckets, 0.50),
            p99: quantile(&buckets, 0.99),
        }
    }
}

fn bump(word: &AtomicU64, n: u64) {
    word.store(
        word.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// Returns the bucket of a duration. Bucket 0 holds durations below 512 ns; above, each doubling is
/// cut in four, up to about a minute.
pub(super) fn bucket(ns: u64) -> usize {
    if ns < 512 {
        return 0;
    }
    let octave = ns.ilog2() as usize;
    let quarter = (ns >> (octave - 2)) as usize & 3;
    ((octave - 9) * 4 + quarter + 1).min(BUCKETS - 1)
}

/// Returns the longest duration of a bucket, in ns.
#[must_use]
pub fn upper(bucket: usize) -> u64 {
    match bucket {
        0 => 511,
        _ => {
            let (octave, quarter) = ((bucket - 1) / 4 + 9, (bucket - 1) as u64 % 4);
            ((5 + quarter) << (octave - 2)) - 1
        }
    }
}

fn quantile(buckets: &[u64; BUCKETS], q: f64) -> Option<Duration> {
    let total: u64 = buckets.iter().fold(0, |sum, n| sum.saturating_add(*n));
    if total == 0 {
        return None;
    }
    let rank = ((total as f64 * q).ceil() as u64).max(1);
    let mut seen = 0u64;
    let found = buckets.iter().position(|n| {
        seen = seen.saturating_add(*n);
        seen >= rank
    });
    found.map(|bucket| Duration::from_nanos(upper(bucket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(test: impl FnOnce(Header)) {
        let words: Vec<AtomicU64> = (0..2048).map(|_| AtomicU64::new(0)).collect();
        test(Header::new(&words));
    }

    #[test]
    fn every_duration_is_in_a_bucket_whose_end_is_at_most_a_quarter_above_it() {
        for ns in (9..36).flat_map(|shift| {
            [
                1u64 << shift,
                (1 << shift) + 1,
                (3 << shift) / 2,
                (2 << shift) - 1,
            ]
        }) {
            let end = upper(bucket(ns));
            assert!(ns <= end && end <= ns + ns / 4, "{ns} {end}");
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn rates_and_percentiles_are_those_of_the_last_ten_full_seconds() {
        header(|header| {
            let second = |s: u64| s * NANOSECONDS + 5;
            header.record(second(100), 1000, 1_000_000);
            for s in 103..113 {
                header.record(second(s), 99, 10_000);
                header.record(second(s), 1, 1_000_000_000);
            }
            header.record(second(113), 7, 1);
            let recent = header.recent(second(113));
            assert!((recent.rate - 100.0).abs() < 1e-9, "{recent:?}");
            assert_eq!(recent.p50.map(|d| d.as_micros()), Some(10));
            assert_eq!(recent.p99.map(|d| d.as_micros()), Some(10));
            assert_eq!(header.recent(second(200)), Recent::default());
        });
    }

    #[test]
    fn requests_are_counted_by_how_long_they_took_for_ever() {
        header(|header| {
            header.record(5 * NANOSECONDS, 3, 1000);
            header.record(500 * NANOSECONDS, 1, u64::MAX);
            let counts: Vec<u64> = header.durations().collect();
            assert_eq!(
                (
                    counts[bucket(1000)],
                    counts[BUCKETS - 1],
                    counts.iter().sum::<u64>()
                ),
                (3, 1, 4)
            );
        });
    }

    #[test]
    fn busy_time_is_a_share_of_the_last_seconds() {
        header(|header| {
            header.record_busy(50 * NANOSECONDS, NANOSECONDS / 2);
            header.record_busy(51 * NANOSECONDS + NANOSECONDS / 2, NANOSECONDS / 4);
            assert!((header.busy(51 * NANOSECONDS + NANOSECONDS / 2) - 0.5).abs() < 1e-6);
            assert!(header.busy(60 * NANOSECONDS) < 1e-9);
        });
    }

    #[test]
    fn capacity_is_reported_once_when_it_is_wanted() {
        header(|header| {
            assert!(!header.pick_up(3));
            assert_eq!(header.want_capacity(), 3);
            assert!(header.pick_up(1));
            assert!(!header.pick_up(1));
            assert_eq!(header.picked_up(), 5);
        });
    }
}
