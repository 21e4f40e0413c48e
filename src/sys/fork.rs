//! The identity of this process and thread, for code that may run after a fork(2) by foreign code, or in a signal
//! handler of any thread.

use std::io;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use nix::unistd::{getpid, gettid};

use super::memory::PAGE;

/// The process that called [`remember`].
struct OwnProcess {
    pid: i32,
    /// Not 0 in this process, and 0 in every child that got a copy of its memory: MADV_WIPEONFORK of madvise(2). It
    /// saves a system call for each check. `None` where the kernel has no such page, before Linux 4.14.
    mark: Option<&'static AtomicU64>,
}

static OWN: OnceLock<OwnProcess> = OnceLock::new();

/// Remembers this process, so that its forked children are recognized.
pub fn remember() {
    OWN.get_or_init(|| OwnProcess {
        pid: getpid().as_raw(),
        mark: wiped_on_fork(),
    });
}

/// Returns whether this is a child forked by the remembered process. False where none was remembered.
#[must_use]
pub fn is_child() -> bool {
    OWN.get().is_some_and(|own| match own.mark {
        Some(mark) => mark.load(Ordering::Relaxed) == 0,
        None => getpid().as_raw() != own.pid,
    })
}

/// Ends this process if it is a child that returned from the code that forked it. No destructor runs, as everything
/// that it has belongs to its parent.
pub fn end_child() {
    if is_child() {
        const SENTENCE: &[u8] =
            b"a forked child returned to the worker that its parent is; it ends: a child may only exec or exit\n";
        // Whether it is written changes nothing.
        let _ = nix::unistd::write(io::stderr(), SENTENCE);
        // SAFETY: it ends the process, and runs no code of it.
        unsafe { libc::_exit(CHILD_RETURNED) };
    }
}

/// EX_SOFTWARE of sysexits.h.
const CHILD_RETURNED: i32 = 70;

/// Returns the number of the calling thread: gettid(2). Safe in a signal handler.
#[must_use]
pub fn thread_id() -> u32 {
    gettid().as_raw().unsigned_abs()
}

/// Returns the number of this process. Safe in a signal handler.
#[must_use]
pub fn process_id() -> u32 {
    getpid().as_raw().unsigned_abs()
}

/// Sends a signal to one thread of this process: tgkill(2). Safe in a signal handler.
pub fn signal_thread(thread: u32, signal: i32) {
    // SAFETY: its arguments are numbers. It fails for a thread that has ended, whose process is about to.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::c_long::from(process_id()),
            libc::c_long::from(thread),
            signal,
        )
    };
}

/// Returns a word that is 1 here, and 0 in each child that copies this memory.
fn wiped_on_fork() -> Option<&'static AtomicU64> {
    let length = NonZeroUsize::new(PAGE as usize)?;
    let (access, private) = (
        ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        MapFlags::MAP_PRIVATE,
    );
    // SAFETY: new memory, which overlaps nothing.
    let page = unsafe { mmap_anonymous(None, length, access, private) }.ok()?;
    // SAFETY: the page was mapped just now, and nothing else refers to it.
    unsafe { madvise(page, length.get(), MmapAdvise::MADV_WIPEONFORK) }.ok()?;
    // SAFETY: the page is aligned, readable, writable, full of zeros, and never unmapped.
    let mark = unsafe { page.cast::<AtomicU64>().as_ref() };
    mark.store(1, Ordering::Relaxed);
    Some(mark)
}
