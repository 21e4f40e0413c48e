//! The layout of shared memory: a function of the number of slots and the longest frame.

use std::ops::Range;

use super::{RECEIVE_LEN, REPLY_SOFT, Region, SMALL_LEN, header, slot};
use crate::proto::channel::MethodName;
use crate::proto::frame::PREFIX;
use crate::proto::handoff::ShmRecord;
use crate::proto::names::{Generation, WorkerId};
use crate::proto::own_metrics::MAX_OWN_METRICS;
use crate::sys::handoff::ShmOffsets;
use crate::sys::memory::PAGE;

/// Bytes by which a reply may exceed the longest frame: another envelope, or an error.
const REPLY_EXTRA_LEN: usize = 4096;

/// The most addresses of one shared memory, in bytes: 16 TiB of the 128 TiB that most 64-bit machines give a process.
pub const MAX_ADDRESSES: u64 = 16 << 40;

pub(super) const HEADER_LEN: u64 = 16 * 1024;
pub(super) const SLOT_LEN: u64 = 128;

/// Words of a metric of the daemon's own, and of the part of the memory that has all of them: see `own_metrics.rs`.
pub(super) const METRIC_WORDS: usize = 64;
pub(super) const AREA_WORDS: usize = (1 + MAX_OWN_METRICS) * METRIC_WORDS;
const AREA_LEN: u64 = (AREA_WORDS * 8) as u64;

/// The version of the layout of new shared memory.
///
/// A word without a meaning in a version is 0 in its shared memory. If a word gets a meaning, 0 must stand for none. If
/// a word changes its meaning or place, this number must be raised, and the code must still read the earlier versions.
///
/// ```text
/// 1   version 0.1.0
/// 2   words 16 and up of the header, bit 5 of the flags, the metrics of a daemon's own after the large regions
/// 3   the shared reply buffer begins half a page later, and the small and the large regions a page later; words 31 to
///     33 of the header, bit 6 of the flags, the reason of a close, the flags of a last frame
/// 4   bits 32 to 35 of the word of the flags, more reasons of a close, the addresses of clients after the metrics
/// ```
pub const LAYOUT_VERSION: u32 = 4;

/// The distance between the addresses of two clients, in bytes.
const SOURCE_STRIDE: u64 = 32;

/// The distance of the shared reply buffer from the beginning of a page.
///
/// A method that returns its params copies them by one byte further than they lie in the receive buffer, which begins
/// with a page. Many CPUs compare only the lowest twelve bits of an address to find out whether a load depends on an
/// earlier store: with both buffers at the beginning of a page, each load of such a copy waits for the store before it.
const REPLY_OFFSET: u64 = PAGE / 2;

/// The layout of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(super) version: u32,
    pub(super) slots: u32,
    pub(super) max_frame: u32,
}

impl Layout {
    /// Returns the layout for this many clients, with frames of up to `max_frame` bytes.
    #[must_use]
    pub fn new(slots: u32, max_frame: u32) -> Layout {
        Layout {
            version: LAYOUT_VERSION,
            slots,
            max_frame,
        }
    }

    /// Returns the layout of shared memory from another version of the program; `None` if this version cannot read it.
    #[must_use]
    pub fn with_version(version: u32, slots: u32, max_frame: u32) -> Option<Layout> {
        (1..=LAYOUT_VERSION).contains(&version).then_some(Layout {
            version,
            slots,
            max_frame,
        })
    }

    /// Returns the layout of recorded shared memory; `None` if this version cannot read it.
    #[must_use]
    pub fn from_record(record: &ShmRecord) -> Option<Layout> {
        Layout::with_version(record.layout, record.slots, record.longest)
    }

    /// Returns the record of shared memory with this layout, of the worker of this id, seat and generation. The counts
    /// in it are not in the totals yet.
    #[must_use]
    pub fn record(
        self,
        (worker, seat, generation): (WorkerId, u32, Generation),
        methods: Vec<MethodName>,
    ) -> ShmRecord {
        ShmRecord {
            worker,
            seat,
            generation,
            slots: self.slots,
            longest: self.max_frame,
            methods,
            is_counted: false,
            layout: self.version,
        }
    }

