//! Errors of fdpassctl, and their exit codes.

use std::{fmt, io};

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
    /// The configuration that was checked has a mistake. Holds its excerpt.
    BadConfiguration(String),
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
            Error::Output(_) | Error::AppFailed(_) | Error::BadConfiguration(_) => {
                ExitStatus::Failed
            }
            Error::Ended { .. } => ExitStatus::NotRunning,
            Error::StillGoing { .. } => ExitStatus::StillGoing,
        }
    }

    /// Returns the lines that follow the message: the excerpt of a configuration file.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        let display = match self {
            Error::Connection(Refused { display, .. }) => display.as_deref(),
            Error::BadConfiguration(display) => Some(display.as_str()),
            _ => None,
        };
        display.unwrap_or_default().lines()
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
            Error::BadConfiguration(_) => f.write_str("the configuration has a mistake:"),
            Error::Output(cause) => write!(f, "cannot write the result: {cause}"),
        }
    }
}
