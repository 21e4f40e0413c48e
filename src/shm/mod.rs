//! Shared memory of a worker and the master. It holds all that the worker has of its clients.
//!
//! ```text
//! header   16 KiB   counters, and a record of the last seconds                        [`Header`], [`Counters`]
//! slots    128 B each, page-rounded together: one client each, index chosen by master [`Slot`]
//! ------------------------------------------------- mapped by both up to here --------
//! rx, tx   the receive and the reply buffer of the turn in progress
//! small    512 B a slot, dense: the usual half frame
//! large    a receive and a reply region a slot, sparse: the rest
//! own      the metrics of a daemon's own, if it has some                              [`own_metrics`]
//! sources  32 B a slot: the address of a client that its PROXY protocol header has reported
//! ```
//!
//! The memory is a sealed memfd of fixed size, so that neither side can shrink it under the other. Regions have fixed
//! addresses: no allocator, no index to check, no fragmentation, and no cost before the first use. The worker maps all
//! of it. The master maps header and slots and reads the rest by pread(2), because a load from a hole through a mapping
//! creates the page.
//!
//! During a lease only the worker writes a slot, except for the lease word: one side takes an idle client by
//! compare-exchange, and only that side changes the word then. In the header the master writes the request for
//! `HasCapacity`, which the worker clears, the identity of the app, whether it killed the worker for its duration, when
//! it has packed the memory, and how many closed clients it knows; after a takeover it also clears the number of
//! clients that are not unpacked. **The master trusts nothing that it reads here**: states are decoded, positions
//! bounded, counters only shown or compared.
//!
//! *The kernel counts the bytes.* Once a worker is dead, the master asks the kernel how many bytes were ever read from
//! a client (R) or queued to it (W). The shared memory has the positions of its buffers in these streams, stored before
//! the call. No position is stored after recv or send: if SIGKILL arrives during the call, the call completes, but no
//! further instruction is executed. Only how much a write to a Unix client took is noted after it; without that note
//! the account of the thread counts.

mod counters;
mod header;
mod layout;
pub mod own_metrics;
mod recovery;
mod slot;
mod stretch;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::proto::names::Peer;
use crate::sys::memory::{self, Bytes, Words};

pub use counters::{Counters, Note};
pub use header::{BUCKETS, Header, Recent, RecentRequests, Write, upper};
use layout::HEADER_LEN;
pub use layout::{LAYOUT_VERSION, Layout, MAX_ADDRESSES};
#[cfg(any(test, fuzzing))]
pub use recovery::fuzz;
pub use recovery::{ClientBytes, Owner};
pub use slot::{Claim, CloseReason, Cursors, Flags, LeaseState, ProxyState, Region, Slot};
use slot::{SOURCE_LEN, decode_source, encode_source};
#[cfg(test)]
pub use stretch::Stretch;

/// The length of the shared receive buffer: the most that a turn reads.
pub const RECEIVE_LEN: usize = 256 * 1024;

/// The bytes of waiting replies from which a turn writes them before it continues.
pub const REPLY_SOFT: usize = 64 * 1024;

/// The length of a slot's small region.
pub const SMALL_LEN: usize = 512;

/// The words of shared memory, mapped by master and worker.
#[derive(Debug)]
struct SharedWords {
    words: Words,
    slots: u32,
}

impl SharedWords {
    fn map(file: &File, layout: Layout) -> io::Result<SharedWords> {
        Ok(SharedWords {
            words: Words::map(file, layout.words())?,
            slots: layout.slots,
        })
    }

    fn header(&self) -> Header<'_> {
        Header::new(&self.words[..(HEADER_LEN / 8) as usize])
    }

    fn slot(&self, index: u32) -> Option<Slot<'_>> {
        let words = self.words[(HEADER_LEN / 8) as usize..].as_chunks().0;
        words
            .get(index as usize)
            .filter(|_| index < self.slots)
            .map(Slot::new)
    }
}

/// The master's side of shared memory: it creates it, presets slots, and reads what a worker left.
#[derive(Debug)]
pub struct MasterShm {
    words: Arc<SharedWords>,
    file: Arc<File>,
    layout: Layout,
}

