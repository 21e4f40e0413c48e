//! A Linux daemon for JSON RPC whose clients outlive its workers.
//!
//! A **master** process accepts every client and keeps a copy of its socket until the client leaves. The master
//! *leases* each client to one of its **worker** processes by sending it the socket (`SCM_RIGHTS`). A worker that dies
//! loses its leases; its clients keep their connections. Requests and replies are JSON, each preceded by its length:
//! see [`proto::rpc`], and fdpassd-rpc(7) for the specification.
//!
//! # Your own daemon
//!
//! `fdpassd` itself is a [`Daemon`] with the methods `ping`, `pi` and `methods`. A daemon with your own methods has the
//! same options, configuration file, control socket and supervision, under its own name:
//!
//! ```no_run
//! use std::collections::HashSet;
//! use std::fs;
//!
//! use fdpassd::{Call, Daemon, Fault, Method};
//!
//! type Words = HashSet<String>;
//!
//! fn check(words: &mut Words, word: String, _: &Call) -> Result<bool, Fault> {
//!     match word.as_str() {
//!         "" => Err(Fault::bad_params("the word is empty")),
//!         word => Ok(words.contains(word)),
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Daemon::new("spelld")
//!         // Called in each worker process before it is ready, and again after a method has panicked.
//!         .state(|_worker| {
//!             let list = fs::read_to_string("/usr/share/dict/words")?;
//!             Ok::<Words, std::io::Error>(list.lines().map(str::to_owned).collect())
//!         })
//!         // Params are any type that implements `Deserialize`, results any that implements `Serialize`. The method is
//!         // idempotent: it may run again if its worker dies in it.
//!         .method(Method::new("check", check).idempotent())
//!         // `client` is the same for all requests of a connection, whichever worker runs them.
//!         .method(Method::new("whoami", |_, (): (), call: &Call| Ok((call.client, call.peer.to_string()))))
//!         .run()
//! }
//! ```
//!
//! # Guarantees for methods
//!
//! * **One at a time.** A worker runs one method at a time, in one thread. Only asynchronous methods
//!   (`Daemon::async_method`, with the Cargo feature `tokio`) run concurrently. They share another thread of the
//!   worker.
//! * **State is per process.** A worker builds its state when it starts, and again after a panic unless it has
//!   asynchronous methods. Keep in it what can be rebuilt: connections, caches, models. Data that must survive belongs
//!   in a database or a file that all workers share: see `examples/counterd.rs` and README.md (*Where to keep state*).
//! * **Settings.** [`Daemon::config`] reads the table `[NAME]` of your daemon from its configuration.
//! * **Errors.** A method rejects a request by returning a [`Fault`]. A panic is caught, and its caller gets `crashed`.
//!   A panic in another thread is logged with the name of the thread and ends only that thread.
//! * **Health.** A worker whose [`Daemon::health`] function fails gives its clients to healthy workers, if there are
//!   any.
//! * **Metrics.** [`WorkerInfo::metrics`] declares counters and histograms of your daemon.
//! * **Clients that leave.** [`Daemon::on_close`] is called when a client leaves the worker, also if it moves to
//!   another one. A long method checks [`Call::is_connected`].
//! * **Deaths.** If a worker dies while it executes a request, the request runs once more if its method is
//!   [idempotent](Method::idempotent); otherwise its caller gets `crashed`.
//! * **Child processes.** Start programs by fork and exec, as [`std::process::Command`] does: clients' sockets and the
//!   shared memory are close-on-exec, and a child without exec would keep copies. A child that returns from the method
//!   that forked it exits. When a worker ends, all processes of its session (setsid(2)) are killed; a program that
//!   setsid(1) starts survives.
//! * **Descriptors.** A method that closes a descriptor it does not own (a double close) ends its worker as soon as the
//!   worker detects it. The clients are recovered.
//! * **Logging.** Records of the `log` crate go to the daemon's log; their key-values become fields, which are appended
//!   to the message in text format. Each record of a worker has the field `worker`, and one of a method also `client`
//!   and `method`.
//! * **Threads.** A state may have threads, and they may write to their own descriptors. Call [`Daemon::run`] in the
//!   first thread of the process, which runs `main`. Otherwise a Unix client may be closed and counted as `lost` if its
//!   worker is killed while it writes to the client: only the first thread's I/O account (`/proc/PID/task/TID/io`)
//!   outlasts its thread and shows how much was sent.
//!
//! # The processes that run `main`
//!
//! The program runs itself in several roles, so `main` runs once in each of these processes, up to [`Daemon::run`]:
//!
//! ```text
//! process              started                                              your code that runs there, besides main
//! master               by you or the service manager                        config: the type's Deserialize
//!   -t, -T             by an operator; also -V and --help                   config: the type's Deserialize
//!   after an upgrade   by the master, in the same process                   nothing
//! worker               by the master: one per seat, and each replacement    preload, state, methods, health, on_close
//! zygote               with workers.start = "fork": one per configuration   preload
//! exporter             by the master, with metrics.listen or agent.listen   nothing
//! upgrade's check      by the master, before an upgrade: check-handover     config: the type's Deserialize
//! configuration check  by the master, for a reload, `fdpassctl config       config: the type's Deserialize
//!                      check` and the end before a restart:
//!                      read-configuration
//! ```
//!
//! With `workers.start = "fork"` the zygote runs `main` and preload; its workers are forks of it that run neither
//! again.
//!
//! So `main` should only build the daemon and run it. Anything else in `main` runs in every one of these processes. A
//! thread that `main` starts makes the master's forks unsafe. Everything that workers need belongs in
//! [`Daemon::state`]. The daemon interprets the arguments; your settings belong in its configuration
//! ([`Daemon::config`]) or in environment variables.
//!
//! The child processes inherit standard output, standard error and the master's environment, without the variables that
//! the service manager has set for the master. Workers, the zygote and the exporter do not inherit keys of the
//! configuration either (`NAME__TABLE__KEY`): the master sends them their settings. Standard input of a child process
//! is the channel to the master, or a file with what it must check. The master opens the program file once: after the
//! file was replaced, a reload still starts the old program, and an upgrade or a restart the new one.
//!
//! [`testing`] starts a daemon in your tests. `client`, with the Cargo feature of that name, calls methods of daemons.
//!
//! # The modules
//!
//! ```text
//! entry points   daemon    testing   ctl                     arguments in, an exit code out
//! processes      master    worker    exporter    dev         none imports another
//! decisions      pool                                        pure: compares what is wanted with what is
//! shared         channel   shm   config   logging   client   rpc_client   load   loop_clock   table   toml_text
//! system calls   sys                                         all unsafe code; decides nothing
//! protocol       proto                                       plain data, no I/O
//! ```
//!
//! A module imports only from rows below its own; `testing` also imports `daemon`, `config` the module `toml_text` of
//! its own row, and `rpc_client` the module `client`. `ARCHITECTURE.md` describes the rest: the shared memory, the
//! channel, the turn, the order of the loop, and where to change what.

