//! The store of a [`ServiceManager`](super::ServiceManager).

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::{POLL_INTERVAL, TIMEOUT};
use crate::sys::fd;
use crate::sys::notify::NotifySocket;
use crate::sys::poll::{self, Interest};

/// Copies what a manager has stored, for a daemon that starts.
#[derive(Debug)]
pub(super) struct StoredCopies {
    pub(super) path: PathBuf,
    pub(super) state: Arc<Mutex<ManagerState>>,
}

#[derive(Debug, Default)]
pub(super) struct ManagerState {
    pub(super) told: Vec<String>,
    pub(super) stored: Vec<(String, OwnedFd)>,
    /// The most descriptors that it stores, if there is a limit.
    pub(super) most: Option<usize>,
    /// Descriptors above the limit, with their names. As systemd does, they are closed after later messages were
    /// handled.
    pub(super) rejected: Vec<(String, OwnedFd)>,
}

pub(super) fn lock(state: &Mutex<ManagerState>) -> MutexGuard<'_, ManagerState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StoredCopies {
    /// Returns a copy of each descriptor, with its name. As systemd does, the manager handles all messages of the
    /// previous daemon before.
    pub(super) fn take(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let (ours, theirs) = fd::pipe()?;
        let socket = NotifySocket::new(self.path.as_os_str())?;
        while let Err(e) = socket.send(b"BARRIER=1", std::slice::from_ref(&theirs)) {
            if e.kind() != io::ErrorKind::WouldBlock {
                return Err(e);
            }
            thread::park_timeout(POLL_INTERVAL);
        }
        drop(theirs);
        poll::wait_for(&ours, Interest::End, TIMEOUT)?;
        let state = lock(&self.state);
        let copies = state.stored.iter();
        copies
            .map(|(name, stored)| Ok((name.clone(), stored.try_clone()?)))
            .collect()
    }
}
