//! The table of apps and other servers, measured in turns.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::Duration;

use crate::catalogue::{Places, Server, built};
use crate::common::failure::{Context, Result};
use crate::common::results::Results;
use crate::common::rounds::{self, MeasureOptions};
use crate::common::server::Running;
use crate::common::{cpu, interrupt, launch};
use crate::print;
use crate::scenario::Scenario;

/// The rounds without an option.
pub(crate) const ROUNDS: u32 = 9;

/// The length of a measured window without an option.
pub(crate) const WINDOW: Duration = Duration::from_millis(300);

/// The servers and scenarios, and how to measure them.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    measure: MeasureOptions,

    /// An environment of Python with orjson, uvicorn, uvloop, httptools, gunicorn and granian, which are installed into
    /// it if they are missing [default: one in the target directory]
    #[arg(long, value_name = "DIR")]
    venv: Option<PathBuf>,
}

/// Measures and prints; fails if a server answered wrongly.
pub(crate) fn command(options: &Options) -> Result<()> {
    let measure = &options.measure;
    let venv = options.venv.clone().unwrap_or(built().join("venv"));
    let places = Places {
        fdpassd: measure.fdpassd()?,
        venv: std::path::absolute(venv).context("the environment of Python")?,
    };
    let mut results = Results::default();
    launch::adopt_orphans()?;
    let servers = Server::ALL.into_iter().filter(|s| measure.wants_server(*s));
    let recipes = rounds::prepare(servers, &places, &mut results)?;
    let cpu = cpu::pin(measure.cpu)?;
    let mut running = Vec::new();
    for (server, recipe) in recipes {
        match Running::start(server, &recipe) {
            Ok(started) => running.push(started),
            Err(why) => results.complain(server, &why),
        }
        interrupt::check()?;
    }
    let scenarios = Scenario::ALL.into_iter().filter(|s| measure.wants(*s));
    let scenarios: Vec<_> = scenarios.collect();
    rounds::measure(measure, &scenarios, running, &mut results)?;
    let mut out = Vec::new();
    writeln!(
        out,
        "all processes on CPU {cpu}, {} rounds of {:?} each",
        measure.rounds(),
        measure.window()
    )
    .and_then(|()| print::all(&results, &mut out))
    .and_then(|()| stdout().write_all(&out))
    .context("cannot write the table")?;
    results.verdict()
}
