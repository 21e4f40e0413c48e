//! Shared memory: one per worker, shared with the master; the worker holds in it everything it has of a client.
//!
//! ```text
//! header   16 KiB   counters, the second by second record of what was served          [`Header`], [`Counters`]
//! slots    128 B each, page-rounded together: one client each, index chosen by master [`Slot`]
//! ------------------------------------------------- mapped by both up to here --------
//! rx, tx   the receive and the reply buffer of the turn in progress
//! small    512 B a slot, dense: the usual half frame
//! large    a receive and a reply region a slot, sparse: the rest
//! ```
//!
//! A sealed memfd of fixed size, so that neither side can pull it from under the other. Regions have fixed
//! addresses: no allocator, no index to check, no fragmentation; what was never touched costs nothing. The
//! worker maps it all; the master maps header and slots and reads the rest by pread(2), because a look at a
//! hole through a mapping makes the page exist.
//!
//! Words are written by the worker only, but two: the lease word, by compare-exchange on both sides, and the
//! wish to be told of room, which the master sets and the worker clears. **The master takes nothing it reads
//! here on trust**: states are decoded, positions bounded, counters only ever shown or compared.
//!
//! *The kernel counts the bytes.* How many bytes were ever read from a client (R) or queued to it (W) is asked of
//! the kernel once its worker is dead; the shared memory tells where in those streams its buffers begin, and that was
//! stored before the call. Nothing is stored after recv or send: SIGKILL lets the call complete, and the next
//! instruction never runs.

mod counters;
mod header;
mod recovery;
mod slot;
mod stretch;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::proto::frame::PREFIX;
use crate::sys::handoff::ShmOffsets;
use crate::sys::memory::{self, Bytes, PAGE, Words};

pub use counters::{Counters, Note};
pub use header::{BUCKETS, Header, Write, upper};
#[cfg(any(test, fuzzing))]
pub use recovery::fuzz;
pub use recovery::{ClientBytes, Owner};
pub use slot::{Claim, Cursors, Flags, LeaseState, Region, Slot};
#[cfg(test)]
pub use stretch::Stretch;

/// Bytes of the shared receive buffer: what one turn reads at the most.
pub const RECEIVE_LEN: usize = 256 * 1024;

/// Once so many bytes of replies are waiting, a turn writes them before it goes on.
pub const REPLY_SOFT: usize = 64 * 1024;

/// Bytes of a slot's small region.
pub const SMALL_LEN: usize = 512;

/// What a reply may be longer than the longest frame, in bytes: room for another envelope, or an error.
const REPLY_EXTRA_LEN: usize = 4096;

const HEADER_LEN: u64 = 16 * 1024;
const SLOT_LEN: u64 = 128;

/// The version of the layout that shared memory is made with.
///
/// A word that had no meaning in a version is 0 in its shared memory. Who gives one a meaning sees to it that 0 says nothing; who changes
/// the meaning or the place of one raises this number, and the code here goes on to read the versions before.
///
/// ```text
/// 1   version 0.1.0
/// 2   words 16 and up of the header, bit 5 of the flags
/// ```
pub const LAYOUT_VERSION: u32 = 2;

/// Where what lies in shared memory: a function of the number of slots and of the longest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    version: u32,
    slots: u32,
    max_frame: u32,
}

impl Layout {
    /// For so many clients, with frames of up to `max_frame` bytes.
    #[must_use]
    pub fn new(slots: u32, max_frame: u32) -> Layout {
        Layout {
            version: LAYOUT_VERSION,
            slots,
            max_frame,
        }
    }

    /// The one of shared memory that a program of another version has made; none for a version that this one does not read.
    #[must_use]
    pub fn with_version(version: u32, slots: u32, max_frame: u32) -> Option<Layout> {
        (1..=LAYOUT_VERSION).contains(&version).then_some(Layout {
            version,
            slots,
            max_frame,
        })
    }

    /// Which version of the layout it is.
    #[must_use]
    pub fn version(self) -> u32 {
        self.version
    }

    /// Slots that shared memory may have, so that all of its regions can be mapped: 16 TiB of addresses, of the 128 that a
    /// process has on the smallest of today's 64-bit machines.
    #[must_use]
    pub fn max_slots(max_frame: u32) -> u32 {
        let one = Layout::new(1, max_frame);
        u32::try_from(
            (16 << 40) / (one.large_receive() + one.reply() + SMALL_LEN as u64 + SLOT_LEN),
        )
        .unwrap_or(u32::MAX)
    }

    /// Slots there are.
    #[must_use]
    pub fn slots(self) -> u32 {
        self.slots
    }

    /// Longest frame that has a place, in bytes.
    #[must_use]
    pub fn max_frame(self) -> u32 {
        self.max_frame
    }

