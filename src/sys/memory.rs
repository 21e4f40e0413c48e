//! Memory that processes share: memfd_create(2), mmap(2).

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
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::unistd::{SysconfVar, sysconf};

use super::limit;

/// The unit of offsets in shared files, in bytes: the smallest size of a page. The kernel of another machine may have
/// pages of 16 or 64 KiB, which make holes coarser.
pub const PAGE: u64 = 4096;

/// Returns the size of the kernel's pages, in bytes. Offsets of mappings must be multiples of it.
fn page_size() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok())
        .filter(|size| size.is_power_of_two())
        .unwrap_or(PAGE)
}

/// Returns how many bytes of addresses this process can map at once, to an eighth: at most `most`. The kernel of some
/// machines gives a process 256 or 512 GiB, and RLIMIT_AS of getrlimit(2) may leave less.
#[must_use]
pub fn free_addresses(most: u64) -> u64 {
    let can_map = |bytes: u64| {
        let Some(length) = usize::try_from(bytes).ok().and_then(NonZeroUsize::new) else {
            return false;
        };
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: new memory, which overlaps nothing. It can be neither read nor written, so that it needs no memory.
        let Ok(start) = (unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) })
        else {
            return false;
        };
        // SAFETY: nothing refers to the new mapping.
        unsafe { munmap(start, length.get()) }.is_ok()
    };
    let powers = std::iter::successors(Some(most), |bytes| Some(bytes / 2));
    let Some(half) = powers
        .take_while(|&bytes| bytes >= PAGE)
        .find(|&bytes| can_map(bytes))
    else {
        return 0;
    };
    let eighths = (9..16).map(|eighths| half / 8 * eighths);
    eighths
        .filter(|&bytes| bytes <= most)
        .rfind(|&bytes| can_map(bytes))
        .unwrap_or(half)
}

/// Returns a file of `length` bytes in memory, whose pages exist only once they are used. It is sealed: no process can
/// shrink it, which would cause a SIGBUS in readers, nor make it grow.
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

/// Returns a file in memory that is empty and grows by writes.
///
/// # Errors
/// Those of memfd_create(2).
pub fn plain_file(name: &CStr) -> io::Result<File> {
    Ok(File::from(
        memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(named)?,
    ))
}

/// Adds the limit that causes an error to its text.
fn named(error: Errno) -> io::Error {
    limit::named(error.into())
}

/// Returns whether a file was created by [`sealed_file`] with this length.
///
/// # Errors
/// Those of fcntl(2) and fstat(2): EINVAL for a file that is not in memory.
pub fn is_sealed(file: &File, length: u64) -> io::Result<bool> {
    let seals = SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS)?);
    Ok(seals.contains(SealFlag::F_SEAL_SHRINK) && file.metadata()?.len() == length)
}

/// Frees the memory of some bytes of the file, which read as zeros from then on.
///
/// # Errors
/// Those of fallocate(2).
pub fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, signed(offset)?, signed(length)?)?)
}

/// A mapped part of a shared file, as words that all processes read and write.
#[derive(Debug)]
pub struct Words(Mapping);

impl Words {
    /// Maps the first `count` words of the file.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` when the file is shorter, or the offset not a multiple of 8.
    pub fn map(file: &File, count: usize) -> io::Result<Words> {
        Words::map_at(file, 0, count)
    }

    /// Maps `count` words of the file from `offset`, which is a multiple of 8 bytes.
    ///
    /// # Errors
    /// As [`Words::map`].
    pub fn map_at(file: &File, offset: u64, count: usize) -> io::Result<Words> {
        if !offset.is_multiple_of(8) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Mapping::new(file, offset, count.saturating_mul(8)).map(Words)
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned and the offset in it a multiple of 8 (`map_at`). It is readable and
        // writable, lives as long as `self`, and the file cannot shrink (checked to be long enough, and sealed).
        // AtomicU64 may be shared with other processes, which change it by atomic or plain stores; every bit pattern is
        // one of its values.
        unsafe { std::slice::from_raw_parts(self.0.wanted().cast().as_ptr(), self.0.length / 8) }
    }
}

/// A mapped part of a shared file, as bytes that only this process writes. Others may read them through the file, and
/// write only bytes that this process does not use at the time.
#[derive(Debug)]
pub struct Bytes(Mapping);

impl Bytes {
    /// Maps `length` bytes of the file from `offset`.
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
        unsafe { std::slice::from_raw_parts(self.0.wanted().cast().as_ptr(), self.0.length) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes it the only slice of this mapping in this process.
        unsafe { std::slice::from_raw_parts_mut(self.0.wanted().cast().as_ptr(), self.0.length) }
    }
}

