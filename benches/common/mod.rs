//! Load, clocks, rounds and results of each benchmark. It has its servers in `catalogue`, the columns of its table in
//! `scenario`, and their defaults in `table`.

pub(crate) mod cpu;
pub(crate) mod failure;
pub(crate) mod grid;
pub(crate) mod interrupt;
pub(crate) mod launch;
pub(crate) mod load;
pub(crate) mod recipe;
pub(crate) mod results;
pub(crate) mod rounds;
pub(crate) mod server;
pub(crate) mod spread;
pub(crate) mod window;

use std::io::{Write, stderr};
use std::process::ExitCode;

use failure::Result;

/// Returns the exit code of a benchmark, and writes the reason of a failure to standard error.
pub(crate) fn exit_code(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // A failure here cannot be reported.
            let _ = writeln!(stderr(), "{}: {why}", env!("CARGO_CRATE_NAME"));
            ExitCode::FAILURE
        }
    }
}
