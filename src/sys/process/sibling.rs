//! A process that this one forks and that the parent of this one waits for: clone(2) with CLONE_PARENT.

use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::getppid;

use super::proc_files::threads;

/// Forks siblings of this process, which must have one thread.
///
/// clone(2) and not clone3(2), because the filters of `RestrictNamespaces=` of systemd.exec(5) answer the latter with
/// ENOSYS. No C library has a function for CLONE_PARENT, so its records of the new thread are the work of this module.
#[derive(Debug)]
pub struct SiblingForker {
    /// Where the C library keeps the number of the thread.
    thread_id: *mut libc::c_int,
    /// The list of robust mutexes that the thread holds, and its length in bytes: get_robust_list(2).
    robust_list: (*mut libc::c_void, usize),
    parent: u32,
}

/// One of the two processes after [`SiblingForker::fork`].
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The process that forked it.
    Parent {
        /// The pid of the new process.
        pid: u32,
        /// A descriptor of the new process, close-on-exec.
        pidfd: OwnedFd,
    },
}

impl SiblingForker {
    /// Returns a forker for this process, whose parent is `parent`.
    ///
    /// # Errors
    /// `Unsupported` if the C library is not glibc, or if the kernel does not report the address of the thread's number
    /// (PR_GET_TID_ADDRESS of prctl(2), CONFIG_CHECKPOINT_RESTORE).
    pub fn new(parent: u32) -> io::Result<SiblingForker> {
        if !cfg!(target_env = "gnu") {
            // Others register another address, which must not be changed.
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this needs glibc",
            ));
        }
        let mut robust_list: (*mut libc::c_void, usize) = (ptr::null_mut(), 0);
        let (head, length) = (&raw mut robust_list.0, &raw mut robust_list.1);
        // SAFETY: the kernel writes a pointer and a length, into variables that live.
        let found = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, head, length) };
        Errno::result(found)?;
        let mut thread_id: *mut libc::c_int = ptr::null_mut();
        // SAFETY: the kernel writes one pointer, into a variable that lives.
        let found = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut thread_id) };
        match Errno::result(found) {
            Ok(_) if !thread_id.is_null() => Ok(SiblingForker {
                thread_id,
                robust_list,
                parent,
            }),
            Ok(_) => Err(io::ErrorKind::Unsupported.into()),
            Err(e) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("PR_GET_TID_ADDRESS of prctl(2): {e}"),
            )),
        }
    }

    /// Returns whether the parent is still the one of the start. The children of a process whose parent has ended are
    /// waited for by another process.
    #[must_use]
    pub fn has_parent(&self) -> bool {
        u32::try_from(getppid().as_raw()) == Ok(self.parent)
    }

    /// Returns the number of threads of this process, which must be 1 when it forks: a child has only the thread that
    /// forked it, and locks of others would stay locked there.
    #[must_use]
    pub fn threads() -> usize {
        threads()
    }

    /// Forks a process with a copy of everything that this one has, except that it has no parent-death signal. Its
    /// parent is that of this process. Handlers of pthread_atfork(3) do not run.
    ///
    /// # Errors
    /// Those of clone(2).
    pub fn fork(&self) -> io::Result<Forked> {
        let flags = libc::CLONE_PARENT
            | libc::CLONE_PIDFD
            | libc::CLONE_CHILD_SETTID
            | libc::CLONE_CHILD_CLEARTID
            | libc::SIGCHLD;
        let (no_stack, flags) = (0, libc::c_long::from(flags));
        // Their order depends on the processor.
        let [first, second] = match cfg!(target_arch = "s390x") {
            true => [no_stack, flags],
            false => [flags, no_stack],
        };
        let mut pidfd: RawFd = -1;
        // SAFETY: without CLONE_VM the child has a copy of the memory and continues here. The kernel writes the
        // descriptor into `pidfd`, and in the child the number of its thread to where the C library has that of this
        // one. The address is passed twice, because the processors differ in the place of `tls`, which is not used.
        // fork(3) of glibc also runs the handlers of pthread_atfork(3), for which this process has to be prepared, and
        // registers the list of robust mutexes, see below.
        let forked = unsafe {
            libc::syscall(
                libc::SYS_clone,
                first,
                second,
                &raw mut pidfd,
                self.thread_id,
                self.thread_id,
            )
        };
        match Errno::result(forked)? {
            0 => {
                let (head, length) = self.robust_list;
                // SAFETY: the list is where the C library has it, in the child's copy of the memory. Without it, the
                // end of the child would not be noticed by others that wait for a robust mutex.
                unsafe { libc::syscall(libc::SYS_set_robust_list, head, length) };
                Ok(Forked::Child)
            }
            pid => Ok(Forked::Parent {
                pid: u32::try_from(pid).unwrap_or(u32::MAX),
                // SAFETY: the kernel has just created it; it has no other owner.
                pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            }),
        }
    }
}

/// Ends this process, after it has written what its streams hold. No destructor and no handler of atexit(3) runs.
pub fn exit_without_destructors(status: u8) -> ! {
    // Without standard output there is nothing to write to.
    let _ = io::stdout().flush();
    flush_streams();
    // SAFETY: it does not return, and runs nothing of this process.
    unsafe { libc::_exit(status.into()) }
}

/// Writes what the streams of the C library hold, so that a child does not write it again.
pub fn flush_streams() {
    // SAFETY: a null pointer stands for all streams.
    unsafe { libc::fflush(ptr::null_mut()) };
}
