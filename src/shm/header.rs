//! The header of shared memory: the counters of a worker, its writes, its app and the durations of its requests.
//!
//! ```text
//! word  0  leases picked up          5  number of the executing method; 0 if none
//!       1  free                      6  the master wants a message about capacity (set by it, cleared by the worker)
//!       2  free                      7  bytes parked
//!       3  handlers that panicked    8  bytes that the thread wrote before the write in progress to a Unix client
//!       4  log lines lost            9  position of that write in the client's stream, plus 1; 0 if none
//!      10  slot of that client      11  whether 8 and 20 are known
//!      12  heartbeats: turns and pings                13  begin of the turn or method in progress; 0 if none
//!      14  slot of the turn in progress
//!      15  bytes that the thread wrote until its master was gone, plus 1; 0 while there is a master
//!      16  note of the next commit, see `shm/counters.rs`
//!      17  clients that were closed because they could not be watched, read from or written to
//!      18  clients that did not fit into a handoff queue when the master was gone
//!      19  when the shared memory was packed for the next master: ns of CLOCK_MONOTONIC; 0 if it was not
//!      20  writing calls of the thread before the write in progress   21  bytes that it took, plus 1; 0 until it is over
//!      22  the thread that serves and writes; 0 in version 1, where 8 and 15 are of the whole process
//!      23  writing calls of the thread until its master was gone
//!      24  requests that are away                     25  since when no permit was free and no answer came; 0: not so
//!      26  pid of the worker's app; 0 if it has none        27  when that process started, in clock ticks since boot
//!      28  whether the master has killed the worker because a request took too long
//!      29  clients that the worker has closed                 30  of these, those that the master knows of (set by it)
//!      31  requests that wait for a permit
//!      32  bytes that the worker has read from clients        33  bytes that it has written to them
//!  from 64  twelve seconds of 120 words: the second, requests, busy ns, then requests by duration
//!    1504  all requests by duration   1616  their duration together, in ns
//!    1664  by number of the method, requests answered with a result, and with an error; 0 is for no method
//! ```

mod durations;
mod writes;

use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use durations::bucket;
pub use durations::{BUCKETS, Recent, RecentRequests, upper};
pub use writes::Write;

use crate::sys::process::ProcessIdentity;

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
const AWAY: usize = 24;
const FULL_SINCE: usize = 25;
const APP: usize = 26;
const APP_STARTED: usize = 27;
const IS_TIMED_OUT: usize = 28;
const CLOSED: usize = 29;
const KNOWN_CLOSED: usize = 30;
const QUEUED: usize = 31;
const RECEIVED: usize = 32;
const SENT: usize = 33;

const METHODS: usize = 1664;
/// The number of methods with counters; number 0 is for requests of no method and of methods without counters of their
/// own.
pub(super) const COUNTED_METHODS: u32 = 192;

/// The words of a worker as a whole. The worker writes them; the master asks for a message, notes the app and its kill
/// of the worker, and sets the words of the writes when the worker is gone. By the words of the writes, of the next
/// commit and of the app, clients are recovered; all others are only shown or compared.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a>(&'a [AtomicU64]);

