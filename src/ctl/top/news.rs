//! Reports of a daemon, as the screen needs them: plain data.

use std::time::Instant;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ctl::session::parse;
use crate::proto::control::{ClientStatus, Status};
use crate::proto::log::LogLevel;
use crate::proto::names::{ClientId, WorkerId};

/// A report of the daemon, or about it.
#[derive(Debug)]
pub(crate) enum News {
    Status(Box<Status>),
    /// The daemon does not answer, for this reason.
    Outage(String),
    Clients(ClientList),
    /// Events after those before, or, at the beginning of a connection, all that the daemon keeps.
    Events {
        events: Vec<EventLine>,
        /// The number of events that the daemon no longer had.
        lost: u64,
        is_first: bool,
    },
    /// A change was made, or not, for this reason.
    Changed(Result<String, String>),
}

/// The clients that the screen needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ClientsWanted {
    #[default]
    Nothing,
    All,
    Of(WorkerId),
}

/// Clients of a daemon, in the order of their arrival.
#[derive(Debug)]
pub(crate) struct ClientList {
    pub(crate) of: ClientsWanted,
    /// When they were asked for.
    pub(crate) at: Instant,
    pub(crate) clients: Vec<ClientStatus>,
    /// Whether there are no more of them.
    pub(crate) is_complete: bool,
    /// Why the daemon has not sent them.
    pub(crate) error: Option<String>,
}

/// A request of the screen to the thread that asks the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FiguresRequest {
    /// Ask for these clients, at each interval.
    Clients(ClientsWanted),
    /// The status, before the interval is over.
    Status,
}

/// As much of an event as is shown. A newer daemon may have more kinds.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct EventLine {
    pub(crate) at: f64,
    pub(crate) level: LogLevel,
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) client: Option<ClientId>,
}

impl EventLine {
    /// Parses events, and leaves out those that it does not know.
    pub(crate) fn parse_all(events: &[&RawValue]) -> Vec<EventLine> {
        let parsed = events.iter().map(|raw| parse(raw));
        parsed.filter_map(Result::ok).collect()
    }
}
