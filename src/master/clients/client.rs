//! Clients as the master records them.

#[cfg(test)]
use std::fs::File;
#[cfg(test)]
use std::net::Ipv4Addr;
#[cfg(test)]
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::master::clients::place::ClientPlace;
use crate::master::clients::rare::RareFields;
use crate::proto::frame::OrderRule;
use crate::proto::lease::ClientRecord;
use crate::proto::names::{ClientId, Peer, WorkerId};
use crate::proto::rpc::GoawayReason;
use crate::shm::{ClientBytes, Flags, LeftSlot, ProxyState};
use crate::sys::clock;
use crate::sys::passed::ClientSocket;

/// A client, with the master's copy of its socket, which keeps the connection open when a worker ends.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: ClientId,
    pub(crate) socket: ClientSocket,
    /// The other end of its connection; [`Client::address`] is the client's.
    pub(crate) peer: Peer,
    /// The rule of its listener for the byte order.
    pub(crate) order: OrderRule,
    /// The number of the listener that it connected to.
    pub(crate) listener: u32,
    /// When it connected, in seconds of CLOCK_MONOTONIC.
    pub(crate) since: u32,
    /// How often it was moved from one worker to another.
    pub(crate) moves: u32,
    /// Why it gets a goaway, if it does. The next worker finds the reason in the flags.
    pub(crate) goaway: Option<GoawayReason>,
    pub(crate) rare: RareFields,
}

impl ClientPlace {
    /// Returns the record of the client for a handoff queue.
    pub(crate) fn record(&self, client: &Client) -> ClientRecord {
        ClientRecord {
            client: client.id,
            slot: self.slot,
            lease_number: self.lease_number,
            order: client.order,
            moves: self.moves,
            listener: client.listener,
            since: client.since,
            offsets: client.rare.offsets(),
        }
    }
}

#[cfg(test)]
impl Client {
    /// Returns a Unix client whose socket is /dev/null.
    pub(crate) fn on_null(id: u64) -> Client {
        let null = File::open("/dev/null").expect("/dev/null");
        Client::with_socket(id, null, Peer::UNIX)
    }

    /// Returns a client of the first listener with this socket.
    pub(crate) fn with_socket(id: u64, socket: impl Into<OwnedFd>, peer: Peer) -> Client {
        let is_unix = matches!(peer, Peer::Unix { .. });
        Client::new(id, ClientSocket::shared(socket.into(), is_unix), peer)
    }

    /// Returns a TCP client without a descriptor of its own.
    pub(crate) fn simulated(id: u64) -> Client {
        let peer = Peer::V4 {
            address: Ipv4Addr::LOCALHOST,
            port: 1,
        };
        Client::new(id, ClientSocket::simulated(), peer)
    }

    fn new(id: u64, socket: ClientSocket, peer: Peer) -> Client {
        Client {
            id: ClientId(id),
            socket,
            peer,
            order: OrderRule::Little,
            listener: 1,
            since: 0,
            moves: 0,
            goaway: None,
            rare: RareFields::default(),
        }
    }
}

/// A client without a worker, with all that its next worker must know.
#[derive(Debug)]
pub(crate) struct Unleased {
    pub(crate) client: Client,
    /// Bytes that are unread and unsent.
    pub(crate) bytes: ClientBytes,
    pub(crate) flags: Flags,
    /// When the timed period began, and when the client last sent or took a byte: ns of CLOCK_MONOTONIC.
    pub(crate) times: (u64, u64),
    pub(crate) requests: u64,
    /// The worker that the client must be leased to, if there is one.
    pub(crate) to: Option<WorkerId>,
    /// From where the next master can recover the client.
    pub(crate) place: Option<ClientPlace>,
    /// The slot of a living worker that the client has left.
    pub(crate) left_slot: Option<LeftSlot>,
}

impl Unleased {
    /// Creates the record of a client that was just accepted.
    pub(crate) fn new(client: Client, now: u64) -> Unleased {
        let bytes = ClientBytes::default();
        let proxied = client.rare.proxied();
        let proxy = proxied.map_or(ProxyState::None, |it| ProxyState::Awaited(it.version));
        Unleased {
            client,
            bytes,
            flags: Flags {
                proxy,
                ..Flags::default()
            },
            times: (now, now),
            requests: 0,
            to: None,
            place: None,
            left_slot: None,
        }
    }

    /// Returns whether the client is in a handoff queue.
    pub(crate) fn is_packed(&self) -> bool {
        self.place.as_ref().is_some_and(ClientPlace::is_packed)
    }

    /// Excuses the time in which no worker served the client: its timed period begins that much later.
    pub(crate) fn excuse(&mut self, gap: Duration) {
        let now = clock::monotonic();
        let later = |time: u64| clock::after(time, gap).min(now);
        self.times = (later(self.times.0), later(self.times.1));
    }
}
