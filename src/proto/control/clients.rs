//! The clients, page by page.

use serde::{Deserialize, Serialize};

use super::super::names::{ClientId, WorkerId};
use super::super::rpc::GoawayReason;

/// The most clients in one reply, and the number of slots that are examined for it.
pub const PAGE_LEN: usize = 1000;

/// Params of `clients`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientsAfter {
    /// Only those of this worker; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// The end of the previous page; the first page without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Cursor>,
}

/// A position among all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The worker; 0 is before all, for clients without a worker.
    pub worker: WorkerId,
    /// The worker's first slot that has not been examined.
    pub slot: u32,
}

/// A page of clients, in the order of workers and slots.
///
/// Clients connect, leave and move between two pages: a client that moves may be on two pages or on none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientsPage {
    /// At most [`PAGE_LEN`]; a page may be short, and even empty, without being the last.
    pub clients: Vec<ClientStatus>,
    /// The beginning of the next page; none after the last one.
    pub next: Option<Cursor>,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The client's number, for `kick`.
    pub id: ClientId,
    /// The client's identity: an address and a port, or the process and user of a Unix client.
    pub peer: String,
    /// The load balancer that it came through, in the same form, if that has reported the client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The listener where it connected; none if that was closed.
    pub listener: Option<String>,
    /// The worker that has its lease; none while it waits for one.
    pub worker: Option<WorkerId>,
    /// The client's activity; none in the reply of an older daemon.
    #[serde(default)]
    pub state: Option<ClientState>,
    /// The method that executes its request; none if none does, or if it is an inline one.
    #[serde(default)]
    pub method: Option<String>,
    /// The time since it connected.
    pub age_seconds: f64,
    /// The time since it last sent or received a byte.
    pub idle_seconds: f64,
    /// The number of its requests that were answered.
    pub requests: u64,
    /// How often it moved from one worker to another.
    pub moves: u32,
    /// The number of its bytes in the shared memory: an unfinished request, requests not begun, replies not sent.
    pub bytes: u64,
    /// Whether it has asked for a goaway.
    #[serde(default)]
    pub wants_goaway: bool,
    /// Why it gets that, if it does.
    #[serde(default)]
    pub goaway: Option<GoawayReason>,
}

named_variants! {
    /// The activity of a client.
    ClientState {
        /// Nothing of it is in the shared memory.
        Idle = "idle",
        /// The rest of a request is missing, or replies are unsent.
        Parked = "parked",
        /// The worker serves it.
        Busy = "busy",
        /// The worker's app or an asynchronous method executes its request.
        Away = "away",
        /// The worker has closed it.
        Closing = "closing",
        /// No worker has it.
        Waiting = "waiting",
    }
}

/// Params of `kick`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kick {
    /// The client.
    pub client: ClientId,
}

/// The result of `kick`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kicked {
    /// The client that was closed.
    pub client: ClientId,
    /// The client's identity.
    pub peer: String,
    /// The client gets a goaway and is closed after that; otherwise it is closed.
    #[serde(default)]
    pub goaway: bool,
}
