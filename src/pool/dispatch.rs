//! Chooses the worker for the next client, by small pure functions of the known state of the workers.

use std::time::{Duration, Instant};

use crate::config::Dispatch;
use crate::proto::names::WorkerId;

/// A worker as dispatch sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidate {
    /// The worker's id.
    pub worker: WorkerId,
    /// Whether the worker is ready and can be given a client now.
    pub has_capacity: bool,
    /// Whether the worker is chosen only if no other has capacity.
    pub is_unhealthy: bool,
    /// Whether the worker is chosen only if no other healthy one has capacity, because it will be replaced soon.
    pub is_leaving: bool,
    /// Requests that the worker is executing.
    pub executing: u64,
    /// Leases that the worker has not picked up yet.
    pub not_picked_up: u64,
    /// The share of the last seconds in which the worker was busy, in eighths.
    pub busy: u8,
    /// Clients of the worker.
    pub clients: u64,
}

/// How long new clients wait for the worker whose turn it is and that has as many clients to pick up as are permitted.
/// It usually has only not been scheduled; one that is stuck is skipped afterwards.
const PICK_UP_TIMEOUT: Duration = Duration::from_millis(50);

/// Chooses workers, and keeps the position of the next one in turn.
#[derive(Debug)]
pub struct Dispatcher {
    policy: Dispatch,
    /// Where the search begins: after the worker that was chosen last.
    next: usize,
    /// The worker that new clients wait for, and until when.
    awaited: Option<(WorkerId, Instant)>,
    /// Workers that new clients have waited for in vain, until they have capacity again.
    skipped: Vec<WorkerId>,
}

impl Dispatcher {
    /// Returns a dispatcher of this policy.
    #[must_use]
    pub fn new(policy: Dispatch) -> Dispatcher {
        Dispatcher {
            policy,
            next: 0,
            awaited: None,
            skipped: Vec::new(),
        }
    }

    /// Changes the policy.
    pub fn set_policy(&mut self, policy: Dispatch) {
        *self = Dispatcher {
            next: self.next,
            ..Dispatcher::new(policy)
        };
    }

    /// Returns the index of the worker for the next client; `None` if no worker has capacity.
    pub fn pick(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let chosen = self.choose(candidates)?;
        self.next = (chosen + 1) % candidates.len();
        Some(chosen)
    }

    /// Returns whether [`Dispatcher::pick`] has a worker for a new client, which need not be there yet: not if no worker
    /// has capacity, or if the client must wait for a certain one. This looks at few workers only.
    pub fn can_pick_for_new(&mut self, candidates: &[Candidate], now: Instant) -> bool {
        let must_wait = self.policy == Dispatch::RoundRobin && self.must_wait(candidates, now);
        !must_wait && candidates.iter().any(|candidate| candidate.has_capacity)
    }

    /// Returns the worker that new clients wait for.
    #[must_use]
    pub fn awaited(&self) -> Option<WorkerId> {
        self.awaited.map(|(worker, _)| worker)
    }

    /// Returns when new clients do not wait for that worker any more.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.awaited.map(|(_, until)| until)
    }

    /// Ends the wait for a worker if it has lasted long enough.
    pub fn expire(&mut self, now: Instant) {
        if let Some((worker, _)) = self.awaited.take_if(|(_, until)| *until <= now) {
            self.skipped.push(worker);
        }
    }

    fn choose(&self, candidates: &[Candidate]) -> Option<usize> {
        let in_turn = self.in_turn(candidates);
        let in_turn = in_turn.filter(|i| candidates[*i].has_capacity);
        match self.policy {
            // `min_by_key` keeps the first of equals.
            Dispatch::RoundRobin => {
                in_turn.min_by_key(|i| (candidates[*i].is_unhealthy, candidates[*i].is_leaving))
            }
            // So that ties go round.
            Dispatch::LeastLoaded => in_turn.min_by_key(|i| load(&candidates[*i])),
        }
    }

    /// Returns the indices of all candidates, in turn.
    fn in_turn(&self, candidates: &[Candidate]) -> impl Iterator<Item = usize> + use<> {
        let next = self.next.min(candidates.len());
        (next..candidates.len()).chain(0..next)
    }

    /// Returns whether the next new client waits for the healthy worker whose turn it is.
    fn must_wait(&mut self, candidates: &[Candidate], now: Instant) -> bool {
        self.expire(now);
        self.skipped.retain(|skipped| {
            let is_it = |candidate: &Candidate| candidate.worker == *skipped;
            candidates.iter().any(|c| is_it(c) && !c.has_capacity)
        });
        let mut in_turn = self.in_turn(candidates).map(|i| &candidates[i]);
        let next = in_turn.find(|c| !c.is_unhealthy && !self.skipped.contains(&c.worker));
        let Some(next) = next.filter(|next| !next.has_capacity) else {
            self.awaited = None;
            return false;
        };
        if self.awaited() != Some(next.worker) {
            self.awaited = Some((next.worker, now + PICK_UP_TIMEOUT));
        }
        true
    }
}