impl MasterShm {
    /// Returns new shared memory, with all slots free.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and mmap(2).
    pub fn new(layout: Layout) -> io::Result<MasterShm> {
        MasterShm::map(memory::sealed_file(c"shm", layout.file_len())?, layout)
    }

    /// Returns shared memory that another master made.
    ///
    /// # Errors
    /// Those of fcntl(2) and mmap(2); `InvalidData` when the file can be truncated or has another length.
    pub fn from_file(file: File, layout: Layout) -> io::Result<MasterShm> {
        if layout.slots > Layout::max_slots(layout.max_frame)
            || !memory::is_sealed(&file, layout.file_len())?
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        MasterShm::map(file, layout)
    }

    fn map(file: File, layout: Layout) -> io::Result<MasterShm> {
        Ok(MasterShm {
            words: Arc::new(SharedWords::map(&file, layout)?),
            file: Arc::new(file),
            layout,
        })
    }

    /// Returns the layout.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the file, for the worker.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the worker's counters.
    #[must_use]
    pub fn header(&self) -> Header<'_> {
        self.words.header()
    }

    /// Returns a client's slot; `None` for an index that does not exist.
    #[must_use]
    pub fn slot(&self, index: u32) -> Option<Slot<'_>> {
        self.words.slot(index)
    }

    /// Returns the address of a client that its header has reported. Only a slot whose
    /// [`ProxyState::has_source`] has one.
    #[must_use]
    pub fn source(&self, index: u32) -> Option<Peer> {
        read_source(&self.file, self.layout, index)
    }

    /// Stores that address, for the worker that gets the client.
    ///
    /// # Errors
    /// Those of pwrite(2).
    pub fn set_source(&self, index: u32, source: Option<Peer>) -> io::Result<()> {
        write_source(&self.file, self.layout, index, source)
    }

    /// Returns a slot whose lease of this number was revoked.
    #[must_use]
    pub fn left_slot(&self, slot: u32, lease_number: u32) -> LeftSlot {
        LeftSlot {
            words: Arc::clone(&self.words),
            slot,
            lease_number,
        }
    }
}

/// A slot that a client has left while its worker lives on. If the master is killed, the worker packs the client from
/// there, so it is dropped only when the client is leased to another worker, packed or removed. Dropping it closes the
/// slot, unless its word has changed since.
#[derive(Debug)]
pub struct LeftSlot {
    words: Arc<SharedWords>,
    slot: u32,
    lease_number: u32,
}

impl Drop for LeftSlot {
    fn drop(&mut self) {
        if let Some(slot) = self.words.slot(self.slot) {
            slot.close_left(self.lease_number);
        }
    }
}

/// The worker's side of shared memory.
#[derive(Debug)]
pub struct WorkerShm {
    words: SharedWords,
    bytes: Bytes,
    file: Arc<File>,
    layout: Layout,
}

impl WorkerShm {
    /// Maps the shared memory in a file that the master made.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` when the file is shorter than the layout.
    pub fn map(file: impl Into<Arc<File>>, layout: Layout) -> io::Result<WorkerShm> {
        let file = file.into();
        let words = SharedWords::map(&file, layout)?;
        let length = layout.own_metrics_at() - layout.bytes_at();
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let bytes = Bytes::map(&file, layout.bytes_at(), length)?;
        Ok(WorkerShm {
            words,
            bytes,
            file,
            layout,
        })
    }

