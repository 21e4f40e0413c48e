//! Bytes of a client without a worker: copied, or still in the file of a dead worker.
//!
//! A worker may have died for lack of memory. So its bytes are not copied to the memory of the master, but from its
//! file to that of the next worker, in parts, each of which is freed before the next one is copied.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::sys::memory::{self, PAGE};

/// The bytes copied at a time.
const PART_LEN: u64 = 64 * 1024;

/// A stretch of the bytes that a client sent or will be sent.
#[derive(Debug)]
pub struct Stretch(StretchBytes);

#[derive(Debug)]
enum StretchBytes {
    Copied(Vec<u8>),
    Left(LeftBytes),
}

/// Bytes in the file of a dead worker. Dropping it frees their memory.
#[derive(Debug)]
struct LeftBytes {
    file: Arc<File>,
    begin: u64,
    end: u64,
    /// The bytes stay there when they are copied.
    is_kept: bool,
}

impl Stretch {
    /// Returns the bytes in the file of a dead worker from `begin` on. They stay there until they are copied or
    /// dropped. No other bytes in the same pages may still be needed.
    pub(super) fn from_left_bytes(file: &Arc<File>, begin: u64, length: u64) -> Stretch {
        Stretch(StretchBytes::Left(LeftBytes {
            file: Arc::clone(file),
            begin,
            end: begin + length,
            is_kept: false,
        }))
    }

    /// Has bytes that a dead worker left stay in its file until they are dropped.
    pub(super) fn keep(&mut self) {
        if let StretchBytes::Left(left) = &mut self.0 {
            left.is_kept = true;
        }
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            StretchBytes::Copied(bytes) => bytes.len(),
            StretchBytes::Left(left) => (left.end - left.begin) as usize,
        }
    }

    /// Returns whether the bytes are still in the file of a dead worker.
    #[must_use]
    pub fn is_left(&self) -> bool {
        matches!(self.0, StretchBytes::Left(_))
    }

    /// Returns whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes.
    ///
    /// # Errors
    /// Those of pread(2).
    #[cfg(any(test, fuzzing))]
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        match &self.0 {
            StretchBytes::Copied(bytes) => Ok(bytes.clone()),
            StretchBytes::Left(left) => {
                let mut bytes = vec![0; self.len()];
                left.file.read_exact_at(&mut bytes, left.begin)?;
                Ok(bytes)
            }
        }
    }

    /// Copies the bytes to a file, from offset `to` on. May be called once, as it frees the memory of bytes that a dead
    /// worker left, unless they are kept.
    ///
    /// # Errors
    /// Those of pread(2) and pwrite(2).
    pub(super) fn move_to(&self, file: &File, to: u64) -> io::Result<()> {
        let left = match &self.0 {
            StretchBytes::Copied(bytes) => return file.write_all_at(bytes, to),
            StretchBytes::Left(left) => left,
        };
        let mut buffer = [0; PART_LEN as usize];
        let mut at = left.begin;
        while at < left.end {
            // Up to the end of a page, because only whole pages are freed.
            let end = (at + PART_LEN)
                .next_multiple_of(PAGE)
                .saturating_sub(PAGE)
                .clamp(at + 1, left.end);
            let part = &mut buffer[..(end - at) as usize];
            left.file.read_exact_at(part, at)?;
            file.write_all_at(part, to + (at - left.begin))?;
            if !left.is_kept {
                free_pages(&left.file, at, end);
            }
            at = end;
        }
        Ok(())
    }
}

impl Drop for LeftBytes {
    fn drop(&mut self) {
        free_pages(&self.file, self.begin, self.end);
    }
}

/// Frees the pages of these bytes.
fn free_pages(file: &File, begin: u64, end: u64) {
    let (begin, end) = (begin - begin % PAGE, end.next_multiple_of(PAGE));
    // If it fails, the memory stays in use until the file is gone.
    let _ = memory::punch(file, begin, end - begin);
}

impl Default for Stretch {
    fn default() -> Stretch {
        Stretch::from(Vec::new())
    }
}

impl From<Vec<u8>> for Stretch {
    fn from(bytes: Vec<u8>) -> Stretch {
        Stretch(StretchBytes::Copied(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn file() -> Arc<File> {
        Arc::new(memory::sealed_file(c"test", 1 << 30).expect("memfd"))
    }

    /// Returns the number of allocated pages of a file.
    fn pages(file: &File) -> u64 {
        file.metadata().expect("fstat").blocks() * 512 / PAGE
    }

    #[test]
    fn moved_bytes_are_never_in_memory_twice() {
        for (offset, length) in [
            (0, 1),
            (0, PAGE),
            (100, 3 * PART_LEN),
            (PAGE - 1, 300_000),
            (7, 5),
            (0, PART_LEN),
        ] {
            let (source, target) = (file(), file());
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            source
                .write_all_at(&bytes, (1 << 20) + offset)
                .expect("pwrite");
            let stretch = Stretch::from_left_bytes(&source, (1 << 20) + offset, length);
            assert!(stretch.len() as u64 == length && stretch.to_vec().expect("pread") == bytes);
            stretch.move_to(&target, 12_345).expect("pwrite");
            let mut moved = vec![0; length as usize];
            target.read_exact_at(&mut moved, 12_345).expect("pread");
            assert!(moved == bytes, "{length} bytes at {offset}");
            assert_eq!(pages(&source), 0, "{length} bytes at {offset}");
        }
    }

    #[test]
    fn dropped_bytes_free_their_own_memory_only() {
        let file = file();
        file.write_all_at(&[7; 1 << 20], 0).expect("pwrite");
        let stretch = Stretch::from_left_bytes(&file, 4 * PAGE + 4, 8 * PAGE);
        assert_eq!(pages(&file), 256);
        drop(stretch);
        assert_eq!(pages(&file), 256 - 9);
    }
}
