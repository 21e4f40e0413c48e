//! Connections to listeners with the key `proxy`, which are clients only once something has come after the header.
//!
//! A worker reads the header and writes the address into the shared memory. The master learns it from a message, or
//! finds it when the lease ends, and then counts the client for its address. A connection that ends without a byte
//! after the header, such as a check of a load balancer, is not counted as a client, unless the daemon closes it for a
//! reason of its own. A refused or late header and `idle-timeout` are no such reasons ([`WithoutClient::from_reason`]).

use std::fmt;

use crate::master::clients::Clients;
use crate::master::clients::client::{Client, Unleased};
use crate::master::clients::leases::Leases;
use crate::master::clients::proxied::{ClientStage, HeaderStage};
use crate::master::clients::reject::{reject, reject_accepted};
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::without_client::WithoutClient;
use crate::proto::frame::OrderRule;
use crate::proto::names::{ClientId, Peer};
use crate::proto::rpc::{Code, GoawayReason};
use crate::shm::{CloseReason, MasterShm, ProxyState};
use crate::sys::listening::Accepted;
use crate::sys::passed::ClientSocket;
use crate::sys::socket;

impl Client {
    /// Returns the client's address: that in its PROXY protocol header, or that of the other end.
    pub(crate) fn address(&self) -> Peer {
        let proxied = self.rare.proxied();
        proxied.and_then(|it| it.peer).unwrap_or(self.peer)
    }

    /// Returns the address of the balancer that the client came through, if that has reported the client's.
    pub(crate) fn via(&self) -> Option<Peer> {
        let proxied = self.rare.proxied();
        proxied.and_then(|it| it.peer).map(|_| self.peer)
    }

    /// Returns how often the client has moved from one worker to another: `moves` without the leases that ended only
    /// because the client had to be counted for its address.
    pub(crate) fn true_moves(&self) -> u32 {
        let releases = self.rare.proxied().map_or(0, |it| it.releases);
        self.moves.saturating_sub(releases)
    }

    /// Returns the address that the client is counted under, if it is counted.
    pub(crate) fn counted_peer(&self) -> Option<Peer> {
        match self.rare.proxied() {
            None => Some(self.peer),
            Some(proxied) => proxied.peer.filter(|_| proxied.is_counted),
        }
    }

    /// Returns whether the connection is not counted as a client yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.rare.proxied().is_some_and(|it| it.is_pending())
    }

    /// Returns whether the connection is counted as a client.
    pub(crate) fn is_client(&self) -> bool {
        let proxied = self.rare.proxied();
        proxied.is_none_or(|it| it.client_stage == ClientStage::Client)
    }

    /// Returns the address, and the balancer's if there is one, for display.
    pub(crate) fn shown(&self) -> Shown {
        Shown {
            peer: self.address(),
            via: self.via(),
        }
    }

    /// Returns the addresses for display. `source` is the client's address in its slot, which the master may not know
    /// yet.
    pub(crate) fn shown_with(&self, source: Option<Peer>) -> Shown {
        match source {
            Some(peer) => Shown {
                peer,
                via: Some(self.peer),
            },
            None => self.shown(),
        }
    }

    /// Returns the address that the client's slot has from its header. The worker reports it only after the turn, which
    /// may execute a request.
    pub(super) fn source_in(&self, slot: u32, shm: &MasterShm) -> Option<Peer> {
        self.rare.proxied()?;
        let state = shm.slot(slot)?.flags().proxy;
        state.has_source().then(|| shm.source(slot)).flatten()
    }
}

/// The address of a client, and that of the balancer that it came through, for display.
pub(crate) struct Shown {
    pub(crate) peer: Peer,
    pub(crate) via: Option<Peer>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.via {
            None => self.peer.fmt(f),
            Some(via) => write!(f, "{} via {via}", self.peer),
        }
    }
}

impl Unleased {
    /// Returns whether the client waits only because it is not counted for its address.
    pub(crate) fn is_uncounted(&self) -> bool {
        let proxied = self.client.rare.proxied();
        self.flags.proxy == ProxyState::Read && proxied.is_some_and(|it| !it.is_counted)
    }
}

impl Leases {
    /// Returns the client in this slot if the worker is in its turn, with its address for display.
    pub(crate) fn shown_in_turn(&self, slot: u32, shm: &MasterShm) -> Option<(ClientId, Shown)> {
        let client = self.in_turn(slot, shm)?;
        Some((client.id, client.shown_with(client.source_in(slot, shm))))
    }

    /// Updates the client in a slot from its shared memory: how far its PROXY protocol header has come, and the address
    /// in it. Returns the client if its listener has the key `proxy`.
    pub(crate) fn update_proxied(&mut self, slot: u32, shm: &MasterShm) -> Option<&mut Client> {
        let client = self.client_mut(slot)?;
        let proxied = client.rare.proxied_mut()?;
        let state = shm.slot(slot)?.flags().proxy;
        proxied.header_stage = proxied.header_stage.max(HeaderStage::of(state));
        if state.has_source() && proxied.peer.is_none() {
            proxied.peer = shm.source(slot);
        }
        Some(client)
    }
}

