//! Chooses the worker for the next client, by small pure functions of the known state of the workers.

use std::time::{Duration, Instant};

use crate::config::Dispatch;
use crate::pool::candidates::{Candidate, Candidates};
use crate::proto::names::WorkerId;

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

    /// Returns the policy.
    #[must_use]
    pub fn policy(&self) -> Dispatch {
        self.policy
    }

    /// Returns the worker for the next client; `None` if no worker has capacity. `look` returns a worker as it is now.
    pub fn pick(
        &mut self,
        candidates: &mut Candidates,
        look: impl Fn(WorkerId) -> Candidate,
    ) -> Option<WorkerId> {
        let chosen = candidates.best(self.next, look);
        self.note(chosen, candidates)
    }

    /// Returns the worker for the next client, among those for which `may_take` is true.
    pub fn pick_among(
        &mut self,
        candidates: &mut Candidates,
        look: impl Fn(WorkerId) -> Candidate,
        may_take: impl Fn(WorkerId) -> bool,
    ) -> Option<WorkerId> {
        let chosen = candidates.best_of(self.next, look, may_take);
        self.note(chosen, candidates)
    }

    fn note(&mut self, chosen: Option<usize>, candidates: &Candidates) -> Option<WorkerId> {
        let chosen = chosen?;
        self.next = (chosen + 1) % candidates.known().len();
        Some(candidates.known()[chosen].worker)
    }

    /// Returns whether [`Dispatcher::pick`] has a worker for a new client, which need not be there yet: not if no worker
    /// has capacity, or if the client must wait for a certain one.
    pub fn can_pick_for_new(
        &mut self,
        candidates: &mut Candidates,
        look: impl Fn(WorkerId) -> Candidate,
        now: Instant,
    ) -> bool {
        let must_wait =
            self.policy == Dispatch::RoundRobin && self.must_wait(candidates, &look, now);
        !must_wait && candidates.best(self.next, look).is_some()
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

    /// Returns whether the next new client waits for the healthy worker whose turn it is.
    fn must_wait(
        &mut self,
        candidates: &mut Candidates,
        look: &impl Fn(WorkerId) -> Candidate,
        now: Instant,
    ) -> bool {
        self.expire(now);
        self.skipped.retain(|skipped| {
            candidates.get(*skipped).is_some() && !candidates.has_capacity(*skipped, look)
        });
        let mut in_turn = candidates.in_turn(self.next).map(|i| candidates.known()[i]);
        let next = in_turn.find(|c| !c.is_unhealthy && !self.skipped.contains(&c.worker));
        let next = next.map(|next| next.worker);
        let Some(next) = next.filter(|next| !candidates.has_capacity(*next, look)) else {
            self.awaited = None;
            return false;
        };
        if self.awaited() != Some(next) {
            self.awaited = Some((next, now + PICK_UP_TIMEOUT));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::backoff::Jitter;

    fn idle(count: usize) -> Vec<Candidate> {
        let candidate = |id| Candidate {
            worker: WorkerId(id),
            has_capacity: true,
            ..Candidate::default()
        };
        (0..count as u64).map(candidate).collect()
    }

    /// Returns the candidates of a master that has looked at none of these workers.
    fn kept(dispatcher: &Dispatcher, workers: &[Candidate]) -> Candidates {
        let known = workers.iter().map(Candidate::at_rest).collect();
        Candidates::new(dispatcher.policy(), known)
    }

    fn look(workers: &[Candidate]) -> impl Fn(WorkerId) -> Candidate {
        |id| workers[id.0 as usize]
    }

    fn pick(dispatcher: &mut Dispatcher, workers: &[Candidate]) -> Option<usize> {
        let chosen = dispatcher.pick(&mut kept(dispatcher, workers), look(workers));
        chosen.map(|id| id.0 as usize)
    }

    #[test]
    fn round_robin_is_exact_over_workers_with_capacity() {
        let mut dispatcher = Dispatcher::new(Dispatch::RoundRobin);
        let mut workers = idle(4);
        workers[1].has_capacity = false;
        workers[0].executing = 9;
        let picks: Vec<_> = (0..7)
            .filter_map(|_| pick(&mut dispatcher, &workers))
            .collect();
        assert_eq!(picks, [0, 2, 3, 0, 2, 3, 0]);
        workers.iter_mut().for_each(|w| w.has_capacity = false);
        assert_eq!(pick(&mut dispatcher, &workers), None);
        assert_eq!(pick(&mut dispatcher, &[]), None);
    }

    #[test]
    fn round_robin_waits_a_moment_for_a_new_clients_worker() {
        let mut dispatcher = Dispatcher::new(Dispatch::RoundRobin);
        let (mut workers, now) = (idle(3), Instant::now());
        let mut next = |workers: &[Candidate], now| {
            let mut candidates = kept(&dispatcher, workers);
            let can_pick = dispatcher.can_pick_for_new(&mut candidates, look(workers), now);
            let chosen = can_pick.then(|| dispatcher.pick(&mut candidates, look(workers)));
            (chosen.flatten().map(|id| id.0), dispatcher.awaited())
        };
        assert_eq!(next(&workers, now), (Some(0), None));
        workers[1].has_capacity = false;
        assert_eq!(next(&workers, now), (None, Some(WorkerId(1))));
        workers[1].has_capacity = true;
        assert_eq!(next(&workers, now), (Some(1), None), "it was waited for");
        assert_eq!(next(&workers, now), (Some(2), None));
        assert_eq!(next(&workers, now), (Some(0), None));
        // It is stuck: there is one wait, and then it is skipped until it has capacity.
        workers[1].has_capacity = false;
        assert_eq!(next(&workers, now), (None, Some(WorkerId(1))));
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
                assert_ne!(pick(&mut dispatcher, &workers), Some(1), "{policy:?}");
            }
            (workers[0].has_capacity, workers[2].has_capacity) = (false, false);
            assert_eq!(pick(&mut dispatcher, &workers), Some(1), "{policy:?}");
        }
    }

    #[test]
    fn a_client_goes_to_one_of_the_workers_that_may_take_it() {
        let mut dispatcher = Dispatcher::new(Dispatch::LeastLoaded);
        let mut workers = idle(4);
        workers[1].clients = 5;
        workers[2].clients = 4;
        workers[3].has_capacity = false;
        let mut among = |ids: &[u64]| {
            let may_take = |id: WorkerId| ids.contains(&id.0);
            let candidates = &mut kept(&dispatcher, &workers);
            let chosen = dispatcher.pick_among(candidates, look(&workers), may_take);
            chosen.map(|id| id.0)
        };
        assert_eq!(among(&[1, 2, 3]), Some(2));
        assert_eq!(among(&[1, 3]), Some(1));
        assert_eq!((among(&[3]), among(&[])), (None, None));
    }

    #[test]
    fn least_loaded_compares_requests_leases_work_then_clients() {
        let mut dispatcher = Dispatcher::new(Dispatch::LeastLoaded);
        let mut workers = idle(3);
        workers[0].executing = 1;
        workers[1].busy = 7;
        workers[2].clients = 500;
        assert_eq!(pick(&mut dispatcher, &workers), Some(2));
        workers[2].not_picked_up = 8;
        assert_eq!(pick(&mut dispatcher, &workers), Some(1));
        workers[1].not_picked_up = 15;
        assert_eq!(
            pick(&mut dispatcher, &workers),
            Some(2),
            "an executing worker comes last"
        );
        workers[0].executing = 0;
        assert_eq!(pick(&mut dispatcher, &workers), Some(0));
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
        assert_eq!(pick(&mut dispatcher, &workers), Some(0));
        workers[0].not_picked_up = 4;
        assert_eq!(pick(&mut dispatcher, &workers), Some(1));
    }

    #[test]
    fn least_loaded_ties_go_round() {
        let mut dispatcher = Dispatcher::new(Dispatch::LeastLoaded);
        let picks: Vec<_> = (0..6)
            .filter_map(|_| pick(&mut dispatcher, &idle(3)))
            .collect();
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
            let chosen = pick(&mut dispatcher, &workers).expect("all have room");
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
