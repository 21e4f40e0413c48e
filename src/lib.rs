//! A Unix daemon whose clients outlive its workers.
//!
//! A **master** accepts every client and keeps a copy of its socket for as long as the client lives. It only *leases*
//! the socket to one of its **worker** processes, by `SCM_RIGHTS`. A worker that dies loses its leases, not its clients.
//! What is served is a JSON RPC: requests and replies, each behind its length. [`proto`] is its specification.
//!
//! # Your own daemon
//!
//! `fdpassd` itself is a [`Daemon`] with the methods `ping`, `pi` and `methods`. One with methods of your own has the
//! same options, configuration file, control socket and supervision, under its own name:
//!
//! ```no_run
//! use fdpassd::{Daemon, Fault};
//!
//! fn main() -> std::process::ExitCode {
//!     Daemon::named("counterd")
//!         // Made once in each worker process, and anew after a method has panicked.
//!         .state(|_worker| Ok::<u64, Fault>(0))
//!         // Params are any type that serde reads, results any that it writes; `client` is the same for all
//!         // requests of a connection, whichever worker serves it.
//!         .method("add", |total: &mut u64, n: u64, call: &fdpassd::Call| {
//!             *total = total.checked_add(n).ok_or_else(|| Fault::bad_params("that is too much"))?;
//!             Ok((call.client, *total))
//!         })
//!         // Safe to run once more if a worker dies in it.
//!         .idempotent("length", |_, text: String, _| Ok(text.len()))
//!         .run()
//! }
//! ```
//!
//! A worker runs one method at a time, in one thread; more workers are more processes, each with a state of its own.
//! What a method says of a request that it does not take is a [`Fault`]; a panic is caught and answered with `crashed`.
//! A method that starts a program does so by fork and exec ([`std::process::Command`]): the sockets and the desk are
//! close-on-exec, but a child that only forks would keep copies of them. A child may do nothing but execute or exit: one that
//! returns from the method that forked it ends there. All that a method has started is killed when its worker ends, in
//! whatever way: each worker leads a session (setsid(2)). A program that is to live on asks for a session of its own
//! (setsid(1)). A method that closes a descriptor that is not its own (a double close)
//! ends its worker as soon as that finds out, and the clients are recovered. What a method logs with the `log` crate goes where
//! the daemon's lines go, and its key-values become fields. [`testing`] starts a daemon from its tests.
//!
//! A state may have threads of its own, and they may write to what they like. Clients of Unix sockets outlive a worker that is
//! killed while it writes to them if [`Daemon::run`] is called by the first thread of the process, the one of `main`: the
//! kernel's account of what that thread has written (`wchar` and `syscw` of `/proc/PID/task/TID/io`) says how much of the
//! reply went out, and an account of another thread ends with the thread. A client whose count is not certain is closed and
//! counted as `lost`.
//!
//! # The map
//!
//! ```text
//! doors        daemon    testing                    ctl     arguments in, an exit code out
//! processes    master    worker    exporter          │      none knows another
//! decisions    pool                                  │      pure: what is wanted against what is
//! meetings     channel   desk   config   logging   connection   of the two processes, and with the operator
//! syscalls     sys                                   │      all that is unsafe; decides nothing
//! words        proto ◀───────────────────────────────╯      plain data, no I/O
//! ```
//!
//! A module imports from the rows below its own and from no other; `pool`, `ctl` and `connection` do without `sys`, and
//! `sys` without `proto`. `table` is a container, `loop_clock` a clock that master and worker use. `ARCHITECTURE.md` tells the rest: the desk, the
//! channel, the turn, the order of the loop, and where to change what.

#![deny(unsafe_code)]

mod channel;
mod config;
mod connection;
mod ctl;
mod daemon;
mod desk;
mod exporter;
mod logging;
mod loop_clock;
mod master;
mod pool;
pub mod proto;
#[allow(unsafe_code)]
mod sys;
mod table;
pub mod testing;
mod worker;

pub use daemon::{Daemon, fdpassd_main as daemon_main};
pub use proto::names::{ClientId, Generation, Peer, WorkerId};
pub use serde_json::value::RawValue;
pub use worker::{Call, Fault, Reply, WorkerInfo};

/// The whole of `fdpassctl`, from the arguments to what `main` is to return.
///
/// It looks for the control socket of a daemon called `fdpassd`; for one of another name it has to be told where that is,
/// with `-s` or by `$FDPASSD_SOCKET`.
#[must_use]
pub fn ctl_main() -> std::process::ExitCode {
    ctl::main()
}

/// Holds the Rust of README.md to what compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
