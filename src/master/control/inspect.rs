//! Read-only requests other than the status, and those that belong to them: clients by page, events, the configuration
//! key by key, the log level.
//!
//! However much data there is, one reply costs the loop one page.

use crate::config::{self, size};
use crate::master::clients::client::{Client, Unleased};
use crate::master::clients::leases::listing::SlotFigures;
use crate::master::control::Snapshot;
use crate::master::telemetry::events::Since;
use crate::proto::control::{
    ClientState, ClientStatus, ClientsAfter, ClientsPage, Cursor, Effective, Events, KeyOrigin,
    Origin, PAGE_LEN, Refusal, RefusalCode,
};
use crate::proto::names::WorkerId;
use crate::shm::LeaseState;
use crate::sys::clock;

/// The worker id that stands for clients without a worker.
const NO_WORKER: WorkerId = WorkerId(0);

/// The TOML value of a key whose value the master chooses.
const AUTO: &str = "\"auto\"";

/// Returns what a client with a worker is doing.
fn client_state(state: LeaseState) -> ClientState {
    match state {
        LeaseState::Idle => ClientState::Idle,
        LeaseState::Parked => ClientState::Parked,
        LeaseState::Busy => ClientState::Busy,
        LeaseState::Away => ClientState::Away,
        LeaseState::Closed => ClientState::Closing,
        // The worker has given it up, and the master has not read that yet.
        LeaseState::Revoked | LeaseState::RevokedParked | LeaseState::Free => ClientState::Waiting,
    }
}

