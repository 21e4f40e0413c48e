//! Watching workers while they have clients: who is stuck, and who has become too busy.
//!
//! Every half `stall-timeout` the master looks at the desks. A worker that shows no sign of life since the last look is
//! asked for one. A worker that has been in one turn, or has not answered, for `stall-timeout` is stuck: it gets no new
//! leases, and all its clients but the one that it is stuck with are taken, without asking it. When it beats again it
//! gets work again; if it does not within `request-timeout`, it is killed. Without clients nobody looks, and nobody wakes up.

use std::time::{Duration, Instant};

use super::Master;
use super::worker::Worker;
use crate::pool::{State, rebalance};
use crate::proto::channel::ToWorker;
use crate::proto::names::WorkerId;
use crate::sys::clock;

/// When who is looked at next.
#[derive(Debug, Default)]
pub(super) struct Watch {
    next_look: Option<Instant>,
    next_balance: Option<Instant>,
}

impl Watch {
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.next_look, self.next_balance].into_iter().flatten().min()
    }
}

impl Worker {
    /// Since when it has been in the turn that it is in: ns of CLOCK_MONOTONIC.
    fn turn_since(&self) -> Option<u64> {
        self.desk.header().turn().map(|turn| turn.since)
    }

    /// Whether it is in the middle of a request.
    pub(super) fn is_executing(&self) -> bool {
        let turn = self.desk.header().turn();
        turn.and_then(|turn| self.desk.slot(turn.slot)?.executing()).is_some()
    }

    /// The method that it executes, if that takes longer than a moment.
    pub(super) fn method_in_turn(&self) -> Option<&str> {
        let number = self.desk.header().executing()?;
        let method = self.methods.get((number as usize).checked_sub(1)?)?;
        Some(&method.name)
    }

    /// Looks whether it shows signs of life, and asks it for one if not. How long it has been stuck, if it may be; and when
    /// that would be for `limit`.
    fn feel_pulse(&mut self, limit: Duration, now: Instant) -> (Duration, Option<Instant>) {
        let beats = self.desk.header().beats();
        if beats != self.pulse.beats {
            self.pulse.beats = beats;
            self.pulse.asked = None;
        }
        let silent = match (self.turn_since(), self.pulse.asked) {
            (Some(since), _) => ago(since),
            (None, Some(asked)) => now.duration_since(asked),
            (None, None) => {
                self.pulse.asked = Some(now);
                self.mention(&ToWorker::Probe);
                Duration::ZERO
            }
        };
        (silent, now.checked_add(limit.saturating_sub(silent)).filter(|_| silent < limit))
    }
}

/// How long ago that was, by the same clock.
fn ago(since: u64) -> Duration {
    Duration::from_nanos(clock::monotonic().saturating_sub(since))
}

impl Master {
    /// There may be leases now: somebody has to look at them.
    pub(super) fn watch_from(&mut self, now: Instant) {
        if self.watch.next_look.is_none() && self.workers.keys().any(|id| self.is_watched(*id)) {
            self.watch.next_look = Some(now + self.config.limits.stall_timeout / 2);
            // A look begins the next one, and must not put this off with it.
            self.watch.next_balance.get_or_insert(now + rebalance::INTERVAL);
        }
    }

    /// Whether a worker is looked at: while it has clients, and until it is back when it is stuck.
    fn is_watched(&self, id: WorkerId) -> bool {
        let has_clients = self.workers.get(&id).is_some_and(|worker| worker.leases.clients() > 0);
        has_clients || self.pool.member(id).is_some_and(|member| member.is_stalled)
    }

    /// The last client has left: nobody is looked at, unless somebody is stuck.
    pub(super) fn rest(&mut self) {
        if !self.pool.members().any(|member| member.is_stalled) {
            self.watch = Watch::default();
        }
    }

    /// Looks at the workers, if it is time to.
    pub(super) fn look_at_workers(&mut self, now: Instant) {
        if self.watch.next_look.is_some_and(|at| at <= now) {
            self.watch.next_look = None;
            let limits = &self.config.limits;
            let limit = limits.request_timeout.map_or(limits.stall_timeout, |most| most.min(limits.stall_timeout));
            let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
            let soonest = ids.into_iter().filter_map(|id| self.look_at(id, limit, now)).min();
            self.watch_from(now);
            if let (Some(next), Some(soonest)) = (self.watch.next_look, soonest) {
                self.watch.next_look = Some(next.min(soonest.max(now + SOONEST)));
            }
        }
        if self.watch.next_balance.is_some_and(|at| at <= now) {
            self.watch.next_balance = self.watch.next_look.map(|_| now + rebalance::INTERVAL);
            self.balance(now);
        }
    }

    /// Looks at one worker; when it would be stuck.
    fn look_at(&mut self, id: WorkerId, limit: Duration, now: Instant) -> Option<Instant> {
        let is_watched = self.is_watched(id);
        let worker = self.workers.get_mut(&id).filter(|_| is_watched)?;
        let member = *self.pool.member(id)?;
        if matches!(member.state, State::Held { .. }) {
            // It was in a turn when it was taken from before, perhaps.
            self.take_and_tell(id);
            return None;
        }
        let (silent, stuck_at) = worker.feel_pulse(limit, now);
        if silent < limit {
            if self.pool.revived(id) {
                log::info!("{} is back and gets clients again", self.workers[&id].name());
            }
            return stuck_at;
        }
        let kill_by = self.config.limits.request_timeout.and_then(|most| now.checked_add(most.saturating_sub(silent)));
        if self.pool.stalled(id, kill_by) {
            self.counts.stalls += 1;
            let name = self.name_with_request(id);
            let moved = self.take_and_tell(id);
            log::warn!("{name} is stuck for {silent:.1?}; {moved} clients moved to others until it is back");
        }
        None
    }

    /// Takes all clients of a worker that are in no turn, and has it drop its copies. Returns how many.
    pub(super) fn take_and_tell(&mut self, id: WorkerId) -> usize {
        let moved = self.take_all(id);
        if moved > 0 {
            self.tell(id, ToWorker::Look);
        }
        moved
    }

    /// A worker, and whose request it is that it executes, if it executes one.
    fn name_with_request(&self, id: WorkerId) -> String {
        let worker = &self.workers[&id];
        let turn = worker.desk.header().turn();
        let client = turn.and_then(|turn| worker.leases.in_turn(turn.slot, &worker.desk));
        match (client, worker.method_in_turn()) {
            (Some(client), Some(method)) => {
                format!("{} in method {method:?} of client {} ({})", worker.name(), client.id, client.peer)
            }
            _ => worker.name(),
        }
    }
}

/// The next look is not sooner than that, whatever the clocks say.
const SOONEST: Duration = Duration::from_millis(1);
