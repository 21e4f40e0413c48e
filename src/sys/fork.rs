//! Which process and which thread this is, as code must know that may run after a fork(2) by somebody else's code, or in a
//! signal handler of any thread.

use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;
use nix::unistd::{getpid, gettid};

use super::memory::PAGE;

/// This process, as [`remember`] found it.
struct OwnProcess {
    pid: i32,
    /// Not 0 in this process, and 0 in every child that got a copy of its memory: MADV_WIPEONFORK of madvise(2). It spares
    /// a system call for each look. `None` where the kernel has no such page, before Linux 4.14.
    mark: Option<&'static AtomicU64>,
}

static OWN: OnceLock<OwnProcess> = OnceLock::new();

/// Remembers this process as the one that may serve.
pub fn remember() {
    OWN.get_or_init(|| OwnProcess {
        pid: getpid().as_raw(),
        mark: wiped_on_fork(),
    });
}

/// Whether this is a child that the remembered process forked. False where none was remembered.
#[must_use]
pub fn is_child() -> bool {
    OWN.get().is_some_and(|own| match own.mark {
        Some(mark) => mark.load(Ordering::Relaxed) == 0,
        None => getpid().as_raw() != own.pid,
    })
}

/// Ends a child that came back from code that had forked it, and nothing else: it runs no destructor, as what it has belongs
/// to its parent.
pub fn end_child() {
    if is_child() {
        const SENTENCE: &[u8] =
            b"a forked child returned to the worker that its parent is; it ends: a child may only exec or exit\n";
        // SAFETY: it reads so many bytes of a constant. Whether they are written changes nothing.
        let _ = unsafe {
            libc::write(
                libc::STDERR_FILENO,
                SENTENCE.as_ptr().cast(),
                SENTENCE.len(),
            )
        };
        // SAFETY: it ends the process, and runs nothing of it any more.
        unsafe { libc::_exit(CHILD_RETURNED) };
    }
}

/// EX_SOFTWARE of sysexits.h.
const CHILD_RETURNED: i32 = 70;

/// The number of the calling thread: gettid(2). Safe in a signal handler.
#[must_use]
pub fn thread_id() -> u32 {
    gettid().as_raw().unsigned_abs()
}

/// The number of this process. Safe in a signal handler.
#[must_use]
pub fn process_id() -> u32 {
    getpid().as_raw().unsigned_abs()
}

/// Sends a signal to one thread of this process: tgkill(2). Safe in a signal handler.
pub fn signal_thread(thread: u32, signal: i32) {
    // SAFETY: it takes numbers only. It fails for a thread that has ended, whose process is about to.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::c_long::from(process_id()),
            libc::c_long::from(thread),
            signal,
        )
    };
}

/// A word that is 1 here, and 0 in each child that copies this memory.
fn wiped_on_fork() -> Option<&'static AtomicU64> {
    let (length, protection) = (PAGE as usize, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: new memory, which overlaps nothing.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            length,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the page was mapped just now, and nothing else refers to it.
    if unsafe { libc::madvise(page, length, libc::MADV_WIPEONFORK) } != 0 {
        return None;
    }
    // SAFETY: the page is aligned, readable, writable, full of zeros, and never unmapped.
    let mark = unsafe { &*page.cast::<AtomicU64>() };
    mark.store(1, Ordering::Relaxed);
    Some(mark)
}
