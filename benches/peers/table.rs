//! The table of fdpassd and other servers, measured in turns.

use std::collections::BTreeSet;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::catalogue::{Places, Recipe, Server};
use crate::common::failure::{Context, Result};
use crate::common::server::Running;
use crate::common::{cpu, interrupt, launch};
use crate::figures::Figures;
use crate::scenario::Scenario;
use crate::{idle, memory, print, stall};

/// Descriptors that a server or this program needs in addition to those of the idle clients.
const SPARE: u64 = 200;

/// The time after which a server with a just-in-time compiler is warm.
const COMPILING: Duration = Duration::from_secs(1);

/// The windows of a latency measurement, so that several blocking calls fit into it.
const STALL_WINDOWS: u32 = 4;

/// The servers and scenarios, and how to measure them.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds; each figure is their median [default: 15, 5 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    /// Few rounds and short windows: about a minute
    #[arg(long)]
    quick: bool,

    /// Measure only these scenarios
    #[arg(long, value_name = "SCENARIO,...", value_delimiter = ',')]
    only: Vec<Scenario>,

    /// Measure only these servers (and the raw echo, with which all are compared)
    #[arg(long, value_name = "SERVER,...", value_delimiter = ',')]
    servers: Vec<Server>,

    /// Directory with the sources of the peers [default: $PEERS, else ../shared/peers if there is one]
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,

    /// Another build of fdpassd than the one just built
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_fdpassd"), hide_default_value = true)]
    fdpassd: PathBuf,

    /// The CPU for all processes [default: the last one]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,

    /// Length of a measured window [default: 250ms, 100ms with --quick]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    window: Option<Duration>,

    /// Idle clients to measure memory with
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    clients: u64,
}

impl Options {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 5 } else { 15 })
    }

    fn window(&self) -> Duration {
        self.window
            .unwrap_or(Duration::from_millis(if self.quick { 100 } else { 250 }))
    }

    fn wants(&self, scenario: Scenario) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }

    fn timed(&self) -> Vec<Scenario> {
        Scenario::TIMED
            .into_iter()
            .filter(|scenario| self.wants(*scenario))
            .collect()
    }

    fn servers(&self) -> Vec<Server> {
        let wanted = |server: &Server| self.servers.is_empty() || self.servers.contains(server);
        Server::ALL
            .into_iter()
            .filter(|server| *server == Server::Echo || wanted(server))
            .collect()
    }

    fn places(&self) -> Result<Places> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/peers");
        let named = self
            .peers
            .clone()
            .or_else(|| std::env::var_os("PEERS").map(PathBuf::from));
        let peers = named.or_else(|| beside.is_dir().then_some(beside));
        let fdpassd = self
            .fdpassd
            .canonicalize()
            .context(self.fdpassd.display())?;
        Ok(Places { fdpassd, peers })
    }
}

/// Measures and prints; fails if a server answered wrongly or fdpassd could not be measured.
pub(crate) fn command(options: &Options) -> Result<()> {
    let places = options.places()?;
    let mut figures = Figures::new(options.rounds());
    let mut recipes = Vec::new();
    for server in options.servers() {
        progress(&format!("{}: building, if need be", server.title()))?;
        match server.prepare(&places) {
            Ok(recipe) => recipes.push((server, recipe)),
            Err(why) => figures.skip(server, &why),
        }
        interrupt::check()?;
    }
    launch::adopt_orphans()?;
    let descriptors = memory::raise_descriptor_limit()?;
    if options.wants(Scenario::Stall) {
        measure_stalls(options, &recipes, &mut figures)?;
    }
    let cpu = cpu::pin(options.cpu)?;
    measure_times(options, &mut recipes, &mut figures)?;
    let clients = options.clients.min(descriptors.saturating_sub(SPARE));
    if options.wants(Scenario::Idle) {
        measure_memory(options, &recipes, clients, &mut figures)?;
    }
    print::all(&figures, &options.timed(), options.window(), cpu, clients)?;
    figures.verdict()
}

