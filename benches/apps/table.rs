//! The table of apps and other servers, measured in turns.

use std::collections::BTreeSet;
use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::time::Duration;

use crate::catalogue::{Places, Server, built};
use crate::common::failure::{Context, Result};
use crate::common::server::Running;
use crate::common::{cpu, interrupt, launch};
use crate::figures::Figures;
use crate::scenario::Scenario;

/// The time after which a server with a just-in-time compiler is warm.
const COMPILING: Duration = Duration::from_secs(1);

/// The servers and scenarios, and how to measure them.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds; each figure is their median [default: 9, 5 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
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

    /// An environment of Python with orjson, uvicorn, uvloop, httptools, gunicorn and granian, which are installed into it
    /// if they are missing [default: one in the target directory]
    #[arg(long, value_name = "DIR")]
    venv: Option<PathBuf>,

    /// The CPU for all processes [default: the last one]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,

    /// Length of a measured window [default: 300ms, 100ms with --quick]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    window: Option<Duration>,
}

impl Options {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 5 } else { 9 })
    }

    fn window(&self) -> Duration {
        self.window
            .unwrap_or(Duration::from_millis(if self.quick { 100 } else { 300 }))
    }
}

/// Measures and prints; fails if a server answered wrongly.
pub(crate) fn command(options: &Options) -> Result<()> {
    let places = Places {
        fdpassd: options
            .fdpassd
            .canonicalize()
            .context(options.fdpassd.display())?,
        venv: std::path::absolute(options.venv.clone().unwrap_or(built().join("venv")))
            .context("the environment of Python")?,
    };
    let mut figures = Figures::default();
    launch::adopt_orphans()?;
    let mut running = Vec::new();
    let is_wanted = |s: &Server| options.servers.is_empty() || options.servers.contains(s);
    let mut recipes = Vec::new();
    for server in Server::ALL.into_iter().filter(is_wanted) {
        progress(&format!("{}: building, if needed", server.title()))?;
        match server.prepare(&places) {
            Ok(recipe) => recipes.push((server, recipe)),
            Err(why) => figures.skip(server, &why),
        }
        interrupt::check()?;
    }
    let cpu = cpu::pin(options.cpu)?;
    for (server, recipe) in recipes {
        match Running::start(server, &recipe) {
            Ok(started) => running.push(started),
            Err(why) => figures.complain(server, &why),
        }
        interrupt::check()?;
    }
    measure(options, &mut running, &mut figures)?;
    for server in running {
        let which = server.server;
        if let Err(why) = server.stop() {
            figures.complain(which, &why);
        }
    }
    let mut out = Vec::new();
    writeln!(
        out,
        "all processes on CPU {cpu}, {} rounds of {:?} each",
        options.rounds(),
        options.window()
    )
    .and_then(|()| figures.write(&mut out))
    .and_then(|()| stdout().write_all(&out))
    .context("cannot write the table")?;
    figures.verdict()
}

/// Measures all servers in turns, so that a change of the machine's load affects all of them.
fn measure(options: &Options, running: &mut [Running], figures: &mut Figures) -> Result<()> {
    let is_wanted = |s: &Scenario| options.only.is_empty() || options.only.contains(s);
    let mut failed = BTreeSet::new();
    // Round 0 is not counted: compilers and heaps warm up in it.
    for round in 0..=options.rounds() {
        progress(&format!("round {round} of {}", options.rounds()))?;
        for scenario in Scenario::ALL.into_iter().filter(is_wanted) {
            for server in running.iter() {
                let which = server.server;
                if failed.contains(&(scenario, which)) {
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
                    Ok(micros) => figures.add(scenario, which, round, micros),
                    Err(why) => {
                        figures.fail(scenario, which, &why);
                        failed.insert((scenario, which));
                    }
                }
            }
        }
        // No server is always measured after the same other one.
        running.rotate_left(1);
    }
    Ok(())
}

/// Writes progress to standard error; the table goes to standard output.
pub(crate) fn progress(what: &str) -> Result<()> {
    writeln!(stderr(), "apps: {what}").context("cannot write to standard error")
}
