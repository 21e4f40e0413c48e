//! The clients, a page at a time.

use serde::{Deserialize, Serialize};

use super::super::names::{ClientId, WorkerId};

/// Most clients in one reply. It is also the number of slots that are examined for it, however many
/// clients there are.
pub const PAGE_LEN: usize = 1000;

/// Params of `clients`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientsAfter {
    /// Only those of this worker; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// Where the page before ended; the first page without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Cursor>,
}

/// A place among all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The worker; 0 is before all, where clients are that have none.
    pub worker: WorkerId,
    /// The first slot of it that has not been looked at.
    pub slot: u32,
}

/// A page of clients, in the order of workers and slots.
///
/// Pages are told one by one, and clients come, go and move in between: one that moves may be on two pages or on none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientsPage {
    /// At most [`PAGE_LEN`]; a page may be short, and even empty, without being the last.
    pub clients: Vec<ClientStatus>,
    /// Where the next page begins; none after the last one.
    pub next: Option<Cursor>,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The client's number, for `kick`.
    pub id: ClientId,
    /// The client's identity: an address and a port, or the process and user of a Unix client.
    pub peer: String,
    /// Where it connected; none if that listener is gone.
    pub listener: Option<String>,
    /// The worker that has the lease of it; none while it waits for one.
    pub worker: Option<WorkerId>,
    /// How long it has been connected.
    pub age_seconds: f64,
    /// For how long it has not sent or taken a byte.
    pub idle_seconds: f64,
    /// Requests of it that were answered.
    pub requests: u64,
    /// How often it went from one worker to another.
    pub moves: u32,
    /// Bytes of it in the shared memory: half a request, requests not begun, replies not taken.
    pub bytes: u64,
}

/// Params of `kick`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kick {
    /// The client.
    pub client: ClientId,
}

/// A client was closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kicked {
    /// The client that was closed.
    pub client: ClientId,
    /// The client's identity.
    pub peer: String,
}
