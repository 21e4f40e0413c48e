//! fdpassctl and master, over the control socket: the frames of the RPC, always little-endian.
//!
//! `{"in": VERB, "params": {…}}` is answered by exactly one `{"out": VERB, "result": {…}}` or
//! `{"out": "error", "result": {"code": CODE, "message": TEXT}}`. A request is at most [`MAX_REQUEST`]
//! bytes; unknown verbs and unknown parameters are refused. A connection may ask again after a reply.
//!
//! | verb | params | result | who may |
//! |---|---|---|---|
//! | `status` | none | [`Status`] | whoever can connect |
//! | `version` | none | [`Version`] | whoever can connect |
//! | `stop` | none | [`Stopped`], when all workers are gone and just before the daemon is | root and the daemon's user |
//!
//! Codes: `bad_request`, `unknown_verb`, `bad_params`, `too_large`, `forbidden`, `busy`, `timeout`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::frame::OrderRule;
use super::names::{Generation, WorkerId};

/// Longest body of a request, in bytes.
pub const MAX_REQUEST: u32 = 64 * 1024;

/// Longest body of a reply that fdpassctl takes, in bytes.
pub const MAX_REPLY: u32 = 64 * 1024 * 1024;

/// How long a request may take to arrive, and a reply to be read.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What fdpassctl may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// What is going on.
    Status,
    /// Which program this is.
    Version,
    /// End gracefully.
    Stop,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 3] = [Verb::Status, Verb::Version, Verb::Stop];

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Status => "status",
            Verb::Version => "version",
            Verb::Stop => "stop",
        }
    }

    /// The verb of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|verb| verb.as_str() == name)
    }
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No JSON, or not the object that a request is.
    BadRequest,
    /// No such verb.
    UnknownVerb,
    /// The verb does not take these params.
    BadParams,
    /// The request is longer than [`MAX_REQUEST`].
    TooLarge,
    /// The asker may not.
    Forbidden,
    /// Too many control clients.
    Busy,
    /// The request did not arrive within [`PATIENCE`].
    Timeout,
}

/// A refusal, as it stands in an error reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

/// Which program this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The daemon's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The master's process.
    pub pid: u32,
}

/// The end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The process that is about to exit.
    pub pid: u32,
    /// Workers that had to be killed because they did not finish within `drain-timeout`.
    pub killed: u64,
}

/// What is going on: the one type of what can be seen from outside.
///
/// Totals go on over respawns of workers. What is `None` cannot be known (yet).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The master's process.
    pub pid: u32,
    /// How long the master has been running.
    pub uptime_seconds: f64,
    /// Counts the configurations that were applied.
    pub generation: Generation,
    /// The configuration file; none when the embedded default is in force.
    pub config_file: Option<PathBuf>,
    /// `least-loaded` or `round-robin`.
    pub dispatch: String,
    /// Whether the daemon is on its way out.
    pub stopping: bool,
    /// Why nothing is being accepted at the moment; none when clients are.
    pub paused: Option<String>,
    /// Where clients connect.
    pub listeners: Vec<ListenerStatus>,
    /// Clients there are now.
    pub clients: u64,
    /// Clients there may be.
    pub max_clients: u64,
    /// Clients ever accepted.
    pub accepted_total: u64,
    /// Of these, clients turned away because their address had too many.
    pub refused_total: u64,
    /// Clients that were leased again after the death of their worker.
    pub moved_total: u64,
    /// Clients that were closed because their worker died with bytes of theirs in hand.
    pub lost_total: u64,
    /// Requests ever answered, with a result or an error.
    pub requests_total: u64,
    /// Of these, with an error.
    pub errors_total: u64,
    /// Log lines that could not be written, by the master or a worker.
    pub log_errors_total: u64,
    /// The workers, in the order of their seats.
    pub workers: Vec<WorkerStatus>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Where it listens, with the port really bound.
    pub address: String,
    /// How it learns its clients' byte order.
    pub byte_order: OrderRule,
    /// Clients waiting in the kernel to be accepted; none for a Unix socket.
    pub queue: Option<u32>,
    /// Clients that can wait there; none for a Unix socket.
    pub queue_max: Option<u32>,
    /// Clients accepted here.
    pub accepted_total: u64,
}

