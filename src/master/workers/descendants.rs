//! What methods of a worker have started, and what becomes of it when that worker ends: it is killed.
//!
//! Each worker is the leader of a session (setsid(2)), and what it starts belongs to that until it asks for another one. The
//! master is a subreaper (PR_SET_CHILD_SUBREAPER): the children of a worker that ends become its own. So it kills the
//! worker's process group, and then each process group of that session whose members have come to it. A process whose
//! parent is killed by that comes later, with the end of its parent. What has a session of its own lives on.

use crate::master::Master;
use crate::sys::process::{self, Child};

impl Master {
    /// A worker has ended and is not collected yet: ends what is left of its session.
    pub(crate) fn end_descendants(&mut self, worker: u32) {
        // Its group may have no other member, or it ended before it had one.
        let _ = process::kill_group(worker);
        self.workers.ended_sessions.push(worker);
    }

    /// Ends what has come to the master of sessions whose leaders have ended. Forgets the sessions of which nothing is left:
    /// from then on their numbers may be those of other processes.
    pub(crate) fn end_sessions(&mut self) {
        if self.workers.ended_sessions.is_empty() {
            return;
        }
        let children = process::children();
        let of_session = |session: u32| {
            children
                .iter()
                .filter(move |child| child.session == session)
        };
        for child in self
            .workers
            .ended_sessions
            .iter()
            .flat_map(|session| of_session(*session))
        {
            let Child { pid, group, .. } = *child;
            log::debug!(
                "process {pid} was started by a worker that has ended; killing its process group {group}"
            );
            // It may have ended since.
            let _ = process::kill_group(group);
        }
        self.workers
            .ended_sessions
            .retain(|session| of_session(*session).next().is_some());
    }
}