#![deny(unsafe_code)]

mod channel;
#[cfg(feature = "client")]
pub mod client;
#[cfg(not(feature = "client"))]
#[allow(dead_code)] // fdpassctl uses a part of it
mod client;
mod config;
mod ctl;
mod daemon;
mod dev;
mod exporter;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)] // for the benchmarks
pub mod load;
mod logging;
mod loop_clock;
mod master;
mod pool;
pub mod proto;
mod rpc_client;
mod shm;
#[allow(unsafe_code)]
mod sys;
mod table;
pub mod testing;
mod toml_text;
mod worker;

pub use daemon::{Daemon, daemon_main};
pub use proto::names::{ClientId, Generation, Peer, WorkerId};
pub use serde_json::value::RawValue;
#[cfg(feature = "tokio")]
pub use worker::AsyncCall;
pub use worker::{
    Call, Counter, Fault, Histogram, Method, MetricError, Reply, WorkerInfo, WorkerMetrics,
};

/// Runs `fdpassctl` with the arguments of this process and returns its exit code.
///
/// Looks for the control socket of a daemon named `fdpassd`. Another daemon is selected by `-n NAME`, `-s PATH` or
/// `$FDPASSD_SOCKET`.
#[must_use]
pub fn ctl_main() -> std::process::ExitCode {
    ctl::main()
}

/// Runs a program like `fdpassctl` that controls the daemon of this name, and returns its exit code. The program has
/// the name by which it was called, in its help and its messages.
///
/// ```no_run
/// // src/bin/counterctl.rs
/// fn main() -> std::process::ExitCode {
///     fdpassd::ctl_main_for("counterd")
/// }
/// ```
#[must_use]
pub fn ctl_main_for(daemon: &str) -> std::process::ExitCode {
    ctl::main_for(daemon)
}

/// Compiles the Rust code in README.md as doc tests. One of its daemons has asynchronous methods.
#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;
