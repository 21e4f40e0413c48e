//! Latencies, counted in buckets of at most 1/32 of their value.

use std::time::Duration;

/// Buckets to each doubling, as a power of two.
const FINE: u32 = 5;

/// A log-linear histogram of nanoseconds: small values are exact, large ones within about 3 %.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Histogram {
            counts: vec![0; Self::bucket(u64::MAX) + 1],
            total: 0,
            max: 0,
        }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[Self::bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// The latency that `part` (0 to 1) of the requests did not exceed: the upper end of its bucket.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let wanted = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(Self::upper(bucket).min(self.max));
            }
        }
        Duration::ZERO
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// Values below `2^FINE` have a bucket each; above, the highest `FINE + 1` bits determine the bucket.
    fn bucket(value: u64) -> usize {
        let shift = value.checked_ilog2().unwrap_or(0).saturating_sub(FINE);
        ((shift as usize) << FINE) + (value >> shift) as usize
    }

    fn upper(bucket: usize) -> u64 {
        let shift = (bucket >> FINE).saturating_sub(1) as u32;
        let top = (bucket - ((shift as usize) << FINE)) as u128;
        u64::try_from(((top + 1) << shift) - 1).unwrap_or(u64::MAX)
    }
}
