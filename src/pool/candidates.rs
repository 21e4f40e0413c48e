//! The workers that may be given clients, and the first one of those with the smallest load. Pure.
//!
//! The requests that a worker executes, the leases that it has picked up and its busy time change without a message. So
//! the kept load of a worker is a lower bound, which follows from what the master knows: the worker's clients and its
//! health. The worker with the smallest kept load is looked at: its kept load is then the actual one, until
//! [`Candidates::begin`]. This is repeated until the worker with the smallest kept load was looked at. A comparison of
//! all workers would choose the same one, and few workers are looked at, unless all are busy.

use crate::config::Dispatch;
use crate::proto::names::WorkerId;

/// A worker as dispatch sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// The load of a worker without capacity, which no other load reaches.
const NO_CAPACITY: u64 = u64::MAX;

impl Candidate {
    /// Returns the worker with as little to do as it can have, by what the master knows of it without looking.
    #[cfg(test)]
    pub(crate) fn at_rest(&self) -> Candidate {
        Candidate {
            has_capacity: true,
            executing: 0,
            not_picked_up: 0,
            busy: 0,
            ..*self
        }
    }

    /// Returns what is compared as one number, the most important part first: health, whether the worker leaves, and
    /// for `least-loaded` executing requests, then leases that are not picked up, then recent work, then clients. A
    /// number that does not fit into its part counts as the largest one that does.
    ///
    /// Leases count in fours and recent work in eighths. One lease that is not picked up yet only shows which worker was
    /// scheduled last, and a few percent of work are noise: either would split the clients of a quiet daemon 170 to 30.
    fn load(&self, policy: Dispatch) -> u64 {
        if !self.has_capacity {
            return NO_CAPACITY;
        }
        let parts = [
            (self.executing, 16),
            (self.not_picked_up / 4, 12),
            (self.busy.into(), 4),
            // One less than fits: all bits are set without capacity.
            (self.clients.min((1 << 30) - 2), 30),
        ];
        let append =
            |load: u64, (part, bits): (u64, u32)| (load << bits) | part.min((1 << bits) - 1);
        let first = (u64::from(self.is_unhealthy) << 1) | u64::from(self.is_leaving);
        match policy {
            Dispatch::RoundRobin => first << 62,
            Dispatch::LeastLoaded => parts.into_iter().fold(first, append),
        }
    }
}

/// The workers that may be given clients, in the order of their ids.
#[derive(Debug)]
pub struct Candidates {
    policy: Dispatch,
    /// The workers with what the master knows of them: they may have more to do, and no capacity.
    known: Vec<Candidate>,
    loads: SmallestFirst,
    /// Whether the kept load is the actual one.
    is_actual: Vec<bool>,
    /// The workers whose load is the actual one.
    looked_at: Vec<usize>,
}

impl Candidates {
    /// Returns the workers in the order of their ids, with as little to do as they can have.
    #[must_use]
    pub fn new(policy: Dispatch, known: Vec<Candidate>) -> Candidates {
        Candidates {
            policy,
            loads: SmallestFirst::new(known.iter().map(|known| known.load(policy))),
            is_actual: vec![false; known.len()],
            known,
            looked_at: Vec::new(),
        }
    }

    /// Returns the policy by which they are compared.
    #[must_use]
    pub fn policy(&self) -> Dispatch {
        self.policy
    }

    /// Returns what the master knows of the workers.
    #[must_use]
    pub fn known(&self) -> &[Candidate] {
        &self.known
    }

    /// Forgets what was seen in the iteration of the loop before.
    pub fn begin(&mut self) {
        while let Some(index) = self.looked_at.pop() {
            self.is_actual[index] = false;
            self.loads.set(index, self.known[index].load(self.policy));
        }
    }

    /// Changes the number of clients of a worker.
    pub fn set_clients(&mut self, worker: WorkerId, clients: u64) {
        if let Some(index) = self.index_of(worker) {
            self.known[index].clients = clients;
            if !self.is_actual[index] {
                self.loads.set(index, self.known[index].load(self.policy));
            }
        }
    }

