//! fdpassd
mod channel;
mod config;
mod ctl;
mod daemon;
mod desk;
mod logging;
mod master;
mod pool;
pub mod proto;
mod sys;
mod table;
pub mod testing;
mod worker;

pub use daemon::{Daemon, fdpassd_main as daemon_main};
pub use proto::names::{ClientId, Generation, Peer, WorkerId};
pub use serde_json::value::RawValue;
pub use worker::{Call, Fault, Reply, WorkerInfo};

/// The whole of `fdpassctl`, from the arguments to the exit code.
#[must_use]
pub fn ctl_main() -> std::process::ExitCode {
    ctl::main()
}
