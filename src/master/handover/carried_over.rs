//! The parts of a master that continue in an upgrade besides the saved state.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use crate::master::control::connection::ControlSnapshot;
use crate::master::listeners::control_listener::ControlListener;
use crate::master::workers::worker::Worker;

/// Everything that continues in an upgrade besides the saved state: this process has had it all the time.
#[derive(Debug)]
pub struct CarriedOver {
    pub(crate) next_client: u64,
    pub(crate) refused: u64,
    pub(crate) started: Instant,
    pub(crate) control: Option<ControlListener>,
    pub(crate) executable: Option<PathBuf>,
    /// Whether this program is the same as before.
    pub(crate) is_same: bool,
    pub(crate) control_clients: Vec<(OwnedFd, ControlSnapshot)>,
    /// Messages that the service manager has not accepted yet.
    pub(crate) unsent: Vec<String>,
    /// Each worker, and whether it is held.
    pub(crate) workers: Vec<(Worker, bool)>,
    /// The workers are of another version, and end before anything is leased to new ones.
    pub(crate) are_foreign: bool,
}
