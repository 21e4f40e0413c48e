//! DECISIONS: which workers there should be, against which there are. Pure: no clock, no descriptor, no log.
//!
//! The master tells what happened ([`Pool::ready`], [`Pool::exited`], …), asks [`Pool::reconcile`] what to do about it,
//! and does that. Nothing is scripted: each call compares what is wanted with what is, so that a fact that was missed
//! costs a turn of the loop and no more.
//!
//! ```text
//!             due                ready               stop
//!  Waiting ---------> Starting ---------> Ready ---------> Draining
//!     ^                  |                  |                  |
//!     |                  | exit, or killed  | exit             | exit, or killed at its deadline
//!     +------------------+------------------+                  v
//!        with a backoff if it is one more of a streak         Gone
//! ```
//!
//! 1. Only a ready worker is given clients.
//! 2. Every id in an action is of a worker that there is; every `Spawn` has a new one.
//! 3. A worker that was killed while it served is replaced at once. Only one that did not become ready, or ended within
//!    a second of it without having answered anything, lengthens its seat's streak and waits.
//! 4. A bad seat never stops the others; if no worker was ever ready, the pool gives up.

mod backoff;
pub mod dispatch;
pub mod rebalance;

use std::time::{Duration, Instant};

use crate::proto::names::WorkerId;

/// A worker that ends so soon after it became ready, without an answer given, was never really there.
const PROBATION: Duration = Duration::from_secs(1);

/// So many deaths in a row at every seat, with none ever ready, are enough to see that none will be.
const GIVE_UP: u32 = 3;

/// Workers and the seats they are at.
#[derive(Debug)]
pub struct Pool {
    seats: Vec<Seat>,
    start_timeout: Duration,
    next: WorkerId,
    /// Whether a worker has ever been ready.
    ever_ready: bool,
    /// When all are to be gone, once the end was asked for.
    stop_by: Option<Instant>,
    jitter: backoff::Jitter,
}

/// A seat among the workers: what stays when a process is replaced.
#[derive(Debug)]
struct Seat {
    state: State,
    /// Deaths in a row that were its own fault.
    streak: u32,
}

/// Where a seat's worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none until then.
    Waiting {
        /// When the next one is due.
        until: Instant,
    },
    /// It has been spawned.
    Starting {
        /// Who.
        id: WorkerId,
        /// When it must be ready; none once it was killed because it was not.
        until: Option<Instant>,
    },
    /// It serves.
    Ready {
        /// Who.
        id: WorkerId,
        /// Since when.
        since: Instant,
    },
    /// It was told to finish.
    Draining {
        /// Who.
        id: WorkerId,
        /// When it must be gone; none once it was killed because it was not.
        until: Option<Instant>,
    },
    /// It is gone for good.
    Gone,
}

impl State {
    /// The worker that is there.
    #[must_use]
    pub fn worker(self) -> Option<WorkerId> {
        match self {
            State::Waiting { .. } | State::Gone => None,
            State::Starting { id, .. } | State::Ready { id, .. } | State::Draining { id, .. } => Some(id),
        }
    }
}

/// What the master is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker at this seat; it is this one.
    Spawn(usize, WorkerId),
    /// Kill it: it was not ready in time, or not gone in time.
    Kill(usize, WorkerId),
    /// Tell it to finish; it is killed then.
    Stop(usize, WorkerId, Instant),
    /// No worker was ever ready, and none will be.
    GiveUp,
}

impl Pool {
    /// A pool of so many workers, all due at once. `seed` makes the backoffs of different daemons differ.
    #[must_use]
    pub fn new(count: usize, start_timeout: Duration, now: Instant, seed: u64) -> Pool {
        let seat = || Seat { state: State::Waiting { until: now }, streak: 0 };
        Pool {
            seats: std::iter::repeat_with(seat).take(count).collect(),
            start_timeout,
            next: WorkerId(1),
            ever_ready: false,
            stop_by: None,
            jitter: backoff::Jitter::new(seed),
        }
    }

