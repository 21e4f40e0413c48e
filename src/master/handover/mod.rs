//! Handover: the state that outlives this process.
//!
//! ```text
//! before a restart   store (what the manager keeps), canary (whether it does), unleased (clients without a worker)
//! restart            restart_exit (the exit of the earlier master)
//! upgrade            upgrade (check, execute), program (trust), upgrade_snapshot (written), upgrade_resume (read again)
//! after either       inherited (sort what was left), unpack (the queues), origin (where from), restore (into `Master`)
//! formats            state_file, upgrade_snapshot; the queues: queues, `proto/handoff.rs`
//! ```

use std::path::PathBuf;

use crate::master::handover::queues::OrphanedClients;
use crate::master::handover::store::HandoffStore;
use crate::master::handover::upgrade::Upgrade;
use crate::sys::process;

pub(crate) mod canary;
pub(crate) mod carried_over;
pub(crate) mod inherited;
pub(crate) mod origin;
mod program;
pub(crate) mod queues;
pub(crate) mod restart_exit;
pub(crate) mod restore;
pub(crate) mod state_file;
pub(crate) mod store;
pub(crate) mod unleased;
pub(crate) mod unpack;
pub(crate) mod upgrade;
pub(crate) mod upgrade_resume;
pub(crate) mod upgrade_snapshot;

/// The state for the next master, or for the next program of this process.
#[derive(Debug)]
pub(crate) struct HandoverState {
    /// The store of the service manager, if a restart keeps the clients.
    pub(crate) store: Option<HandoffStore>,
    /// Set during an upgrade.
    pub(crate) upgrade: Option<Upgrade>,
    /// The path of the program when it was started, where an upgrade finds the next one.
    pub(crate) executable_path: Option<PathBuf>,
    /// The last upgrade executed the program that was already running.
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

    /// Returns whether an upgrade is under way to the program that this process already runs.
    fn is_upgrade_to_same(&self) -> bool {
        self.upgrade.as_ref().is_some_and(Upgrade::is_same)
    }

    /// Adds the clients of a worker that is gone, which are packed at the end.
    fn add_orphans(&mut self, clients: OrphanedClients) {
        if let Some(store) = &mut self.store {
            store.orphans.push(clients);
        }
    }

    /// Returns whether the store has dropped, or not accepted, what it was sent last.
    fn has_store_ended(&self) -> bool {
        let store = self.store.as_ref();
        store.is_some_and(|store| store.canaries.has_ended())
    }
}
