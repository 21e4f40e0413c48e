//! SYSCALLS: all that is unsafe, all of `nix` and `signal-hook`. Does what it is told and decides nothing.
//!
//! Rules of this folder: nothing of ours is imported; every descriptor is close-on-exec from birth and has
//! one owner; every `unsafe` block says why it is sound. EINTR is dealt with here and seen by nobody else.

pub mod byte_counts;
pub mod cgroup;
pub mod clock;
pub mod fd;
pub mod fork;
pub mod handoff;
pub mod inherited;
pub mod limit;
pub mod listening;
pub mod memory;
pub mod notify;
pub mod passed;
pub mod poll;
pub mod process;
pub mod signal;
pub mod socket;
pub mod user;
pub mod writable;
pub mod zone;
