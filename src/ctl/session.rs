//! One run of fdpassctl: the possible places of the daemon, the deadline, and the form of the output.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::args::Arguments;
use super::error::Error;
use super::style::Seen;
use super::tunnel::Tunnel;
use crate::proto::control;
use crate::rpc_client::{self, Deadline, RpcClient, no_reply};
use crate::sys::user::Holder;

/// The settings from the command line and the environment for all verbs.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// The name of the daemon, as in its paths.
    pub(super) daemon: String,
    way: Way,
    pub(super) timeout: Duration,
    pub(super) deadline: Deadline,
    pub(super) json: bool,
    pub(super) quiet: bool,
    pub(super) seen: Seen,
}

/// The way to the daemon.
#[derive(Clone, Debug)]
enum Way {
    /// The possible places of its socket.
    Places {
        places: Vec<PathBuf>,
        /// A directory of one of the places, which another user may have created.
        temporary: Option<PathBuf>,
    },
    /// A socket that ssh(1) forwards from another host.
    Tunnel(Arc<Tunnel>),
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
            way: Way::Places { places, temporary },
            timeout,
            deadline: Deadline::new(timeout),
            json: arguments.json,
            quiet: arguments.quiet,
            seen,
        }
    }

    /// Returns a session like this one for the daemon at the end of a tunnel. Its deadline begins now. Standard error
    /// has lines of several hosts and is not a terminal for it.
    pub(super) fn through(&self, tunnel: Tunnel) -> Session {
        Session {
            daemon: self.daemon.clone(),
            way: Way::Tunnel(Arc::new(tunnel)),
            timeout: self.timeout,
            deadline: Deadline::new(self.timeout),
            json: self.json,
            quiet: self.quiet,
            seen: self.seen.with_shared_err(),
        }
    }

    /// Returns an error of this session as its tunnel explains it, if it has one.
    pub(super) fn explain(&self, error: Error) -> Error {
        match &self.way {
            Way::Tunnel(tunnel) => tunnel.explain(error),
            Way::Places { .. } => error,
        }
    }

    /// Connects to the daemon, with this session's deadline for all replies.
    pub(super) fn connect(&self) -> Result<RpcClient, rpc_client::Error> {
        self.connect_until(self.deadline)
    }

    /// Connects to the daemon, with another deadline.
    ///
    /// Leaves out a place in a directory of another user, and one in a directory that does not exist: another user
    /// could create it at this moment.
    pub(super) fn connect_until(&self, deadline: Deadline) -> Result<RpcClient, rpc_client::Error> {
        let connected = match &self.way {
            Way::Tunnel(tunnel) => tunnel.connect(&self.daemon, deadline),
            Way::Places { .. } => {
                let places = self.places_except(&[Holder::Others, Holder::Missing]);
                RpcClient::connect_control(&self.daemon, &places, deadline)
            }
        };
        // A message names the places that do not exist as well.
        connected.map_err(|error| match error {
            rpc_client::Error::NotRunning { daemon, .. } => rpc_client::Error::NotRunning {
                daemon,
                tried: self.places_except(&[Holder::Others]),
            },
            error => error,
        })
    }

    fn places_except(&self, holders: &[Holder]) -> Vec<PathBuf> {
        let Way::Places { places, temporary } = &self.way else {
            return Vec::new();
        };
        let is_kept = |place: &&PathBuf| match temporary {
            Some(temporary) if place.parent() == Some(temporary) => {
                !holders.contains(&Holder::read(temporary))
            }
            _ => true,
        };
        places.iter().filter(is_kept).cloned().collect()
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
        return (vec![place_of_instance(daemon, name)], None);
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

/// Returns the control socket of an instance: in the `RuntimeDirectory=` of its unit.
pub(super) fn place_of_instance(daemon: &str, instance: &str) -> PathBuf {
    PathBuf::from(format!("/run/{daemon}-{instance}/control.sock"))
}

/// Parses a result of the daemon.
pub(super) fn parse<'a, T: Deserialize<'a>>(result: &'a RawValue) -> Result<T, rpc_client::Error> {
    serde_json::from_str(result.get()).map_err(|e| no_reply(&e))
}

/// Returns the effective user, to which the kernel gives this process's directory of /proc. Without /proc it is a
/// number of no user, which has usual places too.
fn user() -> u32 {
    fs::metadata("/proc/self").map_or(u32::MAX, |process| process.uid())
}
