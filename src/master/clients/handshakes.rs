//! TCP Fast Open clients whose worker died before their handshake was complete, with replies in flight.
//!
//! In that state the kernel does not count bytes in flight (`sys/byte_counts.rs`), so it is not known yet how much of a
//! reply was sent. These clients wait here, with the shared memory of their worker, until the handshake is complete.
//! The kernel ends a handshake that never completes (`tcp_synack_retries` of tcp(7)).

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::clients::client::Client;
use crate::master::clients::leases::recovery::recover_after_death;
use crate::master::clients::place::OrphanedShm;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::{Loss, Reason};
use crate::proto::names::ClientId;
use crate::proto::text::Counted;
use crate::shm::CloseReason;

/// The first wait and the longest wait.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const MAX_WAIT: Duration = Duration::from_millis(200);

/// The clients of one dead worker.
#[derive(Debug)]
pub(crate) struct Handshakes {
    orphan: Rc<OrphanedShm>,
    /// The clients, each with its slot.
    clients: Vec<(u32, Client)>,
    /// The worker was killed for the request that it was executing.
    is_timed_out: bool,
    due: Instant,
    wait: Duration,
}

impl Handshakes {
    pub(crate) fn into_clients(self) -> impl Iterator<Item = Client> {
        self.clients.into_iter().map(|(_, client)| client)
    }

    /// Removes and returns a client.
    fn take(&mut self, id: ClientId) -> Option<Client> {
        let index = self
            .clients
            .iter()
            .position(|(_, client)| client.id == id)?;
        Some(self.clients.remove(index).1)
    }
}

impl Clients {
    /// Adds clients whose bytes cannot be counted yet to those that wait.
    pub(crate) fn await_handshakes(
        &mut self,
        orphan: Rc<OrphanedShm>,
        clients: Vec<(u32, Client)>,
        is_timed_out: bool,
        now: Instant,
    ) {
        if !clients.is_empty() {
            log::debug!(
                "{} with a handshake that has not ended",
                Counted(clients.len(), "client")
            );
            self.handshakes.push(Handshakes {
                orphan,
                clients,
                is_timed_out,
                due: now + FIRST_WAIT,
                wait: FIRST_WAIT,
            });
        }
    }

    /// Returns the clients with a handshake that has not ended.
    pub(crate) fn in_handshakes(&self) -> impl Iterator<Item = &Client> {
        let clients = self
            .handshakes
            .iter()
            .flat_map(|handshakes| &handshakes.clients);
        clients.map(|(_, client)| client)
    }

    /// Returns the number of all clients without a worker, whether their bytes are known or not.
    pub(crate) fn count_without_worker(&self) -> usize {
        self.all_unleased().count() + self.in_handshakes().count()
    }

    /// Removes and returns a client without a worker.
    pub(crate) fn take_without_worker(&mut self, id: ClientId) -> Option<Client> {
        if let Some(unleased) = self.take_unleased(id) {
            return Some(unleased.client);
        }
        let mut handshakes = self.handshakes.iter_mut();
        handshakes.find_map(|handshakes| handshakes.take(id))
    }

    /// Returns when these clients must be checked next.
    pub(crate) fn handshakes_deadline(&self) -> Option<Instant> {
        self.handshakes
            .iter()
            .map(|handshakes| handshakes.due)
            .min()
    }

    /// Recovers the clients whose handshakes are complete or whose connections have ended.
    pub(crate) fn check_handshakes(&mut self, telemetry: &mut Telemetry, now: Instant) {
        for mut handshakes in std::mem::take(&mut self.handshakes) {
            if handshakes.due <= now {
                self.recover_complete(&mut handshakes, telemetry, now);
                handshakes.wait = handshakes.wait.saturating_mul(2).min(MAX_WAIT);
                handshakes.due = now + handshakes.wait;
            }
            if !handshakes.clients.is_empty() {
                self.handshakes.push(handshakes);
            }
        }
    }

    fn recover_complete(
        &mut self,
        handshakes: &mut Handshakes,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let Handshakes {
            orphan,
            clients,
            is_timed_out,
            ..
        } = handshakes;
        let shm = &orphan.shm;
        for (slot, client) in std::mem::take(clients) {
            match recover_after_death(slot, client, None, shm, *is_timed_out) {
                Ok(recovered) => {
                    let app = shm.header().app();
                    self.requeue_left(vec![recovered], app, Reason::Death, telemetry, now);
                }
                Err((e, client)) => match e.kind() {
                    io::ErrorKind::WouldBlock => clients.push((slot, client)),
                    io::ErrorKind::ConnectionAborted => {
                        self.end(client, Some(CloseReason::Left), telemetry);
                    }
                    _ => self.lose(Loss::from_error(&e), &e, client, telemetry),
                },
            }
        }
    }

    /// Recovers the clients whose handshakes are complete, and closes the others: the master exits, and cannot leave
    /// their state to the next one.
    pub(crate) fn lose_handshakes(&mut self, telemetry: &mut Telemetry, now: Instant) {
        for mut handshakes in std::mem::take(&mut self.handshakes) {
            self.recover_complete(&mut handshakes, telemetry, now);
            let error = io::ErrorKind::WouldBlock.into();
            for (_, client) in handshakes.clients {
                self.lose(Loss::from_error(&error), &error, client, telemetry);
            }
        }
    }
}