    /// Changes a worker to what was seen of it.
    pub fn update(&mut self, seen: &Candidate) {
        if let Some(index) = self.index_of(seen.worker) {
            self.known[index].clients = seen.clients;
            self.set_actual(index, seen);
        }
    }

    /// Returns the index of the worker with the smallest load, of several the first one from `next` on. Returns `None`
    /// if none has capacity. `look` returns a worker as it is now.
    pub fn best(&mut self, next: usize, look: impl Fn(WorkerId) -> Candidate) -> Option<usize> {
        loop {
            let index = self
                .loads
                .first(next)
                .filter(|index| self.loads.get(*index) != NO_CAPACITY)?;
            if self.is_actual[index] {
                return Some(index);
            }
            let seen = look(self.known[index].worker);
            self.set_actual(index, &seen);
        }
    }

    /// Returns the same index among the workers for which `may_take` is true. Looks at all of them.
    pub fn best_of(
        &mut self,
        next: usize,
        look: impl Fn(WorkerId) -> Candidate,
        may_take: impl Fn(WorkerId) -> bool,
    ) -> Option<usize> {
        let in_turn = self
            .in_turn(next)
            .filter(|index| may_take(self.known[*index].worker));
        let loads = in_turn
            .collect::<Vec<_>>()
            .into_iter()
            .map(|index| (self.actual(index, &look), index));
        // `min_by_key` keeps the first of equals.
        let (load, index) = loads.min_by_key(|(load, _)| *load)?;
        (load != NO_CAPACITY).then_some(index)
    }

    /// Returns what the master knows of a worker.
    #[must_use]
    pub fn get(&self, worker: WorkerId) -> Option<&Candidate> {
        self.known.get(self.index_of(worker)?)
    }

    /// Returns whether a worker has capacity now.
    pub fn has_capacity(&mut self, worker: WorkerId, look: impl Fn(WorkerId) -> Candidate) -> bool {
        let index = self.index_of(worker);
        index.is_some_and(|index| self.actual(index, &look) != NO_CAPACITY)
    }

    /// Returns the indices of all workers, from `next` on.
    pub(super) fn in_turn(&self, next: usize) -> impl Iterator<Item = usize> + use<> {
        let next = next.min(self.known.len());
        (next..self.known.len()).chain(0..next)
    }

    fn index_of(&self, worker: WorkerId) -> Option<usize> {
        self.known
            .binary_search_by_key(&worker, |known| known.worker)
            .ok()
    }

    /// Returns the actual load of a worker.
    fn actual(&mut self, index: usize, look: &impl Fn(WorkerId) -> Candidate) -> u64 {
        if !self.is_actual[index] {
            let seen = look(self.known[index].worker);
            self.set_actual(index, &seen);
        }
        self.loads.get(index)
    }

    fn set_actual(&mut self, index: usize, seen: &Candidate) {
        if !std::mem::replace(&mut self.is_actual[index], true) {
            self.looked_at.push(index);
        }
        self.loads.set(index, seen.load(self.policy));
    }
}

/// Up to this number of leaves, a search of them in turn takes fewer steps than one from the root.
const FEW: usize = 16;

/// Numbers, of which the first smallest one is found by a number of steps that grows with the logarithm of their count.
#[derive(Debug)]
struct SmallestFirst {
    /// A binary tree: the children of node `n` are `2n` and `2n + 1`, the root is 1. A node is the smaller one of its
    /// children. The leaves are the numbers, and then the largest number.
    nodes: Vec<u64>,
}

impl SmallestFirst {
    fn new(numbers: impl ExactSizeIterator<Item = u64>) -> SmallestFirst {
        let leaves = numbers.len().next_power_of_two();
        let mut nodes = vec![u64::MAX; 2 * leaves];
        for (leaf, number) in nodes[leaves..].iter_mut().zip(numbers) {
            *leaf = number;
        }
        for node in (1..leaves).rev() {
            nodes[node] = nodes[2 * node].min(nodes[2 * node + 1]);
        }
        SmallestFirst { nodes }
    }

