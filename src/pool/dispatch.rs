//! Chooses the worker for the next client, by small pure functions of the known state of the workers.

use std::cmp::Ordering;

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
    /// Requests that the worker is executing.
    pub executing: u64,
    /// Leases that the worker has not picked up yet.
    pub waiting: u64,
    /// The share of the last seconds in which the worker was busy, from 0 to 1.
    pub busy: f64,
    /// Clients of the worker.
    pub clients: u64,
}

/// Chooses workers, and keeps the position of the next one in turn.
#[derive(Debug)]
pub struct Dispatcher {
    policy: Dispatch,
    /// Where the search begins: behind the worker that was chosen last.
    next: usize,
}

impl Dispatcher {
    /// Returns a dispatcher of this policy.
    #[must_use]
    pub fn new(policy: Dispatch) -> Dispatcher {
        Dispatcher { policy, next: 0 }
    }

    /// Changes the policy.
    pub fn set_policy(&mut self, policy: Dispatch) {
        self.policy = policy;
    }

    /// Returns the index of the worker for the next client; `None` if no worker has capacity.
    pub fn pick(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let count = candidates.len();
        let in_turn = (0..count)
            .map(|i| (self.next + i) % count)
            .filter(|i| candidates[*i].has_capacity);
        let chosen = match self.policy {
            // `min_by_key` keeps the first of equals.
            Dispatch::RoundRobin => in_turn.min_by_key(|i| candidates[*i].is_unhealthy),
            // `min_by` keeps the first of equals, so that ties go round.
            Dispatch::LeastLoaded => {
                in_turn.min_by(|a, b| compare(&candidates[*a], &candidates[*b]))
            }
        }?;
        self.next = (chosen + 1) % count;
        Some(chosen)
    }
}

/// Compares health first, then executing requests, then leases that are not picked up, then recent work, then clients.
///
/// Leases count in fours and recent work in eighths. One lease that is not picked up yet only shows which worker was
/// scheduled last, and a few percent of work are noise: either would split the clients of a quiet daemon 170 to 30.
fn compare(a: &Candidate, b: &Candidate) -> Ordering {
    let load = |c: &Candidate| {
        (
            c.is_unhealthy,
            c.executing,
            c.waiting / 4,
            (c.busy.clamp(0.0, 1.0) * 8.0) as u64,
            c.clients,
        )
    };
    load(a).cmp(&load(b))
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
        workers[1].busy = 0.9;
        workers[2].clients = 500;
        assert_eq!(dispatcher.pick(&workers), Some(2));
        workers[2].waiting = 8;
        assert_eq!(dispatcher.pick(&workers), Some(1));
        workers[1].waiting = 15;
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
            waiting: 3,
            clients: 1,
            ..workers[0]
        };
        workers[1].clients = 2;
        assert_eq!(dispatcher.pick(&workers), Some(0));
        workers[0].waiting = 4;
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
