//! How long requests took and how busy the worker was: of its whole life, and for each of the last seconds. The worker
//! itself writes the seconds, so that no process has to wake up to sample them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Header;

const SECONDS: usize = 64;
const KEPT_SECONDS: u64 = 12;
const SECOND_WORDS: usize = 120;
const BUCKETS_AT: usize = 8;
/// The number of buckets of durations.
pub const BUCKETS: usize = SECOND_WORDS - BUCKETS_AT;

const DURATIONS: usize = SECONDS + KEPT_SECONDS as usize * SECOND_WORDS;
const DURATION_SUM: usize = DURATIONS + BUCKETS;
/// The full seconds that rates and percentiles cover.
const WINDOW: u64 = 10;

const NANOSECONDS: u64 = 1_000_000_000;

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

/// The requests of one worker, or of several together, in the ten full seconds before a time.
#[derive(Clone, Debug)]
pub struct RecentRequests {
    count: u64,
    buckets: [u64; BUCKETS],
}

impl Default for RecentRequests {
    fn default() -> RecentRequests {
        RecentRequests {
            count: 0,
            buckets: [0; BUCKETS],
        }
    }
}

impl RecentRequests {
    /// Returns their rate and durations.
    #[must_use]
    pub fn summary(&self) -> Recent {
        self.summary_of(WINDOW)
    }

    /// Returns the rate and durations of requests that were recorded in this number of seconds.
    fn summary_of(&self, seconds: u64) -> Recent {
        Recent {
            rate: self.count as f64 / seconds as f64,
            p50: quantile(&self.buckets, 0.50),
            p99: quantile(&self.buckets, 0.99),
        }
    }
}

impl Header<'_> {
    /// Returns the number of requests so far in each of the [`BUCKETS`] buckets of durations; [`upper`] is the longest
    /// of a bucket.
    pub fn durations(&self) -> impl Iterator<Item = u64> {
        self.0[DURATIONS..DURATIONS + BUCKETS]
            .iter()
            .map(|word| word.load(Ordering::Acquire))
    }

    /// Returns the duration of all requests together, in ns.
    #[must_use]
    pub fn duration_sum(&self) -> u64 {
        self.0[DURATION_SUM].load(Ordering::Acquire)
    }

    fn second(&self, second: u64) -> &[AtomicU64] {
        let begin = SECONDS + (second % KEPT_SECONDS) as usize * SECOND_WORDS;
        &self.0[begin..begin + SECOND_WORDS]
    }

    /// Returns the cell of a second, if the worker has recorded anything in that second.
    fn recorded(&self, second: u64) -> Option<&[AtomicU64]> {
        let cell = self.second(second);
        (cell[0].load(Ordering::Acquire) == second).then_some(cell)
    }

    /// Worker: records that `requests` were answered `took` ns after they had been read; `now` is ns of
    /// CLOCK_MONOTONIC.
    pub fn record(&self, now: u64, requests: u64, took: u64) {
        let cell = self.this_second(now);
        bump(&cell[1], requests);
        bump(&cell[BUCKETS_AT + bucket(took)], requests);
        let count = &self.0[DURATIONS + bucket(took)];
        // Release: a reader relies on the order of these stores, see `Counters::read`.
        count.store(
            count.load(Ordering::Relaxed).wrapping_add(requests),
            Ordering::Release,
        );
        // A corrupt sum must not wrap round to a plausible one.
        let sum = self
            .load(DURATION_SUM)
            .saturating_add(requests.saturating_mul(took));
        self.0[DURATION_SUM].store(sum, Ordering::Release);
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
            .into_iter()
            .filter_map(|second| self.recorded(second))
            .map(|cell| cell[2].load(Ordering::Relaxed).min(NANOSECONDS))
            .sum();
        ns as f64 / (NANOSECONDS + now % NANOSECONDS) as f64
    }

    /// Returns the share of the last one to two seconds in which the worker was busy, from 0 to 1, with the turn in
    /// progress: a worker records its time only after that.
    #[must_use]
    pub fn busy_with_turn(&self, now: u64) -> f64 {
        let window = NANOSECONDS + now % NANOSECONDS;
        let turn = self.turn();
        let unrecorded = turn.map_or(0, |turn| now.saturating_sub(turn.since));
        (self.busy(now) + unrecorded as f64 / window as f64).min(1.0)
    }

    /// Returns the rate and durations in the ten full seconds before `now`.
    #[cfg(test)]
    pub fn recent(&self, now: u64) -> Recent {
        let mut requests = RecentRequests::default();
        self.add_recent(now, &mut requests);
        requests.summary()
    }

    /// Returns the rate and durations in the full seconds between `born` and `now`, ten at most; `None` if there are
    /// none yet.
    #[must_use]
    pub fn recent_since(&self, now: u64, born: u64) -> Option<Recent> {
        let full = (now / NANOSECONDS).saturating_sub(born.div_ceil(NANOSECONDS));
        let seconds = full.min(WINDOW);
        let mut requests = RecentRequests::default();
        self.add_seconds(now, seconds, &mut requests);
        (seconds > 0).then(|| requests.summary_of(seconds))
    }

    /// Adds the worker's requests in the ten full seconds before `now`.
    pub fn add_recent(&self, now: u64, to: &mut RecentRequests) {
        self.add_seconds(now, WINDOW, to);
    }

    fn add_seconds(&self, now: u64, seconds: u64, to: &mut RecentRequests) {
        let this = now / NANOSECONDS;
        for cell in (this.saturating_sub(seconds)..this).filter_map(|second| self.recorded(second))
        {
            to.count = to.count.saturating_add(cell[1].load(Ordering::Relaxed));
            for (sum, word) in to.buckets.iter_mut().zip(&cell[BUCKETS_AT..]) {
                *sum = sum.saturating_add(word.load(Ordering::Relaxed));
            }
        }
    }
}

