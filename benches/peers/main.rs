//! fdpassd beside its peers: `cargo bench --bench peers`. See `benches/README.md`.
//!
//! One program, several parts: the table (no subcommand), the load by itself (`load`), and, hidden,
//! the raw echo that everything is compared with (`echo`) and the way in which servers are started
//! (`launch`).

mod attack;
mod catalogue;
mod cpu;
mod echo;
mod failure;
mod figures;
mod idle;
mod interrupt;
mod launch;
mod load;
mod memory;
mod print;
mod scenario;
mod server;
mod smoke;
mod stall;
mod table;

use std::ffi::OsString;
use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Result;

/// Measures fdpassd beside its peers and prints a table
#[derive(Parser)]
#[command(name = "peers")]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,

    #[command(flatten)]
    table: table::Options,

    /// Given by `cargo bench`; without it this is `cargo test`, and only a moment is run
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Puts load on a server that is running already, checks every reply, and tells the latency
    Load(attack::Options),

    /// Serves as plainly as can be
    #[command(hide = true)]
    Echo(echo::Options),

    /// Becomes another program, which ends with its parent
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
        Some(Part::Echo(options)) => echo::serve(*options),
        Some(Part::Load(options)) => interrupt::watch().and_then(|()| attack::command(options)),
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
            // Nobody is left to tell if this fails.
            let _ = writeln!(stderr(), "peers: {why}");
            ExitCode::FAILURE
        }
    }
}
