//! Compares apps of fdpassd with servers in their languages: `cargo bench --bench apps`. See `benches/README.md`.
//!
//! `common` has the load, the clocks and the start of servers.

mod catalogue;
#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "peers needs more")]
mod common;
mod print;
mod relay;
mod scenario;
mod smoke;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use common::failure::Result;
use common::{interrupt, launch};

/// Measures apps of fdpassd and other servers and prints a table
#[derive(Parser)]
#[command(name = "apps")]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,

    #[command(flatten)]
    table: table::Options,

    /// Given by `cargo bench`; without it, as in `cargo test`, only a short test runs
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Executes another program, which ends with its parent
    #[command(hide = true)]
    Launch(launch::Options),

    /// Passes bytes to a process that echoes them
    #[command(hide = true)]
    Relay(relay::Options),

    /// Echoes the bytes that arrive on standard input
    #[command(hide = true)]
    Reflect,
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.part {
        Some(Part::Launch(options)) => launch::become_program(options),
        Some(Part::Relay(options)) => relay::serve(options),
        Some(Part::Reflect) => relay::reflect(),
        None if arguments.bench => {
            interrupt::watch().and_then(|()| table::command(&arguments.table))
        }
        None => interrupt::watch().and_then(|()| smoke::test()),
    }
}

fn main() -> ExitCode {
    common::exit_code(run(&Arguments::parse()))
}
