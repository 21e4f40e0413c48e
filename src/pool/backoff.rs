//! Random differences between workers: the wait of a successor, and the lifetime.

use std::time::Duration;

/// The first wait, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Waits that double with each death of a streak and differ a little, so that workers that fail for one reason do not
/// restart in step.
#[derive(Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// Returns waits that differ from those of another seed.
    #[must_use]
    pub fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// Returns the wait after this many deaths in a row: none after none, else 100 ms to 30 s.
    pub fn backoff(&mut self, streak: u32) -> Duration {
        if streak == 0 {
            return Duration::ZERO;
        }
        let doubled = FIRST_WAIT
            .saturating_mul(1 << (streak - 1).min(20))
            .min(MAX_WAIT);
        // From 3/4 to 5/4 of the doubled wait.
        doubled
            .mul_f64(0.75 + self.share() / 2.0)
            .clamp(FIRST_WAIT, MAX_WAIT)
    }

    /// Returns a lifetime up to a tenth shorter, so that workers that started together do not end together.
    pub(super) fn shortened(&mut self, lifetime: Duration) -> Duration {
        lifetime.mul_f64(1.0 - self.share() / 10.0)
    }

    /// Returns a random share from 0 to 1.
    fn share(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    /// Returns a number below `n`, by SplitMix64 (Steele, Lea, Flood 2014): good enough for its uses here.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
