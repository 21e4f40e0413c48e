//! Reports the workers whose number of clients has changed, so that dispatch need not ask all of them.

use std::cell::RefCell;
use std::rc::Rc;

use crate::master::clients::leases::Leases;
use crate::proto::names::WorkerId;

/// Workers whose number of clients has changed, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientChanges(Rc<RefCell<Vec<WorkerId>>>);

/// Where the leases of a worker report a change.
#[derive(Debug, Default)]
pub(super) struct ChangeReport {
    to: Option<(ClientChanges, WorkerId)>,
    is_reported: bool,
}

impl ClientChanges {
    /// Removes and returns one of the workers. Its number of clients must be read by [`Leases::take_client_count`].
    pub(crate) fn pop(&self) -> Option<WorkerId> {
        self.0.borrow_mut().pop()
    }
}

impl ChangeReport {
    /// Notes a change, unless one is reported that has not been read.
    pub(super) fn note(&mut self) {
        if let Some((changes, worker)) = &self.to
            && !std::mem::replace(&mut self.is_reported, true)
        {
            changes.0.borrow_mut().push(*worker);
        }
    }
}

impl Leases {
    /// Has each change of the number of clients reported from now on.
    pub(crate) fn report_changes(&mut self, changes: &ClientChanges, worker: WorkerId) {
        self.changes = ChangeReport {
            to: Some((changes.clone(), worker)),
            is_reported: false,
        };
    }

    /// Returns the number of clients, and has the next change reported again.
    pub(crate) fn take_client_count(&mut self) -> u64 {
        self.changes.is_reported = false;
        self.clients as u64
    }
}
