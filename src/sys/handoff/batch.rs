//! A datagram of clients under way into a handoff queue.

use std::os::fd::RawFd;

use super::{HEADER_LEN, MAX_PASSED, Record};

/// Bytes of the longest datagram: as many as fit into 8 KiB with what the kernel adds. Longer ones take twice the
/// memory.
const MAX_BATCH_LEN: usize = 8192 - 576;

/// Records of one length, and their sockets.
pub(super) struct Batch {
    payload: [u8; MAX_BATCH_LEN],
    sockets: [RawFd; MAX_PASSED],
    pub(super) count: usize,
    record_len: usize,
}

impl Batch {
    pub(super) fn new(header: [u8; HEADER_LEN], record_len: usize) -> Batch {
        let mut payload = [0; MAX_BATCH_LEN];
        payload[..HEADER_LEN].copy_from_slice(&header);
        payload[HEADER_LEN - 2..HEADER_LEN].copy_from_slice(&(record_len as u16).to_le_bytes());
        Batch {
            payload,
            sockets: [0; MAX_PASSED],
            count: 0,
            record_len,
        }
    }

    /// Adds a client. Returns whether the batch is full then.
    pub(super) fn add(&mut self, socket: RawFd, record: &Record) -> bool {
        let begin = HEADER_LEN + self.count * self.record_len;
        self.payload[begin..begin + self.record_len].copy_from_slice(&record[..self.record_len]);
        self.sockets[self.count] = socket;
        self.count += 1;
        self.count == MAX_PASSED.min((MAX_BATCH_LEN - HEADER_LEN) / self.record_len)
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.payload[..HEADER_LEN + self.count * self.record_len]
    }

    pub(super) fn sockets(&self) -> &[RawFd] {
        &self.sockets[..self.count]
    }
}
