//! Clients: one client, its lease, and the recovery of its bytes.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use crate::config::{Config, Limits, ProxyRule};
use crate::master::clients::addresses::Addresses;
use crate::master::clients::app_cgroups::CgroupsOfApps;
use crate::master::clients::arrivals::TOO_MANY;
use crate::master::clients::client::{Client, Unleased};
use crate::master::clients::ending_apps::EndingApp;
use crate::master::clients::figures::ClientFigures;
use crate::master::clients::goaway::GoawayDeadlines;
use crate::master::clients::handshakes::Handshakes;
use crate::master::clients::leases::recovery::{DeadWorkerClients, Interrupted};
use crate::master::clients::leases::{Leases, Recovered};
use crate::master::clients::place::OrphanedShm;
use crate::master::clients::proxied::Proxied;
use crate::master::clients::rare::RareFields;
use crate::master::clients::reject::reject_accepted;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::{Loss, Reason, of_client};
use crate::pool::dispatch::Dispatcher;
use crate::proto::frame::OrderRule;
use crate::proto::names::{ClientId, Offsets, Peer};
use crate::proto::rpc;
use crate::proto::rpc::GoawayReason;
use crate::shm::{CloseReason, Layout};
use crate::sys::byte_counts::Writes;
use crate::sys::listening::Accepted;
use crate::sys::passed::ClientSocket;
use crate::sys::process::ProcessIdentity;
use crate::sys::{byte_counts, clock, socket};

pub(crate) mod addresses;
pub(crate) mod app_cgroups;
pub(crate) mod arrivals;
pub(crate) mod client;
pub(crate) mod ending_apps;
pub(crate) mod figures;
pub(crate) mod goaway;
pub(crate) mod handshakes;
pub(crate) mod leases;
pub(crate) mod place;
pub(crate) mod proxied;
pub(crate) mod rare;
pub(crate) mod reject;

/// All clients, with and without a worker.
#[derive(Debug)]
pub(crate) struct Clients {
    /// Clients without a worker that can be leased. Those that have waited longest come first.
    pub(crate) unleased: VecDeque<Unleased>,
    /// Clients whose bytes cannot be counted yet.
    pub(crate) handshakes: Vec<Handshakes>,
    /// Clients whose requests may still be executed by an app.
    pub(crate) ending_apps: Vec<EndingApp>,
    pub(crate) cgroups_of_apps: CgroupsOfApps,
    pub(crate) addresses: Addresses,
    /// The id of the next client.
    pub(crate) next_id: u64,
    /// The number of all clients.
    count: u64,
    /// The number of connections to listeners with the key `proxy` that are not counted as clients yet.
    pub(crate) pending: u64,
    /// The number of such connections that ended without becoming clients, with those from addresses outside
    /// `proxy-from`.
    pub(crate) without_client: u64,
    /// The number of the listener of each connection that has become a client and that the listener has not counted.
    pub(crate) arrived: Vec<u32>,
    /// Clients that were removed since this master began.
    removed: u64,
    pub(crate) max: u64,
    /// Whether clients without a worker are closed, because no worker will serve them.
    is_closing: bool,
    /// The layout of the shared memory of new workers.
    pub(crate) layout: Layout,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) goaways: GoawayDeadlines,
    /// The figures for the next master, if clients are kept for it.
    pub(crate) figures: Option<ClientFigures>,
}

impl Clients {
    /// Returns the state without any client. `max` is the most clients that there may be.
    pub(crate) fn new(config: &Config, max: u64, layout: Layout) -> Clients {
        Clients {
            unleased: VecDeque::new(),
            handshakes: Vec::new(),
            ending_apps: Vec::new(),
            cgroups_of_apps: CgroupsOfApps::of_process(),
            addresses: Addresses::new(&config.limits, [].into_iter()),
            next_id: 1,
            count: 0,
            pending: 0,
            without_client: 0,
            arrived: Vec::new(),
            removed: 0,
            max,
            is_closing: false,
            layout,
            dispatcher: Dispatcher::new(config.workers.dispatch),
            goaways: GoawayDeadlines::default(),
            figures: None,
        }
    }

    /// Returns the number of all clients.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns the number of clients that were removed since this master began.
    pub(crate) fn removed(&self) -> u64 {
        self.removed
    }

