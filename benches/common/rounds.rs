//! Measures all servers in turns.

use std::collections::BTreeSet;
use std::io::{Write, stderr};
use std::path::PathBuf;
use std::time::Duration;

use crate::catalogue::{Places, Server};
use crate::scenario::Scenario;
use crate::table::{ROUNDS, WINDOW};

use super::failure::{Context, Result};
use super::interrupt;
use super::recipe::Recipe;
use super::results::Results;
use super::server::Running;

/// Rounds and the length of a window with `--quick`.
const QUICK: (u32, Duration) = (5, Duration::from_millis(100));

/// The time after which a server with a just-in-time compiler is warm.
const COMPILING: Duration = Duration::from_secs(1);

/// The servers and scenarios, and how to measure them.
#[derive(clap::Args)]
pub(crate) struct MeasureOptions {
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(help = format!("Rounds; each figure is their median [default: {ROUNDS}, {} with --quick]", QUICK.0))]
    rounds: Option<u32>,

    /// Few rounds and short windows
    #[arg(long)]
    quick: bool,

    /// Measure only these scenarios
    #[arg(long, value_name = "SCENARIO,...", value_delimiter = ',')]
    only: Vec<Scenario>,

    /// Measure only these servers
    #[arg(long, value_name = "SERVER,...", value_delimiter = ',')]
    servers: Vec<Server>,

    /// Another build of fdpassd than the one just built
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_fdpassd"), hide_default_value = true)]
    fdpassd: PathBuf,

    /// The CPU for all processes [default: the last one]
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,

    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    #[arg(help = format!("Length of a measured window [default: {WINDOW:?}, {:?} with --quick]", QUICK.1))]
    window: Option<Duration>,
}

impl MeasureOptions {
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds
            .unwrap_or(if self.quick { QUICK.0 } else { ROUNDS })
    }

    pub(crate) fn window(&self) -> Duration {
        self.window
            .unwrap_or(if self.quick { QUICK.1 } else { WINDOW })
    }

    pub(crate) fn wants(&self, scenario: Scenario) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }

    pub(crate) fn wants_server(&self, server: Server) -> bool {
        self.servers.is_empty() || self.servers.contains(&server)
    }

    pub(crate) fn fdpassd(&self) -> Result<PathBuf> {
        self.fdpassd.canonicalize().context(self.fdpassd.display())
    }
}

/// Builds servers, if needed. One that is not available is skipped.
pub(crate) fn prepare(
    servers: impl Iterator<Item = Server>,
    places: &Places,
    results: &mut Results,
) -> Result<Vec<(Server, Recipe)>> {
    let mut recipes = Vec::new();
    for server in servers {
        progress(&format!("{}: building, if needed", server.title()))?;
        match server.prepare(places) {
            Ok(recipe) => recipes.push((server, recipe)),
            Err(why) => results.skip(server, &why),
        }
        interrupt::check()?;
    }
    Ok(recipes)
}

/// Measures all servers in turns, so that a change of the machine's load affects all of them.
pub(crate) fn measure(
    options: &MeasureOptions,
    scenarios: &[Scenario],
    mut running: Vec<Running>,
    results: &mut Results,
) -> Result<()> {
    let mut failed = BTreeSet::new();
    // Round 0 is not counted: compilers and heaps warm up in it.
    for round in 0..=options.rounds() {
        progress(&format!("round {round} of {}", options.rounds()))?;
        for &scenario in scenarios {
            for server in &running {
                let which = server.server;
                if !scenario.suits(which) || failed.contains(&(scenario, which)) {
                    continue;
                }
                let is_long = round == 0 && which.has_jit();
                let warm_up = if is_long {
                    COMPILING
                } else {
                    options.window() / 4
                };
                let measured = scenario.measure(server, warm_up, options.window());
                interrupt::check()?;
                match measured {
                    Ok(_) if round == 0 => {}
                    Ok(micros) => results.add(scenario, which, round, micros),
                    Err(why) => {
                        results.fail(scenario, which, &why);
                        failed.insert((scenario, which));
                    }
                }
            }
        }
        // No server is always measured after the same other one.
        if !running.is_empty() {
            running.rotate_left(1);
        }
    }
    for server in running {
        stop(server, results);
    }
    Ok(())
}

/// Stops a server; one that does not end properly has failed.
pub(crate) fn stop(running: Running, results: &mut Results) {
    let server = running.server;
    if let Err(why) = running.stop() {
        results.complain(server, &why);
    }
}

/// Writes progress to standard error; the table goes to standard output.
pub(crate) fn progress(what: &str) -> Result<()> {
    writeln!(stderr(), "{}: {what}", env!("CARGO_CRATE_NAME"))
        .context("cannot write to standard error")
}
