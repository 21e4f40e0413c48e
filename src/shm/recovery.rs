//! Recovery of the bytes that a worker left of a client: the master reads them from the file and stores them for the
//! next worker.
//!
//! ```text
//! unread = rx[answered .. R - in_base]      of R bytes ever read from the client
//! unsent = tx[W - out_base .. replied]      of W bytes ever written to it
//! ```
//!
//! The master uses pread(2) and pwrite(2), not a mapping: a load from a hole would create its page, a store could raise
//! SIGBUS where pwrite returns an error, and copied bytes cannot change between check and use.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::stretch::Stretch;
use super::{Cursors, MasterShm, Region, SMALL_LEN};
use crate::sys::byte_counts::ByteCounts;

/// Bytes of a client that is in no turn: its whole state besides its socket.
#[derive(Debug, Default)]
pub struct ClientBytes {
    /// Position of the first unread byte in the stream of all bytes that the client ever sent.
    pub in_base: u64,
    /// Bytes read from the client and not answered.
    pub unread: Stretch,
    /// Position of the first unsent byte in the stream of all bytes ever sent to the client.
    pub out_base: u64,
    /// Reply bytes not written to the client.
    pub unsent: Stretch,
}

impl ClientBytes {
    /// Returns whether some bytes are still in the file of a dead worker: they can be moved once.
    #[must_use]
    pub fn are_left(&self) -> bool {
        self.left_len() > 0
    }

    /// Returns the number of bytes that are still in the file of a dead worker.
    #[must_use]
    pub fn left_len(&self) -> usize {
        let stretches = [&self.unread, &self.unsent].into_iter();
        let left = stretches.filter(|stretch| stretch.is_left());
        left.map(Stretch::len).sum()
    }

    /// Has bytes in the file of a dead worker stay there until they are dropped.
    pub fn keep(&mut self) {
        self.unread.keep();
        self.unsent.keep();
    }
}

/// Whether the worker that owns the memory may still use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The worker is alive and may use the regions again: the bytes are copied.
    Alive,
    /// The worker is dead: more than a few bytes stay in the file until they are moved elsewhere or dropped.
    Dead,
}

/// The highest plausible position: no stream is that long. The next worker would calculate with a position beyond it.
const MAX_POSITION: u64 = 1 << 62;

impl MasterShm {
    /// Returns the bytes of the client in a slot whose worker is dead or in no turn of it. Without byte counts, the
    /// positions in the cursors are used, which are right between two turns.
    ///
    /// # Errors
    /// Those of pread(2); `InvalidData` when the cursors and the byte counts cannot both be true.
    pub fn recover(
        &self,
        index: u32,
        byte_counts: Option<ByteCounts>,
        owner: Owner,
    ) -> io::Result<ClientBytes> {
        let slot = self.slot(index).ok_or(io::ErrorKind::InvalidData)?;
        let cursors = slot.cursors();
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        if cursors.in_base.max(cursors.out_base) > MAX_POSITION {
            return Err(wrong());
        }
        let written_here = ByteCounts {
            received: cursors.in_base.wrapping_add(cursors.have.into()),
            written: cursors.out_base,
        };
        let ByteCounts { received, written } = byte_counts.unwrap_or(written_here);
        let arrived = received.checked_sub(cursors.in_base).ok_or_else(wrong)?;
        let sent = written.checked_sub(cursors.out_base).ok_or_else(wrong)?;
        let rx = self.layout.receive_range(cursors.rx.0, index);
        let tx = self.layout.reply_range(cursors.tx.0, index);
        Ok(ClientBytes {
            in_base: cursors.in_base.wrapping_add(cursors.answered.into()),
            unread: self.read(&rx, cursors.rx.1, cursors.answered.into()..arrived, owner)?,
            out_base: written,
            unsent: self.read(&tx, cursors.tx.1, sent..cursors.replied.into(), owner)?,
        })
    }

    /// Returns whether a client's bytes fit into the regions here. They may not fit in the shared memory of a worker
    /// that was started before `max-frame` was raised.
    #[must_use]
    pub fn has_regions_for(&self, bytes: &ClientBytes) -> bool {
        let unread = self.layout.receive_range(Region::Large, 0).len();
        let unsent = self.layout.reply_range(Region::Large, 0).len();
        bytes.unread.len() <= unread && bytes.unsent.len() <= unsent
    }