impl Clients {
    /// Returns the number of clients that were ever accepted. Pending connections and those that have ended without
    /// becoming clients are not included.
    pub(crate) fn accepted(&self) -> u64 {
        (self.next_id - 1)
            .saturating_sub(self.pending)
            .saturating_sub(self.without_client)
    }

    /// Counts a connection for its address if its header has been read, and among the clients if the client has sent a
    /// byte after it. Returns false, and counts nothing, if the address has as many clients as it may have.
    pub(crate) fn count_proxied(&mut self, client: &mut Client, telemetry: &Telemetry) -> bool {
        let Some(proxied) = client.rare.proxied_mut() else {
            return true;
        };
        let has_address = matches!(proxied.header_stage, HeaderStage::Read | HeaderStage::Used);
        if has_address && !proxied.is_counted {
            if let Some(peer) = &proxied.peer
                && !self.addresses.try_add(peer)
            {
                return false;
            }
            proxied.is_counted = true;
        }
        if proxied.header_stage == HeaderStage::Used {
            self.count_as_client(client, telemetry);
        }
        true
    }

    /// Counts a connection for its address although that has as many clients as it may have: it is in a turn of a
    /// worker that has started before a reload set the limit.
    pub(crate) fn count_beyond_limit(&mut self, client: &mut Client, telemetry: &Telemetry) {
        if let Some(proxied) = client.rare.proxied_mut() {
            if let Some(peer) = proxied.peer.as_ref().filter(|_| !proxied.is_counted) {
                self.addresses.add(peer);
            }
            proxied.is_counted = true;
        }
        let _ = self.count_proxied(client, telemetry);
    }

    /// Counts a connection among the clients that were accepted.
    pub(super) fn count_as_client(&mut self, client: &mut Client, telemetry: &Telemetry) {
        let Some(proxied) = client.rare.proxied_mut().filter(|it| it.is_pending()) else {
            return;
        };
        proxied.client_stage = ClientStage::Client;
        self.pending = self.pending.saturating_sub(1);
        self.arrived.push(client.listener);
        log::debug!("client {} ({}) accepted", client.id, client.shown());
        self.write_figures(telemetry);
    }

    /// Counts the end of a connection that has not become a client, by this reason. Returns false, and counts nothing,
    /// if it is a client, or if the daemon closes it for a reason of its own.
    pub(super) fn end_pending(
        &mut self,
        client: &mut Client,
        reason: CloseReason,
        telemetry: &mut Telemetry,
    ) -> bool {
        if client
            .rare
            .proxied()
            .is_some_and(|it| it.header_stage == HeaderStage::Used)
        {
            self.count_as_client(client, telemetry);
        }
        let kind = WithoutClient::from_reason(reason);
        let proxied = client.rare.proxied_mut().filter(|it| it.is_pending());
        let (Some(proxied), Some(kind)) = (proxied, kind) else {
            return false;
        };
        proxied.client_stage = ClientStage::NoClient;
        self.pending = self.pending.saturating_sub(1);
        self.count_without_client(kind, telemetry);
        true
    }

    /// Rejects a connection to a listener whose `proxy-from` does not have its address.
    pub(crate) fn reject_outside(
        &mut self,
        accepted: Accepted,
        order: OrderRule,
        telemetry: &mut Telemetry,
    ) {
        self.next_id += 1;
        self.count_without_client(WithoutClient::Outside, telemetry);
        self.write_figures(telemetry);
        let socket = ClientSocket::shared(accepted.socket, accepted.address.is_none());
        let sentence = "the listener accepts only the load balancers in its proxy-from";
        reject_accepted(&socket, order, Code::BadRequest, sentence);
        socket::end(&socket);
    }

    /// Counts a connection that has ended without becoming a client.
    fn count_without_client(&mut self, kind: WithoutClient, telemetry: &mut Telemetry) {
        telemetry.counts.without_client.add(kind, 1);
        self.without_client += 1;
    }

    /// Counts a client without a worker for its address, if its header has been read. Rejects the client and returns
    /// `None` if the address has as many clients as it may have.
    pub(crate) fn count_or_reject(
        &mut self,
        mut unleased: Unleased,
        telemetry: &mut Telemetry,
    ) -> Option<Unleased> {
        if unleased.client.rare.proxied().is_none() {
            return Some(unleased);
        }
        if !self.count_proxied(&mut unleased.client, telemetry) {
            self.reject_over_limit(unleased, telemetry);
            return None;
        }
        if unleased.flags.proxy == ProxyState::Read {
            unleased.flags.proxy = ProxyState::Known;
        }
        Some(unleased)
    }

    /// Queues a client that its worker has given up so that it is counted for its address.
    pub(crate) fn requeue_uncounted(&mut self, unleased: Unleased, telemetry: &mut Telemetry) {
        if self.is_closing {
            return self.end_unleased(unleased, GoawayReason::Stopping, telemetry);
        }
        let Some(mut unleased) = self.count_or_reject(unleased, telemetry) else {
            return;
        };
        // Of two records of a client, the next master uses the one with more moves.
        unleased.client.moves = unleased.client.moves.saturating_add(1);
        if let Some(proxied) = unleased.client.rare.proxied_mut() {
            proxied.releases += 1;
        }
        self.unleased.push_back(unleased);
    }

