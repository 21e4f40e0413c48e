//! The requests that are away, and the clients that wait for a permit.

use std::collections::{HashMap, VecDeque};

/// The maximum number of dead entries in a queue, unless the others are more.
const MAX_GONE: usize = 64;

/// A request that is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct AwayRequest {
    /// The slot of its client; `None` if the client has left.
    pub(in crate::worker) slot: Option<u32>,
    /// The method's number in the shared memory.
    pub(in crate::worker) method: u32,
    /// When it was handed over: ns of CLOCK_MONOTONIC.
    pub(in crate::worker) began: u64,
    /// The position of its frame in the stream to the app; 0 for a runtime.
    pub(in crate::worker) position: u64,
    /// When its timeout expired and the executor was asked to cancel it: ns of CLOCK_MONOTONIC.
    pub(in crate::worker) late_at: Option<u64>,
}

/// A client whose next request waits for a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct QueuedClient {
    pub(in crate::worker) slot: u32,
    pub(in crate::worker) lease_number: u32,
    /// Whether the request may have caused the death of a worker. Then it runs alone, so that a second death has one
    /// suspect.
    pub(in crate::worker) is_alone: bool,
}

/// The requests of one executor.
#[derive(Debug)]
pub(in crate::worker) struct Requests {
    away: HashMap<u64, AwayRequest>,
    /// Requests by the time at which they began; some are answered. All have the same timeout, so this is also the
    /// order of their deadlines.
    order: VecDeque<(u64, u64)>,
    /// Late requests, by the time at which they became late; some are answered.
    late: VecDeque<(u64, u64)>,
    queue: VecDeque<QueuedClient>,
    /// Clients in `queue` that have left.
    gone: usize,
    /// The client that was taken from the head of the queue, during its turn.
    called: Option<u32>,
    /// The most requests that are away at a time.
    permits: usize,
    /// Whether the only request that is away runs alone.
    runs_alone: bool,
    /// How many requests that need not run alone come before the next one that must: those that waited when the last
    /// one was answered.
    others_first: usize,
    last_id: u64,
}

impl Requests {
    pub(in crate::worker) fn new(permits: u32) -> Requests {
        Requests {
            away: HashMap::new(),
            order: VecDeque::new(),
            late: VecDeque::new(),
            queue: VecDeque::new(),
            gone: 0,
            called: None,
            permits: permits as usize,
            runs_alone: false,
            others_first: 0,
            last_id: 0,
        }
    }

    /// Returns the most requests that are away at a time.
    #[cfg(feature = "tokio")]
    pub(in crate::worker) fn permits(&self) -> u32 {
        self.permits as u32
    }

    /// Returns the number of requests that are away.
    pub(in crate::worker) fn count(&self) -> usize {
        self.away.len()
    }

    /// Returns whether clients wait for a permit.
    pub(in crate::worker) fn has_queued(&self) -> bool {
        self.queued() > 0
    }

    /// Returns the number of clients that wait for a permit.
    pub(in crate::worker) fn queued(&self) -> usize {
        self.queue.len().saturating_sub(self.gone)
    }

    /// Returns whether the request of a client may be handed over now. `left` is how many requests this worker may
    /// still answer.
    pub(in crate::worker) fn has_permit(&self, next: QueuedClient, left: Option<u64>) -> bool {
        let is_its_turn = self.queue.is_empty() || self.called == Some(next.slot);
        is_its_turn && self.is_free(next.is_alone, left)
    }

    fn is_free(&self, alone: bool, left: Option<u64>) -> bool {
        let count = self.away.len();
        !self.runs_alone
            && count < self.permits
            && (!alone || count == 0)
            && left.is_none_or(|left| (count as u64) < left)
    }

    /// Adds a client to the queue; the one that was called keeps its place.
    pub(in crate::worker) fn wait(&mut self, next: QueuedClient) {
        if self.called == Some(next.slot) {
            self.called = None;
            self.queue.push_front(next);
        } else {
            self.queue.push_back(next);
        }
    }

    /// Records that a client no longer waits. `waits` returns whether a client of the queue still waits.
    pub(in crate::worker) fn leave(&mut self, slot: u32, waits: impl Fn(QueuedClient) -> bool) {
        if self.called == Some(slot) {
            // The client is not in the queue.
            return;
        }
        self.gone += 1;
        if self.gone > MAX_GONE.max(self.queue.len() / 2) {
            self.queue.retain(|next| waits(*next));
            self.gone = 0;
        }
    }