    /// Writes a client's bytes into the regions of a free slot, and returns the cursors for them.
    ///
    /// # Errors
    /// Those of pwrite(2); `InvalidData` when the bytes do not fit.
    pub fn store(&self, index: u32, bytes: &ClientBytes) -> io::Result<Cursors> {
        let mut cursors = Cursors::idle(bytes.in_base, bytes.out_base);
        if !bytes.unread.is_empty() {
            let region = if bytes.unread.len() <= SMALL_LEN {
                Region::Small
            } else {
                Region::Large
            };
            self.write(&self.layout.receive_range(region, index), &bytes.unread)?;
            (cursors.rx, cursors.have) = ((region, 0), bytes.unread.len() as u32);
        }
        if !bytes.unsent.is_empty() {
            self.write(
                &self.layout.reply_range(Region::Large, index),
                &bytes.unsent,
            )?;
            (cursors.tx, cursors.replied) = ((Region::Large, 0), bytes.unsent.len() as u32);
        }
        Ok(cursors)
    }

    /// Reads bytes of a region, `part` counted from `offset` in it. Never touches bytes beyond the region.
    fn read(
        &self,
        region: &Range<usize>,
        offset: u32,
        part: Range<u64>,
        owner: Owner,
    ) -> io::Result<Stretch> {
        let length = part
            .end
            .checked_sub(part.start)
            .ok_or(io::ErrorKind::InvalidData)?;
        let end = u64::from(offset)
            .checked_add(part.end)
            .ok_or(io::ErrorKind::InvalidData)?;
        if end > region.len() as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let begin = self.layout.bytes_at() + region.start as u64 + u64::from(offset) + part.start;
        // Small regions of several slots share a page, so their bytes are copied.
        if owner == Owner::Dead && length > SMALL_LEN as u64 {
            return Ok(Stretch::from_left_bytes(&self.file, begin, length));
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, begin)?;
        Ok(bytes.into())
    }

    fn write(&self, region: &Range<usize>, bytes: &Stretch) -> io::Result<()> {
        if bytes.len() > region.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes.move_to(&self.file, self.layout.bytes_at() + region.start as u64)
    }
}

/// Returns positions and bytes, for comparison.
#[cfg(any(test, fuzzing))]
fn all(bytes: &ClientBytes) -> (u64, Vec<u8>, u64, Vec<u8>) {
    let vec = |stretch: &Stretch| stretch.to_vec().expect("the bytes are in the file");
    let (unread, unsent) = (vec(&bytes.unread), vec(&bytes.unsent));
    (bytes.in_base, unread, bytes.out_base, unsent)
}

