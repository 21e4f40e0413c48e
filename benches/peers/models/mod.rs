//! The models of the textbooks and fdpassd's, side by side: `cargo bench --bench peers -- --models`.
//!
//! The CPU time of a connection, the effect of slow clients on others, the distribution of connections among the
//! workers, and the effect of a killed worker. `docs/models.md` has the result.

mod instance;
mod plot;
mod probe;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::cpu;
use crate::common::failure::{Context, Result};
use crate::common::grid;
use crate::common::launch;
use crate::common::load::{Check, LITTLE, Load, Pace, Payload, Plan};
use crate::common::recipe::succeed;
use crate::common::rounds::{MeasureOptions, progress};
use crate::common::spread::Spread;
use crate::memory;
use instance::Instance;

/// Workers of each model that has a fixed number of them.
pub(super) const WORKERS: usize = 4;

/// Connections of the load at the same time.
const CONNECTIONS: usize = 16;

/// The least length of a window: the time of processes that have ended is known in hundredths of a second.
const MIN_WINDOW: Duration = Duration::from_secs(1);

/// A model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    Iterative,
    Fork,
    Shared,
    Reuseport,
    RoundRobin,
    LeastLoaded,
}

impl Model {
    const ALL: [Model; 6] = [
        Model::Iterative,
        Model::Fork,
        Model::Shared,
        Model::Reuseport,
        Model::RoundRobin,
        Model::LeastLoaded,
    ];

    fn title(self) -> &'static str {
        match self {
            Model::Iterative => "iterative",
            Model::Fork => "fork",
            Model::Shared => "shared queue",
            Model::Reuseport => "SO_REUSEPORT",
            Model::RoundRobin => "fdpassd, round-robin",
            Model::LeastLoaded => "fdpassd, least-loaded",
        }
    }

    /// Returns whether one process serves one connection at a time, so that its numbers of connections need no measure.
    fn is_dealt_by_itself(self) -> bool {
        matches!(self, Model::Iterative | Model::Fork)
    }
}

/// The figures of a model.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    model: Model,
    /// CPU time of all processes for each connection, in us.
    micros: Spread,
    /// The longest waits of other clients in ms, without slow clients and with them; `None` if one was not served.
    waits: [Option<f64>; 2],
    /// The most connections of a worker, divided by the mean: of those that stay, and of short ones.
    shares: [f64; 2],
    /// Of [`probe::LONG`] connections, those that end with a worker; `None` if the model serves one at a time.
    lost: Option<usize>,
    /// A new connection is served afterwards.
    serves_on: bool,
}

/// Measures all models, prints a table, and draws the plot into a file.
pub(crate) fn command(options: &MeasureOptions, plot: Option<&Path>) -> Result<()> {
    launch::adopt_orphans()?;
    memory::raise_descriptor_limit()?;
    let fdpassd = options.fdpassd()?;
    let program = build()?;
    let start = |model| Instance::start(model, &program, &fdpassd);
    let mut all = Vec::new();
    for model in Model::ALL {
        progress(&format!("{}: slow clients, shares, kills", model.title()))?;
        all.push(behaviour(model, &start)?);
    }
    let cpu = cpu::pin(options.cpu)?;
    let window = options.window().max(MIN_WINDOW);
    let costs = costs(options.rounds(), window, &start)?;
    let figures: Vec<Figures> = all
        .into_iter()
        .zip(costs)
        .map(|(figures, micros)| Figures { micros, ..figures })
        .collect();
    let caption = format!(
        "{WORKERS} workers; CPU time on CPU {cpu}: medians of {} rounds of {window:?}, {CONNECTIONS} connections at a \
         time, one request each",
        options.rounds()
    );
    print(&figures, &caption)?;
    match plot {
        Some(file) => plot::draw(&figures, file),
        None => Ok(()),
    }
}

/// Runs each model for a moment, for the test of the benchmark.
pub(crate) fn test(fdpassd: &Path) -> Result<()> {
    let program = match build() {
        Ok(program) => program,
        Err(why) => return progress(&format!("skipped: models: {why}")),
    };
    let start = |model| Instance::start(model, &program, fdpassd);
    let mut all = Vec::new();
    for model in Model::ALL {
        all.push(behaviour(model, &start)?);
    }
    let lost: Vec<_> = all.iter().map(|figures| figures.lost).collect();
    let is_as_told =
        matches!(lost[..], [None, Some(1), Some(shared), Some(_), Some(0), Some(0)] if shared > 0);
    if !is_as_told {
        return Err(format!("connections lost with a worker: {lost:?}").into());
    }
    let directory = tempfile::tempdir().context("no temporary directory")?;
    plot::draw(&all, &directory.path().join("models.svg"))
}

