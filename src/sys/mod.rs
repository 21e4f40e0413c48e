//! SYSCALLS: what the rest asks of the system. All of nix is here, and whatever is unsafe.

pub mod user;
