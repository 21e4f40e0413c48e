//! Chooses which busy clients move to another worker. Pure functions of how busy the workers and their clients were.
//!
//! Dispatch spreads clients evenly, but the load shifts: clients leave or become busy, and a new worker starts with
//! none. The master reports the loads about once a second ([`Rebalancer::observe`]):
//!
//! ```text
//!         skewed               still                 whatever the plan did
//!  Rest ---------> Watch(w) ---------> Move(w) ----------------------------> Rest for COOL_DOWN
//!    ^                |
//!    +----------------+  it was a burst
//! ```
//!
//! * Two observations a second apart must find the same worker too busy, so that a burst moves no client. Between the
//!   two the requests of each client are counted: the slots count over its whole life, which shows little of the
//!   present.
//! * A plan ([`plan`]) continues until the loads are even, far below the skew that starts one, so that they do not tip
//!   over again.
//! * The busy time covers up to two seconds, so for two seconds after a move it includes the time before. The pause is
//!   longer than that, or a load would be moved twice.
//!
//! Requests stand for work, because the time of each client is not measured. If the requests of one client cost much
//! more than others, the plan misjudges it, and the next one, some seconds later, works with the result.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use crate::proto::names::WorkerId;

/// The time between two observations while clients are leased, and for which a worker is watched.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// The difference between the busiest and the least busy worker, as a share of time, from which clients move unasked.
const SKEW: f64 = 0.2;

/// The same, if an operator asks. Smaller differences are work that a worker does for no client.
const REQUESTED_SKEW: f64 = 0.05;

/// Loads that differ by less than this part of the greater one are even. Relative to the greater one, because a
/// saturated worker shows only the part of its load that it can handle.
const EVEN: f64 = 0.05;

/// A worker that is less busy than this delays no client, whatever the others do.
const BUSY: f64 = 0.3;

/// The pause after a move before clients move unasked again.
const COOL_DOWN: Duration = Duration::from_secs(3);

/// The most moves of one plan: the master does nothing else during them, and the next plan can continue.
const MAX_MOVES: usize = 256;

/// A worker that is ready and answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerLoad {
    /// The worker's id.
    pub id: WorkerId,
    /// The share of the last one to two seconds in which the worker was busy, from 0 to 1.
    pub busy: f64,
    /// Whether the worker was ready for long enough to be as fast as the others. If not, it gets no clients.
    pub is_warm: bool,
}

/// A client of the worker that was watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// The client's number, chosen by the caller.
    pub client: u64,
    /// Requests of the client that were answered since the watch began.
    pub requests: u64,
}

/// A client that moves to another worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// The client's number, as in [`Busy`].
    pub client: u64,
    /// The client's next worker.
    pub to: WorkerId,
    /// The load of the client, as a share of a worker's time.
    pub load: f64,
}

/// The master's next step after an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do nothing; drop what was noted for a watch.
    Rest,
    /// Note the requests of each client of this worker that were answered so far.
    Watch(WorkerId),
    /// Make a [`plan`] with the requests answered since, and move the clients.
    Move(WorkerId),
}

/// Finds differences between loads that last longer than a burst.
#[derive(Debug, Default)]
pub struct Rebalancer {
    /// The worker that the last observation found too busy.
    watched: Option<WorkerId>,
    /// The end of the pause after the last move.
    rests_until: Option<Instant>,
}

impl Rebalancer {
    /// Returns the next step for the loads of all workers that are ready and answer; called about every [`INTERVAL`].
    pub fn observe(&mut self, loads: &[WorkerLoad], now: Instant) -> Step {
        let watched = self.watched.take();
        if self.rests_until.is_some_and(|until| now < until) {
            return Step::Rest;
        }
        let is_too_busy = |load: &WorkerLoad| load.busy >= BUSY && is_skewed(load, loads, SKEW);
        // It need not be the busiest any more: of two that are equally busy, each is so in turn.
        let again = loads.iter().find(|load| Some(load.id) == watched);
        if let Some(load) = again.filter(|load| is_too_busy(load)) {
            self.rests_until = Some(now + COOL_DOWN);
            return Step::Move(load.id);
        }
        self.watched = busiest(loads).filter(is_too_busy).map(|load| load.id);
        self.watched.map_or(Step::Rest, Step::Watch)
    }
}