/// Recovers a client from a slot with arbitrary words, as a broken worker may leave them, and stores it in another
/// slot. The input is the words of the slot, then 16 bytes of byte counts, if they are known.
#[cfg(any(test, fuzzing))]
pub fn fuzz(input: &[u8]) {
    let Some((words, counts)) = input.split_first_chunk::<{ super::layout::SLOT_LEN as usize }>()
    else {
        return;
    };
    let master = MasterShm::new(super::Layout::new(2, 4096)).expect("memory");
    let written = master.file().write_all_at(words, super::layout::HEADER_LEN);
    written.expect("the file has a slot");
    let slot = master.slot(0).expect("a slot");
    let (cursors, flags) = (slot.cursors(), slot.flags());
    let _ = (slot.lease(), slot.executing(), slot.requests());
    let _ = (cursors.ends(), cursors.parked());
    let byte_counts = counts.split_first_chunk().and_then(|(received, rest)| {
        Some(ByteCounts {
            received: u64::from_le_bytes(*received),
            written: u64::from_le_bytes(*rest.first_chunk()?),
        })
    });
    for owner in [Owner::Alive, Owner::Dead] {
        let Ok(bytes) = master.recover(0, byte_counts, owner) else {
            continue;
        };
        let found = all(&bytes);
        if master.has_regions_for(&bytes) {
            let cursors = master.store(1, &bytes).expect("it has regions");
            let slot = master.slot(1).expect("a slot");
            slot.preset(super::LeaseState::Parked, 1, cursors, flags, (1, 1), 0);
            let again = master.recover(1, None, Owner::Alive);
            assert_eq!(all(&again.expect("it was stored there")), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Flags, LAYOUT_VERSION, Layout, LeaseState, WorkerShm};
    use super::*;

    fn bytes(unread: usize, unsent: usize) -> ClientBytes {
        ClientBytes {
            in_base: 1 << 40,
            unread: vec![7; unread].into(),
            out_base: 99,
            unsent: vec![8; unsent].into(),
        }
    }

    fn shms() -> (MasterShm, WorkerShm) {
        shms_with(Layout::new(4, 1 << 20))
    }

    fn shms_with(layout: Layout) -> (MasterShm, WorkerShm) {
        let master = MasterShm::new(layout).expect("memfd");
        let worker = WorkerShm::map(master.file().try_clone().expect("dup"), layout).expect("mmap");
        (master, worker)
    }

    #[test]
    fn stored_bytes_are_recovered_less_the_answered_and_sent_ones() {
        for version in 1..=LAYOUT_VERSION {
            let layout = Layout::with_version(version, 4, 1 << 20).expect("it is known");
            recover_less_the_answered_and_sent(layout);
        }
    }

    fn recover_less_the_answered_and_sent(layout: Layout) {
        let (master, mut worker) = shms_with(layout);
        for unread in [0, 1, 512, 513, 300_000] {
            let bytes = bytes(unread, unread / 2);
            let cursors = master.store(1, &bytes).expect("they fit");
            master.slot(1).expect("a slot").preset(
                LeaseState::Parked,
                1,
                cursors,
                Flags::default(),
                (1, 1),
                0,
            );
            for owner in [Owner::Alive, Owner::Dead, Owner::Alive] {
                let found = master.recover(1, None, owner).expect("whole");
                assert_eq!(all(&found), all(&bytes));
                // Dropping it would free the bytes that a dead worker left.
                std::mem::forget(found);
            }
        }
        // A turn that has received 10 bytes, answered 4 of them with 6, and sent 5 of the 6.
        let open = worker.open(1, Region::Shared, Region::Shared);
        open.rx[..10].copy_from_slice(b"aaaabbbbcc");
        open.tx[..6].copy_from_slice(b"answer");
        open.slot
            .activate(&Cursors::idle(1000, 2000), Flags::default());
        open.slot.commit(4, 6);
        let recover = |received, written| {
            master.recover(1, Some(ByteCounts { received, written }), Owner::Dead)
        };
        let left = recover(1010, 2005).expect("true");
        assert_eq!(all(&left), (1004, b"bbbbcc".to_vec(), 2005, b"r".to_vec()));
        for received in [1003, 999, u64::MAX] {
            assert!(recover(received, 2000).is_err(), "{received}");
        }
        for written in [2007, 1999] {
            assert!(recover(1010, written).is_err(), "{written}");
        }
    }

    #[test]
    fn only_bytes_that_fit_into_the_regions_can_be_stored() {
        let (master, _) = shms();
        for (unread, unsent) in [(0, 0), (1 << 20, 1 << 20), (2 << 20, 0), (0, 2 << 20)] {
            let bytes = bytes(unread, unsent);
            let fits = master.store(1, &bytes).is_ok();
            assert_eq!(master.has_regions_for(&bytes), fits, "{unread} {unsent}");
        }
    }

    proptest! {
        /// A broken worker may leave any words, and the kernel may report any byte counts about it.
        #[test]
        fn arbitrary_cursors_and_counts_do_not_panic(cursors in any::<[u64; 5]>(), received: u64, written: u64, known: bool) {
            let (master, worker) = shms();
            worker.slot(0).expect("a slot").activate(&Cursors::decode(cursors), Flags::default());
            let byte_counts = known.then_some(ByteCounts { received, written });
            let _ = master.recover(0, byte_counts, Owner::Alive);
            let _ = master.recover(0, byte_counts, Owner::Dead);
        }
    }
}
