//! Waits for memory that the kernel does not have: nothing reports when it has some again, so a loop tries again.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(1);

/// The longest wait.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// Something that the kernel refuses for lack of memory. It is tried again after a while that grows with each refusal.
/// `T` is the clock of the loop.
#[derive(Clone, Copy, Debug)]
pub struct Shortage<T> {
    refusals: u32,
    until: Option<T>,
}

impl<T> Default for Shortage<T> {
    fn default() -> Shortage<T> {
        Shortage {
            refusals: 0,
            until: None,
        }
    }
}

impl<T: Copy + Ord> Shortage<T> {
    /// Records a refusal. `after` returns when a duration from now is over.
    pub fn begin(&mut self, after: impl FnOnce(Duration) -> T) {
        self.until = Some(after(self.next_wait()));
    }

    /// Records a refusal. Returns how long to wait for the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        let wait = FIRST.saturating_mul(1 << self.refusals.min(16));
        self.refusals = self.refusals.saturating_add(1);
        wait.min(MAX_WAIT)
    }

    /// Records that an attempt was not refused.
    pub fn end(&mut self) {
        *self = Shortage::default();
    }

    /// Returns how many attempts in a row were refused.
    pub fn refusals(&self) -> u32 {
        self.refusals
    }

    /// Returns when to try again, if the last attempt was refused and the next one has not begun.
    pub fn until(&self) -> Option<T> {
        self.until
    }

    /// Ends the wait if it is over. Returns whether it is: then the next attempt begins.
    pub fn end_if_over(&mut self, now: T) -> bool {
        let is_over = self.until.is_some_and(|until| until <= now);
        if is_over {
            self.until = None;
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_are_short_again_after_an_end() {
        let mut shortage = Shortage::<Duration>::default();
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..10 {
            shortage.begin(|wait| now + wait);
            let until = shortage.until().expect("it waits");
            assert!(!shortage.end_if_over(until - Duration::from_nanos(1)));
            assert!(shortage.end_if_over(until) && !shortage.end_if_over(until));
            waits.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 100, 100, 100]);
        shortage.end();
        assert_eq!(shortage.next_wait().as_millis(), 1);
    }
}
