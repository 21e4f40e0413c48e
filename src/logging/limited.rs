//! Log lines whose number depends on the outside of the daemon.

use std::sync::atomic::{AtomicU64, Ordering};

/// The time after which another line may be written, in ns.
const INTERVAL: u64 = 10_000_000_000;

/// Lets a line through every ten seconds, and counts the others.
#[derive(Debug)]
pub struct LimitedLine {
    /// When the next line may be written: ns of CLOCK_MONOTONIC.
    next: AtomicU64,
    left_out: AtomicU64,
}

impl LimitedLine {
    /// Returns a limit that lets the first line through.
    #[must_use]
    pub const fn new() -> LimitedLine {
        LimitedLine {
            next: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Returns the number of lines that were left out before this one, or `None` if this one must be left out. `now` is
    /// ns of CLOCK_MONOTONIC.
    pub fn admit(&self, now: u64) -> Option<u64> {
        if now < self.next.load(Ordering::Relaxed) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.next
            .store(now.saturating_add(INTERVAL), Ordering::Relaxed);
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }

    /// Writes a warning if it may be written at this time, as [`LimitedLine::admit`].
    pub fn warn(&self, now: u64, sentence: &impl std::fmt::Display) {
        match self.admit(now) {
            None => {}
            Some(0) => log::warn!("{sentence}"),
            Some(left_out) => log::warn!("{sentence}; {left_out} more such lines were left out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_ten_seconds_is_written_and_the_others_are_counted() {
        let (line, second) = (LimitedLine::new(), 1_000_000_000);
        let admitted = [0, 1, 9, 10, 11, 30].map(|at| line.admit(at * second));
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