    /// Takes the next client that still waits according to `waits`, if its request may be handed over now. It stays
    /// called until the next call of this function or of [`Requests::end_call`].
    ///
    /// The next one is the first of the queue. But between two requests that run alone all others are handed over that
    /// wait, so that each waits for one of those at most.
    pub(in crate::worker) fn call_next(
        &mut self,
        left: Option<u64>,
        waits: impl Fn(QueuedClient) -> bool,
    ) -> Option<QueuedClient> {
        self.called = None;
        while let Some(first) = self.queue.front()
            && !waits(*first)
        {
            self.queue.pop_front();
            self.gone = self.gone.saturating_sub(1);
        }
        let other = |next: &QueuedClient| !next.is_alone && waits(*next);
        let other = match self.others_first {
            0 => None,
            _ => self.queue.iter().position(other),
        };
        let place = other.unwrap_or(0);
        let next = *self.queue.get(place)?;
        if !self.is_free(next.is_alone, left) {
            return None;
        }
        self.queue.remove(place);
        self.others_first = match other {
            Some(_) => self.others_first - 1,
            None => 0,
        };
        self.called = Some(next.slot);
        Some(next)
    }

    /// Records that the turn of the client that was called is over.
    pub(in crate::worker) fn end_call(&mut self) {
        self.called = None;
    }

    /// Returns whether this client is called from the queue.
    pub(in crate::worker) fn is_called(&self, slot: u32) -> bool {
        self.called == Some(slot)
    }

    /// Returns the id of the next request.
    pub(in crate::worker) fn next_id(&self) -> u64 {
        self.last_id + 1
    }

    /// Adds the request with the id [`Requests::next_id`].
    pub(in crate::worker) fn add(&mut self, request: AwayRequest, is_alone: bool) {
        self.last_id += 1;
        self.away.insert(self.last_id, request);
        if self.order.len() > MAX_GONE.max(2 * self.away.len()) {
            // Requests after a long one may be answered.
            self.order.retain(|(_, id)| self.away.contains_key(id));
        }
        self.order.push_back((request.began, self.last_id));
        self.runs_alone = is_alone;
    }

    /// Removes a request that was answered. Returns `None` if no request with this id is away.
    pub(in crate::worker) fn remove(&mut self, id: u64) -> Option<AwayRequest> {
        let request = self.away.remove(&id)?;
        if std::mem::take(&mut self.runs_alone) {
            let others = self.queue.iter().filter(|next| !next.is_alone);
            self.others_first = others.count();
        }
        if self.away.is_empty() {
            self.order.clear();
        }
        Some(request)
    }

    /// Records that the client of a request has left. Returns the id of the request.
    pub(in crate::worker) fn abandon(&mut self, slot: u32) -> Option<u64> {
        let (id, request) = self
            .away
            .iter_mut()
            .find(|(_, request)| request.slot == Some(slot))?;
        request.slot = None;
        Some(*id)
    }

    /// Returns the beginning and the id of the oldest request that is not late, if there is one.
    pub(in crate::worker) fn oldest(&mut self) -> Option<(u64, u64)> {
        while let Some((began, id)) = self.order.front().copied() {
            match self.away.get(&id) {
                Some(request) if request.late_at.is_none() => return Some((began, id)),
                _ => self.order.pop_front(),
            };
        }
        None
    }

    /// Records that the timeout of a request has expired. Returns its slot, unless its client has left, and the number
    /// of its method; `None` if there is no such request.
    pub(in crate::worker) fn set_late(&mut self, id: u64, now: u64) -> Option<(Option<u32>, u32)> {
        let request = self.away.get_mut(&id)?;
        request.late_at = Some(now);
        self.late.push_back((now, id));
        Some((request.slot, request.method))
    }

    /// Returns since when the oldest late request without an answer is late, if there is one.
    pub(in crate::worker) fn late_since(&mut self) -> Option<u64> {
        while let Some((since, id)) = self.late.front().copied() {
            if self.away.contains_key(&id) {
                return Some(since);
            }
            self.late.pop_front();
        }
        None
    }

    /// Returns whether only one request may be away at a time.
    pub(in crate::worker) fn is_serial(&self) -> bool {
        self.permits == 1
    }

