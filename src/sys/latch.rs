//! A latch that a signal handler can close, so that another thread executes nothing more of what it guards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::libc;

/// How often a handler checks whether the thread has left the guarded code, at intervals of 1 ms.
const MAX_CHECKS: u32 = 1_000;

/// A latch for one thread.
#[derive(Debug, Default)]
pub struct ExecutionLatch {
    is_closed: AtomicBool,
    /// The thread executes guarded code.
    is_inside: AtomicBool,
}

/// The thread executes guarded code until this is dropped.
#[derive(Debug)]
pub struct LatchGuard<'a>(&'a ExecutionLatch);

impl ExecutionLatch {
    /// Enters guarded code. If the latch is closed, this never returns, as the process is about to end.
    pub fn enter(&self) -> LatchGuard<'_> {
        // Each side stores its own word before it loads that of the other, so one of them sees the other.
        self.is_inside.store(true, Ordering::SeqCst);
        while self.is_closed.load(Ordering::SeqCst) {
            self.is_inside.store(false, Ordering::SeqCst);
            thread::park();
        }
        LatchGuard(self)
    }

    /// Closes the latch, and waits until the thread has left guarded code, at most about 1 s. Safe in a signal handler
    /// of another thread.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        for _ in 0..MAX_CHECKS {
            if !self.is_inside.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: with no descriptors, poll(2) reads and writes nothing.
            unsafe { libc::poll(std::ptr::null_mut(), 0, 1) };
        }
    }
}

impl Drop for LatchGuard<'_> {
    fn drop(&mut self) {
        self.0.is_inside.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_closed_latch_lets_nothing_execute() {
        let latch = Arc::new(ExecutionLatch::default());
        let passed = Arc::new(AtomicU64::new(0));
        let (its_latch, its_count) = (Arc::clone(&latch), Arc::clone(&passed));
        // It never ends, as its latch is closed; it ends with the process.
        thread::spawn(move || {
            loop {
                let _inside = its_latch.enter();
                its_count.fetch_add(1, Ordering::Relaxed);
            }
        });
        while passed.load(Ordering::Relaxed) < 1_000 {
            thread::yield_now();
        }
        latch.close();
        let before = passed.load(Ordering::Relaxed);
        for _ in 0..1_000 {
            thread::yield_now();
            assert_eq!(passed.load(Ordering::Relaxed), before);
        }
    }
}
