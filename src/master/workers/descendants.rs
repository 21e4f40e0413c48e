//! Kills the processes that a worker's methods have started, when the worker ends.
//!
//! Each worker leads a session (setsid(2)), and the processes that it starts belong to it until they ask for a session
//! of their own. The master is a subreaper (PR_SET_CHILD_SUBREAPER): the children of a worker that ends become its own.
//! So it kills the worker's process group, and then each process group of that session whose members it has inherited.
//! A process whose parent is killed in this way is inherited later, when its parent ends. Processes with a session of
//! their own live on.

use std::collections::HashSet;

use crate::master::workers::Workers;
use crate::sys::process::{self, Child};

impl Workers {
    /// Ends the rest of a worker's session. The worker has ended and is not collected yet.
    pub(super) fn end_descendants(&mut self, worker: u32) {
        // The group may have no other member, or the worker ended before it had a group.
        let _ = process::kill_group(worker);
        self.ended_sessions.push(worker);
    }

    /// Ends the processes that the master has inherited from sessions whose leaders have ended. Forgets the sessions
    /// without processes: their numbers may then belong to other processes.
    pub(crate) fn end_sessions(&mut self) {
        if self.ended_sessions.is_empty() {
            return;
        }
        // Workers have sessions of their own, and zygotes are in the master's.
        let known: HashSet<u32> = (self.all.values().map(|worker| worker.pid))
            .chain(self.zygotes.pids())
            .collect();
        let children = self.children.except(|pid| known.contains(&pid));
        let of_session = |session: u32| {
            children
                .iter()
                .filter(move |child| child.session == session)
        };
        for child in self
            .ended_sessions
            .iter()
            .flat_map(|session| of_session(*session))
        {
            let Child { pid, group, .. } = *child;
            log::debug!(
                "process {pid} was started by a worker that has ended; killing its process group {group}"
            );
            // The group may have ended since.
            let _ = process::kill_group(group);
        }
        self.ended_sessions
            .retain(|session| of_session(*session).next().is_some());
    }
}
