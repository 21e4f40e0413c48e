//! Connections to a daemon, and why there is none.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::access::describe_permission;
use super::{Deadline, Error};
use crate::proto::names::Address;
use crate::sys::fd;
use crate::sys::socket::{connect_tcp, connect_unix, is_of_another_type};

/// Connects to an address.
///
/// # Errors
/// Why no connection was made, by its kind.
pub(super) fn connect(address: &Address, deadline: Deadline) -> Result<UnixStream, Error> {
    let connected = deadline.left().and_then(|left| match address {
        Address::Tcp(to) => connect_tcp(to, left),
        Address::Unix(path) => connect_unix(path, left),
    });
    let explained = connected.map_err(|cause| match address {
        Address::Unix(path) => explain(path, cause),
        Address::Tcp(_) => cause,
    });
    explained.map_err(|cause| match (cause.kind(), address) {
        (ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory, _) => {
            Error::NothingListens(address.clone())
        }
        (ErrorKind::PermissionDenied, Address::Unix(path)) => {
            Error::Forbidden(describe_permission(path))
        }
        (ErrorKind::TimedOut, _) => Error::Timeout(deadline.timeout),
        _ => Error::Connect {
            address: address.clone(),
            cause,
        },
    })
}

/// Replaces the error of connect(2) for a path where no daemon can listen. Other files are refused like a socket whose
/// daemon has ended.
fn explain(path: &Path, cause: io::Error) -> io::Error {
    if is_of_another_type(&cause) {
        return io::Error::other("it is a socket of another type");
    }
    match fs::metadata(path) {
        Ok(found)
            if cause.kind() == ErrorKind::ConnectionRefused && !found.file_type().is_socket() =>
        {
            io::Error::other(format!("it is {}, not a socket", fd::kind(&found)))
        }
        _ => cause,
    }
}
