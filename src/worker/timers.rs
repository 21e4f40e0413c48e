//! Deadlines of clients, kept as data.
//!
//! A client's activity moves no timer. Each has at most one entry that counts; when it comes due, the loop looks
//! what is due really, and puts the client back with that. So a request costs nothing here, and a client whose
//! frames come in pieces costs one entry each time-out, not one each frame.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No deadline.
pub(super) const NEVER: u64 = u64::MAX;

/// Deadlines in ns of CLOCK_MONOTONIC, each with the slot it is for.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(u64, u32)>>);

impl Timers {
    /// Notes that a slot is to be looked at. `armed` is when it would be anyway; an earlier entry is kept.
    pub(super) fn arm(&mut self, slot: u32, armed: &mut u64, deadline: u64) {
        if deadline < *armed {
            *armed = deadline;
            self.0.push(Reverse((deadline, slot)));
        }
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Takes one that is due: the deadline and the slot. It is stale unless the slot is armed for just that.
    pub(super) fn due(&mut self, now: u64) -> Option<(u64, u32)> {
        let Reverse((deadline, slot)) = *self.0.peek()?;
        (deadline <= now).then(|| {
            self.0.pop();
            (deadline, slot)
        })
    }

    /// Forgets all, so that nobody wakes up for clients that are gone.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_looked_at_at_its_earliest_deadline_and_a_later_one_costs_no_entry() {
        let mut timers = Timers::default();
        let (mut a, mut b) = (NEVER, NEVER);
        timers.arm(1, &mut a, 50);
        timers.arm(1, &mut a, 90);
        timers.arm(2, &mut b, 70);
        timers.arm(2, &mut b, 60);
        assert_eq!((timers.next(), a, b), (Some(50), 50, 60));
        assert_eq!(timers.due(49), None);
        assert_eq!(timers.due(100), Some((50, 1)));
        assert_eq!(timers.due(100), Some((60, 2)));
        assert_eq!(
            timers.due(100),
            Some((70, 2)),
            "stale: slot 2 is armed for 60"
        );
        assert_eq!(timers.due(100), None);
    }
}
