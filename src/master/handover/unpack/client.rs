//! A client in a handoff queue, and the recovery of such clients.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use crate::master::clients::client::Client;
use crate::master::clients::leases::Leases;
use crate::master::clients::leases::recovery::DeadWorkerClients;
use crate::master::clients::place::OrphanedShm;
use crate::master::clients::proxied::Proxied;
use crate::master::clients::rare::RareFields;
use crate::proto::lease::ClientRecord;
use crate::proto::names::{Peer, WorkerId};
use crate::sys::clock;
use crate::sys::passed::ClientSocket;
use crate::sys::socket;

/// A client as its record describes it.
#[derive(Debug)]
pub(super) struct UnpackedClient {
    pub(super) worker: WorkerId,
    pub(super) record: ClientRecord,
    pub(super) socket: OwnedFd,
}

impl UnpackedClient {
    /// Returns the client, or `None` if it has disconnected. The shared memory has the reason of a goaway, and what its
    /// PROXY protocol header has reported.
    pub(super) fn into_client(self, orphan: Option<&OrphanedShm>) -> Option<Client> {
        let peer = match socket::peer(&self.socket).ok()? {
            Ok(address) => Peer::from(address),
            Err(socket::Credentials { pid, uid, gid }) => Peer::Unix { pid, uid, gid },
        };
        let record = self.record;
        let proxied = orphan.and_then(|orphan| proxied(orphan, record.slot));
        Some(Client {
            id: record.client,
            socket: ClientSocket::shared(self.socket, matches!(peer, Peer::Unix { .. })),
            peer,
            order: record.order,
            listener: record.listener,
            since: record.since,
            moves: record.moves,
            goaway: orphan.and_then(|orphan| orphan.shm.slot(record.slot)?.flags().goaway),
            rare: RareFields::new(record.offsets, proxied),
        })
    }
}

/// Returns what is known of the header of the client in this slot, if its listener expected one.
fn proxied(orphan: &OrphanedShm, slot: u32) -> Option<Proxied> {
    let shm = &orphan.shm;
    let state = shm.slot(slot)?.flags().proxy;
    let source = state.has_source().then(|| shm.source(slot)).flatten();
    Proxied::restored(state, source)
}

/// Recovers clients, each with its slot and lease number, as after the death of their worker. The time since they were
/// packed does not count: they were not served.
pub(super) fn recover(
    orphan: &Rc<OrphanedShm>,
    clients: Vec<(u32, u32, Client)>,
) -> DeadWorkerClients {
    let OrphanedShm { record, shm } = &**orphan;
    shm.settle();
    let header = shm.header();
    let (leases, without_slot) = Leases::from_records(record.slots, clients);
    let mut recovery = leases
        .recover_clients(shm, header.final_writes(), header.is_timed_out())
        .at_once();
    let contradiction = |client| (io::ErrorKind::InvalidData.into(), client);
    recovery
        .lost
        .extend(without_slot.into_iter().map(contradiction));
    recovery.note_places(orphan);
    let packed_for = header.packed_at().map_or(Duration::ZERO, clock::since);
    for (unleased, _) in &mut recovery.recovered {
        unleased.excuse(packed_for);
    }
    recovery
}