    /// The states of all seats, in order.
    pub fn states(&self) -> impl Iterator<Item = State> + '_ {
        self.seats.iter().map(|seat| seat.state)
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop_by.is_some()
    }

    /// Whether the end was asked for and has been reached.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_stopping() && self.states().all(|state| state == State::Gone)
    }

    /// A worker said that it can serve. False if there is none such, or it was not expected to say so.
    pub fn ready(&mut self, id: WorkerId, now: Instant) -> bool {
        let starting = |seat: &&mut Seat| matches!(seat.state, State::Starting { id: i, until: Some(_) } if i == id);
        let Some(seat) = self.seats.iter_mut().find(starting) else { return false };
        seat.state = State::Ready { id, since: now };
        self.ever_ready = true;
        true
    }

    /// A worker's process has ended; `has_answered` tells whether it ever answered a request. Returns how long its
    /// successor waits, if one is to come.
    pub fn exited(&mut self, id: WorkerId, has_answered: bool, now: Instant) -> Option<Duration> {
        let is_stopping = self.is_stopping();
        let seat = self.seats.iter_mut().find(|seat| seat.state.worker() == Some(id))?;
        let was_no_good = match seat.state {
            State::Ready { since, .. } => !has_answered && now.duration_since(since) < PROBATION,
            State::Starting { .. } => true,
            State::Draining { .. } | State::Waiting { .. } | State::Gone => false,
        };
        if is_stopping {
            seat.state = State::Gone;
            return None;
        }
        seat.streak = if was_no_good { seat.streak.saturating_add(1) } else { 0 };
        let delay = self.jitter.backoff(seat.streak);
        seat.state = State::Waiting { until: now + delay };
        Some(delay)
    }

    /// The end is asked for. Asked again, it can only come sooner.
    pub fn stop(&mut self, by: Instant) {
        let by = self.stop_by.map_or(by, |before| before.min(by));
        self.stop_by = Some(by);
        for seat in &mut self.seats {
            if let State::Draining { until: Some(until), .. } = &mut seat.state {
                *until = by.min(*until);
            }
        }
    }

    /// What is to be done now.
    pub fn reconcile(&mut self, now: Instant) -> Vec<Action> {
        if !self.ever_ready && !self.is_stopping() && self.seats.iter().all(|seat| seat.streak >= GIVE_UP) {
            return vec![Action::GiveUp];
        }
        let mut actions = Vec::new();
        for index in 0..self.seats.len() {
            self.reconcile_place(index, now, &mut actions);
        }
        actions
    }

    fn reconcile_place(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) {
        let state = self.seats[index].state;
        self.seats[index].state = match (state, self.stop_by) {
            (State::Waiting { .. }, Some(_)) => State::Gone,
            (State::Waiting { until }, None) if until <= now => {
                let id = self.next;
                self.next = WorkerId(id.0 + 1);
                actions.push(Action::Spawn(index, id));
                State::Starting { id, until: Some(now + self.start_timeout) }
            }
            (State::Starting { id, until: Some(until) }, stop) if stop.is_some() || until <= now => {
                actions.push(Action::Kill(index, id));
                State::Starting { id, until: None }
            }
            (State::Ready { id, .. }, Some(by)) => {
                actions.push(Action::Stop(index, id, by));
                State::Draining { id, until: Some(by) }
            }
            (State::Draining { id, until: Some(until) }, _) if until <= now => {
                actions.push(Action::Kill(index, id));
                State::Draining { id, until: None }
            }
            (State::Waiting { .. } | State::Starting { .. } | State::Ready { .. } | State::Draining { .. }, _)
            | (State::Gone, _) => state,
        };
    }

    /// When [`Pool::reconcile`] will have something to do although nothing happened.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.states()
            .filter_map(|state| match state {
                State::Waiting { until } => Some(until),
                State::Starting { until, .. } | State::Draining { until, .. } => until,
                State::Ready { .. } | State::Gone => None,
            })
            .min()
    }
}

#[cfg(test)]
mod tests;