    /// Returns the version of the layout.
    #[must_use]
    pub fn version(self) -> u32 {
        self.version
    }

    /// Returns the most slots of any shared memory: their regions need [`MAX_ADDRESSES`].
    #[must_use]
    pub fn max_slots(max_frame: u32) -> u32 {
        Layout::slots_within(MAX_ADDRESSES, max_frame)
    }

    /// Returns the most slots whose regions can all be mapped into this many bytes of addresses.
    #[must_use]
    pub fn slots_within(addresses: u64, max_frame: u32) -> u32 {
        let none = Layout::new(0, max_frame);
        let one = none.large_receive() + none.reply() + SMALL_LEN as u64 + SLOT_LEN + SOURCE_STRIDE;
        let slots = addresses.saturating_sub(none.file_len() + PAGE) / one;
        u32::try_from(slots).unwrap_or(u32::MAX)
    }

    /// Returns the number of slots.
    #[must_use]
    pub fn slots(self) -> u32 {
        self.slots
    }

    /// Returns the length of the longest frame, in bytes.
    #[must_use]
    pub fn max_frame(self) -> u32 {
        self.max_frame
    }

    /// Returns the length of the longest reply with its prefix, in bytes.
    #[must_use]
    pub fn max_reply(self) -> usize {
        PREFIX + self.max_frame as usize + REPLY_EXTRA_LEN
    }

    /// Returns the number of words of the header and the slots.
    pub(super) fn words(self) -> usize {
        ((HEADER_LEN + u64::from(self.slots) * SLOT_LEN) / 8) as usize
    }

    /// Returns the offset of the buffers and regions in the file.
    pub(super) fn bytes_at(self) -> u64 {
        page_up(HEADER_LEN + u64::from(self.slots) * SLOT_LEN)
    }

    /// Returns the length of a reply buffer: when the last reply begins, less than [`REPLY_SOFT`] bytes are waiting.
    fn reply(self) -> u64 {
        page_up((REPLY_SOFT + self.max_reply()) as u64)
    }

    /// Returns the length of a large receive region: a complete frame, or the contents of the shared buffer.
    fn large_receive(self) -> u64 {
        page_up((PREFIX + self.max_frame as usize).max(RECEIVE_LEN) as u64)
    }

    /// Returns the offset of the shared reply buffer.
    fn shared_reply_at(self) -> u64 {
        let offset = if self.version >= 3 { REPLY_OFFSET } else { 0 };
        RECEIVE_LEN as u64 + offset
    }

    fn small_at(self) -> u64 {
        page_up(self.shared_reply_at() + self.reply())
    }

    pub(super) fn large_at(self, slot: u32) -> u64 {
        let begin = page_up(self.small_at() + u64::from(self.slots) * SMALL_LEN as u64);
        begin + u64::from(slot) * (self.large_receive() + self.reply())
    }

    /// Returns the offsets that a worker needs to pack its clients.
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

    /// Returns whether there is a part for the metrics of a daemon's own.
    pub(super) fn has_own_metrics(self) -> bool {
        self.version >= 2
    }

    /// Returns the offset of the metrics of a daemon's own, after all regions.
    pub(super) fn own_metrics_at(self) -> u64 {
        self.bytes_at() + self.large_at(self.slots)
    }

    /// Returns the offset of the address of a slot's client; `None` if there is none.
    pub(super) fn source_at(self, slot: u32) -> Option<u64> {
        let is_there = self.version >= 4 && slot < self.slots;
        is_there.then(|| self.sources_at() + u64::from(slot) * SOURCE_STRIDE)
    }

    /// Returns the offset of the addresses of clients, after the metrics of a daemon's own.
    fn sources_at(self) -> u64 {
        let metrics = match self.has_own_metrics() {
            true => page_up(AREA_LEN),
            false => 0,
        };
        self.own_metrics_at() + metrics
    }

