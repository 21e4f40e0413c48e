//! Signs of life of an executor.

use super::Requests;

/// Signs of life of an executor with requests.
#[derive(Debug, Default)]
pub(in crate::worker) struct Pulse {
    /// When the executor last sent something, or got its first request after a pause: ns of CLOCK_MONOTONIC.
    pub(in crate::worker) active_at: u64,
    /// When the unanswered probe was sent, if there is one.
    pub(in crate::worker) probed: Option<u64>,
    /// When the worker gave up a late request: the executor gets no more requests.
    pub(in crate::worker) gave_up_at: Option<u64>,
    /// The probe was not answered in time: the executor gets no more requests until it answers.
    pub(in crate::worker) is_blocked: bool,
    /// When the last answer arrived: ns of CLOCK_MONOTONIC.
    pub(in crate::worker) answered: u64,
    /// When clients began to wait for a permit, if any wait.
    pub(in crate::worker) waits_since: Option<u64>,
    /// The beginning of the time without an answer, as stored in shared memory.
    pub(in crate::worker) full_since: Option<u64>,
}

impl Pulse {
    /// Returns whether the executor may receive requests: it answers requests and probes in time.
    pub(in crate::worker) fn is_good(&self) -> bool {
        self.gave_up_at.is_none() && !self.is_blocked
    }

    /// Returns when the executor becomes blocked, unless it answers the probe.
    pub(in crate::worker) fn blocked_from(&self, stall: u64) -> Option<u64> {
        self.probed.map(|probed| probed.saturating_add(stall))
    }

    /// Determines since when requests wait without any answer: no permit is free, or the executor is blocked. Returns
    /// whether that has changed.
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
        if !requests.has_queued() {
            self.waits_since = None;
            return None;
        }
        let waits_since = *self.waits_since.get_or_insert(now);
        Some(waits_since.max(self.answered))
    }
}
