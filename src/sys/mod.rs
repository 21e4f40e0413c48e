//! SYSCALLS: all unsafe code, and all use of `nix` and `signal-hook`. Decides nothing.
//!
//! Rules of this folder: it imports no other module of the crate; every descriptor is close-on-exec from birth and has
//! one owner; every `unsafe` block states why it is sound; EINTR is handled here.

pub mod byte_counts;
pub mod cgroup;
pub mod clock;
pub mod fd;
pub mod fork;
pub mod handoff;
pub mod inherited;
#[cfg(feature = "tokio")]
pub mod latch;
pub mod limit;
pub mod listening;
pub mod local_time;
pub mod memory;
pub mod notify;
pub mod passed;
pub mod poll;
pub mod process;
pub mod signal;
pub mod socket;
pub mod terminal;
pub mod user;
pub mod wakeup;
pub mod watch;
pub mod writable;
pub mod zone;
