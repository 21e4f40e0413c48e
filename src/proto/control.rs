//! fdpassctl and master, over the control socket: the frames of the RPC, always little-endian.
//!
//! `{"in": VERB, "params": {…}}` is answered by exactly one `{"out": VERB, "result": {…}}` or
//! `{"out": "error", "result": {"code": CODE, "message": TEXT}}`. A request is at most [`MAX_REQUEST`]
//! bytes; unknown verbs and unknown parameters are refused. A connection may ask again after a reply; who has nothing more
//! to ask may shut its side down and still gets the replies to what it asked.
//!
//! | verb | params | result | who may |
//! |---|---|---|---|
//! | `status` | none | [`Status`] | readers |
//! | `version` | none | [`Version`] | readers |
//! | `stop` | none | [`Stopped`], when all workers are gone and just before the daemon is | admins |
//! | `reload` | [`ReloadParams`], or none | [`Reloaded`], when the new configuration is applied | admins |
//! | `scale` | [`Scale`] | [`Settled`], when so many workers are ready and the others gone | admins |
//! | `recycle` | [`Recycle`] | [`Settled`], when successors are ready and the replaced workers gone | admins |
//! | `hold` | [`Hold`] | [`Settled`], when all clients of the worker are elsewhere | admins |
//! | `release` | [`Release`] | [`Settled`], at once | admins |
//! | `drain` | [`Drain`] | [`Settled`], at once, or when the last client has left | admins |
//! | `undrain` | none | [`Settled`], at once | admins |
//! | `rebalance` | [`Rebalance`] | [`Rebalanced`], after a second of looking | admins |
//! | `clients` | [`ClientsAfter`] | [`ClientsPage`], a page of them | readers |
//! | `kick` | [`Kick`] | [`Kicked`], at once | admins |
//! | `events` | [`EventsAfter`] | [`Events`], at once, or when there is one or the wait is over | readers |
//! | `config` | none | [`Effective`] | readers |
//! | `check` | none | [`Checked`], or `rejected` as by `reload` | readers |
//! | `log-level` | [`SetLogLevel`] | [`LogLevelInForce`] | readers; with a level, admins |
//! | `upgrade` | [`UpgradeTo`] | [`Upgraded`], when all workers are of the new program | who may change; with `binary` root and the daemon's user |
//! | `metrics` | none | [`Metrics`] | readers |
//! | `reopen-log` | none | [`Settled`], at once | admins |
//!
//! Admins are root, the daemon's user and members of `[control] admin-group`; readers are these, members of `read-group` and,
//! if neither group is named, whoever can connect. Each is known by user, primary and supplementary groups as they were when
//! it connected. All others are told `forbidden` as soon as they connect, and are closed. The configuration that is in force
//! at a request decides about it.
//!
//! Codes: `bad_request`, `unknown_verb`, `bad_params`, `too_large`, `forbidden`, `busy`, `timeout`, `rejected`,
//! `rolled_back`, `refused`.

mod clients;
mod effective;
mod events;
mod status;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names::{Generation, WorkerId};
use super::paths::{exact, shown};

pub use clients::{ClientStatus, ClientsAfter, ClientsPage, Cursor, Kick, Kicked, PAGE_LEN};
pub use effective::{Change, Checked, Effective, Key, KeyOrigin, LogLevelInForce, SetLogLevel};
pub use events::{About, Event, Events, EventsAfter, Kind, MAX_EVENTS, MAX_WAIT};
pub use status::{
    LastReload, LeavingStatus, ListenerStatus, Origin, Skew, Status, Verdict, WorkerState,
    WorkerStatus,
};

/// Longest body of a request, in bytes.
pub const MAX_REQUEST: u32 = 64 * 1024;

/// Longest body of a reply that fdpassctl takes, in bytes.
pub const MAX_REPLY: u32 = 64 * 1024 * 1024;

