//! The kernel's account of what a worker writes, from which the bytes to a Unix client are known that a death has
//! interrupted. TCP clients need none, and a worker without one starts and ends faster.
//!
//! A worker has its account opened at its start if there is a listener on a Unix socket. Other workers get Unix clients
//! only from listeners that are closed, or new. Then the account is opened before the first lease of such a client is
//! sent: if the process has ended before that, it has written nothing to the client, and needs no account. Only root can
//! open the account of a process that has made itself untraceable since its start (PR_SET_DUMPABLE of prctl(2)); with
//! another user such a Unix client is lost if the process dies during a write, as without accounts in the kernel.

use std::cell::OnceCell;

use crate::shm::Header;
use crate::sys::byte_counts::{self, ProcessWrites, Writes};

/// The account of the process of a worker.
#[derive(Debug)]
pub(crate) struct WriteAccount {
    pid: u32,
    /// `None` inside if it cannot be opened: the kernel keeps none, or the process has ended.
    account: OnceCell<Option<ProcessWrites>>,
}

impl WriteAccount {
    /// Returns the account, which is not open.
    pub(super) fn new(pid: u32) -> WriteAccount {
        let account = OnceCell::new();
        WriteAccount { pid, account }
    }

    /// Opens the account, as the worker may get Unix clients.
    pub(crate) fn open(&self) {
        self.account
            .get_or_init(|| ProcessWrites::open(self.pid).ok());
    }

    /// Returns what the process has written until its end, if it was opened and the kernel knows. The process must not
    /// be collected yet: until then /proc/PID exists, and the pid is its own.
    pub(super) fn total(&self, header: Header<'_>) -> Option<Writes> {
        let account = self.account.get()?;
        let total = match (header.writer(), account) {
            (Some(thread), Some(writes)) => writes.sum_of(thread),
            (Some(thread), None) => byte_counts::written_by_thread(self.pid, thread),
            (None, _) => byte_counts::written_by_process(self.pid),
        };
        total.ok()
    }

    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        matches!(self.account.get(), Some(Some(_)))
    }
}
