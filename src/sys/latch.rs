//! A gate that a signal handler can close, so that another thread executes nothing more behind it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::libc;

/// How often a handler checks whether the thread has left the gate, at intervals of 1 ms.
const MAX_CHECKS: u32 = 1_000;

/// A gate for one thread.
#[derive(Debug, Default)]
pub struct ExecutionGate {
    is_closed: AtomicBool,
    /// The thread is behind the gate.
    is_inside: AtomicBool,
}

/// The thread is behind the gate until this is dropped.
#[derive(Debug)]
pub struct PassedGate<'a>(&'a ExecutionGate);

impl ExecutionGate {
    /// Enters the gate. If it is closed, this never returns, as the process is about to end.
    pub fn enter(&self) -> PassedGate<'_> {
        // Each side stores its own word before it loads that of the other, so one of them sees the other.
        self.is_inside.store(true, Ordering::SeqCst);
        while self.is_closed.load(Ordering::SeqCst) {
            self.is_inside.store(false, Ordering::SeqCst);
            thread::park();
        }
        PassedGate(self)
    }

    /// Closes the gate, and waits until the thread has left it, at most about 1 s. Safe in a signal handler of another
    /// thread.
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

impl Drop for PassedGate<'_> {
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
    fn nothing_executes_behind_a_closed_gate() {
        let gate = Arc::new(ExecutionGate::default());
        let passed = Arc::new(AtomicU64::new(0));
        let (its_gate, its_count) = (Arc::clone(&gate), Arc::clone(&passed));
        // It never ends, as its gate is closed; it ends with the process.
        thread::spawn(move || {
            loop {
                let _inside = its_gate.enter();
                its_count.fetch_add(1, Ordering::Relaxed);
            }
        });
        while passed.load(Ordering::Relaxed) < 1_000 {
            thread::yield_now();
        }
        gate.close();
        let before = passed.load(Ordering::Relaxed);
        for _ in 0..1_000 {
            thread::yield_now();
            assert_eq!(passed.load(Ordering::Relaxed), before);
        }
    }
}
