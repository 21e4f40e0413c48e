//! The clients: the rows and columns of their table, and the lines about one of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ratatui_core::text::Line;

use super::columns::Column;
use super::news::{ClientList, ClientsWanted};
use super::text::fact;
use crate::ctl::clients::peer;
use crate::ctl::figures::{counted, grouped, in_letters, in_words, rate, short};
use crate::ctl::table::Cell;
use crate::proto::control::ClientStatus;
use crate::proto::names::ClientId;
use crate::proto::text::Escaped;

/// A client, with what is known from the list before.
#[derive(Clone, Debug)]
pub(crate) struct RatedClient {
    pub(crate) status: ClientStatus,
    /// Requests a second since an earlier list.
    pub(crate) rate: Option<f64>,
    /// When the next rate begins, and the requests until then.
    since: (Instant, u64),
}

impl RatedClient {
    /// Returns a client of a list that was asked for at this time, with its rate since the list before. The age of a
    /// client is in whole seconds, and not its clock.
    fn after(before: Option<&RatedClient>, status: ClientStatus, at: Instant) -> RatedClient {
        let since = (at, status.requests);
        let new = |rate| RatedClient {
            rate,
            since,
            status: status.clone(),
        };
        let Some(before) = before else {
            return new(None);
        };
        let (began, requests) = before.since;
        let time = at.saturating_duration_since(began);
        match status.requests.checked_sub(requests) {
            None => new(None),
            Some(more) if time >= MIN_RATE_TIME => new(Some(more as f64 / time.as_secs_f64())),
            Some(_) => RatedClient { status, ..*before },
        }
    }
}

/// The last list of clients.
#[derive(Debug, Default)]
pub(crate) struct RatedClients {
    pub(crate) of: ClientsWanted,
    pub(crate) clients: Vec<RatedClient>,
    pub(crate) is_complete: bool,
    /// Why there is no list of now.
    pub(crate) error: Option<String>,
}

impl RatedClients {
    /// Returns the list that follows this one, which stays if there is an error instead of one.
    pub(crate) fn next(&self, list: ClientList) -> RatedClients {
        if list.error.is_some() {
            let is_same = self.of == list.of;
            return RatedClients {
                of: list.of,
                clients: self.clients.iter().filter(|_| is_same).cloned().collect(),
                is_complete: is_same && self.is_complete,
                error: list.error,
            };
        }
        let before: HashMap<ClientId, &RatedClient> = self
            .clients
            .iter()
            .map(|client| (client.status.id, client))
            .collect();
        let rated = |status: ClientStatus| {
            let before = before.get(&status.id).copied();
            RatedClient::after(before, status, list.at)
        };
        RatedClients {
            of: list.of,
            clients: list.clients.into_iter().map(rated).collect(),
            is_complete: list.is_complete,
            error: list.error,
        }
    }
}

/// Returns the lines about one client.
pub(crate) fn details(client: &RatedClient) -> Vec<Line<'static>> {
    let status = &client.status;
    let address = Escaped(peer(status)).to_string();
    let name = format!(
        "{} ({address}), connected for {}",
        status.id,
        in_words(status.age_seconds)
    );
    let listener = status.listener.as_deref().unwrap_or("closed");
    let worker = match (status.worker, status.state) {
        (None, _) => "none, it waits for one".to_owned(),
        (Some(id), None) => id.to_string(),
        (Some(id), Some(state)) => format!("{id}, {}", state.as_str()),
    };
    let moves = counted(status.moves.into(), "move");
    let speed = client
        .rate
        .map_or_else(String::new, |requests| format!(", {}/s", rate(requests)));
    let requests = format!("{} answered{speed}", grouped(status.requests));
    let mut lines = vec![
        fact("client", &name),
        fact("listener", &Escaped(listener).to_string()),
        fact("worker", &format!("{worker}; {moves} so far")),
        fact("requests", &requests),
        fact("idle", &in_words(status.idle_seconds)),
        fact("buffers", &counted(status.bytes, "byte")),
    ];
    if let Some(method) = &status.method {
        lines.push(fact("method", &Escaped(method).to_string()));
    }
    if status.wants_goaway {
        lines.push(fact("goaway", "it has asked for one"));
    }
    lines
}

/// The shortest time of which a rate is shown: two lists may follow one another at once, as at a change of the view.
const MIN_RATE_TIME: Duration = Duration::from_millis(500);
/// The longest name of a method that is shown in full.
const MAX_METHOD_LEN: usize = 24;
/// The longest address with that of a load balancer.
const MAX_PEER_LEN: usize = 100;
/// The longest address of a listener.
const MAX_LISTENER_LEN: usize = 112;

/// The columns of the table of clients.
pub(crate) const COLUMNS: &[Column<RatedClient>] = &[
    Column::plain("ID", 5, 0, |row| row.status.id.to_string().into()),
    Column::word("PEER", 15, 0, |row| {
        Cell::foreign(&peer(&row.status), MAX_PEER_LEN)
    }),
    Column::plain("WORKER", 6, 1, |row| {
        let worker = row.status.worker;
        worker.map_or_else(String::new, |id| id.to_string()).into()
    }),
    Column::word("STATE", 7, 4, |row| {
        let state = row.status.state;
        state.map_or("", |state| state.as_str()).to_owned().into()
    }),
    Column::figure(
        "REQ/S",
        5,
        0,
        |row| row.rate.map_or_else(String::new, rate).into(),
        |row| row.rate,
    ),
    Column::figure(
        "REQUESTS",
        8,
        2,
        |row| short(row.status.requests).into(),
        |row| Some(row.status.requests as f64),
    ),
    Column::figure(
        "AGE",
        6,
        2,
        |row| in_letters(row.status.age_seconds).into(),
        |row| Some(row.status.age_seconds),
    ),
    Column::figure(
        "IDLE",
        6,
        3,
        |row| in_letters(row.status.idle_seconds).into(),
        |row| Some(row.status.idle_seconds),
    ),
    Column::figure(
        "BYTES",
        5,
        3,
        |row| short(row.status.bytes).into(),
        |row| Some(row.status.bytes as f64),
    ),
    Column::figure(
        "MOVES",
        5,
        5,
        |row| short(row.status.moves.into()).into(),
        |row| Some(row.status.moves.into()),
    ),
    Column::word("METHOD", 6, 6, |row| {
        Cell::foreign(
            row.status.method.as_deref().unwrap_or_default(),
            MAX_METHOD_LEN,
        )
    }),
    Column::word("LISTENER", 8, 7, |row| {
        Cell::foreign(
            row.status.listener.as_deref().unwrap_or_default(),
            MAX_LISTENER_LEN,
        )
    }),
];

/// The column of the worker, which all clients of one worker have in common.
pub(crate) const WORKER: usize = 2;
/// The column by which clients are sorted at first: the busiest are the first ones.
pub(crate) const BY_RATE: usize = 4;
