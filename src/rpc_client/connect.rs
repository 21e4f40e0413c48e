//! Connections to a daemon, and why there is none.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::access::describe_permission;
use super::{Deadline, Error};
use crate::client::explain_unix;
use crate::proto::names::Address;
use crate::sys::socket::connect_unix;

/// Connects to a control socket.
///
/// # Errors
/// Why no connection was made, by its kind.
pub(super) fn connect(path: &Path, deadline: Deadline) -> Result<UnixStream, Error> {
    let connected = deadline.left().and_then(|left| connect_unix(path, left));
    connected.map_err(|cause| {
        let cause = explain_unix(path, cause);
        not_connected(&Address::Unix(path.to_owned()), cause, deadline.timeout)
    })
}

/// Returns the error of connect(2) to an address, by its kind.
#[must_use]
pub fn not_connected(address: &Address, cause: io::Error, timeout: Duration) -> Error {
    match (cause.kind(), address) {
        (ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory, _) => {
            Error::NothingListens(address.clone())
        }
        (ErrorKind::PermissionDenied, Address::Unix(path)) => {
            Error::Forbidden(describe_permission(path))
        }
        (ErrorKind::TimedOut, _) => Error::Timeout(timeout),
        _ => Error::Connect {
            address: address.to_string(),
            cause,
        },
    }
}