/// An mmap(2) that is unmapped when dropped. Core dumps do not contain it (MADV_DONTDUMP of madvise(2)).
#[derive(Debug)]
struct Mapping {
    start: NonNull<std::ffi::c_void>,
    /// Bytes in front of those that were wanted, from the beginning of their page on.
    before: usize,
    /// The number of bytes that were wanted.
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; access follows the rules of `&` and `&mut` above.
unsafe impl Send for Mapping {}
// SAFETY: `&Words` gives atomics only, `&Bytes` gives reads only.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, offset: u64, length: usize) -> io::Result<Mapping> {
        Mapping::with_pages(file, offset, length, page_size())
    }

    /// Maps bytes of the file with pages of this size, a multiple of those of the kernel. The mapping begins where the
    /// page of `offset` begins.
    fn with_pages(file: &File, offset: u64, length: usize, page: u64) -> io::Result<Mapping> {
        let end = offset
            .checked_add(length as u64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if length == 0 || file.metadata()?.len() < end {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let before = usize::try_from(offset % page).map_err(io::Error::other)?;
        let size = length
            .checked_add(before)
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let begin = signed(offset - offset % page)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is requested, so that no other mapping is replaced.
        let start = unsafe {
            mmap(
                None,
                size,
                access,
                MapFlags::MAP_SHARED,
                file.as_fd(),
                begin,
            )
        }
        .map_err(named)?;
        let mapping = Mapping {
            start,
            before,
            length,
        };
        // Bytes of clients do not belong in a core file. To dump a hole, the kernel would also allocate its pages,
        // which takes time and memory. SAFETY: the range is that of the mapping, and the advice changes only the
        // contents of a dump.
        unsafe { madvise(start, size.get(), MmapAdvise::MADV_DONTDUMP) }?;
        Ok(mapping)
    }

    /// Returns the address of the first byte that was wanted.
    fn wanted(&self) -> NonNull<std::ffi::c_void> {
        // SAFETY: `before` bytes lie in front of it in the same mapping, which has at least one more.
        unsafe { self.start.byte_add(self.before) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of mmap, and no slice outlives `self`.
        let _ = unsafe { munmap(self.start, self.before + self.length) };
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
    fn a_sealed_file_keeps_its_length_and_has_no_pages() {
        let file = sealed_file(c"test", 1 << 35).expect("memfd");
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(1 << 36).is_err());
        assert_eq!(file.metadata().expect("fstat").blocks(), 0);
    }

    #[test]
    fn writes_are_shared_and_a_hole_frees_memory() {
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
        // A read through the mapping allocates the page again, which a pread does not.
        file.read_exact_at(&mut seen, 4096).expect("pread");
        assert_eq!((seen[0], file.metadata().expect("fstat").blocks()), (0, 8));
        assert_eq!(
            (bytes[0], file.metadata().expect("fstat").blocks()),
            (0, 16)
        );
    }

    /// The offsets in the file are multiples of 4 KiB, whatever the kernel's pages are.
    #[test]
    fn a_mapping_begins_at_a_page_of_any_size() {
        const KIB: u64 = 1024;
        let file = sealed_file(c"test", 1 << 20).expect("memfd");
        for page in [4 * KIB, 16 * KIB, 64 * KIB] {
            for offset in [0, 4 * KIB, 20 * KIB, 64 * KIB, 68 * KIB, 252 * KIB] {
                let mut bytes =
                    Bytes(Mapping::with_pages(&file, offset, 5000, page).expect("mmap"));
                assert!((offset - bytes.0.before as u64).is_multiple_of(page));
                assert_eq!(bytes.len(), 5000);
                bytes[0] = page.ilog2() as u8;
                bytes[4999] = 1 + (offset / KIB) as u8;
                let mut seen = [0; 5000];
                file.read_exact_at(&mut seen, offset).expect("pread");
                assert_eq!(seen[..], bytes[..], "{offset} in pages of {page}");
            }
        }
    }

    #[test]
    fn the_size_of_a_page_is_the_kernels() {
        let size = page_size();
        assert!(size.is_power_of_two() && size >= PAGE, "{size}");
        let file = sealed_file(c"test", 4 * size).expect("memfd");
        assert!(Bytes::map(&file, 3 * size - PAGE, 5000).is_ok());
    }

    #[test]
    fn free_addresses_can_be_mapped() {
        assert_eq!(free_addresses(0), 0);
        assert_eq!(free_addresses(1 << 30), 1 << 30);
        let free = free_addresses(1 << 60);
        assert!((1 << 30..1 << 60).contains(&free), "{free}");
    }

    #[test]
    fn words_are_aligned() {
        let file = sealed_file(c"test", 1 << 20).expect("memfd");
        assert!(Words::map_at(&file, 4, 1).is_err());
        assert_eq!(Words::map_at(&file, 8, 1).expect("mmap").len(), 1);
    }

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        let file = sealed_file(c"test", 4096).expect("memfd");
        assert!(Words::map(&file, 513).is_err());
        assert!(Bytes::map(&file, 4096, 1).is_err());
    }
}
