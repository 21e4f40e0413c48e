//! What the operator changes while it runs: how many workers, which of them, and whether clients are accepted.

use std::time::Instant;

use super::Master;
use super::balance::sum_up;
use super::start::client_limits;
use crate::pool::rebalance;
use crate::proto::control::{Code, MovedLoad, Origin, Refusal, Release};
use crate::proto::names::WorkerId;

/// Most workers.
const MOST_WORKERS: u32 = 256;

/// A rebalancing that was asked for: who is being watched.
#[derive(Debug)]
pub(super) struct AskedBalance {
    /// The verb, and by whom.
    who: String,
    pub(super) is_dry: bool,
    pub(super) from: Option<WorkerId>,
    pub(super) until: Instant,
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::Refused, message)
}

impl Master {
    /// Has so many workers, until the next reload.
    pub(super) fn scale(&mut self, who: &str, count: u32) -> Result<(), Refusal> {
        if !(1..=MOST_WORKERS).contains(&count) {
            return Err(refused(format!("there can be 1 to {MOST_WORKERS} workers, not {count}")));
        }
        let limits =
            client_limits(&self.config, count as usize, self.descriptors).map_err(|e| refused(e.to_string()))?;
        // Desks have as many slots as they have.
        self.max_clients = limits.clients.min(self.layout.slots().into());
        let before = self.pool.target().count;
        log::info!("{who}: {count} workers instead of {before}");
        self.pool.scale(count as usize);
        self.count_origin = Origin::Runtime;
        Ok(())
    }

    /// One worker more or less, by a signal.
    pub(super) fn step(&mut self, who: &str, by: i32) {
        let count = u32::try_from(self.pool.target().count).unwrap_or(MOST_WORKERS).saturating_add_signed(by);
        if let Err(refusal) = self.scale(who, count) {
            log::warn!("{who}: {}", refusal.message);
        }
    }

    /// Replaces a worker, or all.
    pub(super) fn recycle(&mut self, who: &str, worker: Option<WorkerId>) -> Result<(), Refusal> {
        match worker {
            None => {
                log::info!("{who}: replacing all workers");
                self.pool.recycle_all();
            }
            Some(id) if self.pool.recycle(id) => log::info!("{who}: replacing worker {id}"),
            Some(id) => return Err(self.no_ready_worker(id)),
        }
        Ok(())
    }

    /// Takes all clients from a worker, and lets it run.
    pub(super) fn hold(&mut self, who: &str, id: WorkerId) -> Result<(), Refusal> {
        if !self.pool.hold(id) {
            return Err(self.no_ready_worker(id));
        }
        let moved = self.take_and_tell(id);
        log::info!("{who}: worker {id} is held; {moved} clients moved");
        Ok(())
    }

    pub(super) fn release(&mut self, who: &str, what: &Release) -> Result<(), Refusal> {
        match what {
            Release::Worker(id) if self.pool.release(*id) => log::info!("{who}: worker {id} is released"),
            Release::Worker(id) => return Err(refused(format!("worker {id} is not held"))),
            Release::Method(name) if self.strikes.release(name) => {
                log::info!("{who}: method {name:?} is run again");
                self.say_quarantined();
            }
            Release::Method(name) => return Err(refused(format!("method {name:?} is not quarantined"))),
        }
        Ok(())
    }

    fn no_ready_worker(&self, id: WorkerId) -> Refusal {
        match self.pool.member(id) {
            Some(_) => refused(format!("worker {id} does not serve at the moment")),
            None => refused(format!("there is no worker {id}")),
        }
    }

    /// Accepts nobody, or clients again.
    pub(super) fn set_drained(&mut self, who: &str, is_drained: bool) {
        let sentence = if is_drained { "nobody new is accepted" } else { "clients are accepted" };
        log::info!("{who}: {sentence}; there are {} clients", self.clients);
        self.is_drained = is_drained;
    }

    /// Begins to watch the busiest worker, to see what of it could be moved.
    pub(super) fn begin_balance(&mut self, who: &str, is_dry: bool, now: Instant) -> Result<(), Refusal> {
        if self.asked_balance.is_some() {
            return Err(Refusal::new(Code::Busy, "another rebalancing is going on"));
        }
        let loads = self.loads(now);
        let from = rebalance::asked(&loads);
        match from {
            Some(id) => {
                log::info!("{who}: looking at what could be moved from worker {id}");
                self.count_requests(id);
            }
            None => log::info!("{who}: no worker has more to do than the others"),
        }
        let until = now + rebalance::INTERVAL;
        self.asked_balance = Some(AskedBalance { who: who.to_owned(), is_dry, from, until });
        Ok(())
    }

    /// What came of a rebalancing that was asked for, once it has watched for long enough.
    pub(super) fn end_balance(&mut self, now: Instant) -> Option<Vec<MovedLoad>> {
        self.asked_balance.as_ref().filter(|asked| asked.until <= now)?;
        let AskedBalance { who, is_dry, from, .. } = self.asked_balance.take()?;
        let Some(from) = from else { return Some(Vec::new()) };
        let moves = self.plan(from, &self.loads(now));
        let (sums, count) = (sum_up(from, &moves), moves.len());
        if is_dry {
            log::info!("{who}: {count} clients would be moved from worker {from}");
        } else {
            self.move_clients(from, moves);
            log::info!("{who}: {count} clients moved from worker {from}");
        }
        Some(sums)
    }
}
