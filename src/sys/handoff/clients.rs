//! The clients that are registered to be packed, in memory that a signal handler may read at any time.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::EmergencyHandoff;
use super::format::{RECORD_LEN, Record};

/// Words of a client record, and all words of a registered client: descriptor + 1, cookie, record.
const RECORD_WORDS: usize = RECORD_LEN.div_ceil(8);
pub(super) const CLIENT_WORDS: usize = 2 + RECORD_WORDS;

impl EmergencyHandoff {
    /// Registers a client. `cookie` is that of its socket, if the kernel has one.
    pub fn register(&self, slot: u32, socket: &OwnedFd, cookie: Option<u64>, record: &Record) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        let mut bytes = [0; RECORD_WORDS * 8];
        bytes[..RECORD_LEN].copy_from_slice(record);
        entry[1].store(cookie.unwrap_or(0), Ordering::Relaxed);
        for (word, bytes) in entry[2..].iter().zip(bytes.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        // Last: from then on the entry counts.
        entry[0].store(socket.as_raw_fd() as u64 + 1, Ordering::Release);
        self.used.fetch_max(u64::from(slot) + 1, Ordering::Relaxed);
    }

    /// Removes a client. Must be called before its socket is closed, as another descriptor may then have its number.
    pub fn unregister(&self, slot: u32) {
        if let Some(entry) = self.entry(slot) {
            entry[0].store(0, Ordering::Release);
        }
    }

    /// Removes a client, if the slot still has this lease. Must be called before its socket is closed.
    pub fn unregister_lease(&self, slot: u32, lease_number: u32) {
        let registered = self.client(slot);
        let lease = registered.map(|(_, _, record)| (self.format.lease_in)(&record));
        if lease == Some((slot, lease_number)) {
            self.unregister(slot);
        }
    }

    fn entry(&self, slot: u32) -> Option<&[AtomicU64]> {
        let begin = slot as usize * CLIENT_WORDS;
        self.registered
            .get(begin..begin + CLIENT_WORDS)
            .filter(|_| slot < self.offsets.slots)
    }

    /// Returns whether the client is here according to the shared memory, too.
    pub(super) fn is_here(&self, record: &Record) -> bool {
        let (slot, lease_number) = (self.format.lease_in)(record);
        let lease = self
            .words
            .get(self.offsets.first_lease + slot as usize * self.offsets.stride);
        slot < self.offsets.slots
            && lease.is_some_and(|lease| {
                (self.offsets.is_here)(lease.load(Ordering::Acquire), lease_number)
            })
    }

    /// Returns the socket, the cookie and the record of a registered client.
    pub(super) fn client(&self, slot: u32) -> Option<(RawFd, u64, Record)> {
        let [socket, cookie, words @ ..] = self.entry(slot)? else {
            return None;
        };
        let socket = (socket.load(Ordering::Acquire) as u32).checked_sub(1)?;
        let mut record = [0; RECORD_LEN];
        for (bytes, word) in record.chunks_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes()[..bytes.len()]);
        }
        Some((socket as RawFd, cookie.load(Ordering::Acquire), record))
    }
}