/// Returns the worker that clients leave when an operator asks for a rebalance: the busiest, if another one can take
/// some. It is watched for an [`INTERVAL`], as in a move unasked; then a [`plan`] shows the gain.
#[must_use]
pub fn requested(loads: &[WorkerLoad]) -> Option<WorkerId> {
    busiest(loads)
        .filter(|load| is_skewed(load, loads, REQUESTED_SKEW))
        .map(|load| load.id)
}

fn busiest(loads: &[WorkerLoad]) -> Option<WorkerLoad> {
    loads
        .iter()
        .copied()
        .max_by(|a, b| a.busy.total_cmp(&b.busy))
}

/// Returns whether a worker is busier by `skew` than one that can take clients.
fn is_skewed(from: &WorkerLoad, loads: &[WorkerLoad], skew: f64) -> bool {
    loads
        .iter()
        .any(|to| to.is_warm && from.busy - to.busy >= skew)
}

/// Returns the moves from this worker to others after which all are about equally busy. Workers that warm up get none;
/// `from` may be in `to`, as it is never less busy than itself.
///
/// A client's load is its share of the requests times the worker's busy time. The largest comes first, because smaller
/// ones can even out what it leaves uneven. Each goes to the worker that is least busy by then, unless that would
/// become busier than `from` stays: the two would only change places, and a client that is all of the load would move
/// for ever. A client without requests carries no load and stays.
#[must_use]
pub fn plan(from: &WorkerLoad, to: &[WorkerLoad], clients: &[Busy]) -> Vec<Move> {
    let mut to: Vec<WorkerLoad> = to.iter().copied().filter(|to| to.is_warm).collect();
    let mut left = from.busy;
    let all: f64 = clients.iter().map(|client| client.requests as f64).sum();
    let mut clients: Vec<Busy> = clients
        .iter()
        .copied()
        .filter(|client| client.requests > 0)
        .collect();
    clients.sort_by_key(|client| Reverse(client.requests));
    let mut moves = Vec::new();
    for Busy { client, requests } in clients {
        let Some(least) = to.iter_mut().min_by(|a, b| a.busy.total_cmp(&b.busy)) else {
            break;
        };
        if left - least.busy <= EVEN * left || moves.len() == MAX_MOVES {
            break;
        }
        let load = from.busy * (requests as f64 / all);
        if least.busy + load <= left - load {
            left -= load;
            least.busy += load;
            moves.push(Move {
                client,
                to: least.id,
                load,
            });
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::backoff::Jitter;
    use proptest::prelude::*;

    fn worker(id: u64, busy: f64) -> WorkerLoad {
        WorkerLoad {
            id: WorkerId(id),
            busy,
            is_warm: true,
        }
    }

    /// Returns clients with these numbers of requests.
    fn clients(requests: &[u64]) -> Vec<Busy> {
        let client = |(client, &requests)| Busy { client, requests };
        (0..).zip(requests).map(client).collect()
    }

    /// Clients of constant rates, at workers whose busy time is averaged over the last two seconds.
    struct Cluster {
        clients: Vec<(f64, usize)>,
        loads: Vec<WorkerLoad>,
        before: Vec<f64>,
        rebalancer: Rebalancer,
        now: Instant,
        moved: Vec<u64>,
    }

    impl Cluster {
        fn new(workers: usize, clients: impl IntoIterator<Item = (f64, usize)>) -> Cluster {
            let loads = (0..workers).map(|id| worker(id as u64, 0.0)).collect();
            let clients = clients.into_iter().collect();
            Cluster {
                clients,
                loads,
                before: vec![0.0; workers],
                rebalancer: Rebalancer::default(),
                now: Instant::now(),
                moved: Vec::new(),
            }
        }

        /// Returns how busy the workers are now.
        fn busy(&self) -> Vec<f64> {
            let mut busy = vec![0.0_f64; self.loads.len()];
            for (rate, at) in &self.clients {
                busy[*at] += rate;
            }
            busy.into_iter().map(|busy| busy.min(1.0)).collect()
        }

        /// Returns the most and the least that a worker is busy.
        fn extremes(&self) -> (f64, f64) {
            let busy = self.busy();
            (
                busy.iter().copied().fold(0.0, f64::max),
                busy.iter().copied().fold(1.0, f64::min),
            )
        }

        fn second(&mut self) {
            let busy = self.busy();
            for ((load, before), busy) in self.loads.iter_mut().zip(&self.before).zip(&busy) {
                load.busy = f64::midpoint(*before, *busy);
            }
            self.before = busy;
            self.now += INTERVAL;
            let Step::Move(from) = self.rebalancer.observe(&self.loads, self.now) else {
                return;
            };
            let clients: Vec<Busy> = (0..)
                .zip(&self.clients)
                .filter(|(_, (_, at))| *at as u64 == from.0)
                .map(|(client, (rate, _))| Busy {
                    client,
                    requests: (rate * 1e6) as u64,
                })
                .collect();
            for Move { client, to, .. } in plan(&self.loads[from.0 as usize], &self.loads, &clients)
            {
                self.clients[client as usize].1 = to.0 as usize;
                self.moved.push(client);
            }
        }
    }

    /// Returns realistic rates: few clients with many requests, many with few. Their sum is `total`.
    fn rates(random: &mut Jitter, count: usize, total: f64) -> Vec<f64> {
        let rates: Vec<f64> = (0..count)
            .map(|_| (random.below(1000) as f64 / 1000.0).powi(3))
            .collect();
        let sum: f64 = rates.iter().sum();
        rates.iter().map(|rate| rate / sum * total).collect()
    }

    #[test]
    fn loads_become_even_within_seconds_and_stay_so() {
        let mut random = Jitter::new(3);
        for workers in 2..=8 {
            for crowded in 1..workers {
                let rates = rates(&mut random, 40 * workers, 0.6 * workers as f64);
                let clients = (0..).zip(rates).map(|(i, rate)| (rate, i % crowded));
                let mut cluster = Cluster::new(workers, clients);
                for _ in 0..10 * workers {
                    cluster.second();
                }
                let (most, least) = cluster.extremes();
                assert!(
                    most - least < SKEW,
                    "{crowded} of {workers} had all: {:?}",
                    cluster.busy()
                );
                assert!(
                    crowded > 1 || most / 0.6 < 1.2,
                    "one of {workers} had all: {:?}",
                    cluster.busy()
                );
                let moved = cluster.moved.len();
                (0..100).for_each(|_| cluster.second());
                assert_eq!(cluster.moved.len(), moved);
            }
        }
    }

    #[test]
    fn half_of_fifty_equal_clients_move_at_once_and_once_only() {
        let mut cluster = Cluster::new(2, std::iter::repeat_n((0.018, 0), 50));
        (0..10).for_each(|_| cluster.second());
        let moved = cluster.moved.len();
        assert!((23..=25).contains(&moved), "{moved}");
        cluster.moved.dedup();
        assert_eq!(cluster.moved.len(), moved, "no client moves twice");
    }

    #[test]
    fn a_plan_is_bounded_and_has_no_useless_moves() {
        let (from, to) = (worker(1, 0.9), [worker(2, 0.0)]);
        assert_eq!(plan(&from, &to, &clients(&[7; 600])).len(), MAX_MOVES);
        let mut requests = vec![1; 100];
        requests.extend([5000, 5000]);
        let moves = plan(&from, &to, &clients(&requests));
        assert_eq!(moves.iter().map(|m| m.client).collect::<Vec<_>>(), [100]);
        assert_eq!(plan(&to[0], &[worker(3, 0.0)], &clients(&[1, 1])), []);
    }

    #[test]
    fn noise_and_bursts_move_no_client() {
        let mut random = Jitter::new(5);
        let mut rebalancer = Rebalancer::default();
        let mut now = Instant::now();
        for second in 0..10_000 {
            let mut loads: Vec<_> = (0..4)
                .map(|id| worker(id, 0.4 + random.below(190) as f64 / 1000.0))
                .collect();
            if second % 2 == 0 {
                loads[random.below(4) as usize].busy = 1.0;
            }
            now += INTERVAL;
            assert!(
                !matches!(rebalancer.observe(&loads, now), Step::Move(_)),
                "{loads:?}"
            );
        }
    }

    #[test]
    fn a_dominant_client_stays_and_the_others_move_away() {
        let small = (0..20).map(|_| (0.01, 0));
        let mut cluster = Cluster::new(3, small.chain([(0.75, 0)]));
        (0..100).for_each(|_| cluster.second());
        assert!(!cluster.moved.contains(&20), "{:?}", cluster.moved);
        assert!(
            (10..=20).contains(&cluster.moved.len()),
            "{:?}",
            cluster.moved
        );
    }

    #[test]
    fn a_worker_gets_no_clients_until_it_is_warm() {
        let mut cluster = Cluster::new(3, std::iter::repeat_n((0.03, 0), 30));
        cluster.loads[1].is_warm = false;
        (0..20).for_each(|_| cluster.second());
        assert!(cluster.clients.iter().all(|(_, at)| *at != 1));
        cluster.loads[1].is_warm = true;
        (0..20).for_each(|_| cluster.second());
        let (most, least) = cluster.extremes();
        assert!(most - least < SKEW, "{:?}", cluster.busy());
        let cold = WorkerLoad {
            is_warm: false,
            ..worker(2, 0.0)
        };
        assert_eq!(requested(&[worker(1, 1.0), cold]), None);
        assert_eq!(plan(&worker(1, 1.0), &[cold], &clients(&[1, 1])), []);
    }

    #[test]
    fn a_move_follows_two_observations_and_starts_a_pause() {
        let start = Instant::now();
        let at = |second| start + INTERVAL * second;
        let (first, second) = (
            [worker(1, 0.9), worker(2, 0.8), worker(3, 0.0)],
            [worker(1, 0.8), worker(2, 0.9), worker(3, 0.0)],
        );
        let mut rebalancer = Rebalancer::default();
        assert_eq!(rebalancer.observe(&first, at(0)), Step::Watch(WorkerId(1)));
        assert_eq!(
            rebalancer.observe(&second, at(1)),
            Step::Move(WorkerId(1)),
            "another one is the busiest now"
        );
        assert_eq!(
            [2, 3].map(|s| rebalancer.observe(&second, at(s))),
            [Step::Rest; 2]
        );
        assert_eq!(rebalancer.observe(&second, at(4)), Step::Watch(WorkerId(2)));
        assert_eq!(
            rebalancer.observe(&first[..1], at(5)),
            Step::Rest,
            "no other worker can take clients"
        );
        assert_eq!(rebalancer.observe(&second, at(6)), Step::Watch(WorkerId(2)));
        assert_eq!(
            rebalancer.observe(&[worker(1, 0.29), worker(2, 0.0)], at(7)),
            Step::Rest,
            "no client waits"
        );
    }

    #[test]
    fn a_requested_rebalance_needs_a_smaller_difference() {
        assert_eq!(
            requested(&[worker(1, 0.2), worker(2, 0.1)]),
            Some(WorkerId(1))
        );
        assert_eq!(requested(&[worker(1, 0.14), worker(2, 0.1)]), None);
        assert_eq!((requested(&[worker(1, 1.0)]), requested(&[])), (None, None));
    }

    proptest! {
        /// Requests are read from shared memory, and a broken worker may have written anything.
        #[test]
        fn a_plan_moves_busy_clients_once_and_never_overshoots(
            busy in 0.0..1.0f64,
            to in proptest::collection::vec((0.0..1.0f64, any::<bool>()), 0..6),
            requests in proptest::collection::vec(prop_oneof![Just(0), 0..50u64, any::<u64>()], 0..600),
        ) {
            let from = worker(0, busy);
            let mut loads: Vec<_> =
                (1..).zip(to).map(|(id, (busy, is_warm))| WorkerLoad { is_warm, ..worker(id, busy) }).collect();
            let moves = plan(&from, &loads, &clients(&requests));
            prop_assert!(moves.len() <= MAX_MOVES);
            let mut left = busy;
            let mut moved = std::collections::BTreeSet::new();
            for Move { client, to, load } in moves {
                prop_assert!(moved.insert(client) && requests[client as usize] > 0);
                let to = &mut loads[to.0 as usize - 1];
                left -= load;
                to.busy += load;
                prop_assert!(to.is_warm && to.busy <= left + 1e-9);
            }
        }
    }
}
