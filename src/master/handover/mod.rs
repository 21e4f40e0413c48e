//! Handover: the state that outlives this process.

use std::path::PathBuf;

use crate::master::handover::restart::HandoffStore;
use crate::master::handover::upgrade::Upgrade;
use crate::sys::process;

pub(crate) mod canary;
pub(crate) mod inherited;
pub(crate) mod queues;
pub(crate) mod restart;
pub(crate) mod snapshot;
pub(crate) mod state_file;
pub(crate) mod unpack;
pub(crate) mod upgrade;

/// What is prepared for the next master, or the next program of this process.
#[derive(Debug)]
pub(crate) struct HandoverState {
    /// The store of the service manager, if clients are to be kept over a restart.
    pub(crate) store: Option<HandoffStore>,
    /// Set while this process is about to execute another program.
    pub(crate) upgrade: Option<Upgrade>,
    /// The path of the program at its start, where an upgrade looks for the next one.
    pub(crate) executable_path: Option<PathBuf>,
    /// Whether the last upgrade was to the program that ran already.
    pub(crate) is_same_program: bool,
}

impl HandoverState {
    /// Returns the state without a store.
    pub(crate) fn new() -> HandoverState {
        HandoverState {
            store: None,
            upgrade: None,
            executable_path: process::program_path(),
            is_same_program: false,
        }
    }
}