/// The present turn of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnInProgress {
    /// The slot of the turn's client.
    pub slot: u32,
    /// When the turn began, or the executing method if that is not an inline one: ns of CLOCK_MONOTONIC.
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
        // Sequentially consistent with `want_capacity`. Each side stores first and loads then: here the count and the
        // wish, there the wish and the count. At least one side sees the other's store.
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

    /// Returns the number of the counter for requests for this method that are answered with a result or an error.
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

    /// Sets a counter, by its number. The store is a release, so that it comes after the commit that it counts.
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

    /// Returns when the shared memory was packed for the next master, in ns of CLOCK_MONOTONIC, if it was and that is
    /// known.
    #[must_use]
    pub fn packed_at(&self) -> Option<u64> {
        Some(self.load(PACKED_AT)).filter(|at| *at > 0)
    }

    /// Master: notes that the shared memory is packed now, or is about to be. A worker whose master is gone does so
    /// itself.
    pub fn set_packed_at(&self, now: u64) {
        self.0[PACKED_AT].store(now, Ordering::Release);
    }

    /// Returns the number of clients that the worker closed because it could not watch them, read from them or write to
    /// them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.load(LOST)
    }

    /// Worker: counts a client that it closes for such a failure.
    pub fn add_lost(&self) {
        self.add(LOST, 1);
    }

    /// Returns the number of bytes that the worker has read from clients.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.load(RECEIVED)
    }

    /// Worker: counts bytes that it has read from a client.
    #[inline]
    pub fn add_received(&self, bytes: usize) {
        self.add(RECEIVED, bytes as u64);
    }

    /// Returns the number of bytes that the worker has written to clients.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.load(SENT)
    }

    /// Worker: counts bytes that it has written to a client.
    #[inline]
    pub fn add_sent(&self, bytes: usize) {
        self.add(SENT, bytes as u64);
    }

    /// Worker: counts a client that it is about to close.
    pub fn add_closed(&self) {
        self.add(CLOSED, 1);
    }

    /// Master: counts a client that it knows to be closed by the worker.
    pub fn add_known_closed(&self) {
        self.add(KNOWN_CLOSED, 1);
    }

    /// Returns the number of clients that the worker has closed, and that the master does not know to be closed.
    #[must_use]
    pub fn unknown_closed(&self) -> u64 {
        self.load(CLOSED).saturating_sub(self.load(KNOWN_CLOSED))
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

    /// Worker: notes that it runs this method, which is not an inline one, from `now` on.
    pub fn begin_method(&self, method: u32, now: u64) {
        self.0[TURN_SINCE].store(now.max(1), Ordering::Relaxed);
        self.0[EXECUTING].store(method.into(), Ordering::Relaxed);
    }

    /// Worker: notes that the method returned at `now`.
    pub fn end_method(&self, now: u64) {
        self.0[EXECUTING].store(0, Ordering::Relaxed);
        self.0[TURN_SINCE].store(now.max(1), Ordering::Relaxed);
    }

    /// Returns the number of requests that are away.
    #[must_use]
    pub fn away(&self) -> u64 {
        self.load(AWAY)
    }

    /// Worker: sets the number of requests that are away.
    pub fn set_away(&self, requests: u64) {
        self.0[AWAY].store(requests, Ordering::Relaxed);
    }

    /// Returns the number of requests that wait for a permit, as it was after the last iteration of the worker's loop.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.load(QUEUED)
    }

    /// Worker: sets the number of requests that wait for a permit.
    pub fn set_queued(&self, requests: u64) {
        self.0[QUEUED].store(requests, Ordering::Relaxed);
    }

    /// Returns the number of requests in progress: in a turn or away.
    #[must_use]
    pub fn in_progress(&self) -> u64 {
        u64::from(self.executing().is_some()).saturating_add(self.away())
    }

    /// Returns since when requests wait for a permit without any answer, or since when the app does not answer a probe,
    /// in ns of CLOCK_MONOTONIC. `None` does not show that the app has a free permit: the clients that wait may have
    /// been moved.
    #[must_use]
    pub fn full_since(&self) -> Option<u64> {
        Some(self.load(FULL_SINCE)).filter(|since| *since != 0)
    }

    /// Worker: sets since when requests wait for a permit while no answer has come.
    pub fn set_full_since(&self, since: Option<u64>) {
        self.0[FULL_SINCE].store(since.map_or(0, |since| since.max(1)), Ordering::Relaxed);
    }

    /// Returns the process of the worker's app. It is here because the next master must find it, too.
    #[must_use]
    pub fn app(&self) -> Option<ProcessIdentity> {
        let pid = u32::try_from(self.load(APP)).ok().filter(|pid| *pid != 0)?;
        let started = self.load(APP_STARTED);
        Some(ProcessIdentity { pid, started })
    }

    /// Master: notes the process of the worker's app, before the worker is leased a client.
    pub fn set_app(&self, app: ProcessIdentity) {
        self.0[APP_STARTED].store(app.started, Ordering::Release);
        self.0[APP].store(app.pid.into(), Ordering::Release);
    }

    /// Returns whether the master has killed the worker for the request that it was executing. It is here because the
    /// next master may recover its clients.
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        self.load(IS_TIMED_OUT) != 0
    }

    /// Master: notes that it kills the worker for the request that it is executing.
    pub fn set_timed_out(&self) {
        self.0[IS_TIMED_OUT].store(1, Ordering::Release);
    }

    /// Worker: shows that its loop turns.
    pub fn heartbeat(&self) {
        self.add(HEARTBEATS, 1);
    }

    /// Returns the number of heartbeats. A count that stays the same may be that of a worker without work.
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

    /// Returns the turn in progress, if there is one. Its fields may belong to two turns, if one has just ended.
    #[must_use]
    pub fn turn(&self) -> Option<TurnInProgress> {
        let since = self.load(TURN_SINCE);
        (since != 0).then(|| TurnInProgress {
            slot: self.load(TURN_SLOT) as u32,
            since,
        })
    }

    /// Returns the number of clients that the worker could not pack when its master was gone.
    #[must_use]
    pub fn left_behind(&self) -> u64 {
        self.0[LEFT_BEHIND].load(Ordering::Acquire)
    }

    /// Notes that these clients are counted.
    pub fn forget_left_behind(&self) {
        self.0[LEFT_BEHIND].store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn header(test: impl FnOnce(Header)) {
        let words: Vec<AtomicU64> = (0..2048).map(|_| AtomicU64::new(0)).collect();
        test(Header::new(&words));
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
