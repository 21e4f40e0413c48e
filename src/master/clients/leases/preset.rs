//! The slot of a client that gets a lease, before its worker knows of it.

use std::io;

use crate::master::clients::client::Unleased;
use crate::shm::{LeaseState, MasterShm};

/// Fills a free slot with a client, and writes the client's bytes to its regions.
///
/// # Errors
/// Those of writing to the shared memory.
pub(crate) fn preset(
    unleased: &Unleased,
    slot: u32,
    lease_number: u32,
    shm: &MasterShm,
) -> io::Result<()> {
    let Unleased {
        client,
        bytes,
        flags,
        times,
        requests,
        ..
    } = unleased;
    let cursors = shm.store(slot, bytes)?;
    let mut flags = *flags;
    if flags.wants_goaway {
        flags.goaway = flags.goaway.max(client.goaway);
    }
    if flags.proxy.has_source() {
        let source = unleased.client.via().map(|_| unleased.client.address());
        shm.set_source(slot, source)?;
    }
    // A client that got its last reply is not served: it only gets time to read the reply.
    let is_idle =
        bytes.unread.is_empty() && bytes.unsent.is_empty() && !flags.closing && !flags.overloaded;
    let state = if is_idle {
        LeaseState::Idle
    } else {
        LeaseState::Parked
    };
    let shared_slot = shm.slot(slot).expect("its worker has a free slot");
    shared_slot.preset(state, lease_number, cursors, flags, *times, *requests);
    Ok(())
}
