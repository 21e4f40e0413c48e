//! fdpassctl and master, over the control socket: the frames of the RPC, always little-endian.
//!
//! `{"in": VERB, "params": {…}}` is answered by exactly one `{"out": VERB, "result": {…}}` or `{"out": "error",
//! "result": {"code": CODE, "message": TEXT}}`. A request is at most [`MAX_REQUEST`] bytes; unknown verbs and unknown
//! parameters are refused. A connection may send another request after a reply; it may shut its writing side down after
//! the last request and still receives the replies.
//!
//! | verb | params | result | permitted to |
//! |---|---|---|---|
//! | `status` | none | [`Status`] | readers |
//! | `version` | none | [`Version`] | readers |
//! | `stop` | none | [`Stopped`], when all workers are gone and just before the daemon is | admins |
//! | `reload` | [`ReloadParams`], or none | [`Reloaded`], when the new configuration is applied | admins |
//! | `scale` | [`Scale`] | [`Settled`], when this number of workers is ready and the others are gone | admins |
//! | `recycle` | [`Recycle`] | [`Settled`], when successors are ready and the replaced workers gone | admins |
//! | `hold` | [`Hold`] | [`Settled`], when all clients of the worker are elsewhere | admins |
//! | `release` | [`Release`] | [`Settled`], at once | admins |
//! | `drain` | [`Drain`] | [`DrainResult`], when the notice has begun or the daemon is drained; with `wait`, when the last client has left, too | admins |
//! | `undrain` | none | [`Settled`], at once | admins |
//! | `rebalance` | [`Rebalance`] | [`Rebalanced`], after measuring for a second | admins |
//! | `clients` | [`ClientsAfter`] | [`ClientsPage`], a page of them | readers |
//! | `kick` | [`Kick`] | [`Kicked`], at once | admins |
//! | `events` | [`EventsAfter`] | [`Events`], at once, or when there is one or the wait is over | readers |
//! | `config` | none | [`Effective`] | readers |
//! | `check` | none | [`Checked`], or `rejected` as by `reload` | readers |
//! | `log-level` | [`SetLogLevel`] | [`LogLevelInForce`] | readers; with a level, admins |
//! | `upgrade` | [`UpgradeTo`] | [`Upgraded`], when all workers are of the new program | admins; with `binary` root and the daemon's user |
//! | `metrics` | none | [`Metrics`] | readers |
//! | `reopen-log` | none | [`Reopened`], at once | admins |
//!
//! Admins are root, the daemon's user and members of `[control] admin-group`; readers are these, members of
//! `read-group` and, if neither group is named, all users that can connect. The user, primary and supplementary groups
//! at the time of the connection count. All others receive `forbidden` as soon as they connect, and are closed. The
//! configuration in force at a request decides about it.
//!
//! Codes: `bad_request`, `unknown_verb`, `bad_params`, `too_large`, `forbidden`, `busy`, `timeout`, `rejected`,
//! `rolled_back`, `refused`.

mod clients;
mod drain;
mod effective;
mod events;
mod places;
mod status;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names::{Generation, WorkerId};
use super::paths::{exact, shown};

pub use clients::{
    ClientState, ClientStatus, ClientsAfter, ClientsPage, Cursor, Kick, Kicked, PAGE_LEN,
};
pub use drain::{Drain, DrainMode, DrainResult, DrainStatus};
pub use effective::{
    COMMAND_LINE, Change, Checked, ENVIRONMENT, Effective, Key, KeyOrigin, LogLevelInForce,
    SetLogLevel,
};
pub use events::{About, Event, Events, EventsAfter, Kind, MAX_EVENTS, MAX_WAIT};
pub use places::{places, runtime_directory, temporary};
pub use status::{
    AppStatus, LastReload, LeavingStatus, ListenerStatus, Origin, Pause, RuntimeStatus, Skew,
    Status, Verdict, WorkerState, WorkerStatus,
};

/// The longest body of a request, in bytes.
pub const MAX_REQUEST: u32 = 64 * 1024;

/// The longest body of a reply that fdpassctl accepts, in bytes.
pub const MAX_REPLY: u32 = 64 * 1024 * 1024;

/// How long a request may take to arrive, and a reply to be read.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

named_variants! {
    /// A verb of fdpassctl.
    Verb {
        /// Returns the daemon's state.
        Status = "status",
        /// Returns the running program.
        Version = "version",
        /// Ends the daemon gracefully.
        Stop = "stop",
        /// Applies the configuration file.
        Reload = "reload",
        /// Sets the number of workers.
        Scale = "scale",
        /// Replaces a worker, or all.
        Recycle = "recycle",
        /// Moves all clients from a worker and keeps it running.
        Hold = "hold",
        /// Gives a worker clients again, or lets a method run again.
        Release = "release",
        /// Stops accepting new clients.
        Drain = "drain",
        /// Accepts clients again.
        Undrain = "undrain",
        /// Spreads busy clients over the workers.
        Rebalance = "rebalance",
        /// Returns the clients, page by page.
        Clients = "clients",
        /// Closes a client.
        Kick = "kick",
        /// Returns the events.
        Events = "events",
        /// Returns the configuration in force.
        Config = "config",
        /// Checks whether a reload would accept the configuration file.
        Check = "check",
        /// Returns or sets the level of the log.
        LogLevel = "log-level",
        /// Returns all metrics, in Prometheus' format.
        Metrics = "metrics",
        /// Replaces the daemon's program.
        Upgrade = "upgrade",
        /// Opens the log file again.
        ReopenLog = "reopen-log",
    }
}