/// A worker's seat among the workers, and who is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The seat, from 0: what stays when the process is replaced.
    pub seat: u32,
    /// The worker; none while its successor waits to be started.
    pub id: Option<WorkerId>,
    /// Its process.
    pub pid: Option<u32>,
    /// The configuration it serves.
    pub generation: Generation,
    /// Where it is in its life.
    pub state: WorkerState,
    /// Clients leased to it.
    pub clients: u64,
    /// Requests it is executing.
    pub executing: u64,
    /// Requests answered in this seat.
    pub requests_total: u64,
    /// Of these, with an error.
    pub errors_total: u64,
    /// Handlers that panicked in this seat.
    pub panics_total: u64,
    /// Log lines that workers in this seat could not write.
    pub log_errors_total: u64,
    /// Bytes of unfinished frames and unread replies that it holds, beyond the 4 KiB that each client may have.
    pub parked_bytes: u64,
    /// Requests a second over the last 10 s.
    pub requests_per_second: Option<f64>,
    /// Half of the last 10 s' requests took no longer, from being read to their reply being written.
    pub p50_seconds: Option<f64>,
    /// 99 of 100 of them took no longer.
    pub p99_seconds: Option<f64>,
    /// How long this process has been running.
    pub uptime_seconds: Option<f64>,
    /// Workers in this seat that came after the first.
    pub restarts: u64,
    /// Resident memory of the process.
    pub rss_bytes: Option<u64>,
    /// Why the worker before this one ended, when it was not asked to.
    pub last_death: Option<String>,
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Its process runs and is not ready yet.
    Starting,
    /// It serves.
    Ready,
    /// It finishes.
    Draining,
    /// There is no process; the next one waits for its backoff to end.
    Waiting,
}

impl WorkerState {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerState::Starting => "starting",
            WorkerState::Ready => "ready",
            WorkerState::Draining => "draining",
            WorkerState::Waiting => "waiting",
        }
    }
}

/// Where the control socket of daemon `name` may be. The daemon binds the first unless it is configured
/// otherwise; fdpassctl tries all in this order.
///
/// `var` reads the environment, `uid` is the effective user.
#[must_use]
pub fn places(name: &str, uid: u32, var: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |key| var(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut places = Vec::new();
    places.extend(set("RUNTIME_DIRECTORY"));
    if uid != 0 {
        places.extend(set("XDG_RUNTIME_DIR").map(|dir| dir.join(name)));
        places.push(PathBuf::from(format!("/tmp/{name}-{uid}")));
    }
    // Last for those who are not root: the system's daemon, after one of their own.
    places.push(Path::new("/run").join(name));
    places.iter_mut().for_each(|dir| dir.push("control.sock"));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(uid: u32, vars: &[(&str, &str)]) -> Vec<String> {
        let var = |key: &str| vars.iter().find(|(k, _)| *k == key).map(|(_, v)| OsString::from(v));
        places("fdpassd", uid, var).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_control_socket_is_looked_for_where_the_design_says() {
        assert_eq!(found(0, &[("XDG_RUNTIME_DIR", "/run/user/0")]), ["/run/fdpassd/control.sock"]);
        assert_eq!(found(0, &[("RUNTIME_DIRECTORY", "/run/x")]), ["/run/x/control.sock", "/run/fdpassd/control.sock"]);
        assert_eq!(
            found(7, &[("XDG_RUNTIME_DIR", "/run/user/7")]),
            ["/run/user/7/fdpassd/control.sock", "/tmp/fdpassd-7/control.sock", "/run/fdpassd/control.sock"]
        );
        assert_eq!(found(7, &[("XDG_RUNTIME_DIR", "")]).len(), 2);
    }
}
