//! Moves busy clients from loaded workers to less loaded ones, automatically and on request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::telemetry::events::Asker;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::pool::MemberState;
use crate::pool::rebalance::{self, Busy, Move, Step, WorkerLoad};
use crate::proto::channel::ToWorker;
use crate::proto::control::{About, Kind, MovedLoad, Rebalanced};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::clock;
use crate::sys::poll::Poller;

/// A requested rebalancing.
#[derive(Debug)]
pub(crate) struct RequestedRebalance {
    pub(crate) asker: Asker,
    pub(crate) is_dry: bool,
    /// The worker whose clients' requests are being counted, if one is busier than the others.
    pub(crate) from: Option<WorkerId>,
    /// When the count ends, and the clients move.
    pub(crate) until: Instant,
}

impl Workers {
    /// Moves load if it has been uneven for a while.
    pub(super) fn rebalance(
        &mut self,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let loads = self.loads(now);
        match self.rebalancer.observe(&loads, now) {
            Step::Rest => {}
            Step::Watch(id) => self.begin_request_count(id),
            Step::Move(id) => {
                let moves = self.plan(id, &loads);
                let moved = self.move_clients(id, moves, clients, telemetry, poller);
                let count = moved.len();
                if count == 0 {
                    // Each client was in a turn, or its request is away.
                    return;
                }
                let about = About {
                    worker: Some(id),
                    clients: Some(count as u64),
                    ..About::default()
                };
                let sentence = format_args!(
                    "worker {id} was the busiest for a while; {} moved from it",
                    Counted(count, "client")
                );
                telemetry.events.note(Kind::Rebalanced, about, sentence);
            }
        }
    }

    /// Returns the load of the workers that can be given clients.
    pub(super) fn loads(&self, now: Instant) -> Vec<WorkerLoad> {
        let clock = clock::monotonic();
        let load = |worker: &Worker| {
            let since = match self.pool.member(worker.id)?.state {
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
        self.ready().filter_map(load).collect()
    }

    /// Begins to count the requests of a worker's clients.
    pub(super) fn begin_request_count(&mut self, id: WorkerId) {
        if let Some(worker) = self.all.get_mut(&id) {
            worker.leases.begin_request_count(&worker.shm);
        }
    }

    /// Returns the moves that would relieve a worker, by the requests of its clients since the count began.
    pub(super) fn plan(&self, from: WorkerId, loads: &[WorkerLoad]) -> Vec<Move> {
        let (Some(worker), Some(load)) = (
            self.all.get(&from),
            loads.iter().find(|load| load.id == from),
        ) else {
            return Vec::new();
        };
        let counted = worker.leases.counted_requests(&worker.shm);
        let clients: Vec<Busy> = counted
            .into_iter()
            .map(|(slot, requests)| Busy {
                client: slot.into(),
                requests,
            })
            .collect();
        rebalance::plan(load, loads, &clients)
    }

    /// Revokes the leases of these clients, except those in a turn or with a request away, and has the clients leased
    /// to their new workers. Returns the moves that were made.
    pub(super) fn move_clients(
        &mut self,
        from: WorkerId,
        moves: Vec<Move>,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) -> Vec<Move> {
        let Some(worker) = self.all.get_mut(&from) else {
            return Vec::new();
        };
        let (mut revoked, mut moved) = (Vec::new(), Vec::new());
        for planned in moves {
            let recovered = u32::try_from(planned.client)
                .ok()
                .and_then(|slot| worker.leases.revoke(slot, &worker.shm));
            let Some(recovered) = recovered else { continue };
            revoked.push(recovered.map(|unleased| Unleased {
                to: Some(planned.to),
                ..unleased
            }));
            moved.push(planned);
        }
        clients.requeue(revoked, Reason::Rebalance, telemetry);
        if !moved.is_empty() {
            self.send(from, ToWorker::LeasesRevoked, poller);
        }
        moved
    }
}

/// Returns the reply about these of the planned moves: a sum for each worker that gets clients.
pub(super) fn sum_up(from: WorkerId, moves: &[Move], planned: usize) -> Rebalanced {
    let mut sums: BTreeMap<WorkerId, (u64, f64)> = BTreeMap::new();
    for Move { to, load, .. } in moves {
        let (clients, sum) = sums.entry(*to).or_default();
        (*clients, *sum) = (*clients + 1, *sum + load);
    }
    let sums = sums.into_iter();
    let sums = sums.map(|(to, (clients, load))| MovedLoad {
        from,
        to,
        clients,
        load,
    });
    Rebalanced {
        moves: sums.collect(),
        busy: planned.saturating_sub(moves.len()) as u64,
    }
}

/// Age below which the busy share of a worker means little.
const WARM_UP: Duration = Duration::from_secs(3);