/// Runs all servers at once and measures them in turns, so that a change of the machine's load affects all of them.
fn measure_times(
    options: &Options,
    recipes: &mut Vec<(Server, Recipe)>,
    figures: &mut Figures,
) -> Result<()> {
    let scenarios = options.timed();
    if scenarios.is_empty() {
        return Ok(());
    }
    let mut running = start_all(recipes, figures)?;
    let mut failed = BTreeSet::new();
    // Round 0 is not counted: compilers and heaps warm up in it.
    for round in 0..=options.rounds() {
        progress(&format!("round {round} of {}", options.rounds()))?;
        for &scenario in &scenarios {
            for server in &running {
                if !scenario.suits(server.server) || failed.contains(&(scenario, server.server)) {
                    continue;
                }
                let long = round == 0 && server.server.has_jit();
                let warm_up = if long {
                    COMPILING
                } else {
                    options.window() / 4
                };
                let measured = scenario.measure(server, warm_up, options.window());
                interrupt::check()?;
                match measured {
                    Ok(_) if round == 0 => {}
                    Ok(micros) => figures.add(scenario, server.server, round, micros),
                    Err(why) => {
                        figures.fail(scenario, server.server, &why);
                        failed.insert((scenario, server.server));
                    }
                }
            }
        }
        // No server is always measured after the same other one.
        running.rotate_left(1);
    }
    for server in running {
        stop(server, figures);
    }
    Ok(())
}

/// Starts all servers; one that does not start is skipped, and its recipe removed.
fn start_all(recipes: &mut Vec<(Server, Recipe)>, figures: &mut Figures) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    recipes.retain(|(server, recipe)| match Running::start(*server, recipe) {
        Ok(started) => {
            running.push(started);
            true
        }
        Err(why) => {
            figures.skip(*server, &why);
            false
        }
    });
    if running
        .first()
        .is_none_or(|first| first.server != Server::Echo)
    {
        return Err("the raw echo does not run, and everything is compared with it".into());
    }
    Ok(running)
}

fn measure_memory(
    options: &Options,
    recipes: &[(Server, Recipe)],
    clients: u64,
    figures: &mut Figures,
) -> Result<()> {
    let clients = usize::try_from(clients).context("too many clients")?;
    progress(&format!("memory with {clients} idle clients"))?;
    for (server, recipe) in recipes {
        if !Scenario::Idle.suits(*server) {
            continue;
        }
        let running = match Running::start(*server, recipe) {
            Ok(running) => running,
            Err(why) => {
                figures.skip(*server, &why);
                continue;
            }
        };
        let measured = idle::measure(&running, clients, options.window());
        interrupt::check()?;
        match measured {
            Ok(bytes) => figures.add_memory(*server, bytes),
            Err(why) => figures.fail(Scenario::Idle, *server, &why),
        }
        stop(running, figures);
    }
    Ok(())
}

/// Uses all CPUs: on a single one, a call that computes would delay the others by that alone.
fn measure_stalls(
    options: &Options,
    recipes: &[(Server, Recipe)],
    figures: &mut Figures,
) -> Result<()> {
    let recipes = recipes
        .iter()
        .filter(|(server, _)| Scenario::Stall.suits(*server));
    let mut running = Vec::new();
    for (server, recipe) in recipes {
        match Running::start(*server, &recipe.for_stalls(*server)) {
            Ok(started) => running.push(started),
            Err(why) => figures.fail(Scenario::Stall, *server, &why),
        }
    }
    for round in 0..=options.rounds() {
        progress(&format!(
            "latency beside a blocking call, round {round} of {}",
            options.rounds()
        ))?;
        for server in &running {
            let measured =
                stall::measure(server, options.window(), STALL_WINDOWS * options.window());
            interrupt::check()?;
            match measured {
                Ok(_) if round == 0 => {}
                Ok(latencies) => figures.add_stall(server.server, latencies),
                Err(why) => figures.fail(Scenario::Stall, server.server, &why),
            }
        }
    }
    running.into_iter().for_each(|server| stop(server, figures));
    Ok(())
}

fn stop(running: Running, figures: &mut Figures) {
    let server = running.server;
    if let Err(why) = running.stop() {
        figures.complain(server, &why);
    }
}

/// Writes progress to standard error; the table goes to standard output.
pub(crate) fn progress(what: &str) -> Result<()> {
    writeln!(stderr(), "peers: {what}").context("cannot write to standard error")
}