    /// Returns the length of the file.
    pub(super) fn file_len(self) -> u64 {
        let sources = match self.version >= 4 {
            true => page_up(u64::from(self.slots) * SOURCE_STRIDE),
            false => 0,
        };
        self.sources_at() + sources
    }

    /// Returns the range of received bytes in a region of `slot`, counted from the first byte after the slots.
    pub(super) fn receive_range(self, region: Region, slot: u32) -> Range<usize> {
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

    /// Returns the range of replies in a region of `slot`; a small region holds none.
    pub(super) fn reply_range(self, region: Region, slot: u32) -> Range<usize> {
        let begin = match region {
            Region::Shared | Region::Small => self.shared_reply_at(),
            Region::Large => self.large_at(slot) + self.large_receive(),
        };
        begin as usize..(begin + self.reply()) as usize
    }
}

fn page_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_and_lie_in_the_file() {
        let sizes = [(1, 64), (3, 65_535), (40, 1 << 20), (7, 256 << 20)];
        for (version, (slots, max_frame)) in
            (1..=LAYOUT_VERSION).flat_map(|v| sizes.map(|s| (v, s)))
        {
            let layout = Layout::with_version(version, slots, max_frame).expect("it is known");
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
            assert!(end <= layout.own_metrics_at() - layout.bytes_at());
            let sources: Vec<u64> = (0..=slots)
                .filter_map(|slot| layout.source_at(slot))
                .collect();
            let expected = if version >= 4 { slots as usize } else { 0 };
            assert_eq!(sources.len(), expected);
            if let (Some(first), Some(last)) = (sources.first(), sources.last()) {
                assert!(*first >= layout.own_metrics_at() + AREA_LEN);
                assert!(last + SOURCE_STRIDE <= layout.file_len());
            }
            assert!(layout.large_receive() as usize >= PREFIX + max_frame as usize);
            assert!(layout.reply() as usize >= REPLY_SOFT + layout.max_reply());
        }
    }

    /// Shared memory of earlier versions is read after an upgrade: its regions must be found where they are.
    #[test]
    fn each_version_has_its_own_offsets() {
        const KIB: usize = 1024;
        for (version, expected) in [
            (1, [256 * KIB, 336 * KIB, 340 * KIB, 932 * KIB]),
            (2, [256 * KIB, 336 * KIB, 340 * KIB, 932 * KIB]),
            (3, [258 * KIB, 340 * KIB, 344 * KIB, 936 * KIB]),
            (4, [258 * KIB, 340 * KIB, 344 * KIB, 936 * KIB]),
        ] {
            let layout = Layout::with_version(version, 3, 10_000).expect("it is known");
            let found = [
                layout.reply_range(Region::Shared, 0).start,
                layout.receive_range(Region::Small, 0).start,
                layout.receive_range(Region::Large, 0).start,
                layout.reply_range(Region::Large, 1).start,
            ];
            assert_eq!(found, expected, "version {version}");
        }
    }

    #[test]
    fn slots_fit_into_the_addresses() {
        for max_frame in [64, 10_000, 1 << 20, 256 << 20] {
            for addresses in [0, 1 << 20, 1 << 31, 1 << 38, MAX_ADDRESSES] {
                let slots = Layout::slots_within(addresses, max_frame);
                let length = Layout::new(slots, max_frame).file_len();
                assert!(slots == 0 || length <= addresses, "{slots}: {length}");
            }
        }
    }

    #[test]
    fn a_reply_is_not_written_just_ahead_of_its_request() {
        let layout = Layout::new(3, 64 << 10);
        let reply = layout.reply_range(Region::Shared, 0).start as u64;
        for region in [Region::Shared, Region::Large] {
            let request = layout.receive_range(region, 2).start as u64;
            let ahead = (reply + PAGE - request % PAGE) % PAGE;
            assert_eq!(ahead, PAGE / 2, "{region:?}");
        }
    }
}
