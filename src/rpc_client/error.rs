//! The errors of an RPC client.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use crate::client::wire::not_valid;
use crate::proto::control::Place;
use crate::proto::names::Address;

/// The reason why there is no result.
#[derive(Debug)]
pub enum Error {
    /// There is no daemon at any path where its control socket may be.
    NotRunning {
        /// The daemon's name.
        daemon: String,
        /// All these paths.
        tried: Vec<PathBuf>,
    },
    /// There is no listener at the address of the call.
    NothingListens(Address),
    /// The connection could not be established for another reason.
    Connect {
        /// The address, or the name of several daemons.
        address: String,
        /// The error of connect(2).
        cause: io::Error,
    },
    /// The kernel or the daemon does not permit it to this user.
    Forbidden(String),
    /// An error reply.
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// The place in the configuration file.
        place: Option<Box<Place>>,
    },
    /// The other end closed the connection instead of replying.
    Closed,
    /// The bytes received do not form a reply.
    NoReply(String),
    /// There was no reply in time.
    Timeout(Duration),
    /// The request cannot be sent.
    Usage(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotRunning { daemon, tried } => {
                let tried: Vec<_> = tried
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                write!(
                    f,
                    "{daemon} is not running (no socket at {})",
                    tried.join(", ")
                )
            }
            Error::NothingListens(address) => write!(f, "nothing listens at {address}"),
            Error::Connect { address, cause } => write!(f, "cannot connect to {address}: {cause}"),
            Error::Forbidden(what) => write!(f, "forbidden: {what}"),
            // An error in the file is found before anything is changed.
            Error::Refused {
                code,
                place: Some(_),
                ..
            } => write!(f, "{code}, and nothing was changed:"),
            Error::Refused { code, message, .. } => write!(f, "{code}: {message}"),
            Error::Closed => f.write_str("the connection was closed before the reply"),
            Error::NoReply(why) => f.write_str(why),
            Error::Timeout(timeout) => write!(
                f,
                "no reply within {}",
                humantime::format_duration(*timeout)
            ),
            Error::Usage(why) => f.write_str(why),
        }
    }
}

/// Returns the error for an answer that cannot be parsed.
pub fn no_reply(why: &dyn fmt::Display) -> Error {
    Error::NoReply(not_valid(why))
}

/// Returns the error of a connection that broke before the reply.
pub fn broken(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
            Error::Closed
        }
        _ => Error::NoReply(format!("the connection broke before the reply: {error}")),
    }
}
