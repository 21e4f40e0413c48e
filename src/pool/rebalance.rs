//! Which busy clients go to another worker. Pure functions of how busy the workers were, and with whom.
//!
//! Dispatch deals clients evenly, but they do not stay so: some leave, some become busy, and a new worker begins with
//! none. The master looks about once a second ([`Rebalancer::look`]):
//!
//! ```text
//!         skewed               still                 whatever came of it
//!  Rest ---------> Watch(w) ---------> Move(w) ----------------------------> Rest for COOL_DOWN
//!    ^                |
//!    +----------------+  it was a moment's
//! ```
//!
//! * Two looks a second apart must find the same worker too busy, so that a burst moves nobody, and between the two it
//!   is seen who works it: the slots count requests over a client's whole life, which tells little of its present.
//! * A plan ([`plan`]) goes on until the loads are even, which is far below the skew that begins one, so that what
//!   was evened out does not tip over again.
//! * The busy time is that of up to two seconds, so that for two seconds after a move it still tells of what was before
//!   it. The pause is longer than that, or a load would be moved twice.
//!
//! Requests stand for work, because nobody measures the time of each client. Where one client's are much dearer than
//! those of others, a plan misjudges it, and the next one, some seconds later, sees what came of it.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use crate::proto::names::WorkerId;

/// How often to look while clients are leased, and for how long a worker is watched.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// What the busiest worker must work more than the least busy one, as a share of its time, before anybody moves unasked.
const SKEW: f64 = 0.2;

/// The same, if an operator asks. Below it lies what a worker does for nobody.
const ASKED: f64 = 0.05;

/// Loads that differ by less than this part of the greater one are even. Of the greater one, because a worker that works
/// all the time shows only that share of what it is asked for that it can do.
const EVEN: f64 = 0.05;

/// A worker with more idle time than this leaves makes nobody wait, whatever the others do.
const BUSY: f64 = 0.3;

/// Nobody moves unasked for so long after others did.
const COOL_DOWN: Duration = Duration::from_secs(3);

/// Moves of one plan: the master serves nobody else meanwhile, and the next plan can go on.
const MAX_MOVES: usize = 256;

/// A worker that is ready and answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerLoad {
    /// Who.
    pub id: WorkerId,
    /// The share of the last one to two seconds in which it worked, from 0 to 1.
    pub busy: f64,
    /// Whether it has been ready for long enough to be as fast as the others. If not, it is given nothing.
    pub is_warm: bool,
}

/// A client of the worker that was watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Who, as the caller counts them.
    pub client: u64,
    /// Its requests that were answered since the watch began.
    pub requests: u64,
}

/// A client that is to go to another worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// Who.
    pub client: u64,
    /// Where to.
    pub to: WorkerId,
    /// What it takes along, as a share of a worker's time.
    pub load: f64,
}

/// What the master is to do after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing; what was noted for a watch is of no use any more.
    Rest,
    /// Note how many requests of each client of this worker were answered so far.
    Watch(WorkerId),
    /// Make a [`plan`] with those answered since, and move.
    Move(WorkerId),
}

/// Sees when loads differ for longer than a moment.
#[derive(Debug, Default)]
pub struct Rebalancer {
    /// Whom the last look found too busy.
    watched: Option<WorkerId>,
    /// The end of the pause after the last move.
    rests_until: Option<Instant>,
}

impl Rebalancer {
    /// One that has seen nothing yet.
    #[must_use]
    pub fn new() -> Rebalancer {
        Rebalancer::default()
    }

    /// Looks at all workers that are ready and answer; about every [`INTERVAL`].
    pub fn look(&mut self, loads: &[WorkerLoad], now: Instant) -> Step {
        let watched = self.watched.take();
        if self.rests_until.is_some_and(|until| now < until) {
            return Step::Rest;
        }
        let is_too_busy = |load: &WorkerLoad| load.busy >= BUSY && is_skewed(load, loads, SKEW);
        // It need not be the busiest still: of two that are equally busy, each is in turn.
        if let Some(load) = loads
            .iter()
            .find(|load| Some(load.id) == watched)
            .filter(|load| is_too_busy(load))
        {
            self.rests_until = Some(now + COOL_DOWN);
            return Step::Move(load.id);
        }
        self.watched = busiest(loads).filter(is_too_busy).map(|load| load.id);
        self.watched.map_or(Step::Rest, Step::Watch)
    }
}

/// The worker to take from when an operator asks for it: the busiest, if there is one that it could give to. It is watched
/// for an [`INTERVAL`], as in a move unasked; then a [`plan`] tells what there is to gain.
#[must_use]
pub fn asked(loads: &[WorkerLoad]) -> Option<WorkerId> {
    busiest(loads)
        .filter(|load| is_skewed(load, loads, ASKED))
        .map(|load| load.id)
}

