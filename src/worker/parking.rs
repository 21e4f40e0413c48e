//! How much lies in the regions of shared memory, and which client is closed when it is too much.
//!
//! Every client may always park 4 KiB. What is above that counts; once three quarters of `buffers` are
//! taken, the client whose frame has been unfinished for longest is told `overloaded` and closed.
//!
//! A large region that its client needs no more is kept for a while, because the next frame of that client will
//! need it again, and giving pages back costs more than a short frame. What is kept so is bounded as well.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// Bytes that a client may park without being counted.
const FREE: u64 = 4096;

/// Bytes of unused large regions that are kept.
const WARM: u64 = 8 << 20;

/// Accounts of the regions of shared memory.
#[derive(Debug)]
pub(super) struct Parking {
    budget: u64,
    /// Counted bytes, over all clients.
    total: u64,
    /// Who has counted bytes: since when, and which slot.
    hogs: BTreeSet<(u64, u32)>,
    counted: HashMap<u32, (u64, u64)>,
    /// Large regions with memory behind them: how much, and whether it is in use.
    large: HashMap<u32, Large>,
    /// Those that came out of use, oldest first; some are in use again.
    unused: VecDeque<u32>,
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
            hogs: BTreeSet::new(),
            counted: HashMap::new(),
            large: HashMap::new(),
            unused: VecDeque::new(),
            warm: 0,
        }
    }

    /// Bytes that count.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// A slot's client now parks so many bytes, in the matter that began at `since`.
    pub(super) fn park(&mut self, slot: u32, bytes: u64, since: u64) {
        self.uncount(slot);
        let counts = bytes.saturating_sub(FREE);
        if counts > 0 {
            self.total += counts;
            self.hogs.insert((since, slot));
            self.counted.insert(slot, (since, counts));
        }
    }

    fn uncount(&mut self, slot: u32) {
        if self.counted.is_empty() {
            return;
        }
        if let Some((since, counts)) = self.counted.remove(&slot) {
            self.total -= counts;
            self.hogs.remove(&(since, slot));
        }
    }

    /// Returns the client that must be closed now, if there is one.
    pub(super) fn overloads(&self) -> Option<u32> {
        if self.total <= self.budget / 4 * 3 {
            return None;
        }
        self.hogs.first().map(|(_, slot)| *slot)
    }

    /// Bytes up to this one of the slot's large region have been written.
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

    /// The slot's client has ended. Whether its large region is to be emptied now: the master may lay bytes of the next
    /// client there as soon as it is told.
    #[must_use]
    pub(super) fn end(&mut self, slot: u32) -> bool {
        self.uncount(slot);
        let Some(large) = self.large.remove(&slot) else {
            return false;
        };
        if !large.in_use {
            self.warm -= large.bytes;
        }
        true
    }

    /// The lease of the slot is over: what lies in its large region is the master's. That goes on counting as used, so
    /// that it is not emptied before another client of this worker has had the place.
    pub(super) fn lose(&mut self, slot: u32) {
        self.uncount(slot);
        if self.large.contains_key(&slot) {
            self.use_large(slot, 0);
        }
    }

    /// The slot's client has nothing parked any more. Returns the slots whose large regions are to be emptied now.
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
        // A place in steady use leaves an entry a frame: keep no more than there are places.
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
    fn four_kib_a_client_are_free_and_the_oldest_unfinished_frame_has_to_go() {
        let mut parking = Parking::new(100_000);
        for slot in 0..1000 {
            parking.park(slot, FREE, 1);
        }
        assert_eq!((parking.total(), parking.overloads()), (0, None));
        parking.park(7, FREE + 40_000, 20);
        parking.park(8, FREE + 40_000, 10);
        assert_eq!(parking.overloads(), Some(8));
        parking.park(7, FREE + 10_000, 20);
        assert_eq!(parking.overloads(), None);
        parking.clear(7);
        assert_eq!(parking.total(), 40_000);
        assert!(!parking.end(8), "it had no large region");
        parking.park(9, FREE + 1, 30);
        parking.lose(9);
        assert_eq!(
            (parking.total(), parking.hogs.len(), parking.counted.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn the_region_of_a_client_that_left_is_emptied_at_once_or_not() {
        let mut parking = Parking::new(1 << 30);
        for slot in 0..4 {
            parking.use_large(slot, WARM / 4);
        }
        assert!(
            [0, 1].iter().all(|slot| parking.clear(*slot).is_empty()),
            "they are warm"
        );
        assert!(
            parking.end(0) && parking.end(2) && !parking.end(2),
            "warm or in use, it has memory"
        );
        parking.lose(1);
        parking.lose(3);
        for slot in 10..20 {
            parking.use_large(slot, WARM);
            assert!(
                parking.clear(slot).iter().all(|cold| *cold >= 10),
                "others are emptied only"
            );
        }
        // The next client of such a slot gives it back.
        assert_eq!((parking.clear(3), parking.end(1)), (vec![19], true));
    }

    #[test]
    fn unused_large_regions_are_kept_up_to_a_bound() {
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
