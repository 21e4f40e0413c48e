//! The formats that packing needs to know, as the modules that own them describe them.

/// Bytes of a client record, which the handoff stores and sends; only a [`RecordFormat`] reads it.
pub(super) const RECORD_LEN: usize = 44;

/// A client record with all fields.
pub type Record = [u8; RECORD_LEN];

/// The format of client records, see `proto/lease.rs`.
#[derive(Clone, Copy, Debug)]
pub struct RecordFormat {
    /// Bytes of a record whose other bytes are 0 and need not be sent.
    pub short_len: usize,
    /// Returns the slot and the lease number of a record.
    pub lease_in: fn(record: &Record) -> (u32, u32),
    /// Returns the record of a client in a datagram of the channel: the one whose socket is the descriptor of this
    /// index.
    pub unread: fn(datagram: &[u8], index: usize) -> Option<Record>,
}

/// Positions in the clients' shared memory, in words.
#[derive(Clone, Copy, Debug)]
pub struct ShmOffsets {
    /// All words up to the end of the slots.
    pub words: usize,
    /// The lease word of the first slot.
    pub first_lease: usize,
    /// Words from one lease word to the next.
    pub stride: usize,
    /// Number of slots.
    pub slots: u32,
    /// Where the bytes that the thread has written in all are noted at the end, plus 1.
    pub final_writes: usize,
    /// Where its calls of write(2) are noted.
    pub final_write_calls: usize,
    /// Where the number of clients is noted that had no space in any handoff queue.
    pub left_behind: usize,
    /// Where the time of packing is noted.
    pub packed_at: usize,
    /// Returns whether the client of this lease, by its lease word, is still with this worker.
    pub is_here: fn(word: u64, lease_number: u32) -> bool,
}