fn busiest(loads: &[WorkerLoad]) -> Option<WorkerLoad> {
    loads
        .iter()
        .copied()
        .max_by(|a, b| a.busy.total_cmp(&b.busy))
}

/// Whether a worker is so much busier than one that it could give to.
fn is_skewed(from: &WorkerLoad, loads: &[WorkerLoad], skew: f64) -> bool {
    loads
        .iter()
        .any(|to| to.is_warm && from.busy - to.busy >= skew)
}

/// Whom to move from this worker to which of those, so that all are about equally busy. Those that warm up
/// are given nothing; the worker itself may be among them, for it is never less busy than it is.
///
/// A client's load is its share of the requests times the worker's busy time. The largest is first, as with anything that
/// is packed: what it leaves uneven, smaller ones can even out. Each goes to the worker that is least busy by then, if
/// that does not become busier by it than this one stays; otherwise it stays, too: two workers would change places, and
/// a client that is all of the load would go round for ever. One that asked for nothing takes no load along and stays.
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

    /// Clients of constant rates, at workers whose busy time is told as that of the last two seconds.
    struct House {
        clients: Vec<(f64, usize)>,
        loads: Vec<WorkerLoad>,
        before: Vec<f64>,
        rebalancer: Rebalancer,
        now: Instant,
        moved: Vec<u64>,
    }

    impl House {
        fn new(workers: usize, clients: impl IntoIterator<Item = (f64, usize)>) -> House {
            let loads = (0..workers).map(|id| worker(id as u64, 0.0)).collect();
            let clients = clients.into_iter().collect();
            let (rebalancer, now) = (Rebalancer::new(), Instant::now());
            House {
                clients,
                loads,
                before: vec![0.0; workers],
                rebalancer,
                now,
                moved: Vec::new(),
            }
        }

        /// How busy the workers are now.
        fn busy(&self) -> Vec<f64> {
            let of = |id| {
                self.clients
                    .iter()
                    .filter(|(_, at)| *at == id)
                    .map(|(rate, _)| rate)
                    .sum::<f64>()
            };
            (0..self.loads.len()).map(|id| of(id).min(1.0)).collect()
        }

        /// The most and the least that a worker works.
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
            let Step::Move(from) = self.rebalancer.look(&self.loads, self.now) else {
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

    /// Rates as they are in the world: some clients ask for much, most for little. Together they are `total`.
    fn rates(random: &mut Jitter, count: usize, total: f64) -> Vec<f64> {
        let rates: Vec<f64> = (0..count)
            .map(|_| (random.below(1000) as f64 / 1000.0).powi(3))
            .collect();
        let sum: f64 = rates.iter().sum();
        rates.iter().map(|rate| rate / sum * total).collect()
    }

    #[test]
    fn whatever_the_loads_they_are_even_within_seconds_and_stay_so() {
        let mut random = Jitter::new(3);
        for workers in 2..=8 {
            for crowded in 1..workers {
                let rates = rates(&mut random, 40 * workers, 0.6 * workers as f64);
                let mut house = House::new(
                    workers,
                    rates
                        .into_iter()
                        .enumerate()
                        .map(|(i, rate)| (rate, i % crowded)),
                );
                for _ in 0..10 * workers {
                    house.second();
                }
                let (most, least) = house.extremes();
                assert!(
                    most - least < SKEW,
                    "{crowded} of {workers} had all: {:?}",
                    house.busy()
                );
                assert!(
                    crowded > 1 || most / 0.6 < 1.2,
                    "one of {workers} had all: {:?}",
                    house.busy()
                );
                let moved = house.moved.len();
                (0..100).for_each(|_| house.second());
                assert_eq!(house.moved.len(), moved);
            }
        }
    }

    #[test]
    fn of_fifty_equal_clients_at_one_of_two_workers_about_half_move_at_once() {
        let mut house = House::new(2, std::iter::repeat_n((0.018, 0), 50));
        (0..10).for_each(|_| house.second());
        let moved = house.moved.len();
        assert!((23..=25).contains(&moved), "{moved}");
        house.moved.dedup();
        assert_eq!(house.moved.len(), moved, "and none of them twice");
    }

    #[test]
    fn a_plan_is_short_and_leaves_alone_whose_move_would_change_nothing() {
        let (from, to) = (worker(1, 0.9), [worker(2, 0.0)]);
        let clients = |requests: &[u64]| -> Vec<Busy> {
            (0..)
                .zip(requests)
                .map(|(client, requests)| Busy {
                    client,
                    requests: *requests,
                })
                .collect()
        };
        assert_eq!(plan(&from, &to, &clients(&[7; 600])).len(), MAX_MOVES);
        let mut requests = vec![1; 100];
        requests.extend([5000, 5000]);
        let moves = plan(&from, &to, &clients(&requests));
        assert_eq!(moves.iter().map(|m| m.client).collect::<Vec<_>>(), [100]);
        assert_eq!(plan(&to[0], &[worker(3, 0.0)], &clients(&[1, 1])), []);
    }

    #[test]
    fn noise_and_bursts_move_nobody() {
        let mut random = Jitter::new(5);
        let mut rebalancer = Rebalancer::new();
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
                !matches!(rebalancer.look(&loads, now), Step::Move(_)),
                "{loads:?}"
            );
        }
    }

    #[test]
    fn a_giant_stays_where_it_is_and_the_others_leave_it_alone() {
        let small = (0..20).map(|_| (0.01, 0));
        let mut house = House::new(3, small.chain([(0.75, 0)]));
        (0..100).for_each(|_| house.second());
        assert!(!house.moved.contains(&20), "{:?}", house.moved);
        assert!((10..=20).contains(&house.moved.len()), "{:?}", house.moved);
    }

    #[test]
    fn a_worker_that_warms_up_is_given_nothing_until_it_is_warm() {
        let mut house = House::new(3, std::iter::repeat_n((0.03, 0), 30));
        house.loads[1].is_warm = false;
        (0..20).for_each(|_| house.second());
        assert!(house.clients.iter().all(|(_, at)| *at != 1));
        house.loads[1].is_warm = true;
        (0..20).for_each(|_| house.second());
        let (most, least) = house.extremes();
        assert!(most - least < SKEW, "{:?}", house.busy());
        let cold = WorkerLoad {
            is_warm: false,
            ..worker(2, 0.0)
        };
        assert_eq!(asked(&[worker(1, 1.0), cold]), None);
        assert_eq!(
            plan(
                &worker(1, 1.0),
                &[cold],
                &[
                    Busy {
                        client: 1,
                        requests: 1
                    },
                    Busy {
                        client: 2,
                        requests: 1
                    }
                ]
            ),
            []
        );
    }

    #[test]
    fn moves_follow_two_looks_and_are_followed_by_a_pause() {
        let start = Instant::now();
        let at = |second| start + INTERVAL * second;
        let (first, second) = (
            [worker(1, 0.9), worker(2, 0.8), worker(3, 0.0)],
            [worker(1, 0.8), worker(2, 0.9), worker(3, 0.0)],
        );
        let mut rebalancer = Rebalancer::new();
        assert_eq!(rebalancer.look(&first, at(0)), Step::Watch(WorkerId(1)));
        assert_eq!(
            rebalancer.look(&second, at(1)),
            Step::Move(WorkerId(1)),
            "although another is the busiest now"
        );
        assert_eq!(
            (2..4)
                .map(|s| rebalancer.look(&second, at(s)))
                .collect::<Vec<_>>(),
            [Step::Rest; 2]
        );
        assert_eq!(rebalancer.look(&second, at(4)), Step::Watch(WorkerId(2)));
        assert_eq!(
            rebalancer.look(&first[..1], at(5)),
            Step::Rest,
            "it has nobody to give to"
        );
        assert_eq!(rebalancer.look(&second, at(6)), Step::Watch(WorkerId(2)));
        assert_eq!(
            rebalancer.look(&[worker(1, 0.29), worker(2, 0.0)], at(7)),
            Step::Rest,
            "nobody waits"
        );
    }

    #[test]
    fn an_operator_may_ask_for_less() {
        assert_eq!(asked(&[worker(1, 0.2), worker(2, 0.1)]), Some(WorkerId(1)));
        assert_eq!(asked(&[worker(1, 0.14), worker(2, 0.1)]), None);
        assert_eq!((asked(&[worker(1, 1.0)]), asked(&[])), (None, None));
    }

    proptest! {
        /// Requests are read from shared memory, and a broken worker may have written anything.
        #[test]
        fn a_plan_moves_each_at_most_once_and_only_who_was_busy_and_never_turns_the_tables(
            busy in 0.0..1.0f64,
            to in proptest::collection::vec((0.0..1.0f64, any::<bool>()), 0..6),
            requests in proptest::collection::vec(prop_oneof![Just(0), 0..50u64, any::<u64>()], 0..600),
        ) {
            let from = worker(0, busy);
            let mut loads: Vec<_> =
                (1..).zip(to).map(|(id, (busy, is_warm))| WorkerLoad { is_warm, ..worker(id, busy) }).collect();
            let clients: Vec<_> = (0..).zip(&requests).map(|(client, n)| Busy { client, requests: *n }).collect();
            let moves = plan(&from, &loads, &clients);
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
