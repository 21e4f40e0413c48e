//! The writes of a worker to Unix clients, noted so that the master knows how much of the last one the kernel took.

use std::sync::atomic::Ordering;

use super::{
    FINAL_WRITE_CALLS, FINAL_WRITES, Header, KNOWS_WRITES, WRITE_AT, WRITE_CALLS, WRITE_SLOT,
    WRITE_SUM, WRITE_TOOK, WRITER,
};
use crate::sys::byte_counts::Writes;

/// A write to a Unix client that a worker began in its present turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The kernel took this many bytes.
    Took(u64),
    /// The write may not be over. Holds what the thread had written before, if that is known.
    Began(Option<Writes>),
}

impl Header<'_> {
    /// Worker: notes a write that is about to begin, to the Unix client in this slot, at this position of its stream.
    /// `before` is what its thread had written until now, if that is known. The note holds until the turn ends: a death
    /// before that happened in the write or after it.
    pub fn begin_write(&self, slot: u32, at: u64, before: Option<Writes>) {
        self.end_write();
        self.0[WRITE_TOOK].store(0, Ordering::Release);
        self.0[KNOWS_WRITES].store(before.is_some().into(), Ordering::Release);
        let Writes { bytes, calls } = before.unwrap_or_default();
        self.0[WRITE_SUM].store(bytes, Ordering::Release);
        self.0[WRITE_CALLS].store(calls, Ordering::Release);
        self.0[WRITE_SLOT].store(slot.into(), Ordering::Release);
        self.0[WRITE_AT].store(at.wrapping_add(1), Ordering::Release);
    }

    /// Worker: notes that the kernel took `took` bytes. Later writes of the thread are not counted as that client's.
    pub fn complete_write(&self, took: u64) {
        self.0[WRITE_TOOK].store(took.wrapping_add(1), Ordering::Release);
    }

    /// Worker: notes that later writes are not for that client.
    pub fn end_write(&self) {
        self.0[WRITE_AT].store(0, Ordering::Release);
    }

    /// Worker: notes that this thread of its process serves and writes to clients.
    pub fn set_writer(&self, thread: u32) {
        self.0[WRITER].store(thread.into(), Ordering::Release);
    }

    /// Returns the thread that writes; `None` for a worker of version 1, which noted the writes of its whole process.
    #[must_use]
    pub fn writer(&self) -> Option<u32> {
        u32::try_from(self.0[WRITER].load(Ordering::Acquire))
            .ok()
            .filter(|thread| *thread != 0)
    }

    /// Returns all that the thread had written when it packed its clients, if it did and the kernel keeps account.
    #[must_use]
    pub fn final_writes(&self) -> Option<Writes> {
        let bytes = self.0[FINAL_WRITES]
            .load(Ordering::Acquire)
            .checked_sub(1)?;
        Some(Writes {
            bytes,
            calls: self.load(FINAL_WRITE_CALLS),
        })
    }

    /// Master: sets all that the worker, now gone, had written.
    pub fn set_final_writes(&self, Writes { bytes, calls }: Writes) {
        self.0[FINAL_WRITE_CALLS].store(calls, Ordering::Relaxed);
        self.0[FINAL_WRITES].store(bytes.wrapping_add(1), Ordering::Release);
    }

    /// Returns the write in progress, if its client is in this slot, at this position.
    #[must_use]
    pub fn writing(&self, slot: u32, at: u64) -> Option<Write> {
        let is_it = self.0[WRITE_AT].load(Ordering::Acquire) == at.wrapping_add(1)
            && self.load(WRITE_SLOT) == u64::from(slot);
        let took = self.0[WRITE_TOOK]
            .load(Ordering::Acquire)
            .checked_sub(1)
            .filter(|_| self.writer().is_some());
        let before = Writes {
            bytes: self.load(WRITE_SUM),
            calls: self.load(WRITE_CALLS),
        };
        let began = Write::Began(Some(before).filter(|_| self.load(KNOWS_WRITES) != 0));
        is_it.then(|| took.map_or(began, Write::Took))
    }

    /// Returns whether a write in progress would have been noted: always since version 2, in version 1 only if the
    /// writes were known.
    #[must_use]
    pub fn notes_every_write(&self) -> bool {
        self.writer().is_some() || self.load(KNOWS_WRITES) != 0
    }
}