fn bump(word: &AtomicU64, n: u64) {
    word.store(
        word.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// Returns the bucket of a duration. Bucket 0 holds durations below 512 ns; above, each doubling is cut in four, up to
/// about a minute.
pub(in crate::shm) fn bucket(ns: u64) -> usize {
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
    use super::super::tests::header;
    use super::*;

    #[test]
    fn buckets_are_at_most_a_quarter_longer_than_a_duration() {
        for octave in (9..36).map(|shift| 1u64 << shift) {
            for ns in [octave, octave + 1, octave * 3 / 2, octave * 2 - 1] {
                let end = upper(bucket(ns));
                assert!(ns <= end && end <= ns + ns / 4, "{ns} {end}");
            }
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn rates_and_percentiles_cover_the_last_ten_full_seconds() {
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
    fn rates_of_a_young_worker_cover_its_full_seconds() {
        header(|header| {
            let at = |tenths: u64| tenths * NANOSECONDS / 10;
            let born = at(1003);
            for tenths in [1004, 1015, 1016, 1025] {
                header.record(at(tenths), 30, 10_000);
            }
            let rate = |tenths| {
                header
                    .recent_since(at(tenths), born)
                    .map(|recent| recent.rate)
            };
            assert_eq!([rate(1004), rate(1019)], [None, None]);
            assert_eq!([rate(1021), rate(1031)], [Some(60.0), Some(45.0)]);
            let recent = header.recent_since(at(1111), born).expect("it is older");
            assert_eq!(recent.rate, 9.0);
            assert_eq!(
                recent.p50,
                Some(Duration::from_nanos(upper(bucket(10_000))))
            );
            // The clock and the birth may be read in any order.
            assert_eq!(header.recent_since(at(1003), at(1004)), None);
        });
    }

    #[test]
    fn percentiles_of_several_workers_are_those_of_all_requests() {
        let mut requests = RecentRequests::default();
        for (count, took) in [(980, 10_000), (20, 1_000_000)] {
            header(|header| {
                header.record(5 * NANOSECONDS, count, took);
                header.add_recent(6 * NANOSECONDS, &mut requests);
            });
        }
        let recent = requests.summary();
        assert!((recent.rate - 100.0).abs() < 1e-9, "{recent:?}");
        assert_eq!(
            recent.p50,
            Some(Duration::from_nanos(upper(bucket(10_000))))
        );
        assert_eq!(
            recent.p99,
            Some(Duration::from_nanos(upper(bucket(1_000_000))))
        );
    }

    #[test]
    fn requests_are_counted_by_duration_for_ever() {
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
            header.begin_turn(0, 60 * NANOSECONDS);
            let now = 60 * NANOSECONDS + NANOSECONDS / 2;
            assert!((header.busy_with_turn(now) - 1.0 / 3.0).abs() < 1e-6);
            assert!((header.busy_with_turn(70 * NANOSECONDS) - 1.0).abs() < 1e-9);
            header.end_turn();
            assert!(header.busy_with_turn(now) < 1e-9);
        });
    }
}
