//! The time of a loop, without the gaps in which its process could not run.
//!
//! A process that is stopped (SIGSTOP, a freezer, a debugger), or that waits for a CPU or a disk, does not see what
//! arrives during that time. Such a gap must not count against the deadlines of its peers. A gap is noticed where it
//! ends:
//!
//! ```text
//! in the wait       it was interrupted, though by no signal that was caught: all of the wait counts as a gap
//!                   or it came back far later than it was asked to: what is above that
//! between waits     the time that passed, less the time on a CPU
//! ```
//!
//! After a gap the loop polls once more before it checks any deadline, so that what has arrived counts.

mod shortage;

pub use shortage::Shortage;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::sys::clock;

/// Lateness below this, in ns, is not a gap: it is usual on a busy machine.
const USUAL_LATENESS: u64 = 50_000_000;

/// The shortest wait whose interruption is a gap, in ns.
const MIN_INTERRUPTED_WAIT: u64 = 1_000_000;

/// The age in ns above which the last reading of the CPU time is refreshed before a wait.
const REFRESH: u64 = 100_000_000;

/// The number of gaps kept. Older ones are joined, as if they had lasted until the later one's end.
const MAX_GAPS: usize = 16;

/// A gap: its end and its length, in ns.
#[derive(Clone, Copy, Debug)]
struct Gap {
    end: u64,
    length: u64,
}

/// The clock of one loop.
#[derive(Debug)]
pub struct LoopClock {
    /// Gaps, the oldest first.
    gaps: VecDeque<Gap>,
    /// The length of all gaps so far, in ns.
    total: u64,
    /// When the wait began, and its timeout.
    asked: u64,
    timeout: Option<u64>,
    /// When the wait ended.
    woken: u64,
    /// CPU time of the thread, and when it was read.
    ran: u64,
    ran_at: u64,
    /// Whether a gap was found since the last wait ended.
    is_late: bool,
}

impl LoopClock {
    /// Returns a clock without gaps.
    #[must_use]
    pub fn new() -> LoopClock {
        let now = clock::monotonic();
        let (ran, gaps) = (clock::thread_cpu(), VecDeque::new());
        LoopClock {
            gaps,
            total: 0,
            asked: now,
            timeout: None,
            woken: now,
            ran,
            ran_at: now,
            is_late: false,
        }
    }

    /// Notes that the loop starts to wait. `now`, in ns of CLOCK_MONOTONIC, is the end of the work since the last wait.
    pub fn begin_wait(&mut self, now: u64, timeout: Option<Duration>) {
        let passed = now.saturating_sub(self.woken);
        let is_stale = now.saturating_sub(self.ran_at) > REFRESH;
        if passed >= USUAL_LATENESS || is_stale {
            let ran = clock::thread_cpu();
            let gap = passed.saturating_sub(ran.saturating_sub(self.ran));
            (self.ran, self.ran_at) = (ran, now);
            if gap >= USUAL_LATENESS {
                self.add(now, gap);
            }
        }
        (self.asked, self.timeout) = (now, timeout.map(clock::nanoseconds));
    }

    /// Notes that the wait is over; `is_interrupted` means an interruption by no signal that was caught. Returns
    /// whether there was a gap: the loop must then handle what has arrived, by another wait of no length, before it
    /// checks any deadline.
    #[must_use]
    pub fn end_wait(&mut self, is_interrupted: bool) -> bool {
        let now = clock::monotonic();
        let waited = now.saturating_sub(self.asked);
        let late = self
            .timeout
            .map_or(0, |timeout| waited.saturating_sub(timeout));
        if is_interrupted && waited >= MIN_INTERRUPTED_WAIT {
            self.add(now, waited);
        } else if late >= USUAL_LATENESS {
            self.add(now, late);
        }
        self.woken = now;
        std::mem::take(&mut self.is_late)
    }

    /// Returns when the last wait ended: ns of CLOCK_MONOTONIC.
    #[must_use]
    pub fn woken(&self) -> u64 {
        self.woken
    }

