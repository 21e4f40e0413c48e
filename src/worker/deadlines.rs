//! Deadlines of clients.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::WorkerLoop;
use super::connection::{NEVER, WaitingFor};
use super::methods::Service;
use super::turn::Purpose;
use crate::shm::CloseReason;

/// Stale entries that may always remain.
const FEW: usize = 64;

/// Deadlines in ns of CLOCK_MONOTONIC, each with its slot.
///
/// A client's activity moves no timer. Each client has at most one valid entry; when it is due, the loop computes the
/// real deadline and adds an entry for that. So a request costs nothing here, and a client whose frames arrive in
/// pieces costs one entry for each timeout, not for each frame. The entries of clients that have left are removed when
/// they are more than those of clients that are there: otherwise each would remain until it is due.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(u64, u32)>>);

impl Timers {
    /// Adds an entry for a slot, unless it has an earlier one. `armed` is the deadline of its valid entry.
    pub(super) fn arm(&mut self, slot: u32, armed: &mut u64, deadline: u64) {
        if deadline < *armed {
            *armed = deadline;
            self.0.push(Reverse((deadline, slot)));
        }
    }

    /// Returns the next deadline.
    pub(super) fn next(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Removes an entry that is due and returns its deadline and slot. It is stale unless the slot is armed for this
    /// deadline.
    fn due(&mut self, now: u64) -> Option<(u64, u32)> {
        let Reverse((deadline, slot)) = *self.0.peek()?;
        (deadline <= now).then(|| {
            self.0.pop();
            (deadline, slot)
        })
    }

    /// Removes all entries, so that the loop does not wake up for clients that are gone.
    pub(super) fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(FEW);
    }

    /// Returns whether most entries are stale, when this number of clients is there. Each has at most one valid entry.
    fn is_mostly_stale(&self, clients: usize) -> bool {
        self.0.len() > clients.saturating_mul(2).saturating_add(FEW)
    }

    /// Removes the stale entries and returns their memory. `armed` returns the deadline for which a slot is armed.
    fn remove_stale(&mut self, armed: impl Fn(u32) -> Option<u64>) {
        self.0
            .retain(|Reverse((deadline, slot))| armed(*slot) == Some(*deadline));
        self.0
            .shrink_to(self.0.len().saturating_mul(2).saturating_add(FEW));
    }
}

impl WorkerLoop<'_> {
    /// Removes the timers of clients that have left, when there are many of them.
    pub(super) fn forget_timers(&mut self) {
        if self.timers.is_mostly_stale(self.leased) {
            let connections = &self.connections;
            self.timers
                .remove_stale(|slot| connections.get(slot).map(|connection| connection.armed));
        }
    }

    /// Times out the clients whose deadlines were over at `by`: ns of CLOCK_MONOTONIC. All bytes that had arrived by
    /// then must have been processed.
    pub(super) fn check_deadlines(&mut self, by: u64, service: &mut dyn Service) {
        while let Some((deadline, index)) = self.timers.due(by) {
            let Some(connection) = self.connections.get_mut(index) else {
                continue;
            };
            if connection.armed == deadline {
                connection.armed = NEVER;
                self.check_deadline(index, by, service);
            }
        }
    }

    /// Times out a client if its deadline was over at `by`; if not, arms its timer.
    pub(super) fn check_deadline(&mut self, index: u32, by: u64, service: &mut dyn Service) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let slot = self.shm.slot(index).expect("the client has a slot");
        if connection.end_shortage_if_over(by) {
            // The next wait reports bytes that have arrived. They are processed before any deadline.
            let watch = connection.watch(&self.poller, index);
            let deadline = connection.deadline(slot, &self.settings, &self.time.clock);
            let deadline = deadline.max(by.saturating_add(1));
            self.timers.arm(index, &mut connection.armed, deadline);
            if watch.is_err() {
                self.check_watch(index, watch);
            }
            return;
        }
        let deadline = connection.deadline(slot, &self.settings, &self.time.clock);
        if deadline > by {
            return self.timers.arm(index, &mut connection.armed, deadline);
        }
        let (client, peer, waits) = (connection.client, connection.peer, connection.waits);
        let awaits_header = connection.awaits_header;
        log::debug!("client {client} ({peer}) exceeded its timeout ({waits:?}); closing it");
        let purpose = match waits {
            WaitingFor::Bytes => Purpose::Expire,
            WaitingFor::Request if awaits_header && self.settings.frame_timeout.is_some() => {
                Purpose::Expire
            }
            WaitingFor::Writable => Purpose::Close(CloseReason::SendTimeout),
            _ => Purpose::Close(CloseReason::Idle),
        };
        self.run_turn(index, &purpose, service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_deadline_of_a_client_costs_no_entry() {
        let mut timers = Timers::default();
        let (mut a, mut b) = (NEVER, NEVER);
        timers.arm(1, &mut a, 50);
        timers.arm(1, &mut a, 90);
        timers.arm(2, &mut b, 70);
        timers.arm(2, &mut b, 60);
        assert_eq!((timers.next(), a, b), (Some(50), 50, 60));
        assert_eq!(timers.due(49), None);
        // The last is stale: slot 2 is armed for 60.
        for due in [Some((50, 1)), Some((60, 2)), Some((70, 2)), None] {
            assert_eq!(timers.due(100), due);
        }
    }

    #[test]
    fn entries_of_clients_that_left_are_removed_with_their_memory() {
        const CLIENTS: usize = 100;
        let mut timers = Timers::default();
        let mut armed = [NEVER; CLIENTS];
        // Slot 1 gets a client after the other; the other slots keep theirs.
        for deadline in 0..100_000 {
            let slot = if deadline < CLIENTS as u64 {
                deadline as usize
            } else {
                1
            };
            armed[slot] = NEVER;
            timers.arm(slot as u32, &mut armed[slot], 1_000_000 + deadline);
            if timers.is_mostly_stale(CLIENTS) {
                timers.remove_stale(|slot| armed.get(slot as usize).copied());
                assert_eq!(timers.0.len(), CLIENTS, "each has its entry");
            }
        }
        assert!(timers.0.capacity() <= 4 * CLIENTS + 2 * FEW);
        let due: Vec<u32> = std::iter::from_fn(|| timers.due(u64::MAX))
            .filter(|(deadline, slot)| armed[*slot as usize] == *deadline)
            .map(|(_, slot)| slot)
            .collect();
        let order: Vec<u32> = (0..CLIENTS as u32)
            .filter(|slot| *slot != 1)
            .chain([1])
            .collect();
        assert_eq!(due, order);
        timers.clear();
        assert!(timers.0.capacity() <= FEW);
    }
}
