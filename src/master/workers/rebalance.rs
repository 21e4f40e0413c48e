//! Moving busy clients from workers with much to do to workers with little: automatically, and when asked to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::telemetry::counters::Reason;
use crate::master::telemetry::events::Asker;
use crate::master::workers::worker::Worker;
use crate::pool::MemberState;
use crate::pool::rebalance::{self, Busy, Move, Step, WorkerLoad};
use crate::proto::channel::ToWorker;
use crate::proto::control::{About, Kind, MovedLoad};
use crate::proto::names::WorkerId;
use crate::sys::clock;

/// A rebalancing that was asked for: who is being watched.
#[derive(Debug)]
pub(crate) struct AskedBalance {
    pub(crate) asker: Asker,
    pub(crate) is_dry: bool,
    pub(crate) from: Option<WorkerId>,
    pub(crate) until: Instant,
}

impl Master {
    /// Moves load, if it has been uneven for a while.
    pub(crate) fn balance(&mut self, now: Instant) {
        let loads = self.loads(now);
        match self.workers.rebalancer.look(&loads, now) {
            Step::Rest => {}
            Step::Watch(id) => self.count_requests(id),
            Step::Move(id) => {
                let moves = self.plan(id, &loads);
                let count = moves.len();
                self.move_clients(id, moves);
                let about = About {
                    worker: Some(id),
                    clients: Some(count as u64),
                    ..About::default()
                };
                let sentence = format_args!(
                    "worker {id} was the busiest for a while; {count} clients moved from it"
                );
                self.telemetry
                    .events
                    .note(Kind::Rebalanced, about, sentence);
            }
        }
    }

    /// How busy the workers are that can be given clients.
    pub(crate) fn loads(&self, now: Instant) -> Vec<WorkerLoad> {
        let clock = clock::monotonic();
        let load = |worker: &Worker| {
            let since = match self.workers.pool.member(worker.id)?.state {
                MemberState::Ready { since } => since,
                _ => return None,
            };
            let is_warm = now.duration_since(since) >= WARM_UP;
            Some(WorkerLoad {
                id: worker.id,
                busy: worker.shm.header().busy(clock),
                is_warm,
            })
        };
        self.ready_workers().filter_map(load).collect()
    }

    /// Begins to count the requests of a worker's clients.
    pub(crate) fn count_requests(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.all.get_mut(&id) {
            worker.leases.watch(&worker.shm);
        }
    }

    /// Who would have to move from a worker, by what its clients asked since they were begun to be counted.
    pub(crate) fn plan(&self, from: WorkerId, loads: &[WorkerLoad]) -> Vec<Move> {
        let (Some(worker), Some(load)) = (
            self.workers.all.get(&from),
            loads.iter().find(|load| load.id == from),
        ) else {
            return Vec::new();
        };
        let watched = worker.leases.watched(&worker.shm);
        let clients: Vec<Busy> = watched
            .into_iter()
            .map(|(slot, requests)| Busy {
                client: slot.into(),
                requests,
            })
            .collect();
        rebalance::plan(load, loads, &clients)
    }

    /// Takes these clients, those of them that are in no turn, and has them leased to where they are to go.
    pub(crate) fn move_clients(&mut self, from: WorkerId, moves: Vec<Move>) {
        let Some(worker) = self.workers.all.get_mut(&from) else {
            return;
        };
        let mut taken = Vec::new();
        for Move { client, to, .. } in moves {
            let recovered = u32::try_from(client)
                .ok()
                .and_then(|slot| worker.leases.revoke(slot, &worker.shm));
            taken.extend(recovered.map(|recovered| {
                recovered.map(|mut unleased| {
                    unleased.to = Some(to);
                    unleased
                })
            }));
        }
        if self.take_in(taken, Reason::Rebalance) > 0 {
            self.tell(from, ToWorker::LeasesRevoked);
        }
    }
}

/// What moves come to, as it is told: one line for each worker that gets some.
pub(crate) fn sum_up(from: WorkerId, moves: &[Move]) -> Vec<MovedLoad> {
    let mut sums: BTreeMap<WorkerId, (u64, f64)> = BTreeMap::new();
    for Move { to, load, .. } in moves {
        let (clients, sum) = sums.entry(*to).or_default();
        (*clients, *sum) = (*clients + 1, *sum + load);
    }
    sums.into_iter()
        .map(|(to, (clients, load))| MovedLoad {
            from,
            to,
            clients,
            load,
        })
        .collect()
}

/// So long a worker's share of time says little about it.
const WARM_UP: Duration = Duration::from_secs(3);