    /// Returns all requests that are away.
    pub(in crate::worker) fn all(&self) -> impl Iterator<Item = (u64, &AwayRequest)> {
        self.away.iter().map(|(id, request)| (*id, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(slot: u32, is_alone: bool) -> QueuedClient {
        QueuedClient {
            slot,
            lease_number: 1,
            is_alone,
        }
    }

    fn away(slot: u32, began: u64) -> AwayRequest {
        AwayRequest {
            slot: Some(slot),
            method: 1,
            began,
            position: 0,
            late_at: None,
        }
    }

    #[test]
    fn permits_are_given_in_the_order_of_the_queue() {
        let mut requests = Requests::new(2);
        for slot in 0..2 {
            assert!(requests.has_permit(queued(slot, false), None));
            requests.add(away(slot, 5), false);
        }
        for slot in 2..5 {
            assert!(!requests.has_permit(queued(slot, false), None));
            requests.wait(queued(slot, false));
        }
        assert_eq!(requests.call_next(None, |_| true), None);
        assert!(requests.remove(1).is_some() && requests.remove(1).is_none());
        assert!(
            !requests.has_permit(queued(9, false), None),
            "others came first"
        );
        assert_eq!(
            requests.call_next(None, |_| true).map(|next| next.slot),
            Some(2)
        );
        assert!(requests.has_permit(queued(2, false), None));
        // Its turn ends without a request: the next one is called.
        assert_eq!(
            requests.call_next(None, |_| true).map(|next| next.slot),
            Some(3)
        );
        requests.wait(queued(3, false));
        assert_eq!(
            requests.call_next(None, |_| true).map(|next| next.slot),
            Some(3)
        );
        assert_eq!(
            requests.call_next(Some(1), |_| true),
            None,
            "the limit of requests"
        );
    }

    #[test]
    fn a_rerun_is_away_alone() {
        let mut requests = Requests::new(8);
        requests.add(away(0, 1), false);
        requests.wait(queued(1, true));
        assert_eq!(requests.call_next(None, |_| true), None);
        assert!(requests.remove(1).is_some());
        assert!(requests.call_next(None, |_| true).is_some());
        requests.add(away(1, 2), true);
        assert!(!requests.has_permit(queued(2, false), None));
        assert!(requests.remove(2).is_some());
        requests.call_next(None, |_| true);
        assert!(requests.has_permit(queued(2, false), None));
    }

    #[test]
    fn others_wait_for_one_request_that_runs_alone() {
        let mut requests = Requests::new(2);
        for slot in 0..3 {
            requests.wait(queued(slot, true));
        }
        for slot in 10..13 {
            requests.wait(queued(slot, false));
        }
        let mut ids = Vec::new();
        let mut begun = Vec::new();
        while requests.queued() > 0 {
            while let Some(next) = requests.call_next(None, |_| true) {
                ids.push(requests.next_id());
                requests.add(away(next.slot, 1), next.is_alone);
                begun.push((next.slot, requests.count()));
            }
            let first = ids.remove(0);
            assert!(requests.remove(first).is_some());
            if first == 1 {
                // This one comes later.
                requests.wait(queued(20, false));
                assert_eq!(requests.queued(), 6);
            }
        }
        let expected = [(0, 1), (10, 1), (11, 2), (12, 2), (1, 1), (20, 1), (2, 1)];
        assert_eq!(begun, expected);
    }

    #[test]
    fn the_oldest_request_is_neither_answered_nor_late() {
        let mut requests = Requests::new(8);
        for began in 1..=4 {
            requests.add(away(began as u32, began), false);
        }
        assert!(requests.remove(1).is_some());
        assert_eq!(requests.oldest(), Some((2, 2)));
        requests.set_late(2, 9);
        assert_eq!(requests.oldest(), Some((3, 3)));
        assert_eq!(requests.abandon(3), Some(3));
        assert_eq!(requests.abandon(3), None);
        for id in 2..=4 {
            assert!(requests.remove(id).is_some());
        }
        assert_eq!((requests.oldest(), requests.count()), (None, 0));
    }

    #[test]
    fn queues_do_not_keep_what_is_over() {
        let mut requests = Requests::new(2);
        requests.add(away(0, 1), false);
        for began in 2..1_000 {
            requests.add(away(1, began), false);
            assert!(requests.remove(began).is_some());
        }
        assert!(requests.order.len() <= 2 * MAX_GONE);
        assert_eq!(requests.oldest(), Some((1, 1)));
        requests.add(away(1, 1_000), false);
        let stays = |next: QueuedClient| next.slot == 7;
        requests.wait(queued(7, false));
        for slot in 8..1_000 {
            requests.wait(queued(slot, false));
            requests.leave(slot, stays);
        }
        assert!(requests.queue.len() <= 2 * MAX_GONE && requests.has_queued());
        assert!(requests.remove(1_000).is_some() || requests.remove(999).is_some());
        let next = requests.call_next(None, stays);
        assert_eq!(next.map(|next| next.slot), Some(7));
        requests.leave(7, stays);
        assert!(!requests.has_queued());
        assert_eq!(requests.call_next(None, |_| false), None);
        assert!(requests.queue.is_empty() && requests.gone == 0);
    }
}
