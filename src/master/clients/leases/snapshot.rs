//! The leases of a worker in the snapshot of an upgrade.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::master::clients::client::Client;
use crate::master::clients::leases::{LeaseEntry, Leased, Leases};
use crate::master::clients::proxied::Proxied;
use crate::master::clients::rare::RareFields;
use crate::proto::frame::OrderRule;
use crate::proto::names::{ClientId, Offsets, Peer};
use crate::proto::rpc::GoawayReason;
use crate::sys::passed::ClientSocket;

/// The leases of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeasesSnapshot {
    pub(crate) used: u32,
    #[serde(rename = "generation")]
    pub(crate) lease_number: u32,
    pub(crate) given: u64,
    /// Clients by slot; `None` where a lease was revoked and the worker has not confirmed it yet.
    pub(crate) entries: Vec<(u32, Option<ClientSnapshot>)>,
}

/// A client with its lease.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientSnapshot {
    pub(crate) id: ClientId,
    pub(crate) socket: RawFd,
    pub(crate) peer: Peer,
    pub(crate) order: OrderRule,
    pub(crate) listener: u32,
    pub(crate) since: u32,
    pub(crate) moves: u32,
    #[serde(rename = "generation")]
    pub(crate) lease_number: u32,
    pub(crate) requests: u64,
    #[serde(default)]
    pub(crate) offsets: Offsets,
    #[serde(default)]
    pub(crate) goaway: Option<GoawayReason>,
    #[serde(default)]
    pub(crate) proxied: Option<Proxied>,
}

impl From<&Leased> for ClientSnapshot {
    fn from(leased: &Leased) -> ClientSnapshot {
        let client = &leased.client;
        ClientSnapshot {
            id: client.id,
            socket: client.socket.as_raw_fd(),
            peer: client.peer,
            order: client.order,
            listener: client.listener,
            since: client.since,
            moves: client.moves,
            lease_number: leased.lease_number,
            requests: leased.requests,
            offsets: client.rare.offsets(),
            goaway: client.goaway,
            proxied: client.rare.proxied().cloned(),
        }
    }
}

impl ClientSnapshot {
    fn into_leased(self, socket: OwnedFd) -> Leased {
        let client = Client {
            id: self.id,
            socket: ClientSocket::shared(socket, matches!(self.peer, Peer::Unix { .. })),
            peer: self.peer,
            order: self.order,
            listener: self.listener,
            since: self.since,
            moves: self.moves,
            goaway: self.goaway,
            rare: RareFields::new(self.offsets, self.proxied),
        };
        Leased {
            client,
            lease_number: self.lease_number,
            requests: self.requests,
            is_counted: false,
        }
    }
}

impl Leases {
    /// Returns the snapshot from which the next program restores these leases. `None` while some are not sent yet.
    pub(crate) fn snapshot(&self) -> Option<LeasesSnapshot> {
        let entry = |slot: u32| match self.entries.get(slot)? {
            LeaseEntry::Revoked => Some((slot, None)),
            LeaseEntry::Leased(leased) => Some((slot, Some(leased.into()))),
        };
        self.outbox.is_empty().then(|| LeasesSnapshot {
            used: self.used,
            lease_number: self.lease_number,
            given: self.granted,
            entries: (0..self.used).filter_map(entry).collect(),
        })
    }

    /// Restores the leases from a snapshot. `take` returns the descriptor of a number.
    ///
    /// # Errors
    /// Those of `take`; `InvalidData` for a slot that does not exist.
    pub(crate) fn from_snapshot(
        slots: u32,
        snapshot: LeasesSnapshot,
        mut take: impl FnMut(RawFd) -> io::Result<OwnedFd>,
    ) -> io::Result<Leases> {
        let mut leases = Leases::new(slots);
        (leases.used, leases.lease_number, leases.granted) =
            (snapshot.used, snapshot.lease_number, snapshot.given);
        for (slot, client) in snapshot.entries {
            if slot >= snapshot.used || snapshot.used > slots {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let entry = match client {
                None => LeaseEntry::Revoked,
                Some(client) => {
                    leases.clients += 1;
                    let socket = take(client.socket)?;
                    LeaseEntry::Leased(client.into_leased(socket))
                }
            };
            leases.entries.insert(slot, entry);
        }
        leases.free = (0..leases.used)
            .rev()
            .filter(|slot| leases.entries.get(*slot).is_none())
            .collect();
        Ok(leases)
    }
}
