//! Why the daemons that SRV records name are not known.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// An SRV name has no daemons to connect to, or the addresses of one of them are not known.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ResolveError {
    /// No nameserver is configured.
    NoNameserver(String),
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// The name has no records of the type.
    NoRecords {
        /// The type, such as `SRV`.
        kind: &'static str,
    },
    /// The only target is `.`: the service is decidedly not available there.
    NotAvailable,
    /// A nameserver has answered by an error, such as `SERVFAIL`.
    ServerFailed {
        /// The nameserver.
        nameserver: SocketAddr,
        /// The error.
        code: String,
    },
    /// The answer of a nameserver is not valid, or its records cannot be used.
    BadAnswer {
        /// The nameserver.
        nameserver: SocketAddr,
        /// The mistake.
        why: String,
    },
    /// A nameserver cannot be reached.
    Unreachable {
        /// The nameserver.
        nameserver: SocketAddr,
        /// The reason.
        cause: Arc<io::Error>,
    },
    /// No nameserver has answered in this time.
    Timeout(Duration),
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResolveError::NoNameserver(why) => write!(f, "there is no nameserver: {why}"),
            ResolveError::NoSuchName => f.write_str("the name does not exist"),
            ResolveError::NoRecords { kind } => write!(f, "the name has no {kind} records"),
            ResolveError::NotAvailable => {
                f.write_str("the service is not available there: the target of its record is \".\"")
            }
            ResolveError::ServerFailed { nameserver, code } => {
                write!(f, "the nameserver {nameserver} has answered {code}")
            }
            ResolveError::BadAnswer { nameserver, why } => {
                write!(
                    f,
                    "the answer of the nameserver {nameserver} is not valid: {why}"
                )
            }
            ResolveError::Unreachable { nameserver, cause } => {
                write!(f, "the nameserver {nameserver} cannot be reached: {cause}")
            }
            ResolveError::Timeout(time) => write!(
                f,
                "no nameserver has answered within {}",
                humantime::format_duration(*time)
            ),
        }
    }
}

impl std::error::Error for ResolveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ResolveError::Unreachable { cause, .. } => Some(cause),
            _ => None,
        }
    }
}