    /// Returns the layout.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the counters.
    #[must_use]
    pub fn header(&self) -> Header<'_> {
        self.words.header()
    }

    /// Returns a client's slot; `None` for an index that does not exist.
    #[must_use]
    pub fn slot(&self, index: u32) -> Option<Slot<'_>> {
        self.words.slot(index)
    }

    /// Returns a slot with the buffers for a turn of its client.
    ///
    /// # Panics
    /// For a slot that does not exist: callers have claimed it.
    #[must_use]
    pub fn open(&mut self, index: u32, receive: Region, reply: Region) -> Open<'_> {
        let ranges = [
            self.layout.receive_range(receive, index),
            self.layout.reply_range(reply, index),
        ];
        let [rx, tx] = self
            .bytes
            .get_disjoint_mut(ranges)
            .expect("a receive and a reply region never overlap");
        let slot = self.words.slot(index).expect("the slot was claimed");
        Open {
            header: self.words.header(),
            slot,
            rx,
            tx,
        }
    }

    /// Returns a region of received bytes.
    #[must_use]
    pub fn received(&self, index: u32, region: Region) -> &[u8] {
        &self.bytes[self.layout.receive_range(region, index)]
    }

    /// Copies received bytes from one region of a slot to the beginning of another.
    pub fn move_received(&mut self, index: u32, from: Region, bytes: Range<usize>, to: Region) {
        let source = self.layout.receive_range(from, index);
        let target = self.layout.receive_range(to, index);
        self.copy(source.start, bytes, target.start);
    }

    /// Copies replies of the turn in progress to the beginning of the slot's large region.
    pub fn park_replies(&mut self, index: u32, bytes: Range<usize>) {
        let source = self.layout.reply_range(Region::Shared, index);
        let target = self.layout.reply_range(Region::Large, index);
        self.copy(source.start, bytes, target.start);
    }

    /// Copies `bytes` of the region at `source` to `target`.
    fn copy(&mut self, source: usize, bytes: Range<usize>, target: usize) {
        let bytes = source + bytes.start..source + bytes.end;
        self.bytes.copy_within(bytes, target);
    }

    /// Returns the address of a client that its header has reported, as [`MasterShm::source`].
    #[must_use]
    pub fn source(&self, index: u32) -> Option<Peer> {
        read_source(&self.file, self.layout, index)
    }

    /// Stores that address.
    ///
    /// # Errors
    /// Those of pwrite(2).
    pub fn set_source(&self, index: u32, source: Option<Peer>) -> io::Result<()> {
        write_source(&self.file, self.layout, index, source)
    }

    /// Frees the memory of a slot's large region.
    pub fn free_large(&self, index: u32) {
        let begin = self.layout.bytes_at() + self.layout.large_at(index);
        // If it fails, the memory stays in use, and the next client overwrites it.
        let _ = memory::punch(
            &self.file,
            begin,
            self.layout.large_at(1) - self.layout.large_at(0),
        );
    }
}

/// Reads the address of a slot's client.
fn read_source(file: &File, layout: Layout, index: u32) -> Option<Peer> {
    let mut bytes = [0; SOURCE_LEN];
    let read = file.read_exact_at(&mut bytes, layout.source_at(index)?);
    read.ok().and_then(|()| decode_source(&bytes))
}

/// Writes the address of a slot's client. It costs a system call a connection, and only behind a balancer.
fn write_source(file: &File, layout: Layout, index: u32, source: Option<Peer>) -> io::Result<()> {
    let at = layout.source_at(index).ok_or(io::ErrorKind::Unsupported)?;
    file.write_all_at(&encode_source(source), at)
}

/// The slot and the buffers of a turn.
#[derive(Debug)]
pub struct Open<'a> {
    /// The worker's counters.
    pub header: Header<'a>,
    /// The client's slot.
    pub slot: Slot<'a>,
    /// The buffer for received bytes.
    pub rx: &'a mut [u8],
    /// The buffer for replies.
    pub tx: &'a mut [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_uses_memory_for_touched_pages_only() {
        use std::os::unix::fs::MetadataExt;
        let layout = Layout::new(20_000, 1 << 20);
        let master = MasterShm::new(layout).expect("memfd");
        let blocks = |shm: &MasterShm| shm.file().metadata().expect("fstat").blocks();
        let mut worker =
            WorkerShm::map(master.file().try_clone().expect("dup"), layout).expect("mmap");
        assert_eq!(blocks(&master), 0);
        worker.open(19_999, Region::Large, Region::Shared).rx[0] = 1;
        assert_eq!(blocks(&master), 8);
        worker.free_large(19_999);
        assert_eq!(blocks(&master), 0);
        assert!(master.slot(20_000).is_none());
    }
}
