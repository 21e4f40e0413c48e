//! Compares apps of fdpassd with servers in their languages: `cargo bench --bench apps`. See `benches/README.md`.
//!
//! `common` has the load, the clocks and the start of servers.

mod catalogue;
#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "peers needs more")]
mod common;
mod figures;
mod scenario;
mod smoke;
mod table;

use std::ffi::OsString;
use std::io::{Write, stderr};
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
    Launch {
        #[arg(long)]
        parent: i32,
        #[arg(last = true)]
        words: Vec<OsString>,
    },
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.part {
        Some(Part::Launch { parent, words }) => launch::become_program(*parent, words),
        None if arguments.bench => {
            interrupt::watch().and_then(|()| table::command(&arguments.table))
        }
        None => interrupt::watch().and_then(|()| smoke::test()),
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // A failure here cannot be reported.
            let _ = writeln!(stderr(), "apps: {why}");
            ExitCode::FAILURE
        }
    }
}
