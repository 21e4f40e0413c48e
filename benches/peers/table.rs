//! The table of fdpassd and other servers, measured in turns.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::catalogue::{Places, Server};
use crate::common::failure::{Context, Result};
use crate::common::recipe::Recipe;
use crate::common::results::Results;
use crate::common::rounds::{self, MeasureOptions, progress, stop};
use crate::common::server::Running;
use crate::common::{cpu, interrupt, launch};
use crate::figures::Figures;
use crate::scenario::Scenario;
use crate::{idle, memory, print, stall, unpinned};

/// Descriptors that a server or this program needs in addition to those of the idle clients.
const SPARE: u64 = 200;

/// The rounds without an option.
pub(crate) const ROUNDS: u32 = 15;

/// The length of a measured window without an option.
pub(crate) const WINDOW: Duration = Duration::from_millis(250);

/// The windows of a latency measurement, so that several blocking calls fit into it.
const STALL_WINDOWS: u32 = 4;

/// The servers and scenarios, and how to measure them.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) measure: MeasureOptions,

    /// Directory with the sources of the peers [default: $PEERS, else ../shared/peers if there is one]
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,

    /// Another build of fdpassd, measured in the same rounds
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Idle clients to measure memory with
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    clients: u64,
}

impl Options {
    fn timed(&self) -> Vec<Scenario> {
        Scenario::TIMED
            .into_iter()
            .filter(|scenario| self.measure.wants(*scenario))
            .collect()
    }

    /// Returns the wanted servers, and the raw echo, with which all are compared.
    fn servers(&self) -> impl Iterator<Item = Server> {
        let is_wanted = |s: &Server| match s {
            Server::Echo => true,
            Server::Baseline => self.baseline.is_some(),
            _ => self.measure.wants_server(*s),
        };
        Server::ALL.into_iter().filter(is_wanted)
    }

    fn places(&self) -> Result<Places> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/peers");
        let named = self
            .peers
            .clone()
            .or_else(|| std::env::var_os("PEERS").map(PathBuf::from));
        let peers = named.or_else(|| beside.is_dir().then_some(beside));
        let fdpassd = self.measure.fdpassd()?;
        let baseline = self.baseline.as_ref();
        let baseline = baseline.map(|file| file.canonicalize().context(file.display()));
        Ok(Places {
            fdpassd,
            baseline: baseline.transpose()?,
            peers,
        })
    }
}

/// Measures and prints; fails if a server answered wrongly or fdpassd could not be measured.
pub(crate) fn command(options: &Options) -> Result<()> {
    let places = options.places()?;
    let mut figures = Figures::new(options.measure.rounds());
    let mut recipes = rounds::prepare(options.servers(), &places, &mut figures.results)?;
    launch::adopt_orphans()?;
    let descriptors = memory::raise_descriptor_limit()?;
    if options.measure.wants(Scenario::Stall) {
        measure_stalls(options, &recipes, &mut figures)?;
    }
    if options.measure.wants(Scenario::Unpinned) {
        measure_unpinned(options, &recipes, &mut figures)?;
    }
    let cpu = cpu::pin(options.measure.cpu)?;
    measure_times(options, &mut recipes, &mut figures)?;
    let clients = options.clients.min(descriptors.saturating_sub(SPARE));
    if options.measure.wants(Scenario::Idle) {
        measure_memory(options, &recipes, clients, &mut figures)?;
    }
    print::all(
        &figures,
        &options.timed(),
        options.measure.window(),
        cpu,
        clients,
    )?;
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
    let running = start_all(recipes, &mut figures.results)?;
    rounds::measure(&options.measure, &scenarios, running, &mut figures.results)
}

/// Starts all servers; one that does not start is skipped, and its recipe removed.
fn start_all(recipes: &mut Vec<(Server, Recipe)>, results: &mut Results) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    recipes.retain(|(server, recipe)| match Running::start(*server, recipe) {
        Ok(started) => {
            running.push(started);
            true
        }
        Err(why) => {
            results.skip(*server, &why);
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
                figures.results.skip(*server, &why);
                continue;
            }
        };
        let measured = idle::measure(&running, clients, options.measure.window());
        interrupt::check()?;
        match measured {
            Ok(bytes) => figures.add_memory(*server, bytes),
            Err(why) => figures.results.fail(Scenario::Idle, *server, &why),
        }
        stop(running, &mut figures.results);
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
        match Running::start(*server, &server.for_stalls(recipe)) {
            Ok(started) => running.push(started),
            Err(why) => figures.results.fail(Scenario::Stall, *server, &why),
        }
    }
    for round in 0..=options.measure.rounds() {
        progress(&format!(
            "latency beside a blocking call, round {round} of {}",
            options.measure.rounds()
        ))?;
        for server in &running {
            let measured = stall::measure(
                server,
                options.measure.window(),
                STALL_WINDOWS * options.measure.window(),
            );
            interrupt::check()?;
            match measured {
                Ok(_) if round == 0 => {}
                Ok(latencies) => figures.add_stall(server.server, latencies),
                Err(why) => figures.results.fail(Scenario::Stall, server.server, &why),
            }
        }
    }
    running
        .into_iter()
        .for_each(|server| stop(server, &mut figures.results));
    Ok(())
}

/// Uses all CPUs, for servers that have two workers.
fn measure_unpinned(
    options: &Options,
    recipes: &[(Server, Recipe)],
    figures: &mut Figures,
) -> Result<()> {
    let suited = |server: Server| Scenario::Unpinned.suits(server) && server != Server::Echo;
    let mut running = Vec::new();
    for (server, recipe) in recipes.iter().filter(|(server, _)| suited(*server)) {
        match Running::start(*server, recipe) {
            Ok(started) => running.push(started),
            Err(why) => figures.results.fail(Scenario::Unpinned, *server, &why),
        }
    }
    let window = options.measure.window();
    for round in 0..=options.measure.rounds() {
        progress(&format!(
            "all CPUs, round {round} of {}",
            options.measure.rounds()
        ))?;
        for server in &running {
            let measured = unpinned::measure(server, window / 4, window);
            interrupt::check()?;
            match measured {
                Ok(_) if round == 0 => {}
                Ok(measured) => figures.add_unpinned(server.server, round, measured),
                Err(why) => figures
                    .results
                    .fail(Scenario::Unpinned, server.server, &why),
            }
        }
    }
    running
        .into_iter()
        .for_each(|server| stop(server, &mut figures.results));
    Ok(())
}