    /// Longest reply with its prefix, in bytes.
    #[must_use]
    pub fn max_reply(self) -> usize {
        PREFIX + self.max_frame as usize + REPLY_EXTRA_LEN
    }

    /// Words of the header and the slots.
    fn words(self) -> usize {
        ((HEADER_LEN + u64::from(self.slots) * SLOT_LEN) / 8) as usize
    }

    /// Where the buffers and regions begin in the file.
    fn bytes_at(self) -> u64 {
        page_up(HEADER_LEN + u64::from(self.slots) * SLOT_LEN)
    }

    /// Bytes of a reply buffer: when the last reply begins, less than [`REPLY_SOFT`] are waiting.
    fn reply(self) -> u64 {
        page_up((REPLY_SOFT + self.max_reply()) as u64)
    }

    /// Bytes of a large receive region: a whole frame, or what the shared buffer held.
    fn large_receive(self) -> u64 {
        page_up((PREFIX + self.max_frame as usize).max(RECEIVE_LEN) as u64)
    }

    fn small_at(self) -> u64 {
        RECEIVE_LEN as u64 + self.reply()
    }

    fn large_at(self, slot: u32) -> u64 {
        let begin = page_up(self.small_at() + u64::from(self.slots) * SMALL_LEN as u64);
        begin + u64::from(slot) * (self.large_receive() + self.reply())
    }

    /// Where a worker finds what it needs to pack its clients.
    #[must_use]
    pub fn handoff_offsets(self) -> ShmOffsets {
        ShmOffsets {
            words: self.words(),
            first_lease: (HEADER_LEN / 8) as usize,
            stride: (SLOT_LEN / 8) as usize,
            slots: self.slots,
            final_writes: header::FINAL_WRITES,
            final_write_calls: header::FINAL_WRITE_CALLS,
            left_behind: header::LEFT_BEHIND,
            packed_at: header::PACKED_AT,
            is_here: slot::is_with_its_worker,
        }
    }

    /// All bytes of the file.
    fn file_len(self) -> u64 {
        self.bytes_at() + self.large_at(self.slots)
    }

    /// Where received bytes lie at `place` for `slot`, counted from the first byte after the slots.
    fn receive_range(self, region: Region, slot: u32) -> Range<usize> {
        let (begin, length) = match region {
            Region::Shared => (0, RECEIVE_LEN as u64),
            Region::Small => (
                self.small_at() + u64::from(slot) * SMALL_LEN as u64,
                SMALL_LEN as u64,
            ),
            Region::Large => (self.large_at(slot), self.large_receive()),
        };
        begin as usize..(begin + length) as usize
    }

    /// Where replies lie; a small region holds none.
    fn reply_range(self, region: Region, slot: u32) -> Range<usize> {
        let begin = match region {
            Region::Shared | Region::Small => RECEIVE_LEN as u64,
            Region::Large => self.large_at(slot) + self.large_receive(),
        };
        begin as usize..(begin + self.reply()) as usize
    }
}

fn page_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

/// The words of shared memory: what master and worker both map.
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

/// Shared memory as the master has it: it makes it, presets slots, and reads what a worker left.
#[derive(Debug)]
pub struct MasterShm {
    board: SharedWords,
    file: Arc<File>,
    layout: Layout,
}

impl MasterShm {
    /// New shared memory, all of its slots free.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and mmap(2).
    pub fn new(layout: Layout) -> io::Result<MasterShm> {
        let file = memory::sealed_file(c"shm", layout.file_len())?;
        Ok(MasterShm {
            board: SharedWords::map(&file, layout)?,
            file: Arc::new(file),
            layout,
        })
    }

    /// Shared memory that another master made.
    ///
    /// # Errors
    /// Those of fcntl(2) and mmap(2); `InvalidData` when the file can be cut short, or is not as long as that.
    pub fn from_file(file: File, layout: Layout) -> io::Result<MasterShm> {
        if layout.slots > Layout::max_slots(layout.max_frame)
            || !memory::is_sealed(&file, layout.file_len())?
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(MasterShm {
            board: SharedWords::map(&file, layout)?,
            file: Arc::new(file),
            layout,
        })
    }

    /// Where what lies.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// What the worker gets.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The worker's counters.
    #[must_use]
    pub fn header(&self) -> Header<'_> {
        self.board.header()
    }

    /// A client's slot; none for an index that there is not.
    #[must_use]
    pub fn slot(&self, index: u32) -> Option<Slot<'_>> {
        self.board.slot(index)
    }
}

/// Shared memory as its worker has it.
#[derive(Debug)]
pub struct WorkerShm {
    board: SharedWords,
    bytes: Bytes,
    file: File,
    layout: Layout,
}