    fn leaves(&self) -> usize {
        self.nodes.len() / 2
    }

    fn get(&self, index: usize) -> u64 {
        self.nodes[self.leaves() + index]
    }

    fn set(&mut self, index: usize, number: u64) {
        let mut node = self.leaves() + index;
        self.nodes[node] = number;
        while node > 1 {
            node /= 2;
            self.nodes[node] = self.nodes[2 * node].min(self.nodes[2 * node + 1]);
        }
    }

    /// Returns the index of the smallest number, of several the first one from `next` on, or else the first one.
    fn first(&self, next: usize) -> Option<usize> {
        let leaves = &self.nodes[self.leaves()..];
        if leaves.len() <= FEW {
            let next = next.min(leaves.len());
            let is_smallest = |index: &usize| leaves[*index] == self.nodes[1];
            return (next..leaves.len()).chain(0..next).find(is_smallest);
        }
        let all = (1, 0, self.leaves());
        self.first_in(all, next).or_else(|| self.first_in(all, 0))
    }

    /// Returns the first index from `next` on of a smallest number below a node, whose leaves begin at an index.
    fn first_in(&self, (node, begin, leaves): (usize, usize, usize), next: usize) -> Option<usize> {
        if begin + leaves <= next || self.nodes[node] != self.nodes[1] {
            return None;
        }
        if leaves == 1 {
            return Some(begin);
        }
        let half = leaves / 2;
        self.first_in((2 * node, begin, half), next)
            .or_else(|| self.first_in((2 * node + 1, begin + half, half), next))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use proptest::prelude::*;

    const POLICIES: [Dispatch; 2] = [Dispatch::RoundRobin, Dispatch::LeastLoaded];

    /// Returns the choice of a comparison of all workers, part by part.
    fn plain(policy: Dispatch, workers: &[Candidate], next: usize) -> Option<usize> {
        let next = next.min(workers.len());
        let in_turn = (next..workers.len()).chain(0..next);
        let with_capacity = in_turn.filter(|index| workers[*index].has_capacity);
        let health = |c: &Candidate| (c.is_unhealthy, c.is_leaving);
        let work = |c: &Candidate| (c.executing, c.not_picked_up / 4, c.busy, c.clients);
        match policy {
            Dispatch::RoundRobin => with_capacity.min_by_key(|i| health(&workers[*i])),
            Dispatch::LeastLoaded => {
                with_capacity.min_by_key(|i| (health(&workers[*i]), work(&workers[*i])))
            }
        }
    }

    fn workers() -> impl Strategy<Value = Vec<Candidate>> {
        let worker = (
            proptest::bool::weighted(0.1),
            proptest::bool::weighted(0.1),
            work(),
        );
        proptest::collection::vec(worker, 0..20).prop_map(|workers| {
            let worker = |(id, (is_unhealthy, is_leaving, work)): (u64, _)| Candidate {
                worker: WorkerId(3 * id),
                is_unhealthy,
                is_leaving,
                ..work
            };
            (1..).zip(workers).map(worker).collect()
        })
    }

    /// Returns what changes without the knowledge of the master, and clients.
    fn work() -> impl Strategy<Value = Candidate> {
        let executing = prop_oneof![4 => Just(0), 1 => 0..3_u64, 1 => Just(0xffff)];
        let not_picked_up = prop_oneof![4 => Just(0), 1 => 0..12_u64, 1 => Just(1_028)];
        let busy = prop_oneof![3 => Just(0), 1 => 0..=8_u8];
        let clients = prop_oneof![4 => 0..4_u64, 1 => Just((1 << 30) - 2)];
        let has_capacity = proptest::bool::weighted(0.9);
        (executing, not_picked_up, busy, clients, has_capacity).prop_map(
            |(executing, not_picked_up, busy, clients, has_capacity)| Candidate {
                executing,
                not_picked_up,
                busy,
                clients,
                has_capacity,
                ..Candidate::default()
            },
        )
    }

    /// A step: what happens to a worker.
    #[derive(Clone, Debug)]
    enum Step {
        /// An iteration of the loop begins, before which these workers have changed.
        Begin(Vec<(proptest::sample::Index, Candidate)>),
        /// A client is leased to the best worker, from one on, which is like this then.
        Lease(usize, Candidate),
        /// A client is leased to the best of those with an odd id.
        LeaseToOdd(usize, Candidate),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let change = (any::<proptest::sample::Index>(), work());
        let step = prop_oneof![
            1 => proptest::collection::vec(change, 0..6).prop_map(Step::Begin),
            3 => (0..24_usize, work()).prop_map(|(next, work)| Step::Lease(next, work)),
            1 => (0..24_usize, work()).prop_map(|(next, work)| Step::LeaseToOdd(next, work)),
        ];
        proptest::collection::vec(step, 0..60)
    }

    fn change(worker: &mut Candidate, work: &Candidate) {
        *worker = Candidate {
            worker: worker.worker,
            is_unhealthy: worker.is_unhealthy,
            is_leaving: worker.is_leaving,
            ..*work
        };
    }

    proptest! {
        #[test]
        fn kept_candidates_choose_as_a_comparison_of_all_does(workers in workers(), steps in steps()) {
            for policy in POLICIES {
                let mut workers = workers.clone();
                let mut kept = Candidates::new(policy, workers.iter().map(Candidate::at_rest).collect());
                for step in &steps {
                    let is_odd = |id: WorkerId| id.0 % 2 == 1;
                    let (expected, chosen, work) = match step {
                        Step::Begin(changes) => {
                            let no_worker = workers.is_empty();
                            for (index, work) in changes.iter().filter(|_| !no_worker) {
                                let worker = index.get_mut(&mut workers);
                                change(worker, work);
                                kept.set_clients(worker.worker, worker.clients);
                            }
                            kept.begin();
                            continue;
                        }
                        Step::Lease(next, work) => {
                            let look = |id: WorkerId| workers[id.0 as usize / 3 - 1];
                            (plain(policy, &workers, *next), kept.best(*next, look), work)
                        }
                        Step::LeaseToOdd(next, work) => {
                            let look = |id: WorkerId| workers[id.0 as usize / 3 - 1];
                            let odd = workers.iter().map(|worker| Candidate {
                                has_capacity: worker.has_capacity && is_odd(worker.worker),
                                ..*worker
                            });
                            let expected = plain(policy, &odd.collect::<Vec<_>>(), *next);
                            (expected, kept.best_of(*next, look, is_odd), work)
                        }
                    };
                    prop_assert_eq!(chosen, expected);
                    if let Some(chosen) = chosen {
                        change(&mut workers[chosen], work);
                        kept.update(&workers[chosen]);
                    }
                }
            }
        }
    }

    #[test]
    fn of_idle_workers_only_the_chosen_ones_are_looked_at() {
        for policy in POLICIES {
            let mut workers: Vec<_> = (0..1_000)
                .map(|id| Candidate {
                    worker: WorkerId(id),
                    has_capacity: true,
                    clients: id % 3,
                    ..Candidate::default()
                })
                .collect();
            let mut kept = Candidates::new(policy, workers.clone());
            let (looks, mut next) = (Cell::new(0), 0);
            for _ in 0..10 {
                kept.begin();
                for _ in 0..200 {
                    let look = |id: WorkerId| {
                        looks.set(looks.get() + 1);
                        workers[id.0 as usize]
                    };
                    let chosen = kept.best(next, look).expect("all have capacity");
                    next = chosen + 1;
                    workers[chosen].clients += 1;
                    kept.update(&workers[chosen]);
                }
            }
            assert!(looks.get() <= 2_000, "{policy:?}: {}", looks.get());
        }
    }
}
