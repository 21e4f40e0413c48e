//! The accounts of parked bytes, and the choice of the client that is closed when they are too many.
//!
//! Every client may always park 4 KiB. Bytes above that count; once three quarters of `buffers` are used, the client
//! that has waited for longest, for the rest of its frame or for a permit, receives `overloaded` and is closed. A
//! client whose request is away is not closed, but its bytes count.
//!
//! A large region that its client no longer needs is kept for some time, because the next frame of that client may need
//! it again, and returning pages costs more than a short frame. The size of these regions is limited as well.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// Bytes of each client that do not count.
const FREE: u64 = 4096;

/// Bytes of unused large regions that are kept.
const WARM: u64 = 8 << 20;

/// The accounts of the regions of shared memory.
#[derive(Debug)]
pub(super) struct Parking {
    budget: u64,
    /// Counted bytes, over all clients.
    total: u64,
    /// The slots with counted bytes whose clients may be closed, each after the beginning of its frame.
    oldest: BTreeSet<(u64, u32)>,
    /// The beginning of the frame and the counted bytes, by slot.
    counted: HashMap<u32, (u64, u64)>,
    /// Large regions that have memory, by slot.
    large: HashMap<u32, Large>,
    /// Slots whose regions became unused, oldest first; some are in use again.
    unused: VecDeque<u32>,
    /// Bytes of the unused regions.
    warm: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Large {
    bytes: u64,
    in_use: bool,
}

impl Parking {
    pub(super) fn new(budget: u64) -> Parking {
        Parking {
            budget,
            total: 0,
            oldest: BTreeSet::new(),
            counted: HashMap::new(),
            large: HashMap::new(),
            unused: VecDeque::new(),
            warm: 0,
        }
    }

    /// Returns the bytes that count.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Sets the parked bytes of a slot's client, whose frame began at `since`. A client that may not be closed counts
    /// as well.
    pub(super) fn park(&mut self, slot: u32, bytes: u64, since: u64, may_be_closed: bool) {
        self.uncount(slot);
        let counts = bytes.saturating_sub(FREE);
        if counts > 0 {
            self.total += counts;
            if may_be_closed {
                self.oldest.insert((since, slot));
            }
            self.counted.insert(slot, (since, counts));
        }
    }

    fn uncount(&mut self, slot: u32) {
        if self.counted.is_empty() {
            return;
        }
        if let Some((since, counts)) = self.counted.remove(&slot) {
            self.total -= counts;
            self.oldest.remove(&(since, slot));
        }
    }

    /// Returns the client that must be closed now, if there is one.
    pub(super) fn overloads(&self) -> Option<u32> {
        if self.total <= self.budget / 4 * 3 {
            return None;
        }
        self.oldest.first().map(|(_, slot)| *slot)
    }

    /// Records that this many bytes of a slot's large region have been written.
    pub(super) fn use_large(&mut self, slot: u32, bytes: u64) {
        let large = self.large.entry(slot).or_default();
        if !large.in_use {
            self.warm -= large.bytes;
        }
        *large = Large {
            bytes: large.bytes.max(bytes),
            in_use: true,
        };
    }

    /// Removes the accounts of a client that was closed. Returns whether its large region must be emptied now, before
    /// the master writes bytes of the next client there.
    #[must_use]
    pub(super) fn close(&mut self, slot: u32) -> bool {
        self.uncount(slot);
        let Some(large) = self.large.remove(&slot) else {
            return false;
        };
        if !large.in_use {
            self.warm -= large.bytes;
        }
        true
    }

    /// Records that the lease of a slot is over. Its large region belongs to the master and stays in use, so that it is
    /// not emptied before another client of this worker has used the slot.
    pub(super) fn revoke(&mut self, slot: u32) {
        self.uncount(slot);
        if self.large.contains_key(&slot) {
            self.use_large(slot, 0);
        }
    }

    /// Records that a slot's client has no parked bytes. Returns the slots whose large regions must be emptied now.
    pub(super) fn clear(&mut self, slot: u32) -> Vec<u32> {
        self.uncount(slot);
        match self.large.get_mut(&slot) {
            Some(large) if large.in_use => {
                large.in_use = false;
                self.warm += large.bytes;
                self.unused.push_back(slot);
            }
            _ => return Vec::new(),
        }
        let mut cold = Vec::new();
        while self.warm > WARM {
            let Some(oldest) = self.unused.pop_front() else {
                break;
            };
            // In use again, or emptied by an older entry of its own.
            if let Some(large) = self.large.get(&oldest).filter(|large| !large.in_use) {
                self.warm -= large.bytes;
                self.large.remove(&oldest);
                cold.push(oldest);
            }
        }
        // A region in steady use leaves an entry a frame: keep no more than there are regions.
        if self.unused.len() > 2 * self.large.len() + 16 {
            let large = &self.large;
            let mut seen = std::collections::HashSet::new();
            self.unused
                .retain(|slot| large.get(slot).is_some_and(|l| !l.in_use) && seen.insert(*slot));
        }
        cold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_unfinished_frame_goes_when_buffers_are_full() {
        let mut parking = Parking::new(100_000);
        for slot in 0..1000 {
            parking.park(slot, FREE, 1, true);
        }
        assert_eq!((parking.total(), parking.overloads()), (0, None));
        parking.park(7, FREE + 40_000, 20, true);
        parking.park(8, FREE + 40_000, 10, true);
        assert_eq!(parking.overloads(), Some(8));
        parking.park(7, FREE + 10_000, 20, true);
        assert_eq!(parking.overloads(), None);
        parking.clear(7);
        assert_eq!(parking.total(), 40_000);
        assert!(!parking.close(8), "it had no large region");
        parking.park(9, FREE + 1, 30, true);
        parking.revoke(9);
        assert!(parking.total() == 0 && parking.oldest.is_empty() && parking.counted.is_empty());
    }

    #[test]
    fn the_region_of_a_closed_client_is_emptied_at_once() {
        let mut parking = Parking::new(1 << 30);
        for slot in 0..4 {
            parking.use_large(slot, WARM / 4);
        }
        let mut is_kept = |slot| parking.clear(slot).is_empty();
        assert!(is_kept(0) && is_kept(1), "they are warm");
        let ended = [0, 2, 2].map(|slot| parking.close(slot));
        assert_eq!(ended, [true, true, false], "warm or in use, it has memory");
        parking.revoke(1);
        parking.revoke(3);
        for slot in 10..20 {
            parking.use_large(slot, WARM);
            let cold = parking.clear(slot);
            assert!(cold.iter().all(|cold| *cold >= 10), "{cold:?}");
        }
        // The next client of such a slot returns it.
        assert_eq!((parking.clear(3), parking.close(1)), (vec![19], true));
    }

    #[test]
    fn unused_large_regions_are_kept_up_to_a_limit() {
        let mut parking = Parking::new(1 << 30);
        let mib = 1 << 20;
        let mut cold = Vec::new();
        for slot in 0..10 {
            parking.use_large(slot, mib);
            cold.extend(parking.clear(slot));
        }
        assert_eq!((cold, parking.warm), (vec![0, 1], 8 * mib));
        for _ in 0..1000 {
            parking.use_large(5, mib);
            assert!(parking.clear(5).is_empty());
        }
        assert!(parking.unused.len() < 50, "{}", parking.unused.len());
        assert_eq!(parking.warm, 8 * mib);
    }
}
