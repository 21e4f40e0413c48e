//! What can keep fdpassctl from doing what it was asked, and the exit code that says so to scripts.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::proto::names::Address;

/// How fdpassctl ends; the same for every verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
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
    /// No daemon at any place where its control socket may be.
    NotRunning { tried: Vec<PathBuf> },
    /// No listener where the call was to go.
    NothingListens(Address),
    /// Neither of the two above, and no connection either.
    Connect { address: Address, cause: io::Error },
    /// The kernel or the daemon does not let this user.
    Forbidden(String),
    /// An error reply. What it displays shows the message at its place in the configuration file.
    Refused { code: String, message: String, display: Option<String> },
    /// What came is no reply.
    NoReply(String),
    /// Nothing came in time.
    Timeout(Duration),
    /// The daemon was not ready with it in time; it goes on.
    StillGoing { name: String, pid: u32, doing: &'static str },
    /// The arguments say something that cannot be sent.
    Usage(String),
    /// What was asked for could not be written to standard output.
    Output(io::Error),
}

impl Error {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Error::NotRunning { .. } | Error::NothingListens(_) => Exit::NotRunning,
            Error::Connect { .. } | Error::Refused { .. } | Error::Output(_) => Exit::Failed,
            Error::Forbidden(_) => Exit::Forbidden,
            Error::NoReply(_) | Error::Timeout(_) => Exit::NoReply,
            Error::StillGoing { .. } => Exit::StillGoing,
            Error::Usage(_) => Exit::Usage,
        }
    }

    /// Lines that go on where the sentence ends.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        let display = if let Error::Refused { display, .. } = self { display.as_deref() } else { None };
        display.unwrap_or_default().lines()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotRunning { tried } => {
                let tried: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
                write!(f, "fdpassd is not running (no socket at {})", tried.join(", "))
            }
            Error::NothingListens(address) => write!(f, "nothing listens at {address}"),
            Error::Connect { address, cause } => write!(f, "cannot connect to {address}: {cause}"),
            Error::Forbidden(what) => write!(f, "forbidden: {what}"),
            // A mistake in the file is found before anything is done.
            Error::Refused { code, display: Some(_), .. } => write!(f, "{code}, and nothing was changed:"),
            Error::Refused { code, message, .. } => write!(f, "{code}: {message}"),
            Error::NoReply(why) => f.write_str(why),
            Error::Timeout(patience) => write!(f, "no reply within {}", humantime::format_duration(*patience)),
            Error::StillGoing { name, pid, doing } => {
                write!(f, "{name} (pid {pid}) is still {doing}; it goes on, see \"fdpassctl status\"")
            }
            Error::Usage(why) => f.write_str(why),
            Error::Output(cause) => write!(f, "cannot write the result: {cause}"),
        }
    }
}
