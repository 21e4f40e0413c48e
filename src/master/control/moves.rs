//! `drain --move`: the clients of a drained daemon get a goaway, spread over a period.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::clients::goaway::GoawayDeadlines;
use crate::proto::names::ClientId;
use crate::proto::rpc::GoawayReason;

/// The most clients that get a goaway in one iteration of the loop.
const MAX_AT_ONCE: usize = 256;

/// The number of parts of the period, as far as the bounds of a part permit, and these bounds. The longest part is also
/// how long a client waits for it that asks for a goaway after the period.
const PARTS: u32 = 256;
const MIN_PART: Duration = Duration::from_millis(10);
const MAX_PART: Duration = Duration::from_secs(1);

impl Master {
    /// Has the next clients of a drained daemon get a goaway, and closes kicked clients that have not left. A daemon that
    /// ends leaves both to its workers, or to the next master.
    pub(crate) fn end_clients(&mut self, now: Instant) {
        if self.lifecycle.is_ending() {
            self.clients.goaways = GoawayDeadlines::default();
            return;
        }
        self.close_overdue(now);
        let moves = self.listeners.moves_in_force(now);
        let Some((over, share)) = moves.filter(|_| self.clients.count() > 0) else {
            self.clients.goaways.next_moves = None;
            return;
        };
        if self.clients.goaways.next_moves.is_some_and(|at| at > now) {
            return;
        }
        let is_due = |id| place_of(id) < share;
        let reason = GoawayReason::Draining;
        let told = self
            .workers
            .begin_goaways(reason, is_due, MAX_AT_ONCE, &self.poller);
        let part = match told {
            // There may be more, which get theirs in the next iteration.
            MAX_AT_ONCE.. => Duration::from_nanos(1),
            _ if share < 1.0 => (over / PARTS).clamp(MIN_PART, MAX_PART),
            _ => MAX_PART,
        };
        self.clients.goaways.next_moves = Some(now + part);
    }
}

/// Returns when in the period a client gets its goaway, from 0 to less than 1: clients of successive numbers are far apart.
fn place_of(id: ClientId) -> f64 {
    // 2^64 divided by the golden ratio.
    let hash = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_spread_evenly_over_the_period() {
        for first in [1, 1 << 20, u64::MAX - 2000] {
            let mut parts = [0; 10];
            for id in first..first + 1000 {
                parts[(place_of(ClientId(id)) * 10.0) as usize] += 1;
            }
            let even = 95..=105;
            assert!(parts.iter().all(|part| even.contains(part)), "{parts:?}");
        }
    }
}
