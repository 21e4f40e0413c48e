//! Why a request has no result, and whether its method may have run.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::ResolveError;

/// A request has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The reply is an error, of the daemon or of the method.
    ///
    /// fdpassd-rpc(7) lists the codes of the daemon. After `bad_request`, `unknown_method` and `too_large` the method
    /// was not executed; after `crashed` and `timeout` it may have had some of its effects.
    Reply {
        /// The code, for programs.
        code: String,
        /// The message, for people.
        message: String,
        /// Whether the method may have run: by its code, or in an earlier attempt without a reply.
        may_have_run: bool,
    },
    /// No daemon has executed the request: there was no connection, or the request was not sent completely, or each
    /// reply was `overloaded` or `shutting_down`.
    Unavailable {
        /// The method of the request.
        method: String,
        /// The time for the request, if that is over. `None` if the client
        /// [fails fast](super::ClientOptions::fail_fast).
        timeout: Option<Duration>,
        /// The last reason of each address that was tried; of a name with SRV records, those of its last 16 targets.
        causes: Vec<(String, ConnectionError)>,
    },
    /// The request was sent, and there is no reply. The method may have run, or may still be running.
    UnknownOutcome {
        /// The method of the request.
        method: String,
        /// The address to which it was sent last.
        address: String,
        /// The reason why there is no reply.
        cause: ConnectionError,
    },
    /// The result is not of the expected type. The method has run.
    Result(serde_json::Error),
    /// An address, an option or the request is not valid. Nothing was sent.
    Usage(String),
}

impl Error {
    /// Returns whether the method may have run. `false` only if it surely was not executed.
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        match self {
            Error::Reply { may_have_run, .. } => *may_have_run,
            Error::UnknownOutcome { .. } | Error::Result(_) => true,
            Error::Unavailable { .. } | Error::Usage(_) => false,
        }
    }

    /// Returns the code of an error reply.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Error::Reply { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Reply { code, message, .. } => write!(f, "{code}: {message}"),
            Error::Unavailable {
                method,
                timeout,
                causes,
            } => {
                write!(f, "{method} was not executed")?;
                if let Some(timeout) = timeout {
                    write!(f, " within {}", humantime::format_duration(*timeout))?;
                }
                if causes.is_empty() {
                    return f.write_str(": there was no time left");
                }
                let mut between = ": ";
                for (address, cause) in causes {
                    write!(f, "{between}{address}: {cause}")?;
                    between = "; ";
                }
                Ok(())
            }
            Error::UnknownOutcome {
                method,
                address,
                cause,
            } => write!(
                f,
                "{method} was sent to {address} and may have run: {cause}"
            ),
            Error::Result(cause) => write!(f, "the result is not of the expected type: {cause}"),
            Error::Usage(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::UnknownOutcome { cause, .. } => Some(cause),
            Error::Result(cause) => Some(cause),
            _ => None,
        }
    }
}

/// Why a connection was not made, or has ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionError {
    /// No connection was made: the error of connect(2), or of the lookup of the name.
    Connect(Arc<io::Error>),
    /// The daemons of an SRV name are not known, or the addresses of one of them.
    Resolve(ResolveError),
    /// There was no reply, or no connection, in this time.
    Timeout(Duration),
    /// The server has closed the connection before the reply.
    Closed,
    /// The server has closed the connection in the middle of a reply.
    ClosedInReply {
        /// How many bytes of the frame have arrived.
        received: usize,
    },
    /// The connection has broken.
    Broken(Arc<io::Error>),
    /// The host has acknowledged nothing in this time.
    Silent(Duration),
    /// The reply breaks the protocol: it is too long, or not a reply.
    BadReply(String),
    /// An earlier answer on this connection broke the protocol.
    BrokenProtocol(String),
    /// The daemon has closed the connection by this error: the request was not executed.
    Rejected {
        /// The code, for programs.
        code: String,
        /// The message, for people.
        message: String,
    },
    /// The daemon has ended the connection politely, and has reported that the request was not executed.
    Goaway {
        /// For people.
        reason: String,
    },
}

impl ConnectionError {
    /// Returns whether a time was over, and nothing else is known.
    pub(super) fn is_timeout(&self) -> bool {
        match self {
            ConnectionError::Timeout(_) => true,
            ConnectionError::Connect(cause) => cause.kind() == io::ErrorKind::TimedOut,
            ConnectionError::Resolve(cause) => matches!(cause, ResolveError::Timeout(_)),
            _ => false,
        }
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionError::Connect(cause) => cause.fmt(f),
            ConnectionError::Resolve(cause) => cause.fmt(f),
            ConnectionError::Timeout(time) => {
                write!(f, "no reply within {}", humantime::format_duration(*time))
            }
            ConnectionError::Closed => f.write_str("the connection was closed before the reply"),
            ConnectionError::ClosedInReply { received } => write!(
                f,
                "the connection was closed in the middle of a reply, after {received} bytes"
            ),
            ConnectionError::Broken(cause) => write!(f, "the connection broke: {cause}"),
            ConnectionError::Silent(time) => write!(
                f,
                "the host has acknowledged nothing for {}",
                humantime::format_duration(*time)
            ),
            ConnectionError::BadReply(why) => f.write_str(why),
            ConnectionError::BrokenProtocol(why) => {
                write!(f, "the server broke the protocol: {why}")
            }
            ConnectionError::Rejected { code, message } => write!(f, "{code}: {message}"),
            ConnectionError::Goaway { reason } => {
                write!(f, "the daemon has sent a goaway: {reason}")
            }
        }
    }
}

impl std::error::Error for ConnectionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConnectionError::Connect(cause) | ConnectionError::Broken(cause) => Some(cause),
            ConnectionError::Resolve(cause) => Some(cause),
            _ => None,
        }
    }
}
