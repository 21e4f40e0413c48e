//! Accepts clients and leases them to workers.
//!
//! A client is accepted only when a worker has capacity for it. If no worker has capacity, if `max-clients` is reached,
//! or if there are no descriptors, the listeners are disarmed and clients wait in the kernel's queue. An event or a
//! deadline ends that; the loop does not poll for it.

use std::io;
use std::iter::{once, repeat};
use std::net::IpAddr;
use std::time::Instant;

use crate::logging::LimitedLine;
use crate::master::clients::Clients;
use crate::master::clients::client::{Client, Unleased};
use crate::master::listeners::Listeners;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::proto::channel::MAX_LEASES;
use crate::proto::control::{About, Kind};
use crate::proto::names::Address;
use crate::sys::clock;
use crate::sys::listening::{AcceptResult, AcceptTry, Accepted, accept};
use crate::sys::poll::Poller;

impl Listeners {
    /// Leases the clients without a worker, then accepts and leases those that wait in the queues of these listeners:
    /// at most as many as one message of leases holds, because until it is sent only the master has these clients.
    pub(crate) fn lease_clients(
        &mut self,
        readable: &mut [u32],
        clients: &mut Clients,
        workers: &mut Workers,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        if readable.is_empty() && clients.unleased.is_empty() {
            return;
        }
        workers.lease_unleased(clients, telemetry);
        // The gate closes at the end of the iteration in which the daemon is drained.
        if self.gate.is_open() && !self.is_drained() {
            workers.begin_leasing(clients.dispatcher.policy());
            let mut left = MAX_LEASES;
            self.order(readable);
            for number in &*readable {
                let Some(index) = self.index_of(*number) else {
                    continue;
                };
                let accepted = self.all[index].connections;
                let context = (&mut *clients, &mut *workers, &mut *telemetry);
                let result = self.accept(index, left, context, now);
                let accepted = self.all[index].connections - accepted;
                if accepted > 0 {
                    self.last_served = *number;
                }
                left = left.saturating_sub(accepted as usize);
                match result {
                    Ok(is_empty) if is_empty && self.closing.contains(number) => {
                        self.close(index, telemetry, poller);
                    }
                    Ok(_) => {}
                    Err(e) => self.pause_exhausted(&e, clients, telemetry, now),
                }
            }
        }
        workers.flush_leases(clients, telemetry, poller);
    }

    /// Puts these listeners into the order in which they are served. The first is the one after the listener that was
    /// served last, so that many clients at one listener do not take the capacity from the others.
    fn order(&self, readable: &mut [u32]) {
        readable.sort_unstable_by_key(|number| (*number <= self.last_served, *number));
    }

    /// Accepts the clients that wait at one listener, as far as there is capacity, and at most `most`. Returns whether
    /// the queue is empty.
    fn accept(
        &mut self,
        index: usize,
        most: usize,
        (clients, workers, telemetry): (&mut Clients, &mut Workers, &mut Telemetry),
        now: Instant,
    ) -> io::Result<bool> {
        for attempt in once(AcceptTry::First)
            .chain(repeat(AcceptTry::Later))
            .take(most)
        {
            if clients.is_full() || !workers.can_pick_for_new(&mut clients.dispatcher, now) {
                break;
            }
            let AcceptResult::Client(accepted) = accept(&self.all[index], attempt)? else {
                return Ok(true);
            };
            let Some(client) = self.admit(index, accepted, clients, telemetry) else {
                continue;
            };
            let unleased = Unleased::new(client, clock::monotonic());
            // A worker has capacity, so one can be picked.
            let Some(chosen) = workers.pick_for_new(&mut clients.dispatcher) else {
                clients.unleased.push_back(unleased);
                break;
            };
            workers.lease_new(chosen, unleased, clients, telemetry);
        }
        Ok(false)
    }

    /// Makes a client of a connection that a listener accepted. Returns `None` if the connection has already ended or
    /// was rejected.
    pub(super) fn admit(
        &mut self,
        index: usize,
        accepted: Accepted,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
    ) -> Option<Client> {
        let listener = &mut self.all[index];
        listener.connections += 1;
        let rule = listener.proxy.as_ref();
        if let (Some(rule), Some(address)) = (rule, accepted.address)
            && !rule.admits(address.ip())
        {
            log_outside(address.ip().to_canonical(), &listener.address);
            clients.reject_outside(accepted, listener.byte_order, telemetry);
            return None;
        }
        let (order, number) = (listener.byte_order, listener.number);
        let client = clients.admit(accepted, order, (number, rule), telemetry)?;
        // A connection behind a load balancer may be a check.
        if client.is_client() {
            listener.accepted += 1;
            let Client { id, peer, .. } = &client;
            log::debug!("client {id} ({peer}) accepted on {}", listener.address);
        }
        Some(client)
    }

    /// Counts the connections that have become clients.
    pub(crate) fn count_arrived(&mut self, clients: &mut Clients) {
        for number in std::mem::take(&mut clients.arrived) {
            if let Some(index) = self.index_of(number) {
                self.all[index].accepted += 1;
            }
        }
    }

    /// Closes a listener.
    pub(super) fn close(&mut self, index: usize, telemetry: &mut Telemetry, poller: &Poller) {
        let listener = self.all.remove(index);
        let _ = poller.remove(&listener);
        self.closing.retain(|number| *number != listener.number);
        self.changed.push(listener.number);
        let sentence = format_args!("no longer listening on {}", listener.address);
        telemetry
            .events
            .note(Kind::ListenerClosed, About::default(), sentence);
    }
}

/// Logs that a connection is closed because its address is not in `proxy-from`, unless there are many such lines.
fn log_outside(ip: IpAddr, listener: &Address) {
    static LINE: LimitedLine = LimitedLine::new();
    LINE.warn(
        clock::monotonic(),
        &format_args!(
            "a connection from {ip} to {listener} is closed: the address is not in its proxy-from"
        ),
    );
}