/// How long a request may take to arrive, and a reply to be read.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Verbs that fdpassctl may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The daemon's state.
    Status,
    /// The running program.
    Version,
    /// End gracefully.
    Stop,
    /// Apply the configuration file as it is now.
    Reload,
    /// Set the number of workers.
    Scale,
    /// Replace a worker, or all.
    Recycle,
    /// Take all clients from a worker and let it run.
    Hold,
    /// Give a worker clients again, or let a method run again.
    Release,
    /// Accept no new clients.
    Drain,
    /// Accept clients again.
    Undrain,
    /// Spread busy clients over the workers.
    Rebalance,
    /// The clients, page by page.
    Clients,
    /// Close a client.
    Kick,
    /// The events.
    Events,
    /// The configuration in force.
    Config,
    /// Whether the configuration file as it is now would be taken.
    Check,
    /// The level of the log.
    LogLevel,
    /// All figures, as Prometheus reads them.
    Metrics,
    /// Become another program.
    Upgrade,
    /// Open the log file again.
    ReopenLog,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 20] = [
        Verb::Status,
        Verb::Version,
        Verb::Stop,
        Verb::Reload,
        Verb::Scale,
        Verb::Recycle,
        Verb::Hold,
        Verb::Release,
        Verb::Drain,
        Verb::Undrain,
        Verb::Rebalance,
        Verb::Clients,
        Verb::Kick,
        Verb::Events,
        Verb::Config,
        Verb::Check,
        Verb::LogLevel,
        Verb::Metrics,
        Verb::Upgrade,
        Verb::ReopenLog,
    ];

    /// Returns the verb's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Status => "status",
            Verb::Version => "version",
            Verb::Stop => "stop",
            Verb::Reload => "reload",
            Verb::Scale => "scale",
            Verb::Recycle => "recycle",
            Verb::Hold => "hold",
            Verb::Release => "release",
            Verb::Drain => "drain",
            Verb::Undrain => "undrain",
            Verb::Rebalance => "rebalance",
            Verb::Clients => "clients",
            Verb::Kick => "kick",
            Verb::Events => "events",
            Verb::Config => "config",
            Verb::Check => "check",
            Verb::LogLevel => "log-level",
            Verb::Metrics => "metrics",
            Verb::Upgrade => "upgrade",
            Verb::ReopenLog => "reopen-log",
        }
    }

    /// Whether it changes anything. `log-level` does so only with params.
    #[must_use]
    pub fn changes(self) -> bool {
        use Verb::*;
        !matches!(
            self,
            Status | Version | Clients | Events | Config | Check | LogLevel | Metrics
        )
    }

    /// The verb of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|verb| verb.as_str() == name)
    }
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
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
    /// Too many control clients, or an operation is in progress that has to end first.
    Busy,
    /// The request did not arrive within [`REQUEST_TIMEOUT`].
    Timeout,
    /// The new configuration is not taken; nothing was changed.
    Rejected,
    /// The new configuration was given up again; the one before is in force.
    RolledBack,
    /// The request cannot be fulfilled, for the reason in the message.
    Refused,
}

/// A refusal, as it stands in an error reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    pub message: String,
    /// Where in the configuration file the mistake is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

impl Refusal {
    /// Of no place in particular.
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
    /// Line, from 1; none if it is about the file as a whole.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// The lines that people read, with a caret below the mistake.
    pub display: String,
}

/// Params of `reload`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadParams {
    /// Whether to take files that leave out keys of the configuration in force because one of them is empty.
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

/// Params of `release`: what was held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Release {
    /// A worker that gets clients again.
    Worker(WorkerId),
    /// A quarantined method that is run again.
    Method(String),
}

/// Params of `drain`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Whether to answer when the last client has left.
    #[serde(default)]
    pub wait: bool,
}

/// Params of `rebalance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// Whether only to report what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// A configuration was applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Its number.
    pub generation: Generation,
    /// Workers that are ready.
    pub workers: u32,
    /// From the request to now.
    pub seconds: f64,
}

