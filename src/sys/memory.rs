//! Memory that two processes share: memfd_create(2), mmap(2).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::libc::off_t;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use super::limit;

/// Bytes of a page on every machine that this is meant for; a larger one only makes holes coarser.
pub const PAGE: u64 = 4096;

/// A file of `length` bytes in memory, of which nothing exists until it is touched. It is sealed: whoever
/// gets it can neither shrink it, which would make a reader's next look a SIGBUS, nor make it grow.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2).
pub fn sealed_file(name: &CStr, length: u64) -> io::Result<File> {
    let file = File::from(
        memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).map_err(named)?,
    );
    file.set_len(length).map_err(limit::named)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// A file in memory, empty and growing with what is written.
///
/// # Errors
/// Those of memfd_create(2).
pub fn plain_file(name: &CStr) -> io::Result<File> {
    Ok(File::from(
        memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(named)?,
    ))
}

/// The error with the limit that it comes from.
fn named(error: Errno) -> io::Error {
    limit::named(error.into())
}

/// Whether a file is one of [`sealed_file`], of this length.
///
/// # Errors
/// Those of fcntl(2) and fstat(2): EINVAL for a file that is none in memory.
pub fn is_sealed(file: &File, length: u64) -> io::Result<bool> {
    let seals = SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS)?);
    Ok(seals.contains(SealFlag::F_SEAL_SHRINK) && file.metadata()?.len() == length)
}

/// Gives the memory behind some bytes of the file back; they read as zeros from then on.
///
/// # Errors
/// Those of fallocate(2).
pub fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, signed(offset)?, signed(length)?)?)
}

/// A mapped stretch of a shared file, as words that both sides read and write.
#[derive(Debug)]
pub struct Words(Mapping);

impl Words {
    /// Maps the first `count` words of the file.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` when the file is shorter.
    pub fn map(file: &File, count: usize) -> io::Result<Words> {
        Mapping::new(file, 0, count.saturating_mul(8)).map(Words)
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, readable and writable, lives as long as `self`, and the file
        // cannot shrink (checked to be long enough, sealed by its maker). AtomicU64 may be shared with anyone
        // who changes it by atomic or plain stores of another process; every bit pattern is one of its values.
        unsafe { std::slice::from_raw_parts(self.0.start.cast().as_ptr(), self.0.length / 8) }
    }
}

/// A mapped stretch of a shared file, as bytes that this process alone writes. Others may read them through
/// the file, and write only what this process has agreed not to touch meanwhile.
#[derive(Debug)]
pub struct Bytes(Mapping);

impl Bytes {
    /// Maps `length` bytes of the file from `offset`, which is a multiple of [`PAGE`].
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` when the file is shorter.
    pub fn map(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
        Mapping::new(file, offset, length).map(Bytes)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as for `Words`; bytes have no alignment and no invalid values.
        unsafe { std::slice::from_raw_parts(self.0.start.cast().as_ptr(), self.0.length) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes it the only slice of this mapping in this process.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.cast().as_ptr(), self.0.length) }
    }
}

/// An mmap(2) that is undone when dropped. Core dumps do not contain it (MADV_DONTDUMP of madvise(2)).
#[derive(Debug)]
struct Mapping {
    start: NonNull<std::ffi::c_void>,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; access goes by the rules of `&` and `&mut` above.
unsafe impl Send for Mapping {}
// SAFETY: `&Words` gives atomics only, `&Bytes` gives reads only.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, offset: u64, length: usize) -> io::Result<Mapping> {
        let end = offset
            .checked_add(length as u64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if file.metadata()?.len() < end {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so that nothing mapped before is replaced.
        let start = unsafe {
            mmap(
                None,
                size,
                access,
                MapFlags::MAP_SHARED,
                file.as_fd(),
                signed(offset)?,
            )
        }
        .map_err(named)?;
        let mapping = Mapping { start, length };
        // What clients sent does not belong into a core file. And the kernel, to dump a hole, makes its pages exist, which
        // takes time and as much memory as the hole is long.
        // SAFETY: the range is that of the mapping, and the advice changes what a dump contains, not the memory.
        unsafe { madvise(mapping.start, mapping.length, MmapAdvise::MADV_DONTDUMP) }?;
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of mmap, and no slice outlives `self`.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

fn signed(n: u64) -> io::Result<off_t> {
    off_t::try_from(n).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::sync::atomic::Ordering;

    #[test]
    fn a_sealed_file_neither_shrinks_nor_grows_and_costs_nothing_until_touched() {
        let file = sealed_file(c"test", 1 << 35).expect("memfd");
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(1 << 36).is_err());
        assert_eq!(file.metadata().expect("fstat").blocks(), 0);
    }

    #[test]
    fn both_sides_see_what_the_other_wrote_and_a_hole_gives_the_memory_back() {
        let file = sealed_file(c"test", 1 << 20).expect("memfd");
        let words = Words::map(&file, 16).expect("mmap");
        let mut bytes = Bytes::map(&file, 4096, 8192).expect("mmap");
        words[15].store(7, Ordering::Relaxed);
        bytes[0] = 9;
        let mut seen = [0; 8];
        file.read_exact_at(&mut seen, 120).expect("pread");
        assert_eq!(u64::from_ne_bytes(seen), 7);
        file.read_exact_at(&mut seen, 4096).expect("pread");
        assert_eq!(seen[0], 9);
        assert_eq!(file.metadata().expect("fstat").blocks(), 16);
        punch(&file, 4096, 8192).expect("punch");
        assert_eq!(file.metadata().expect("fstat").blocks(), 8);
        // A look through the mapping makes the page exist again, which a pread does not.
        file.read_exact_at(&mut seen, 4096).expect("pread");
        assert_eq!((seen[0], file.metadata().expect("fstat").blocks()), (0, 8));
        assert_eq!(
            (bytes[0], file.metadata().expect("fstat").blocks()),
            (0, 16)
        );
    }

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        let file = sealed_file(c"test", 4096).expect("memfd");
        assert!(Words::map(&file, 513).is_err());
        assert!(Bytes::map(&file, 4096, 1).is_err());
    }
}