/// Returns what is compared: health first, then executing requests, then leases that are not picked up, then recent
/// work, then clients.
///
/// Leases count in fours and recent work in eighths. One lease that is not picked up yet only shows which worker was
/// scheduled last, and a few percent of work are noise: either would split the clients of a quiet daemon 170 to 30.
fn load(c: &Candidate) -> (bool, bool, u64, u64, u8, u64) {
    (
        c.is_unhealthy,
        c.is_leaving,
        c.executing,
        c.not_picked_up / 4,
        c.busy,
        c.clients,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::backoff::Jitter;

    fn idle(count: usize) -> Vec<Candidate> {
        vec![
            Candidate {
                has_capacity: true,
                ..Candidate::default()
            };
            count
        ]
    }

    #[test]
    fn round_robin_is_exact_over_workers_with_capacity() {
        let mut dispatcher = Dispatcher::new(Dispatch::RoundRobin);
        let mut workers = idle(4);
        workers[1].has_capacity = false;
        workers[0].executing = 9;
        let picks: Vec<_> = (0..7).filter_map(|_| dispatcher.pick(&workers)).collect();
        assert_eq!(picks, [0, 2, 3, 0, 2, 3, 0]);
        workers.iter_mut().for_each(|w| w.has_capacity = false);
        assert_eq!(dispatcher.pick(&workers), None);
        assert_eq!(dispatcher.pick(&[]), None);
    }

    #[test]
    fn round_robin_waits_a_moment_for_a_new_clients_worker() {
        let mut dispatcher = Dispatcher::new(Dispatch::RoundRobin);
        let (mut workers, now) = (idle(3), Instant::now());
        for (id, worker) in (1..).zip(&mut workers) {
            worker.worker = WorkerId(id);
        }
        let mut next = |workers: &[Candidate], now| {
            let can_pick = dispatcher.can_pick_for_new(workers, now);
            let chosen = can_pick.then(|| dispatcher.pick(workers)).flatten();
            (chosen, dispatcher.awaited())
        };
        assert_eq!(next(&workers, now), (Some(0), None));
        workers[1].has_capacity = false;
        assert_eq!(next(&workers, now), (None, Some(WorkerId(2))));
        workers[1].has_capacity = true;
        assert_eq!(next(&workers, now), (Some(1), None), "it was waited for");
        assert_eq!(next(&workers, now), (Some(2), None));
        assert_eq!(next(&workers, now), (Some(0), None));
        // It is stuck: there is one wait, and then it is skipped until it has capacity.
        workers[1].has_capacity = false;
        assert_eq!(next(&workers, now), (None, Some(WorkerId(2))));
        let later = now + PICK_UP_TIMEOUT;
        let picks: Vec<_> = (0..4).map(|_| next(&workers, later)).collect();
        assert_eq!(picks, [2, 0, 2, 0].map(|chosen| (Some(chosen), None)));
        workers[1].has_capacity = true;
        assert_eq!(next(&workers, later), (Some(1), None));
        workers[2].has_capacity = false;
        workers[2].is_unhealthy = true;
        assert_eq!(next(&workers, later), (Some(0), None), "no wait for it");
    }

    #[test]
    fn an_unhealthy_worker_is_chosen_only_if_no_other_has_capacity() {
        for policy in [Dispatch::RoundRobin, Dispatch::LeastLoaded] {
            let mut dispatcher = Dispatcher::new(policy);
            let mut workers = idle(3);
            workers[1].is_unhealthy = true;
            workers[0].executing = 9;
            for _ in 0..7 {
                assert_ne!(dispatcher.pick(&workers), Some(1), "{policy:?}");
            }
            (workers[0].has_capacity, workers[2].has_capacity) = (false, false);
            assert_eq!(dispatcher.pick(&workers), Some(1), "{policy:?}");
        }
    }

    #[test]
    fn least_loaded_compares_requests_leases_work_then_clients() {
        let mut dispatcher = Dispatcher::new(Dispatch::LeastLoaded);
        let mut workers = idle(3);
        workers[0].executing = 1;
        workers[1].busy = 7;
        workers[2].clients = 500;
        assert_eq!(dispatcher.pick(&workers), Some(2));
        workers[2].not_picked_up = 8;
        assert_eq!(dispatcher.pick(&workers), Some(1));
        workers[1].not_picked_up = 15;
        assert_eq!(
            dispatcher.pick(&workers),
            Some(2),
            "an executing worker comes last"
        );
        workers[0].executing = 0;
        assert_eq!(dispatcher.pick(&workers), Some(0));
    }

    #[test]
    fn least_loaded_ignores_fewer_than_four_leases() {
        let mut dispatcher = Dispatcher::new(Dispatch::LeastLoaded);
        let mut workers = idle(2);
        workers[0] = Candidate {
            not_picked_up: 3,
            clients: 1,
            ..workers[0]
        };
        workers[1].clients = 2;
        assert_eq!(dispatcher.pick(&workers), Some(0));
        workers[0].not_picked_up = 4;
        assert_eq!(dispatcher.pick(&workers), Some(1));
    }

    #[test]
    fn least_loaded_ties_go_round() {
        let mut dispatcher = Dispatcher::new(Dispatch::LeastLoaded);
        let picks: Vec<_> = (0..6).filter_map(|_| dispatcher.pick(&idle(3))).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    /// 64 clients alive at a time, of random lifetimes, over four workers.
    #[test]
    fn least_loaded_stays_even_under_churn() {
        let mut random = Jitter::new(7);
        let mut dispatcher = Dispatcher::new(Dispatch::LeastLoaded);
        let mut workers = idle(4);
        let mut alive: Vec<usize> = Vec::new();
        let (mut worst, mut rounds) = (0.0f64, 0.0);
        for _ in 0..5_000 {
            if alive.len() >= 64 {
                let gone = alive.swap_remove(random.below(alive.len() as u64) as usize);
                workers[gone].clients -= 1;
            }
            let chosen = dispatcher.pick(&workers).expect("all have room");
            workers[chosen].clients += 1;
            alive.push(chosen);
            if alive.len() >= 64 {
                let most = workers.iter().map(|w| w.clients).max().unwrap_or(0);
                worst += most as f64 / (alive.len() as f64 / 4.0);
                rounds += 1.0;
            }
        }
        assert!(worst / rounds < 1.1, "max/mean {}", worst / rounds);
    }
}