impl WorkerShm {
    /// The shared memory in a file that the master has made.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` when the file is shorter than the layout.
    pub fn map(file: File, layout: Layout) -> io::Result<WorkerShm> {
        let board = SharedWords::map(&file, layout)?;
        let length =
            usize::try_from(layout.file_len() - layout.bytes_at()).map_err(io::Error::other)?;
        let bytes = Bytes::map(&file, layout.bytes_at(), length)?;
        Ok(WorkerShm {
            board,
            bytes,
            file,
            layout,
        })
    }

    /// Where what lies.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The counters.
    #[must_use]
    pub fn header(&self) -> Header<'_> {
        self.board.header()
    }

    /// A client's slot; none for an index that there is not.
    #[must_use]
    pub fn slot(&self, index: u32) -> Option<Slot<'_>> {
        self.board.slot(index)
    }

    /// A slot together with the buffers that a turn of its client works in.
    ///
    /// # Panics
    /// For a slot that there is not: callers have claimed it.
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
        let slot = self.board.slot(index).expect("the slot was claimed");
        Open {
            header: self.board.header(),
            slot,
            rx,
            tx,
        }
    }

    /// A place for received bytes, to be read.
    #[must_use]
    pub fn received(&self, index: u32, region: Region) -> &[u8] {
        &self.bytes[self.layout.receive_range(region, index)]
    }

    /// Copies received bytes from one place of a slot to the beginning of another.
    pub fn move_received(&mut self, index: u32, from: Region, bytes: Range<usize>, to: Region) {
        let source = self.layout.receive_range(from, index);
        let target = self.layout.receive_range(to, index);
        self.bytes.copy_within(
            source.start + bytes.start..source.start + bytes.end,
            target.start,
        );
    }

    /// Copies replies of the turn in progress to the beginning of the slot's large region.
    pub fn keep_replies(&mut self, index: u32, bytes: Range<usize>) {
        let source = self.layout.reply_range(Region::Shared, index);
        let target = self.layout.reply_range(Region::Large, index);
        self.bytes.copy_within(
            source.start + bytes.start..source.start + bytes.end,
            target.start,
        );
    }

    /// Gives back the memory of a slot's large region.
    pub fn empty_large(&self, index: u32) {
        let begin = self.layout.bytes_at() + self.layout.large_at(index);
        // If it fails, memory is kept that was to be given back, and the next client overwrites it.
        let _ = memory::punch(
            &self.file,
            begin,
            self.layout.large_at(1) - self.layout.large_at(0),
        );
    }
}

/// What a turn works in.
#[derive(Debug)]
pub struct Open<'a> {
    /// The worker's counters.
    pub header: Header<'a>,
    /// The client's slot.
    pub slot: Slot<'a>,
    /// The place for received bytes.
    pub rx: &'a mut [u8],
    /// The place for replies.
    pub tx: &'a mut [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_regions_overlap_and_all_lie_in_the_file() {
        for (slots, max_frame) in [(1, 64), (3, 65_535), (40, 1 << 20), (7, 256 << 20)] {
            let layout = Layout::new(slots, max_frame);
            let mut ranges = vec![
                layout.receive_range(Region::Shared, 0),
                layout.reply_range(Region::Shared, 0),
            ];
            for slot in 0..slots {
                ranges.push(layout.receive_range(Region::Small, slot));
                ranges.push(layout.receive_range(Region::Large, slot));
                ranges.push(layout.reply_range(Region::Large, slot));
            }
            ranges.sort_by_key(|range| range.start);
            for pair in ranges.windows(2) {
                assert!(pair[0].end <= pair[1].start, "{pair:?}");
            }
            let end = ranges.last().expect("some").end as u64;
            assert!(end <= layout.file_len() - layout.bytes_at());
            assert!(layout.large_receive() as usize >= PREFIX + max_frame as usize);
            assert!(layout.reply() as usize >= REPLY_SOFT + layout.max_reply());
        }
    }

    #[test]
    fn a_large_shm_costs_its_touched_pages_only() {
        use std::os::unix::fs::MetadataExt;
        let layout = Layout::new(20_000, 1 << 20);
        let master = MasterShm::new(layout).expect("memfd");
        let blocks = |shm: &MasterShm| shm.file().metadata().expect("fstat").blocks();
        let mut worker =
            WorkerShm::map(master.file().try_clone().expect("dup"), layout).expect("mmap");
        assert_eq!(blocks(&master), 0);
        worker.open(19_999, Region::Large, Region::Shared).rx[0] = 1;
        assert_eq!(blocks(&master), 8);
        worker.empty_large(19_999);
        assert_eq!(blocks(&master), 0);
        assert!(master.slot(20_000).is_none());
    }
}