    /// Rejects a client whose address has as many clients as it may have.
    pub(crate) fn reject_over_limit(&mut self, mut unleased: Unleased, telemetry: &mut Telemetry) {
        let client = &mut unleased.client;
        self.count_as_client(client, telemetry);
        log::debug!(
            "client {} ({}) rejected: its address has as many clients as it may have",
            client.id,
            client.shown()
        );
        telemetry.counts.refused += 1;
        reject(&unleased, Code::Overloaded, TOO_MANY);
        self.remove(unleased.client, telemetry);
    }
}

/// The sentence for a client whose address has as many clients as it may have.
pub(super) const TOO_MANY: &str = "there are too many connections from this address";

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::config::Config;
    use crate::master::clients::proxied::Proxied;
    use crate::master::clients::rare::RareFields;
    use crate::proto::names::Offsets;
    use crate::proto::proxy::ProxyVersion;
    use crate::shm::Layout;

    fn clients_with_limit(most: u32) -> Clients {
        let mut config = Config::default();
        config.limits.max_clients_per_address = NonZeroU32::new(most);
        let mut clients = Clients::new(&config, 100, Layout::new(1, 64));
        clients.recount_addresses(&config.limits, [].iter());
        clients
    }

    /// Returns a connection that the listener has accepted, in this stage, with this address.
    fn connection(clients: &mut Clients, stage: HeaderStage, peer: Option<Peer>) -> Client {
        clients.next_id += 1;
        clients.pending += 1;
        clients.add(1);
        let mut client = Client::simulated(clients.next_id - 1);
        let proxied = Proxied {
            header_stage: stage,
            peer,
            ..Proxied::new(ProxyVersion::V2)
        };
        client.rare = RareFields::new(Offsets::default(), Some(proxied));
        client
    }

    fn peer(port: u16) -> Option<Peer> {
        let address = std::net::Ipv4Addr::new(192, 0, 2, 1);
        Some(Peer::V4 { address, port })
    }

    #[test]
    fn a_connection_is_a_client_after_its_first_byte_only() {
        let (mut clients, mut telemetry) = (clients_with_limit(9), Telemetry::new());
        let mut check = connection(&mut clients, HeaderStage::Awaited, None);
        let mut opened = connection(&mut clients, HeaderStage::Read, peer(1));
        let mut used = connection(&mut clients, HeaderStage::Used, peer(2));
        for client in [&mut check, &mut opened, &mut used] {
            assert!(clients.count_proxied(client, &telemetry));
        }
        assert_eq!((clients.accepted(), clients.arrived.len()), (1, 1));
        for client in [check, opened, used] {
            clients.end(client, Some(CloseReason::Left), &mut telemetry);
        }
        let counts = &telemetry.counts;
        assert_eq!((clients.accepted(), clients.count()), (1, 0));
        assert_eq!(counts.without_client[WithoutClient::Check], 2);
        assert_eq!(counts.closed[CloseReason::Left], 1);
    }

    #[test]
    fn the_address_of_the_header_is_counted_once() {
        let (mut clients, mut telemetry) = (clients_with_limit(1), Telemetry::new());
        let mut first = connection(&mut clients, HeaderStage::Read, peer(1));
        for _ in 0..2 {
            assert!(clients.count_proxied(&mut first, &telemetry));
        }
        let mut second = connection(&mut clients, HeaderStage::Read, peer(2));
        assert!(!clients.count_proxied(&mut second, &telemetry));
        let second = Unleased::new(second, 1);
        assert!(clients.count_or_reject(second, &mut telemetry).is_none());
        assert_eq!((telemetry.counts.refused, clients.accepted()), (1, 1));
        clients.end(first, Some(CloseReason::Left), &mut telemetry);
        let third = connection(&mut clients, HeaderStage::Read, peer(3));
        let mut third = Unleased::new(third, 1);
        third.flags.proxy = ProxyState::Read;
        let third = clients
            .count_or_reject(third, &mut telemetry)
            .expect("it fits");
        assert_eq!(third.flags.proxy, ProxyState::Known);
    }

    #[test]
    fn a_connection_that_the_daemon_closes_is_counted_as_a_client() {
        let (mut clients, mut telemetry) = (clients_with_limit(1), Telemetry::new());
        let stopped = connection(&mut clients, HeaderStage::Awaited, None);
        clients.end(stopped, Some(CloseReason::Stopping), &mut telemetry);
        let refused = connection(&mut clients, HeaderStage::Awaited, None);
        clients.end(refused, Some(CloseReason::HeaderChecksum), &mut telemetry);
        let counts = &telemetry.counts;
        assert_eq!(
            (clients.accepted(), counts.closed[CloseReason::Stopping]),
            (1, 1)
        );
        assert_eq!(counts.without_client[WithoutClient::Checksum], 1);
    }
}
