//! Latencies, counted in buckets of at most 1/32 of their value.

use std::time::Duration;

/// Buckets of each doubling, as a power of two.
const FINE: u32 = 5;

/// A log-linear histogram of nanoseconds: small values are exact, large ones within about 3 %.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    total: u64,
    sum: u128,
    max: u64,
}

impl Latencies {
    pub(super) fn new() -> Latencies {
        Latencies {
            counts: vec![0; bucket(u64::MAX) + 1],
            total: 0,
            sum: 0,
            max: 0,
        }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.sum += u128::from(nanos);
        self.max = self.max.max(nanos);
    }

    /// Returns the latency that `part` (0 to 1) of the requests did not exceed: the upper end of its bucket. 0 without a
    /// request.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let wanted = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper(bucket).min(self.max));
            }
        }
        Duration::ZERO
    }

    /// Returns the longest latency.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// Returns the mean. 0 without a request.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let mean = self.sum.checked_div(u128::from(self.total));
        Duration::from_nanos(u64::try_from(mean.unwrap_or_default()).unwrap_or(u64::MAX))
    }

    /// Returns the requests whose latency was below each power of two of nanoseconds and not below the one before, from
    /// the first to the last power with a request.
    #[must_use]
    pub fn doublings(&self) -> Vec<(Duration, u64)> {
        let mut doublings: Vec<(u32, u64)> = Vec::new();
        for (bucket, count) in self.counts.iter().enumerate() {
            let power = upper(bucket).checked_ilog2().map_or(0, |log| log + 1);
            match doublings.last_mut() {
                Some((last, sum)) if *last == power => *sum += count,
                _ => doublings.push((power, *count)),
            }
        }
        let is_used = |(_, count): &(u32, u64)| *count > 0;
        let first = doublings.iter().position(is_used).unwrap_or_default();
        let last = doublings.iter().rposition(is_used);
        let used = last.map_or(&[][..], |last| &doublings[first..=last]);
        let below = |power: u32| 1_u64.checked_shl(power).unwrap_or(u64::MAX);
        used.iter()
            .map(|(power, count)| (Duration::from_nanos(below(*power)), *count))
            .collect()
    }
}

/// Values below `2^FINE` have a bucket each; above, the highest `FINE + 1` bits determine the bucket.
fn bucket(value: u64) -> usize {
    let shift = value.checked_ilog2().unwrap_or(0).saturating_sub(FINE);
    ((shift as usize) << FINE) + (value >> shift) as usize
}

/// Returns the highest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket >> FINE).saturating_sub(1) as u32;
    let top = (bucket - ((shift as usize) << FINE)) as u128;
    u64::try_from(((top + 1) << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(nanos: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new();
        for each in nanos {
            latencies.record(Duration::from_nanos(each));
        }
        latencies
    }

    #[test]
    fn each_value_is_in_a_bucket_within_a_thirty_second_part() {
        for power in 0..64 {
            for value in [1_u64 << power, (1 << power) | ((1 << power) >> 1)] {
                let upper = upper(bucket(value));
                assert!(upper >= value, "{value}");
                assert!(upper - value <= value / 32, "{value}: {upper}");
            }
        }
        assert_eq!(upper(bucket(u64::MAX)), u64::MAX);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let latencies = recorded(1..=100);
        assert_eq!(latencies.quantile(0.5).as_nanos(), 50);
        assert_eq!(latencies.quantile(1.0), latencies.max());
        assert_eq!(latencies.max().as_nanos(), 100);
        assert_eq!(latencies.mean().as_nanos(), 50);
        assert_eq!(recorded([]).quantile(0.99), Duration::ZERO);
        assert_eq!(recorded([]).mean(), Duration::ZERO);
    }

    #[test]
    fn doublings_have_all_requests_without_empty_ends() {
        let latencies = recorded([3, 3, 5, 40, 1000]);
        let doublings: Vec<(u128, u64)> = latencies
            .doublings()
            .iter()
            .map(|(below, count)| (below.as_nanos(), *count))
            .collect();
        let empty = |below| (below, 0);
        let expected = [
            (4, 2),
            (8, 1),
            empty(16),
            empty(32),
            (64, 1),
            empty(128),
            empty(256),
            empty(512),
            (1024, 1),
        ];
        assert_eq!(doublings, expected);
        assert_eq!(recorded([]).doublings(), []);
        let longest = recorded([u64::MAX]).doublings();
        assert_eq!(longest, [(Duration::from_nanos(u64::MAX), 1)]);
    }
}
