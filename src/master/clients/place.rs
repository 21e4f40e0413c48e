//! The place of a client without a worker: a slot of shared memory from which the next master can recover it.
//!
//! A client of a dead worker has its place in that worker's shared memory, which still has its bytes, its positions
//! and its interrupted request. When such clients wait, `handover/unleased.rs` packs their places into a handoff queue:
//! if this master is killed, the next one recovers them there. The place is closed when the client is leased or
//! removed, so that no later master recovers an old state of the client.

use std::cell::Cell;
use std::rc::Rc;

use crate::proto::handoff::ShmRecord;
use crate::shm::{LeaseState, MasterShm};
use crate::sys::byte_counts::Writes;
use crate::sys::clock;

/// Shared memory without a worker.
#[derive(Debug)]
pub(crate) struct OrphanedShm {
    pub(crate) record: ShmRecord,
    pub(crate) shm: MasterShm,
}

impl OrphanedShm {
    /// Returns the shared memory of a dead worker with its record, now that its counters are in the totals. `written`
    /// is what its thread has written.
    pub(crate) fn new(record: ShmRecord, shm: MasterShm, written: Option<Writes>) -> OrphanedShm {
        if let Some(written) = written {
            shm.header().set_final_writes(written);
        }
        shm.header().set_packed_at(clock::monotonic());
        let record = ShmRecord {
            is_counted: true,
            ..record
        };
        OrphanedShm { record, shm }
    }

    /// Closes a slot, unless it has another lease by now: a record of it that is still in a queue means nothing then.
    pub(crate) fn close(&self, slot: u32, lease_number: u32) {
        if let Some(slot) = self.shm.slot(slot)
            && slot
                .lease()
                .is_none_or(|lease| lease.number == lease_number)
        {
            slot.release(lease_number, LeaseState::Closed);
        }
    }
}

/// The place of a client. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct ClientPlace {
    orphan: Rc<OrphanedShm>,
    pub(super) slot: u32,
    pub(super) lease_number: u32,
    /// How often the client had been moved before.
    pub(super) moves: u32,
    /// The number of places in the handoff queues, if this one is among them.
    packed: Option<Rc<Cell<usize>>>,
}

impl ClientPlace {
    pub(crate) fn new(
        orphan: &Rc<OrphanedShm>,
        slot: u32,
        lease_number: u32,
        moves: u32,
    ) -> ClientPlace {
        ClientPlace {
            orphan: Rc::clone(orphan),
            slot,
            lease_number,
            moves,
            packed: None,
        }
    }

    /// Returns the shared memory.
    pub(crate) fn orphan(&self) -> &Rc<OrphanedShm> {
        &self.orphan
    }

    /// Returns whether the place is in a handoff queue.
    pub(crate) fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// Notes that the place is in a handoff queue.
    pub(crate) fn set_packed(&mut self, count: &Rc<Cell<usize>>) {
        count.set(count.get() + 1);
        self.packed = Some(Rc::clone(count));
    }

    /// Notes that the place is in no handoff queue any more.
    pub(crate) fn set_unpacked(&mut self) {
        if let Some(count) = self.packed.take() {
            count.set(count.get() - 1);
        }
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        // Even a place that was not packed by this master may be in a datagram of an earlier one.
        self.set_unpacked();
        self.orphan.close(self.slot, self.lease_number);
    }
}
