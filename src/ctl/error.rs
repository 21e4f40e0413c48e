//! Errors of fdpassctl, and their exit codes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fmt, io};

use serde::Serialize;

use super::args::usage::UsageMistake;
use super::figures::{are, counted};
use crate::proto::control::Place;
use crate::rpc_client;
use crate::rpc_client::Error::{
    Closed, Connect, Forbidden, NoReply, NotRunning, NothingListens, Refused, Timeout, Usage,
};

/// The exit codes, the same for all verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitStatus {
    Done = 0,
    Failed = 1,
    NotRunning = 3,
    NoReply = 4,
    Usage = 64,
    StillGoing = 75,
    Forbidden = 77,
}

impl ExitStatus {
    /// Returns the code of an error without one of its own, for programs.
    fn code(self) -> &'static str {
        match self {
            ExitStatus::Done | ExitStatus::Failed => "failed",
            ExitStatus::NotRunning => "not_running",
            ExitStatus::NoReply => "no_reply",
            ExitStatus::Usage => "usage",
            ExitStatus::StillGoing => "unfinished",
            ExitStatus::Forbidden => "forbidden",
        }
    }

    /// Returns the worse of the exit codes of two hosts. A host that is known to have failed is worse than one of which
    /// that is not known.
    pub(super) fn worse(self, other: ExitStatus) -> ExitStatus {
        let rank = |exit| match exit {
            ExitStatus::Done => 0,
            ExitStatus::StillGoing => 1,
            ExitStatus::NotRunning => 2,
            ExitStatus::NoReply => 3,
            ExitStatus::Forbidden => 4,
            ExitStatus::Failed => 5,
            ExitStatus::Usage => 6,
        };
        match rank(other) > rank(self) {
            true => other,
            false => self,
        }
    }
}

#[derive(Debug)]
pub(super) enum Error {
    /// There is no reply, or an error reply.
    Connection(rpc_client::Error),
    /// The daemon did not finish a change before the timeout, and continues.
    StillGoing {
        name: String,
        pid: u32,
        activity: &'static str,
    },
    /// The daemon whose events were followed has ended.
    Ended { name: String, pid: u32 },
    /// A program is not right as an app. Holds how many checks it has failed.
    AppFailed(String),
    /// Connections of a load have failed. Holds how many, and why the first.
    LoadFailed(String),
    /// The configuration that was checked has a mistake.
    BadConfiguration { message: String, place: Box<Place> },
    /// The command line asks for something that is not possible.
    Usage(String),
    /// The command line cannot be read.
    CommandLine(UsageMistake),
    /// The file of hosts has a mistake.
    BadHostsFile { path: PathBuf, display: String },
    /// The system does not give fdpassctl what it needs.
    Unable(String),
    /// ssh(1) does not reach the host, for this reason.
    Unreachable(String),
    /// ssh(1) reaches the host, and not the daemon there.
    NoDaemon { socket: PathBuf, reason: String },
    /// Some hosts of several failed.
    Hosts {
        failed: usize,
        not_begun: usize,
        all: usize,
        /// The worst of their exit codes.
        exit: ExitStatus,
    },
    /// Standard output failed.
    Output(io::Error),
}

impl Error {
    pub(super) fn exit(&self) -> ExitStatus {
        match self {
            Error::Connection(error) => match error {
                NotRunning { .. } | NothingListens(_) => ExitStatus::NotRunning,
                Connect { .. } | Refused { .. } => ExitStatus::Failed,
                Forbidden(_) => ExitStatus::Forbidden,
                Closed | NoReply(_) | Timeout(_) => ExitStatus::NoReply,
                Usage(_) => ExitStatus::Usage,
            },
            Error::Output(_)
            | Error::AppFailed(_)
            | Error::LoadFailed(_)
            | Error::BadConfiguration { .. }
            | Error::Unable(_) => ExitStatus::Failed,
            Error::Ended { .. } | Error::NoDaemon { .. } => ExitStatus::NotRunning,
            Error::Usage(_) | Error::CommandLine(_) | Error::BadHostsFile { .. } => {
                ExitStatus::Usage
            }
            Error::Unreachable(_) => ExitStatus::NoReply,
            Error::Hosts { exit, .. } => *exit,
            Error::StillGoing { .. } => ExitStatus::StillGoing,
        }
    }

    /// Returns the lines that follow the message: the excerpt of a configuration file.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        let display = match self {
            Error::BadHostsFile { display, .. } => Some(display.as_str()),
            Error::CommandLine(mistake) => mistake.usage.as_deref(),
            _ => self.place().map(|place| place.display.as_str()),
        };
        display.unwrap_or_default().lines()
    }

    /// Returns the place in a configuration file.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Error::Connection(Refused { place, .. }) => place.as_deref(),
            Error::BadConfiguration { place, .. } => Some(place),
            _ => None,
        }
    }

    /// Returns the error as a line of JSON: `{"error":{"code":…,"message":…}}`, with the place in a configuration file;
    /// `None` if standard output has the error already or cannot be written, and at the end of events.
    pub(super) fn to_json(&self) -> Option<String> {
        #[derive(Serialize)]
        struct Described<'a> {
            code: &'a str,
            message: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            place: Option<&'a Place>,
        }
        let (code, message) = match self {
            Error::Hosts { .. }
            | Error::AppFailed(_)
            | Error::LoadFailed(_)
            | Error::Output(_)
            | Error::Ended { .. } => return None,
            Error::Connection(Refused { code, message, .. }) => (code.as_str(), message.clone()),
            Error::BadConfiguration { message, .. } => ("rejected", message.clone()),
            _ => (self.exit().code(), self.to_string()),
        };
        let error = Described {
            code,
            message,
            place: self.place(),
        };
        serde_json::to_string(&BTreeMap::from([("error", error)])).ok()
    }
}

impl From<rpc_client::Error> for Error {
    fn from(error: rpc_client::Error) -> Error {
        Error::Connection(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Connection(error) => error.fmt(f),
            Error::StillGoing {
                name,
                pid,
                activity,
            } => {
                write!(
                    f,
                    "{name} (pid {pid}) is still {activity}; it continues, as the verb \"status\" shows"
                )
            }
            Error::Ended { name, pid } => write!(f, "{name} (pid {pid}) has ended"),
            Error::AppFailed(checks) => write!(f, "the app fails {checks}"),
            Error::BadConfiguration { .. } => f.write_str("the configuration has a mistake:"),
            Error::Usage(why)
            | Error::Unable(why)
            | Error::LoadFailed(why)
            | Error::Unreachable(why) => f.write_str(why),
            Error::CommandLine(mistake) => f.write_str(&mistake.message),
            Error::BadHostsFile { path, .. } => write!(f, "{} has a mistake:", path.display()),
            Error::NoDaemon { socket, reason } => write!(
                f,
                "no daemon answers at {}, or the user of ssh may not connect to it ({reason})",
                socket.display()
            ),
            Error::Hosts {
                failed,
                not_begun,
                all,
                ..
            } => {
                write!(f, "{failed} of {} failed", counted(*all as u64, "host"))?;
                match not_begun {
                    0 => Ok(()),
                    _ => write!(f, "; {} not begun", are(*not_begun as u64, "host")),
                }
            }
            Error::Output(cause) => write!(f, "cannot write the result: {cause}"),
        }
    }
}