impl Snapshot<'_> {
    /// Returns one page of clients, from the given position.
    pub(crate) fn clients_page(&self, asked: ClientsAfter) -> Result<ClientsPage, Refusal> {
        if let Some(id) = asked.worker.filter(|id| !self.workers.all.contains_key(id)) {
            return Err(Refusal::new(
                RefusalCode::Refused,
                format!("there is no worker {id}"),
            ));
        }
        let first = Cursor {
            worker: asked.worker.unwrap_or(NO_WORKER),
            slot: 0,
        };
        let from = asked.after.unwrap_or(first).max(first);
        let (mut clients, mut looked_at) = (Vec::new(), 0);
        if from.worker == NO_WORKER {
            let unleased = self.clients.all_unleased();
            let unleased = unleased.map(|unleased| self.unleased_client(unleased));
            let handshakes = self.clients.in_handshakes();
            let handshakes = handshakes.map(|client| self.client_in_handshake(client));
            let all = unleased.chain(handshakes);
            clients.extend(all.skip(from.slot as usize).take(PAGE_LEN));
            looked_at = clients.len();
            if from.slot as usize + looked_at < self.clients.count_without_worker() {
                let slot = from.slot + looked_at as u32;
                return Ok(ClientsPage {
                    clients,
                    next: Some(Cursor {
                        worker: NO_WORKER,
                        slot,
                    }),
                });
            }
        }
        let last = asked.worker.unwrap_or(WorkerId(u64::MAX));
        // The requester chooses the position and the worker. The position may be after the worker, and `range` panics
        // if its begin is greater than its end.
        let wanted = self.workers.all.range(from.worker..);
        for (id, worker) in wanted.take_while(|(id, _)| **id <= last) {
            let begin = if *id == from.worker { from.slot } else { 0 };
            let end = worker.leases.used().max(begin);
            let until = end.min(begin.saturating_add((PAGE_LEN - looked_at) as u32));
            let page = worker.leases.page(begin..until, &worker.shm);
            clients.extend(
                page.map(|(client, shared_slot)| {
                    self.client_status(client, Some(*id), shared_slot)
                }),
            );
            looked_at += (until - begin) as usize;
            if until < end {
                let next = Some(Cursor {
                    worker: *id,
                    slot: until,
                });
                return Ok(ClientsPage { clients, next });
            }
        }
        let next = None;
        Ok(ClientsPage { clients, next })
    }

    fn unleased_client(&self, unleased: &Unleased) -> ClientStatus {
        let bytes = (unleased.bytes.unread.len() + unleased.bytes.unsent.len()) as u64;
        let shared_slot = SlotFigures {
            active: unleased.times.1,
            requests: unleased.requests,
            bytes,
            wants_goaway: unleased.flags.wants_goaway,
            goaway: unleased.flags.goaway,
            ..SlotFigures::default()
        };
        self.client_status(&unleased.client, None, shared_slot)
    }

    /// Returns the status of a client whose bytes cannot be counted yet.
    fn client_in_handshake(&self, client: &Client) -> ClientStatus {
        let shared_slot = SlotFigures {
            active: u64::from(client.since) * 1_000_000_000,
            ..SlotFigures::default()
        };
        self.client_status(client, None, shared_slot)
    }

    fn client_status(
        &self,
        client: &Client,
        worker: Option<WorkerId>,
        SlotFigures {
            active,
            requests,
            bytes,
            state,
            executing,
            wants_goaway,
            goaway,
            source,
        }: SlotFigures,
    ) -> ClientStatus {
        let serving = worker.and_then(|id| self.workers.all.get(&id));
        let method = executing.and_then(|number| serving?.method_of(number));
        let listener = self
            .listeners
            .all
            .iter()
            .find(|listener| listener.number == client.listener);
        let idle = clock::monotonic().saturating_sub(active);
        let shown = client.shown_with(source);
        ClientStatus {
            id: client.id,
            peer: shown.peer.to_string(),
            via: shown.via.map(|via| via.to_string()),
            listener: listener.map(|listener| listener.address.to_string()),
            worker,
            state: Some(state.map_or(ClientState::Waiting, client_state)),
            method: method.map(str::to_owned),
            age_seconds: clock::monotonic_seconds()
                .saturating_sub(client.since)
                .into(),
            idle_seconds: (idle / 1_000_000) as f64 / 1000.0,
            requests,
            moves: client.true_moves(),
            bytes,
            wants_goaway,
            goaway: goaway.max(client.goaway),
        }
    }

    /// Returns the events after a number, and the current state.
    pub(crate) fn events_after(&self, after: u64) -> Events {
        let Since { events, lost } = self.telemetry.events.since(after);
        let workers = self.workers.pool.serving() as u32;
        Events {
            events,
            last: self.telemetry.events.last(),
            lost,
            workers,
            clients: self.clients.count(),
        }
    }

    /// Returns the configuration in force, key by key.
    pub(crate) fn effective(&self) -> Effective {
        let mut keys = self
            .settings
            .with_changes(self.workers.pool.target().count)
            .entries(&self.settings.given);
        if self.settings.command_line.is_some() {
            for key in keys.iter_mut().filter(|key| key.origin == KeyOrigin::File) {
                key.origin = KeyOrigin::CommandLine;
            }
        }
        for (name, is_runtime) in [
            (
                "workers.count",
                self.settings.count_origin == Origin::Runtime,
            ),
            ("log.level", self.settings.log_level.is_some()),
        ] {
            if let Some(key) = keys.iter_mut().find(|key| is_runtime && key.key == name) {
                key.origin = KeyOrigin::Runtime;
            }
        }
        for (name, comes_to) in [
            (
                "workers.count",
                self.workers.pool.target().count.to_string(),
            ),
            ("limits.max-clients", self.clients.max.to_string()),
            ("limits.buffers", format!("{:?}", size(self.buffers()))),
        ] {
            if let Some(key) = keys
                .iter_mut()
                .find(|key| key.key == name && key.value.as_deref() == Some(AUTO))
            {
                key.value = Some(format!("{AUTO} # {comes_to}"));
            }
        }
        if let Some(socket) = keys
            .iter_mut()
            .find(|key| key.key == "control.socket" && key.value.is_none())
        {
            socket.value = Some(config::quoted(
                &self.control.listener.path().to_string_lossy(),
            ));
        }
        Effective {
            file: self.settings.file.clone(),
            files: self.settings.files.clone(),
            keys,
        }
    }
}