    /// Applies the limits for addresses and the dispatch of a new configuration. `leased` are the clients of workers.
    pub(crate) fn reconfigure<'c>(
        &mut self,
        before: &Config,
        config: &Config,
        leased: impl Iterator<Item = &'c Client>,
    ) {
        let counting = |config: &Config| {
            (
                config.limits.max_clients_per_address,
                config.limits.ipv6_prefix,
            )
        };
        if counting(config) != counting(before) {
            self.recount_addresses(&config.limits, leased);
        }
        self.dispatcher.set_policy(config.workers.dispatch);
    }

    /// Counts again how many clients each address has, if that is limited. `leased` are the clients of workers.
    pub(crate) fn recount_addresses<'c>(
        &mut self,
        limits: &Limits,
        leased: impl Iterator<Item = &'c Client>,
    ) {
        let unleased = self.all_unleased().map(|unleased| &unleased.client);
        let unleased = unleased.chain(self.in_handshakes());
        let unleased = unleased.filter_map(Client::counted_peer);
        let peers = leased.filter_map(Client::counted_peer).chain(unleased);
        self.addresses = Addresses::new(limits, peers);
    }

    /// Returns whether there are as many clients as there may be.
    pub(crate) fn is_full(&self) -> bool {
        self.count >= self.max
    }

    /// Adds clients that an earlier master, or this process before an upgrade, has had.
    pub(crate) fn add(&mut self, clients: u64) {
        self.count += clients;
    }

    /// Subtracts clients that are left to no master.
    pub(crate) fn subtract(&mut self, clients: u64) {
        self.count -= clients;
    }

    /// Writes the figures that change with every client for the next master.
    pub(crate) fn write_figures(&self, telemetry: &Telemetry) {
        if let Some(figures) = &self.figures {
            figures.set(self.next_id, telemetry.counts.refused, self.count);
            figures.set_without_client(self.without_client);
        }
    }

    /// Makes a client of a connection that a listener accepted. Returns `None` if the connection has already ended or
    /// was rejected. `rule` is the one of a listener with the key `proxy`.
    pub(crate) fn admit(
        &mut self,
        accepted: Accepted,
        order: OrderRule,
        (listener, rule): (u32, Option<&ProxyRule>),
        telemetry: &mut Telemetry,
    ) -> Option<Client> {
        let id = ClientId(self.next_id);
        self.next_id += 1;
        self.write_figures(telemetry);
        let peer = peer_of(&accepted)?;
        let socket = ClientSocket::shared(accepted.socket, accepted.address.is_none());
        if rule.is_some() {
            self.pending += 1;
        } else if !self.addresses.try_add(&peer) {
            log::debug!(
                "client {id} ({peer}) rejected: its address has as many clients as it may have"
            );
            telemetry.counts.refused += 1;
            self.write_figures(telemetry);
            reject_accepted(&socket, order, rpc::Code::Overloaded, TOO_MANY);
            return None;
        }
        self.count += 1;
        self.write_figures(telemetry);
        let proxied = rule.map(|rule| Proxied::new(rule.version));
        Some(Client {
            id,
            socket,
            peer,
            order,
            listener,
            since: clock::monotonic_seconds(),
            moves: 0,
            goaway: None,
            rare: RareFields::new(Offsets::default(), proxied),
        })
    }

    /// Queues clients whose workers do not have them any more, so that they are leased to others. Clients that have
    /// waited longest come first: otherwise one that is queued again and again could delay another for ever. Returns
    /// the number of queued clients.
    pub(crate) fn requeue(
        &mut self,
        recovered: impl IntoIterator<Item = Recovered>,
        reason: Reason,
        telemetry: &mut Telemetry,
    ) -> usize {
        let mut movers = Vec::new();
        for recovered in recovered {
            match recovered {
                Ok(unleased) if self.is_closing => {
                    self.end_unleased(unleased, GoawayReason::Stopping, telemetry);
                }
                Ok(unleased) => {
                    let Some(mut unleased) = self.count_or_reject(unleased, telemetry) else {
                        continue;
                    };
                    unleased.client.moves = unleased.client.moves.saturating_add(1);
                    movers.push(unleased);
                }
                Err((error, client)) => {
                    self.lose(Loss::from_error(&error), &error, client, telemetry)
                }
            }
        }
        movers.sort_by_key(|unleased| unleased.times.1);
        let count = movers.len();
        telemetry.counts.moves.add(reason, count as u64);
        self.unleased.extend(movers);
        count
    }

    /// Queues clients whose leases could not be sent. This is not counted as a move, because no worker received them.
    pub(crate) fn put_back(&mut self, withdrawn: Vec<Recovered>, telemetry: &mut Telemetry) {
        for recovered in withdrawn {
            match recovered {
                Ok(unleased) => self.unleased.push_back(unleased),
                Err((error, client)) => {
                    self.lose(Loss::from_error(&error), &error, client, telemetry);
                }
            }
        }
    }

    /// Recovers the clients of a dead worker. `written` is what its thread has written; `is_timed_out` is whether it
    /// was killed for its request.
    pub(crate) fn recover_left(
        &self,
        orphan: &Rc<OrphanedShm>,
        leases: Leases,
        written: Option<Writes>,
        is_timed_out: bool,
    ) -> DeadWorkerClients {
        let mut recovery = leases.recover_clients(&orphan.shm, written, is_timed_out);
        if self.figures.is_some() {
            recovery.note_places(orphan);
        }
        recovery
    }

    /// Queues, ends or closes the clients of a dead worker. Returns the number of queued ones.
    pub(crate) fn recover(
        &mut self,
        recovery: DeadWorkerClients,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> usize {
        for (error, client) in recovery.lost {
            self.lose(Loss::from_error(&error), &error, client, telemetry);
        }
        for (client, reason) in recovery.ended {
            self.end(client, reason, telemetry);
        }
        self.requeue_left(
            recovery.recovered,
            recovery.app,
            Reason::Death,
            telemetry,
            now,
        )
    }

    /// Queues the clients of a dead worker, those with an interrupted request when its app has ended. Returns their
    /// number.
    pub(crate) fn requeue_left(
        &mut self,
        recovered: Vec<(Unleased, Option<Interrupted>)>,
        app: Option<ProcessIdentity>,
        reason: Reason,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> usize {
        let count = recovered.len();
        let (interrupted, others): (Vec<_>, Vec<_>) = recovered
            .into_iter()
            .partition(|(_, request)| request.is_some());
        let unleased = |(unleased, _)| unleased;
        let interrupted = interrupted.into_iter().map(unleased).collect();
        self.requeue(others.into_iter().map(unleased).map(Ok), reason, telemetry);
        self.requeue_interrupted(interrupted, app, reason, telemetry, now);
        count
    }

    /// Closes a client that the daemon cannot keep, and counts it as lost. The master loses clients only here; one of
    /// which it has no [`Client`] is added to [`Counts::losses`](crate::master::telemetry::counters::Counts) directly.
    pub(crate) fn lose(
        &mut self,
        loss: Loss,
        error: &io::Error,
        mut client: Client,
        telemetry: &mut Telemetry,
    ) {
        log::debug!(
            "client {} ({}) cannot be recovered: {error}; closing it",
            client.id,
            client.shown()
        );
        socket::end(&client.socket);
        self.count_as_client(&mut client, telemetry);
        telemetry.counts.losses.add(loss, 1);
        self.remove(client, telemetry);
    }

    /// Removes a client whose connection is closed, or is closed by dropping `client`, and counts it by this reason.
    /// `None` if it is counted already.
    pub(crate) fn end(
        &mut self,
        mut client: Client,
        reason: Option<CloseReason>,
        telemetry: &mut Telemetry,
    ) {
        match reason {
            Some(reason) if self.end_pending(&mut client, reason, telemetry) => {}
            Some(CloseReason::Kicked) => telemetry.counts.kicked += 1,
            Some(reason) => telemetry.counts.closed.add(of_client(reason), 1),
            None => self.count_as_client(&mut client, telemetry),
        }
        self.remove(client, telemetry);
    }

    /// Removes a client that is counted, and whose connection is closed or is closed by dropping `client`.
    pub(crate) fn remove(&mut self, mut client: Client, telemetry: &Telemetry) {
        self.count_as_client(&mut client, telemetry);
        if client.is_client() {
            log::debug!("client {} ({}) closed", client.id, client.shown());
        }
        if let Some(peer) = client.counted_peer() {
            self.addresses.remove(&peer);
        }
        self.count -= 1;
        self.removed += 1;
        self.write_figures(telemetry);
    }

    /// Closes all clients without a worker, now and from now on.
    pub(crate) fn close_without_worker(&mut self, telemetry: &mut Telemetry) {
        self.is_closing = true;
        let unleased = std::mem::take(&mut self.unleased).into_iter();
        let handshakes = std::mem::take(&mut self.handshakes).into_iter();
        for unleased in unleased.chain(self.take_ending()) {
            self.end_unleased(unleased, GoawayReason::Stopping, telemetry);
        }
        for client in handshakes.flat_map(Handshakes::into_clients) {
            self.end(client, Some(CloseReason::Stopping), telemetry);
        }
    }
}

/// Returns the peer of a connection. `None` when the kernel does not know it any more: then the client is gone.
fn peer_of(accepted: &Accepted) -> Option<Peer> {
    match accepted.address {
        Some(address) => Some(Peer::from(address)),
        None => {
            let socket::Credentials { pid, uid, gid } =
                socket::credentials(&accepted.socket).ok()?;
            // A failure only means that the client cannot be recovered from the middle of a turn.
            let _ = byte_counts::arm(&accepted.socket);
            Some(Peer::Unix { pid, uid, gid })
        }
    }
}