/// Builds the program of the textbooks' models.
fn build() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/models/models.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("models");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]);
    compiler.arg(&program).arg(&source);
    succeed(&mut compiler, "cc").context("the C program cannot be built")?;
    Ok(program)
}

/// Measures everything but the CPU time.
fn behaviour(model: Model, start: &impl Fn(Model) -> Result<Instance>) -> Result<Figures> {
    let calm = probe::longest_wait(&start(model)?, 0)?;
    let beside_slow = probe::longest_wait(&start(model)?, probe::SLOW)?;
    let shares = match model.is_dealt_by_itself() {
        true => [1.0; 2],
        false => [
            probe::share_of_long(&start(model)?)?,
            probe::share_of_short(&start(model)?)?,
        ],
    };
    let (lost, serves_on) = probe::kill(start(model)?)?;
    Ok(Figures {
        model,
        micros: Spread::of(vec![0.0]).context("a value")?,
        waits: [calm, beside_slow],
        shares,
        lost,
        serves_on,
    })
}

/// Measures the CPU time for each connection, of all models in turns.
fn costs(
    rounds: u32,
    window: Duration,
    start: &impl Fn(Model) -> Result<Instance>,
) -> Result<Vec<Spread>> {
    let running: Vec<Instance> = Model::ALL.into_iter().map(start).collect::<Result<_>>()?;
    let mut micros = vec![Vec::new(); running.len()];
    for round in 0..=rounds {
        progress(&format!("CPU time, round {round} of {rounds}"))?;
        for (instance, micros) in running.iter().zip(&mut micros) {
            let measured = cost(instance, window)?;
            if round > 0 {
                micros.push(measured);
            }
        }
    }
    let spread = |values| Spread::of(values).context("no round");
    micros.into_iter().map(spread).collect()
}

/// Returns the CPU time for each connection in us.
fn cost(instance: &Instance, window: Duration) -> Result<f64> {
    let mut load = Load::new(Plan {
        to: instance.address(),
        connections: CONNECTIONS,
        depth: 1,
        per_connection: Some(1),
        payload: Payload::Ping,
        method: "ping",
        framing: LITTLE,
        check: Check::Bytes,
    })?;
    let before = instance.cpu_time()?;
    let report = load.run(Pace::Time(window))?;
    if let Some(why) = report.first_error {
        return Err(why.into());
    }
    let used = instance.cpu_time()?.since(&before)?;
    Ok(used.as_secs_f64() * 1e6 / report.connections as f64)
}

fn print(figures: &[Figures], caption: &str) -> Result<()> {
    let head = [
        "CPU a connection, us",
        "longest wait, ms",
        "with slow clients, ms",
        "share of 64 that stay",
        "of 1,000 short ones",
        "lost with a worker",
        "then",
    ];
    let mut rows = vec![grid::row("model", head.map(str::to_owned))];
    for figures in figures {
        let wait =
            |wait: Option<f64>| wait.map_or("not served".to_owned(), |ms| format!("{ms:.1}"));
        let share = |share: f64| match figures.model.is_dealt_by_itself() {
            true => "–".to_owned(),
            false => format!("{share:.2}"),
        };
        let Spread {
            median,
            quartiles: [low, high],
            ..
        } = figures.micros;
        let cells = [
            format!("{median:.1} ({low:.1}–{high:.1})"),
            wait(figures.waits[0]),
            wait(figures.waits[1]),
            share(figures.shares[0]),
            share(figures.shares[1]),
            figures.lost.map_or("all".to_owned(), |lost| {
                format!("{lost} of {}", probe::LONG)
            }),
            match figures.serves_on {
                true => "serves on",
                false => "ends",
            }
            .to_owned(),
        ];
        rows.push(grid::row(figures.model.title(), cells));
    }
    progress(caption)?;
    grid::write_out(&rows)
}
