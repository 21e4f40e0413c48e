//! Signs of life of what executes requests that are away.

use super::Requests;

/// Signs of life of an executor with requests.
#[derive(Debug, Default)]
pub(in crate::worker) struct Pulse {
    /// When it last reported something, or got its first request after a pause: ns of CLOCK_MONOTONIC.
    pub(in crate::worker) heard: u64,
    /// When the probe was sent that it has not answered yet.
    pub(in crate::worker) probed: Option<u64>,
    /// Since when it gets no more requests, because one of them was not answered in time.
    pub(in crate::worker) sick: Option<u64>,
    /// The probe was not answered in time: the executor gets no more requests until it answers.
    pub(in crate::worker) is_blocked: bool,
    /// When the last answer came, and since when clients wait for a permit: ns of CLOCK_MONOTONIC.
    pub(in crate::worker) answered: u64,
    pub(in crate::worker) waits_since: Option<u64>,
    /// Since when no request moves, as the shared memory has it.
    pub(in crate::worker) full_since: Option<u64>,
}

impl Pulse {
    /// Returns whether it gets requests: its loop turns, and it answers in time.
    pub(in crate::worker) fn is_good(&self) -> bool {
        self.sick.is_none() && !self.is_blocked
    }

    /// Returns from when on the executor is blocked, unless it answers the probe.
    pub(in crate::worker) fn blocked_from(&self, stall: u64) -> Option<u64> {
        self.probed.map(|probed| probed.saturating_add(stall))
    }

    /// Determines since when requests wait although nothing moves: no permit is free and no answer has come, or the
    /// executor's loop does not turn. Returns whether that has changed.
    pub(in crate::worker) fn update_full_since(
        &mut self,
        requests: &Requests,
        now: u64,
        stall: u64,
    ) -> bool {
        let before = self.full_since;
        self.full_since = self.find_full_since(requests, now, stall);
        self.full_since != before
    }

    fn find_full_since(&mut self, requests: &Requests, now: u64, stall: u64) -> Option<u64> {
        self.is_blocked = self.blocked_from(stall).is_some_and(|from| from <= now);
        if self.is_blocked {
            return self.probed;
        }
        if !requests.has_waiting() {
            self.waits_since = None;
            return None;
        }
        let waits_since = *self.waits_since.get_or_insert(now);
        Some(waits_since.max(self.answered))
    }
}
