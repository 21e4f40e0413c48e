//! Spreads the clients over the workers after a start, when the first ready worker has received all clients that
//! waited.

use std::time::{Duration, Instant};

use crate::config::{Config, RebalanceMode};
use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::master::workers::Workers;
use crate::pool::spread::{self, Share};
use crate::proto::channel::ToWorker;
use crate::proto::control::{About, Kind};
use crate::proto::names::WorkerId;
use crate::proto::text::Counted;
use crate::sys::poll::Poller;

/// The time between two attempts to move clients that are in a turn, or to a worker that picks up others.
const TICK: Duration = Duration::from_millis(5);

/// The longest such time: each attempt looks at all clients of a worker.
const MAX_TICK: Duration = Duration::from_millis(320);

/// The time without a move after which the clients stay where they are.
const STUCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Set from the time at which the first worker is ready until all workers are ready and have their shares.
#[derive(Debug)]
pub(crate) struct Spreading {
    /// When clients move next; `None` until another worker is ready.
    next: Option<Instant>,
    /// When spreading ends, unless a client has moved before: then the clients stay where they are.
    until: Instant,
    moved: usize,
    /// The slot of the worker that gives clients at which the next part begins.
    cursor: u32,
    /// The wait after a part in which no client could be moved: doubled each time.
    pause: Duration,
}

impl Spreading {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next
    }
}

impl Workers {
    /// Notes that a worker has become ready. If it is the first one and clients wait, the others get their shares
    /// later.
    pub(super) fn expect_shares(&mut self, clients: &Clients, now: Instant) {
        if let Some(spreading) = &mut self.spreading {
            (spreading.next, spreading.until) = (Some(now), now + STUCK_TIMEOUT);
        } else if !clients.unleased.is_empty() && self.pool.serving() == 1 {
            self.spreading = Some(Spreading {
                next: None,
                until: now,
                moved: 0,
                cursor: 0,
                pause: TICK,
            });
        }
    }

    /// Moves clients to workers that became ready after the first one.
    pub(super) fn spread_clients(
        &mut self,
        config: &Config,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        // If the pool is settled, all workers became ready together, or there is only one. The pool walks over all
        // workers to find that, so it is asked only while clients may have to be spread.
        let pool = &self.pool;
        self.spreading
            .take_if(|spreading| spreading.next.is_none() && pool.is_settled());
        let is_due = |spreading: &mut Spreading| spreading.next.is_some_and(|next| next <= now);
        let Some(mut spreading) = self.spreading.take_if(is_due) else {
            return;
        };
        if config.workers.rebalance != RebalanceMode::Auto {
            return;
        }
        if self.pool.is_rolling() {
            // A reload moves all clients, unless it is rolled back.
            (spreading.next, spreading.until) = (Some(now + MAX_TICK), now + STUCK_TIMEOUT);
            self.spreading = Some(spreading);
            return;
        }
        let wanted = self.pool.target().count;
        match spread::next_share(&self.shares(), wanted) {
            // The clients that wait are leased first.
            _ if !clients.unleased.is_empty() => {
                (spreading.next, spreading.until) = (Some(now + TICK), now + STUCK_TIMEOUT);
            }
            Some(share) => {
                let count = share.count;
                let cursor = &mut spreading.cursor;
                let moved = self.move_share(share, cursor, clients, telemetry, poller);
                spreading.moved += moved;
                if moved > 0 {
                    (spreading.until, spreading.pause) = (now + STUCK_TIMEOUT, TICK);
                } else if spreading.until <= now {
                    return spreading.note(telemetry);
                }
                let pause = match moved {
                    _ if moved == count => Duration::ZERO,
                    0 => {
                        let longer = (spreading.pause * 2).min(MAX_TICK);
                        std::mem::replace(&mut spreading.pause, longer)
                    }
                    _ => TICK,
                };
                spreading.next = Some(now + pause);
            }
            None if self.pool.is_settled() => return spreading.note(telemetry),
            None => spreading.next = None,
        }
        self.spreading = Some(spreading);
    }

    /// Returns the number of clients of each worker that gets clients.
    fn shares(&self) -> Vec<(WorkerId, usize)> {
        self.ready()
            .filter(|worker| worker.unhealthy.is_none())
            .map(|worker| (worker.id, worker.leases.clients()))
            .collect()
    }

    /// Revokes the leases of as many clients that are in no turn, and has them leased to the other worker, if that has
    /// picked up its last ones. Clients with bytes in shared memory stay: for a moment their bytes would exist twice,
    /// and the workers may have died for lack of memory. Returns the number of moved clients.
    fn move_share(
        &mut self,
        share: Share,
        cursor: &mut u32,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
    ) -> usize {
        // Without capacity the clients would return to the worker that they left.
        let target = self.all.get(&share.to);
        if !target.is_some_and(|worker| worker.has_capacity()) {
            return 0;
        }
        let Some(worker) = self.all.get_mut(&share.from) else {
            return 0;
        };
        let to = Some(share.to);
        let used = worker.leases.used();
        let begin = (*cursor).min(used);
        let mut revoked = Vec::new();
        // To the end, and then from the beginning.
        for slot in (begin..used).chain(0..begin) {
            if revoked.len() == share.count {
                break;
            }
            *cursor = slot + 1;
            let recovered = worker.leases.revoke_idle(slot, &worker.shm);
            revoked.extend(recovered.map(|all| all.map(|unleased| Unleased { to, ..unleased })));
        }
        let moved = clients.requeue(revoked, Reason::Rebalance, telemetry);
        if moved > 0 {
            self.send(share.from, ToWorker::LeasesRevoked, poller);
        }
        moved
    }
}

impl Spreading {
    fn note(self, telemetry: &mut Telemetry) {
        if self.moved == 0 {
            return;
        }
        let about = About {
            clients: Some(self.moved as u64),
            ..About::default()
        };
        let moved = Counted(self.moved, "client");
        let sentence =
            format_args!("{moved} moved to workers that became ready after the first one");
        telemetry.events.note(Kind::Rebalanced, about, sentence);
    }
}