impl Verb {
    /// Returns whether it changes anything. `log-level` does so only with params.
    #[must_use]
    pub fn changes(self) -> bool {
        use Verb::*;
        !matches!(
            self,
            Status | Version | Clients | Events | Config | Check | LogLevel | Metrics
        )
    }

    /// Returns the verb of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|verb| verb.as_str() == name)
    }
}

named_variants! {
    /// The reason why a request was not carried out.
    RefusalCode {
        /// The body is not JSON, or not the object that a request is.
        BadRequest = "bad_request",
        /// There is no such verb.
        UnknownVerb = "unknown_verb",
        /// The verb does not take these params.
        BadParams = "bad_params",
        /// The request is longer than [`MAX_REQUEST`].
        TooLarge = "too_large",
        /// The user lacks permission.
        Forbidden = "forbidden",
        /// There are too many control clients, or an operation in progress must end first.
        Busy = "busy",
        /// The request did not arrive within [`REQUEST_TIMEOUT`].
        Timeout = "timeout",
        /// The new configuration was rejected; nothing was changed.
        Rejected = "rejected",
        /// The new configuration was rolled back; the previous one is in force.
        RolledBack = "rolled_back",
        /// The request cannot be fulfilled, for the reason in the message.
        Refused = "refused",
    }
}

/// The content of an error reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The reason, for programs.
    pub code: RefusalCode,
    /// The reason, for people.
    pub message: String,
    /// The place of the error in the configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

impl Refusal {
    /// Returns a refusal that belongs to no place in a file.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
            place: None,
        }
    }
}

/// A place in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file, as text: bytes that are not UTF-8 are U+FFFD.
    #[serde(serialize_with = "shown")]
    pub file: PathBuf,
    /// The line, from 1; none for the file as a whole.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
    /// The lines for people, with a caret below the error.
    pub display: String,
}

/// Params of `reload`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadParams {
    /// Whether to accept files that leave out keys of the configuration in force because one of them is empty.
    #[serde(default)]
    pub force: bool,
}

/// Params of `scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The desired number of workers, from 1 to 256.
    pub count: u32,
}

/// Params of `recycle`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recycle {
    /// The worker; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
}

/// Params of `hold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The worker.
    pub worker: WorkerId,
}

/// Params of `release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Release {
    /// The held worker.
    Worker(WorkerId),
    /// The quarantined method.
    Method(String),
}

/// Params of `rebalance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// Whether to report the moves only.
    #[serde(default)]
    pub dry_run: bool,
}

/// The result of `reload`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The number of the configuration.
    pub generation: Generation,
    /// Workers that are ready.
    pub workers: u32,
    /// The time since the request.
    pub seconds: f64,
}

/// The result of verbs that reach a state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// Workers that are ready.
    pub workers: u32,
    /// Connected clients.
    pub clients: u64,
}

/// The result of `reopen-log`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reopened {
    /// Whether the log is a file. Otherwise there is nothing to reopen.
    pub reopened: bool,
}

/// The outcome of a rebalancing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rebalanced {
    /// The moves, which a preview only plans; empty if the load is already balanced.
    pub moves: Vec<MovedLoad>,
    /// How many of the chosen clients stay, because a request of theirs was executing.
    #[serde(default)]
    pub busy: u64,
}

/// Clients moved from one worker to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovedLoad {
    /// The worker that had them.
    pub from: WorkerId,
    /// The worker that gets them.
    pub to: WorkerId,
    /// The number of clients.
    pub clients: u64,
    /// The clients' share of a worker's time, from 0 to 1.
    pub load: f64,
}

/// Params of `upgrade`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeTo {
    /// The program; without it the one at the path that the daemon was started from.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "exact")]
    pub binary: Option<PathBuf>,
}

/// The result of `upgrade`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The program's version.
    pub version: String,
    /// Workers that are ready.
    pub workers: u32,
    /// Connected clients.
    pub clients: u64,
    /// Whether the program is the same as before, by its file or its content.
    #[serde(default)]
    pub unchanged: bool,
}

/// The result of `metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// All metrics, in the text format of Prometheus, version 0.0.4.
    pub text: String,
}

/// The running program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The daemon's name.
    pub name: String,
    /// The program's version.
    pub version: String,
    /// The master's process.
    pub pid: u32,
}

/// The result of `stop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The master's process, which is about to exit.
    pub pid: u32,
    /// Workers that were killed because they did not finish within `drain-timeout`.
    pub killed: u64,
}
