//! Panics of methods: their messages are kept, so that one line has the message and the consequence.

use std::cell::{Cell, RefCell};
use std::{panic, thread};

use crate::sys::process;

/// The exit status of a worker whose loop has panicked: EX_SOFTWARE of sysexits.h.
const STATUS: u8 = 70;

thread_local! {
    /// The place and message of the last panic, which only the hook receives.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };

    /// Whether this thread keeps the message of a panic instead of logging it.
    static REMEMBERS: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the message of a panic of this thread, so that the worker logs it in one line with the consequence. A panic of
/// another thread is logged with the name of the thread: it ends that thread only.
pub(crate) fn remember_panics() {
    REMEMBERS.set(true);
    panic::set_hook(Box::new(|info| {
        let panic = info.to_string().replacen('\n', " ", 1);
        if REMEMBERS.get() {
            LAST_PANIC.with(|last| last.replace(panic));
        } else {
            let name = thread::current()
                .name()
                .unwrap_or("without a name")
                .to_owned();
            log::error!("thread {name:?} {panic}");
        }
    }));
}

/// Runs code of a method in a thread whose panics are logged otherwise: their messages are kept.
#[cfg(feature = "tokio")]
pub(super) fn remembering_panics<T>(code: impl FnOnce() -> T) -> T {
    let before = REMEMBERS.replace(true);
    let returned = code();
    REMEMBERS.set(before);
    returned
}

/// Returns "panicked at FILE:LINE:COLUMN: MESSAGE".
pub(super) fn last_panic() -> String {
    LAST_PANIC.with(RefCell::take)
}

/// Ends this process when it is dropped by a panic, which no method has caused: those are caught. The panic is logged,
/// and no destructor of the frames below runs. The cursors of a turn in progress may be as inconsistent as at a kill, so
/// nothing may use them, and other processes have copies of what `main` of a forked worker owns.
pub(super) struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        // A unit test reports its panic itself.
        if thread::panicking() && !cfg!(test) {
            log::error!("this worker ends: its loop {}", last_panic());
            log::logger().flush();
            process::exit_without_destructors(STATUS);
        }
    }
}
