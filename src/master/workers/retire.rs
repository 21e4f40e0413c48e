//! Moves the clients of retiring workers in parts. Between two parts the loop serves everything else, and a client that
//! has not moved yet is served by its worker as before.

use std::time::Instant;

use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::clients::leases::Recovered;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::pool::Why;
use crate::proto::channel::{MAX_LEASES, ToWorker};
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::poll::Poller;

/// The most clients that move in one iteration of the loop.
const MAX_PART: usize = 2 * MAX_LEASES;

/// The most leases that a worker may have without having picked them up, when clients of a retiring worker move to it.
/// A new client is served only after them, so there are fewer than at other times.
const MOVE_WINDOW: u64 = 2 * MAX_LEASES as u64;

/// A worker that retires and still has its clients.
#[derive(Debug)]
pub(super) struct Retiring {
    id: WorkerId,
    why: Why,
    /// The first slot that was not looked at.
    next: u32,
    moved: usize,
}

/// Directs these clients to the worker that stays in their worker's seat, if there is one. So each seat keeps its
/// number of clients, whatever the order in which workers are replaced.
pub(super) fn to_successor(
    recovered: Vec<Recovered>,
    to: Option<WorkerId>,
) -> impl Iterator<Item = Recovered> {
    let meant = move |unleased| Unleased { to, ..unleased };
    recovered.into_iter().map(move |it| it.map(meant))
}

impl Workers {
    /// Has a worker retire: its leases are revoked; it gives up clients that are in a turn itself, and exits.
    pub(crate) fn retire(&mut self, id: WorkerId, why: Why, telemetry: &mut Telemetry) {
        telemetry.counts.retirements.add(why, 1);
        self.retiring.push_back(Retiring {
            id,
            why,
            next: 0,
            moved: 0,
        });
    }

    /// Stops moving the clients of a retiring worker: all workers must end, and this one gives up or closes its clients
    /// itself.
    pub(crate) fn end_moves_from(&mut self, id: WorkerId) {
        self.retiring.retain(|retiring| retiring.id != id);
    }

    /// Returns whether retiring workers still have clients that have not been looked at.
    pub(crate) fn is_moving(&self) -> bool {
        !self.retiring.is_empty()
    }

    /// Returns whether the next part can move at once. Otherwise a message of a worker reports that it can.
    pub(crate) fn can_move(&self) -> bool {
        self.is_moving() && !self.awaits_pick_up
    }

    /// Moves the next clients of retiring workers, as many as others will pick up soon.
    pub(crate) fn move_part(
        &mut self,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        if self.retiring.is_empty() {
            return;
        }
        let space = self.space_for_movers();
        self.awaits_pick_up = space == 0;
        let mut left = space.min(MAX_PART);
        while let Some(mut retiring) = self.retiring.pop_front() {
            let to = self.pool.successor(retiring.id);
            // Without a record the worker has ended, and its clients are recovered.
            let Some(worker) = self.all.get_mut(&retiring.id) else {
                continue;
            };
            let revoked = worker
                .leases
                .revoke_from(&mut retiring.next, left, &worker.shm);
            let is_over = retiring.next >= worker.leases.used();
            let moved = clients.requeue(to_successor(revoked, to), Reason::Drain, telemetry);
            retiring.moved += moved;
            left = left.saturating_sub(moved);
            if moved > 0 {
                let waiting = self.retiring.iter().map(|waiting| waiting.id);
                (waiting.chain([retiring.id])).for_each(|id| self.pool.clients_moved(id, now));
            }
            if is_over {
                self.end_moves(&retiring, telemetry, poller);
                continue;
            }
            if moved > 0 {
                self.send(retiring.id, ToWorker::LeasesRevoked, poller);
            }
            return self.retiring.push_front(retiring);
        }
    }

    /// Has a worker exit whose clients have moved.
    fn end_moves(&mut self, retiring: &Retiring, telemetry: &mut Telemetry, poller: &Poller) {
        let Some(worker) = self.all.get(&retiring.id) else {
            return;
        };
        let about = About {
            clients: Some(retiring.moved as u64),
            ..worker.about()
        };
        let sentence = format_args!(
            "{} retires: {}; {} moved",
            worker.name(),
            retiring.why,
            Counted(retiring.moved, "client")
        );
        telemetry.events.note(Kind::WorkerDraining, about, sentence);
        self.send(retiring.id, ToWorker::Retire, poller);
    }

    /// Returns how many clients can be leased to ready workers that pick them up soon. If none can, all workers are
    /// asked to report when they pick up more.
    fn space_for_movers(&self) -> usize {
        let of_worker = |worker: &Worker| worker.space(MOVE_WINDOW);
        let space: usize = self.ready().map(of_worker).sum();
        if space > 0 {
            return space;
        }
        self.ready().for_each(|worker| {
            worker.want_capacity();
        });
        self.ready().map(of_worker).sum()
    }
}
