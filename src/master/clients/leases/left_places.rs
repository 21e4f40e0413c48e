//! The places that clients had before leases that have not been sent.

use std::collections::BTreeMap;
use std::mem;

use crate::master::clients::client::Unleased;
use crate::master::clients::place::ClientPlace;
use crate::shm::{ClientBytes, LeftSlot};

/// The most bytes of clients that exist twice, in their old place and in their new slot, while the leases to a worker
/// are not sent. There is a limit because the worker may have died for lack of memory.
const MAX_KEPT_LEN: usize = 4 << 20;

/// The number of such bytes from which on the leases must be sent.
const SEND_THRESHOLD: usize = 1 << 20;

/// The places of clients until their leases are sent, by slot.
#[derive(Debug, Default)]
pub(super) struct LeftPlaces {
    by_slot: BTreeMap<u32, LeftPlace>,
    /// Slots of living workers that clients have left.
    left_slots: BTreeMap<u32, LeftSlot>,
    /// The number of bytes in these places. They exist twice.
    kept_len: usize,
    /// A client has lost its place in a handoff queue, and its lease is not sent: only the new slot has its bytes.
    has_moved: bool,
}

/// The place of a client until its lease is sent: if the master is killed before, the next one recovers the client
/// there. Dropping it closes the place, and then frees the bytes there.
#[derive(Debug)]
struct LeftPlace {
    place: ClientPlace,
    /// The bytes, if a dead worker has left them.
    bytes: Option<ClientBytes>,
}

impl LeftPlaces {
    /// Prepares the move of a client's bytes to another slot: either the bytes also stay in their place, or the client
    /// loses the place. Returns the number of the bytes that a dead worker has left.
    pub(super) fn prepare(&mut self, unleased: &mut Unleased) -> usize {
        let left_len = unleased.bytes.left_len();
        if left_len > 0 && unleased.is_packed() && self.kept_len + left_len <= MAX_KEPT_LEN {
            unleased.bytes.keep();
        } else if left_len > 0 {
            // Moving the bytes that a dead worker left destroys the place.
            self.has_moved |= unleased.is_packed();
            unleased.place = None;
        }
        left_len
    }

    /// Keeps the place of the client in this slot. `left_len` is what [`LeftPlaces::prepare`] returned.
    pub(super) fn keep(
        &mut self,
        slot: u32,
        place: Option<ClientPlace>,
        bytes: ClientBytes,
        left_len: usize,
    ) {
        let Some(place) = place else {
            return;
        };
        self.kept_len += left_len;
        let bytes = (left_len > 0).then_some(bytes);
        self.by_slot.insert(slot, LeftPlace { place, bytes });
    }

    /// Keeps the slot of a living worker that the client in this slot has left.
    pub(super) fn keep_slot(&mut self, slot: u32, left_slot: Option<LeftSlot>) {
        self.left_slots.extend(left_slot.map(|left| (slot, left)));
    }

    /// Returns whether the leases must be sent before another client is leased.
    pub(super) fn must_be_sent(&self) -> bool {
        self.has_moved || self.kept_len >= SEND_THRESHOLD
    }

    /// Notes that a batch of leases is being sent.
    pub(super) fn begin_batch(&mut self) {
        self.has_moved = false;
    }

    /// Closes the places that the clients in these slots had before.
    pub(super) fn close(&mut self, slots: &[u32]) {
        for slot in slots {
            self.take(*slot);
            self.left_slots.remove(slot);
        }
    }

    /// Gives a client, whose lease could not be sent, its place back.
    pub(super) fn give_back(&mut self, slot: u32, unleased: &mut Unleased) {
        unleased.left_slot = self.left_slots.remove(&slot);
        if let Some(left) = self.take(slot) {
            unleased.bytes = left.bytes.unwrap_or(mem::take(&mut unleased.bytes));
            unleased.place = Some(left.place);
        }
    }

    fn take(&mut self, slot: u32) -> Option<LeftPlace> {
        let left = self.by_slot.remove(&slot)?;
        self.kept_len -= left.bytes.as_ref().map_or(0, ClientBytes::left_len);
        Some(left)
    }
}
