//! Many idle clients over few and over many workers: what a connection and a look at the daemon cost, and how long
//! other clients wait while all of them move.

mod daemon;
mod goals;
mod moves;
mod probe;
mod steady;

use std::path::{Path, PathBuf};

use crate::common::failure::{Context, Result};
use crate::common::grid::{row, write_out};
use crate::common::rounds::progress;
use crate::common::spread::Spread;
use crate::common::{cpu, interrupt, launch};
use crate::memory;

use daemon::Daemon;
use moves::{Event, Moved};
use steady::Steady;

/// Descriptors that the daemon and this program need in addition to those of the idle clients.
const SPARE: u64 = 700;

/// Short connections that are measured.
const CONNECTIONS: u64 = 20_000;

/// The numbers of clients and workers.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Idle clients; fewer if the limit of open files is low
    #[arg(long, value_name = "N", default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    clients: u64,

    /// Numbers of workers
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "2,16,64"
    )]
    workers: Vec<usize>,

    /// Rounds; each figure is their median
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Measure only these events [default: reload,kill,upgrade,restart]
    #[arg(long, value_name = "EVENT,...", value_delimiter = ',')]
    only: Vec<Event>,

    /// Another build of fdpassd, measured in the same rounds
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Another build of fdpassd than the one just built
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_fdpassd"), hide_default_value = true)]
    fdpassd: PathBuf,

    /// The CPU for all processes [default: the last one]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
}

/// The results of one build with one number of workers.
#[derive(Clone, Default)]
struct Case {
    steady: Vec<Steady>,
    moved: Vec<(Event, Moved)>,
}

/// The results of all builds with one number of workers.
struct BuildResults {
    workers: usize,
    cases: Vec<Case>,
}

/// Measures and prints.
pub(crate) fn command(options: &Options) -> Result<()> {
    let name = |file: &PathBuf| file.canonicalize().context(file.display());
    let mut builds = vec![("fdpassd", name(&options.fdpassd)?)];
    if let Some(file) = &options.baseline {
        builds.insert(0, ("the other build", name(file)?));
    }
    launch::adopt_orphans()?;
    let most = memory::raise_descriptor_limit()?.saturating_sub(SPARE);
    let clients = usize::try_from(options.clients.min(most)).context("too many clients")?;
    let cpu = cpu::pin(options.cpu)?;
    let mut events = options.only.clone();
    if events.is_empty() {
        events = Event::ALL.to_vec();
    }
    let mut results: Vec<BuildResults> = Vec::new();
    for &workers in &options.workers {
        let cases = builds.iter().map(|_| Case::default()).collect();
        results.push(BuildResults { workers, cases });
    }
    for round in 1..=options.rounds {
        for BuildResults { workers, cases } in &mut results {
            let turns = 0..builds.len();
            for build in turns.map(|turn| (turn + round as usize) % builds.len()) {
                progress(&format!(
                    "{clients} clients, {workers} workers, round {round} of {}: {}",
                    options.rounds, builds[build].0
                ))?;
                measure(
                    &mut cases[build],
                    &builds[build].1,
                    *workers,
                    (clients, CONNECTIONS),
                    &events,
                )?;
            }
        }
    }
    println_all(&format!(
        "{clients} idle clients, all processes on CPU {cpu}, medians of {} rounds\n",
        options.rounds
    ))?;
    let titles: Vec<&str> = builds.iter().map(|(title, _)| *title).collect();
    print_all(&titles, &results, &events)
}

/// Prints the tables.
fn print_all(builds: &[&str], results: &[BuildResults], events: &[Event]) -> Result<()> {
    let mut steady = vec![steady::head()];
    let mut moved = vec![moves::head()];
    for BuildResults { workers, cases } in results {
        for (title, case) in builds.iter().zip(cases) {
            let title = format!("{workers} workers, {title}");
            steady.push(row(&title, steady::cells(&case.steady)?));
            for &event in events {
                let of_event = case.moved.iter().filter(|(other, _)| *other == event);
                let figures: Vec<Moved> = of_event.map(|(_, moved)| *moved).collect();
                let title = format!("{title}: {}", event.title());
                moved.push(row(&title, moves::cells(&figures)?));
            }
        }
    }
    println_all("Without an event\n")?;
    write_out(&steady)?;
    println_all(
        "\nThe longest waits of a busy client and of one that makes a new connection for each request\n",
    )?;
    write_out(&moved)?;
    println_all("\nGoals: medians, with quartiles\n")?;
    write_out(&goals::rows(builds, results))
}

/// Has few clients and short connections in each event, and fails if a client is lost.
pub(crate) fn test(program: &Path) -> Result<()> {
    let mut case = Case::default();
    measure(&mut case, program, 2, (40, 20), &Event::ALL)?;
    steady::cells(&case.steady)?;
    let figures: Vec<Moved> = case.moved.iter().map(|(_, moved)| *moved).collect();
    moves::cells(&figures)?;
    // A goal needs both numbers of workers.
    let results = [2, 64].map(|workers| BuildResults {
        workers,
        cases: vec![case.clone()],
    });
    let rows = goals::rows(&["fdpassd"], &results);
    match rows.iter().flatten().any(|cell| cell == "not measured") {
        true => Err("a goal is not measured".into()),
        false => Ok(()),
    }
}

/// Measures one build with one number of workers, these numbers of idle clients and of short connections.
fn measure(
    case: &mut Case,
    program: &Path,
    workers: usize,
    (clients, connections): (usize, u64),
    events: &[Event],
) -> Result<()> {
    let mut daemon = Daemon::start(program, workers)?;
    let (steady, idle) = steady::measure(&daemon, clients, connections)?;
    case.steady.push(steady);
    for &event in events {
        interrupt::check()?;
        let moved;
        (daemon, moved) = moves::measure(daemon, event)?;
        case.moved.push((event, moved));
    }
    daemon.expect_clients(clients)?;
    drop(idle);
    Ok(())
}

/// Returns the median of values with a unit of their own; `-` without any.
fn median(values: impl Iterator<Item = Option<f64>>, digits: usize) -> String {
    let values: Option<Vec<f64>> = values.collect();
    match values.and_then(Spread::of) {
        Some(spread) => format!("{:.digits$}", spread.median),
        None => "-".to_owned(),
    }
}

fn println_all(text: &str) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write the table")
}