/// The requested state is reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// Workers that are ready.
    pub workers: u32,
    /// Clients there are.
    pub clients: u64,
}

/// The outcome of a rebalancing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rebalanced {
    /// Clients that were moved, or would be; none if the load is even enough.
    pub moves: Vec<MovedLoad>,
}

/// Clients moved from one worker to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovedLoad {
    /// From which worker.
    pub from: WorkerId,
    /// To which.
    pub to: WorkerId,
    /// How many clients.
    pub clients: u64,
    /// The share of a worker's time that they take, from 0 to 1.
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

/// The daemon is another program now, and so are its workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The program's version.
    pub version: String,
    /// Workers that are ready.
    pub workers: u32,
    /// Clients there are.
    pub clients: u64,
    /// Whether the program is the same as before, by its file or its content.
    #[serde(default)]
    pub unchanged: bool,
}

/// All figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// In the text format of Prometheus, version 0.0.4.
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

/// The end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The process that is about to exit.
    pub pid: u32,
    /// Workers that had to be killed because they did not finish within `drain-timeout`.
    pub killed: u64,
}

/// Where the control socket of daemon `name` may be. The daemon binds the first unless it is configured
/// otherwise; fdpassctl tries all in this order. Both pass the one in [`temporary`] over if that is another user's.
///
/// `var` reads the environment, `uid` is the effective user.
#[must_use]
pub fn places(name: &str, uid: u32, var: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |key| {
        var(key)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    // Of several that a unit has, systemd separates them by colons.
    let first = |list: PathBuf| {
        list.to_str()
            .and_then(|list| list.split(':').next())
            .map(PathBuf::from)
            .unwrap_or(list)
    };
    let mut places = Vec::new();
    places.extend(set("RUNTIME_DIRECTORY").map(first));
    if uid != 0 {
        places.extend(set("XDG_RUNTIME_DIR").map(|dir| dir.join(name)));
        places.push(temporary(name, uid));
        places.extend(
            set("HOME")
                .filter(|home| home.is_absolute())
                .map(|home| home.join(format!(".{name}"))),
        );
    }
    // Last for those who are not root: the system's daemon, after one of their own.
    places.push(Path::new("/run").join(name));
    places.iter_mut().for_each(|dir| dir.push("control.sock"));
    places
}

/// Returns the directory of the control socket in /tmp, where any user may have created it before.
#[must_use]
pub fn temporary(name: &str, uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/{name}-{uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(uid: u32, vars: &[(&str, &str)]) -> Vec<String> {
        let var = |key: &str| {
            vars.iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| OsString::from(v))
        };
        places("fdpassd", uid, var)
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn the_control_socket_is_looked_for_where_the_design_says() {
        assert_eq!(
            found(0, &[("XDG_RUNTIME_DIR", "/run/user/0")]),
            ["/run/fdpassd/control.sock"]
        );
        for directories in ["/run/x", "/run/x:/run/y"] {
            let found = found(0, &[("RUNTIME_DIRECTORY", directories)]);
            assert_eq!(found, ["/run/x/control.sock", "/run/fdpassd/control.sock"]);
        }
        assert_eq!(
            found(7, &[("XDG_RUNTIME_DIR", "/run/user/7")]),
            [
                "/run/user/7/fdpassd/control.sock",
                "/tmp/fdpassd-7/control.sock",
                "/run/fdpassd/control.sock"
            ]
        );
        assert_eq!(
            found(7, &[("XDG_RUNTIME_DIR", ""), ("HOME", "here")]).len(),
            2
        );
        let home = found(7, &[("HOME", "/users/x")]);
        assert_eq!(
            home[..2],
            [
                "/tmp/fdpassd-7/control.sock",
                "/users/x/.fdpassd/control.sock"
            ]
        );
    }
}
