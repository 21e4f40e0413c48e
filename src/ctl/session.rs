//! One run of fdpassctl: the possible places of the daemon, the deadline, and the form of the output.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::args::Arguments;
use super::error::Error;
use super::style::Seen;
use crate::proto::control;
use crate::rpc_client::{self, Deadline, RpcClient, no_reply};
use crate::sys::user::Holder;

/// The settings from the command line and the environment for all verbs.
#[derive(Debug)]
pub(super) struct Session {
    /// The name of the daemon, as in its paths.
    pub(super) daemon: String,
    places: Vec<PathBuf>,
    /// A directory of one of the places, which another user may have created.
    temporary: Option<PathBuf>,
    pub(super) timeout: Duration,
    pub(super) deadline: Deadline,
    pub(super) json: bool,
    pub(super) quiet: bool,
    pub(super) seen: Seen,
}

impl Session {
    pub(super) fn new(
        arguments: &Arguments,
        daemon: &str,
        var: impl Fn(&str) -> Option<OsString>,
        seen: Seen,
    ) -> Session {
        let timeout = arguments.timeout();
        let daemon = arguments.name.as_deref().unwrap_or(daemon).to_owned();
        let (places, temporary) = places(arguments, &daemon, var);
        Session {
            daemon,
            places,
            temporary,
            timeout,
            deadline: Deadline::new(timeout),
            json: arguments.json,
            quiet: arguments.quiet,
            seen,
        }
    }

    /// Connects to the daemon, with this session's deadline for all replies.
    pub(super) fn connect(&self) -> Result<RpcClient, rpc_client::Error> {
        self.connect_until(self.deadline)
            .map_err(|error| match error {
                rpc_client::Error::NotRunning { daemon, .. } => rpc_client::Error::NotRunning {
                    daemon,
                    tried: self.places_except(&[Holder::Others]),
                },
                error => error,
            })
    }

    /// Connects to the daemon, with another deadline.
    ///
    /// Leaves out a place in a directory of another user, and one in a directory that does not exist: another user
    /// could create it at this moment.
    pub(super) fn connect_until(&self, deadline: Deadline) -> Result<RpcClient, rpc_client::Error> {
        let places = self.places_except(&[Holder::Others, Holder::Missing]);
        RpcClient::connect_control(&self.daemon, &places, deadline)
    }

    fn places_except(&self, holders: &[Holder]) -> Vec<PathBuf> {
        let is_kept = |place: &&PathBuf| match &self.temporary {
            Some(temporary) if place.parent() == Some(temporary) => {
                !holders.contains(&Holder::read(temporary))
            }
            _ => true,
        };
        self.places.iter().filter(is_kept).cloned().collect()
    }

    /// Prints a result as received if JSON is wanted, else calls `write_text`.
    pub(super) fn print<W: Write>(
        &self,
        out: &mut W,
        result: &RawValue,
        write_text: impl FnOnce(&mut W) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.json {
            writeln!(out, "{}", result.get()).map_err(Error::Output)
        } else {
            write_text(out)
        }
    }
}

/// Returns the possible places of the control socket, and the directory of one that another user may have created. A
/// place that is given is the only one.
fn places(
    arguments: &Arguments,
    daemon: &str,
    var: impl Fn(&str) -> Option<OsString>,
) -> (Vec<PathBuf>, Option<PathBuf>) {
    if let Some(name) = &arguments.instance {
        // The RuntimeDirectory= of the unit of instances.
        let place = PathBuf::from(format!("/run/{daemon}-{name}/control.sock"));
        return (vec![place], None);
    }
    let from_environment = || {
        // A name on the command line is more specific.
        var("FDPASSD_SOCKET")
            .filter(|path| !path.is_empty() && arguments.name.is_none())
            .map(PathBuf::from)
    };
    match arguments.socket.clone().or_else(from_environment) {
        Some(path) => (vec![path], None),
        None => (
            control::places(daemon, user(), var),
            Some(control::temporary(daemon, user())),
        ),
    }
}

/// Parses a result of the daemon.
pub(super) fn parse<'a, T: Deserialize<'a>>(result: &'a RawValue) -> Result<T, rpc_client::Error> {
    serde_json::from_str(result.get()).map_err(|e| no_reply(&e))
}

/// Returns the effective user, to which the kernel gives this process's directory of /proc. Without /proc it is no
/// user, which has usual places too.
fn user() -> u32 {
    fs::metadata("/proc/self").map_or(u32::MAX, |process| process.uid())
}
