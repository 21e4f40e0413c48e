//! Tests of a daemon from outside: start it in its own directory, send it requests, kill its processes, stop it.
//!
//! ```no_run
//! use fdpassd::testing::Running;
//!
//! # let program = "";
//! // In a test of your package: env!("CARGO_BIN_EXE_yourd").
//! let daemon = Running::start(program, "workers.count = 2").expect("it serves");
//! let mut client = daemon.connect();
//! assert_eq!(client.call("ping", [1, 2]).expect("a result"), serde_json::json!([1, 2]));
//! daemon.kill_worker(0);
//! daemon.kill_worker(1);
//! assert_eq!(client.call("ping", "still there").expect("a result"), "still there");
//! ```
//!
//! Tests may run in parallel: two daemons share nothing. Every wait is for a fact and has a deadline, [`TIMEOUT`]; a
//! fact that does not come true panics at the caller's line. A daemon that is dropped by a panic prints its log.

mod client;
mod config;
mod directory;
mod error;
mod in_process;
mod manager;
mod output;
mod running;
mod setup;
mod stored;
#[cfg(test)]
mod tests;

use std::thread;
use std::time::{Duration, Instant};

pub use self::client::{Client, Reply, Writer};
pub use self::error::Error;
pub use self::in_process::InProcess;
pub use self::manager::ServiceManager;
pub use self::running::Running;
pub use self::setup::Setup;

/// The deadline of every wait. It ends a wait that would never end; no machine is so busy that it ends another one.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Calls `ask` every few milliseconds until it returns a value: for facts that cannot be waited for otherwise. An answer
/// that takes longer than a second counts as one second: on a machine that stood still for a while, what is waited for
/// has not had that time.
///
/// # Panics
/// If there is none within [`TIMEOUT`].
#[track_caller]
pub fn eventually<T>(awaited: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let mut waited = Duration::ZERO;
    loop {
        let began = Instant::now();
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(waited < TIMEOUT, "waited {TIMEOUT:?} for this: {awaited}");
        thread::park_timeout(POLL_INTERVAL);
        waited += began.elapsed().min(Duration::from_secs(1));
    }
}

/// The pause between two calls in [`eventually`].
const POLL_INTERVAL: Duration = Duration::from_millis(2);
