//! Compares fdpassd with other servers, and with its own builds: `cargo bench --bench peers`. See `benches/README.md`.
//!
//! One program with several parts: the table (no subcommand), two builds (`compare`), many idle clients (`scale`),
//! and, hidden, the raw echo that everything is compared with (`echo`) and the start of servers (`launch`).

mod catalogue;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod echo;
mod figures;
mod idle;
mod memory;
mod models;
mod print;
mod scale;
mod scenario;
mod smoke;
mod stall;
mod table;
mod unpinned;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use common::failure::Result;
use common::{interrupt, launch};

/// Measures fdpassd and other servers and prints a table
#[derive(Parser)]
#[command(name = "peers")]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,

    #[command(flatten)]
    table: table::Options,

    /// Compare the models of the textbooks with fdpassd's instead
    #[arg(long)]
    models: bool,

    /// Draw the comparison of models into this file, as SVG
    #[arg(long, value_name = "FILE", requires = "models")]
    plot: Option<PathBuf>,

    /// Given by `cargo bench`; without it, as in `cargo test`, only a short test runs
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Compares two builds of fdpassd: CPU time or system calls for each request
    Compare(compare::Options),

    /// Measures many idle clients over few and many workers, and the waits of others while they move
    Scale(scale::Options),

    /// Serves in the simplest way
    #[command(hide = true)]
    Echo(echo::Options),

    /// Executes another program, which ends with its parent
    #[command(hide = true)]
    Launch(launch::Options),
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.part {
        Some(Part::Launch(options)) => launch::become_program(options),
        Some(Part::Echo(options)) => echo::serve(*options),
        Some(Part::Compare(options)) => interrupt::watch().and_then(|()| compare::command(options)),
        Some(Part::Scale(options)) => interrupt::watch().and_then(|()| scale::command(options)),
        None if arguments.models => interrupt::watch()
            .and_then(|()| models::command(&arguments.table.measure, arguments.plot.as_deref())),
        None if arguments.bench => {
            interrupt::watch().and_then(|()| table::command(&arguments.table))
        }
        None => interrupt::watch().and_then(|()| smoke::test()),
    }
}

fn main() -> ExitCode {
    common::exit_code(run(&Arguments::parse()))
}