    /// Returns how much of the time since `since` was gaps, in ns.
    #[must_use]
    pub fn gaps_since(&self, since: u64) -> u64 {
        if self.gaps.back().is_none_or(|last| last.end <= since) {
            return 0;
        }
        let newer = self.gaps.iter().rev().take_while(|gap| gap.end > since);
        newer.map(|gap| gap.length.min(gap.end - since)).sum()
    }

    /// Returns the time of a clock that stands still in a gap. It equals the usual time as long as there was no gap.
    #[must_use]
    pub fn now(&self) -> Instant {
        let now = Instant::now();
        now.checked_sub(Duration::from_nanos(self.total))
            .unwrap_or(now)
    }

    fn add(&mut self, end: u64, length: u64) {
        self.is_late = true;
        self.total += length;
        self.gaps.push_back(Gap { end, length });
        if self.gaps.len() > MAX_GAPS
            && let Some(oldest) = self.gaps.pop_front()
            && let Some(next) = self.gaps.front_mut()
        {
            next.length += oldest.length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Returns a clock with these gaps: ends and lengths in seconds.
    fn with_gaps(gaps: &[(u64, u64)]) -> LoopClock {
        let mut clock = LoopClock::new();
        gaps.iter()
            .for_each(|(end, length)| clock.add(end * SECOND, length * SECOND));
        clock
    }

    #[test]
    fn only_the_part_of_a_gap_after_the_begin_counts() {
        let clock = with_gaps(&[(20, 5), (40, 10)]);
        let gaps = [50, 40, 35, 30, 20, 18, 15, 0].map(|since| clock.gaps_since(since * SECOND));
        assert_eq!(gaps, [0, 0, 5, 10, 10, 12, 15, 15].map(|gap| gap * SECOND));
        assert_eq!(LoopClock::new().gaps_since(0), 0);
    }

    #[test]
    fn the_length_of_joined_gaps_is_not_lost() {
        let gaps: Vec<(u64, u64)> = (1..=100).map(|number| (number * 10, 1)).collect();
        let clock = with_gaps(&gaps);
        assert_eq!(
            (clock.gaps_since(0), clock.gaps_since(990 * SECOND)),
            (100 * SECOND, SECOND)
        );
        assert!(clock.gaps.len() <= MAX_GAPS);
    }

    #[test]
    fn only_late_and_interrupted_waits_are_gaps() {
        let mut clock = LoopClock::new();
        let ago = |ns: u64| clock::monotonic() - ns;
        // The wait ended on time, or early.
        for (waited, timeout) in [(SECOND, Some(1)), (SECOND / 2, Some(1)), (SECOND, None)] {
            clock.begin_wait(ago(0), timeout.map(Duration::from_secs));
            clock.asked = ago(waited);
            assert!(!clock.end_wait(false), "{waited} of {timeout:?}");
        }
        clock.begin_wait(ago(0), Some(Duration::from_secs(1)));
        clock.asked = ago(3 * SECOND);
        assert!(clock.end_wait(false));
        let late = clock.gaps_since(0);
        assert!((2 * SECOND..3 * SECOND).contains(&late), "{late}");
        for timeout in [None, Some(Duration::from_secs(60))] {
            let before = clock.gaps_since(0);
            clock.begin_wait(ago(0), timeout);
            clock.asked = ago(3 * SECOND);
            assert!(clock.end_wait(true));
            assert!(clock.gaps_since(0) - before >= 3 * SECOND);
        }
        let real = Instant::now();
        assert!(real.duration_since(clock.now()) >= Duration::from_secs(8));
        // The loop is idle between two waits for some time.
        let before = clock.gaps_since(0);
        clock.begin_wait(clock.woken + SECOND, None);
        assert!(
            clock.gaps_since(0) - before >= SECOND / 2,
            "{}",
            clock.gaps_since(0) - before
        );
        assert!(clock.end_wait(false));
    }
}
