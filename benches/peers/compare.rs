//! Compares two builds of fdpassd in one run: CPU time, in interleaved rounds, or system calls for each request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::catalogue::{Places, Server};
use crate::common::failure::{Context, Result};
use crate::common::grid::{row, write_out};
use crate::common::load::{Load, Pace};
use crate::common::recipe::Recipe;
use crate::common::rounds::progress;
use crate::common::server::Running;
use crate::common::spread::Spread;
use crate::common::window::faultless;
use crate::common::{cpu, interrupt, launch};
use crate::scenario::Scenario;

/// Requests for each count of system calls, and counts of each build, one after the other: batching varies.
const COUNTED: u64 = 10_000;
const COUNTS: u32 = 4;

/// A median ratio up to this is not a loss, even if 1 is outside of the quartiles.
const TOLERANCE: f64 = 1.02;

/// The builds and what to compare.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The build to compare with
    #[arg(long, value_name = "FILE")]
    baseline: PathBuf,

    /// The build to judge [default: the one just built]
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_fdpassd"), hide_default_value = true)]
    candidate: PathBuf,

    /// Rounds; each of them starts both builds and measures one after the other
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Measure only these scenarios [default: ping,deep,large,one,ten]
    #[arg(long, value_name = "SCENARIO,...", value_delimiter = ',')]
    only: Vec<Scenario>,

    /// Length of a measured window
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = humantime::parse_duration)]
    window: Duration,

    /// Count system calls with strace instead of measuring CPU time
    #[arg(long)]
    syscalls: bool,

    /// The CPU for all processes [default: the last one]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
}

/// Compares and prints. A loss is not an error: the reader judges it.
pub(crate) fn command(options: &Options) -> Result<()> {
    let recipe = |file: &PathBuf| {
        let fdpassd = file.canonicalize().context(file.display())?;
        Server::Fdpassd.prepare(&Places {
            fdpassd,
            baseline: None,
            peers: None,
        })
    };
    let builds = [recipe(&options.baseline)?, recipe(&options.candidate)?];
    let mut scenarios = options.only.clone();
    if scenarios.is_empty() {
        scenarios = vec![
            Scenario::Ping,
            Scenario::Deep,
            Scenario::Large,
            Scenario::One,
            Scenario::Ten,
        ];
    }
    if let Some(other) = scenarios.iter().find(|s| !Scenario::TIMED.contains(s)) {
        return Err(format!("\"{}\" has no CPU time", other.title()).into());
    }
    launch::adopt_orphans()?;
    cpu::pin(options.cpu)?;
    if options.syscalls {
        count_calls(&builds, &scenarios)
    } else {
        measure_times(options, &builds, &scenarios)
    }
}

/// Starts both builds for each round, so that the address layout of one start favours neither, and changes their order
/// from round to round.
fn measure_times(options: &Options, builds: &[Recipe; 2], scenarios: &[Scenario]) -> Result<()> {
    let mut micros: BTreeMap<Scenario, Vec<[f64; 2]>> = BTreeMap::new();
    for round in 1..=options.rounds {
        progress(&format!("round {round} of {}", options.rounds))?;
        let running = [start(&builds[0])?, start(&builds[1])?];
        for &scenario in scenarios {
            let mut pair = [0.0; 2];
            for turn in 0..2 {
                let build = (turn + round as usize) % 2;
                let warm_up = options.window / 4;
                pair[build] = scenario.measure(&running[build], warm_up, options.window)?;
                interrupt::check()?;
            }
            micros.entry(scenario).or_default().push(pair);
        }
        for server in running {
            server.stop()?;
        }
    }
    let heads = [
        "baseline, us",
        "candidate, us",
        "ratio: median",
        "quartiles",
        "",
    ];
    let mut rows = vec![row("CPU time of the server", heads.map(str::to_owned))];
    for scenario in scenarios {
        let of = |value: fn(&[f64; 2]) -> f64| {
            Spread::of(micros[scenario].iter().map(value).collect()).context("no rounds")
        };
        let ratio = of(|[baseline, candidate]| candidate / baseline)?;
        let [low, high] = ratio.quartiles;
        let is_loss = ratio.median > TOLERANCE && low > 1.0;
        let cells = [
            format!("{:.3}", of(|pair| pair[0])?.median),
            format!("{:.3}", of(|pair| pair[1])?.median),
            format!("{:.3}", ratio.median),
            format!("{low:.3}-{high:.3}"),
            if is_loss { "SLOWER" } else { "ok" }.to_owned(),
        ];
        rows.push(row(scenario.title(), cells));
    }
    write_out(&rows)
}

fn start(build: &Recipe) -> Result<Running> {
    Running::start(Server::Fdpassd, build)
}

/// Prints the calls for each request (or each client, if connections are short): all, and those that differ.
fn count_calls(builds: &[Recipe; 2], scenarios: &[Scenario]) -> Result<()> {
    let heads = ["baseline", "candidate"].map(str::to_owned);
    let mut rows = vec![row("system calls for each request", heads)];
    for scenario in scenarios {
        progress(scenario.title())?;
        let mut counts = [BTreeMap::new(), BTreeMap::new()];
        for _ in 0..COUNTS {
            for (build, sums) in builds.iter().zip(&mut counts) {
                for (name, calls) in trace(build, *scenario)? {
                    *sums.entry(name).or_insert(0.0) += calls / f64::from(COUNTS);
                }
            }
        }
        let [baseline, candidate] = [&counts[0], &counts[1]];
        let all = counts
            .each_ref()
            .map(|calls| format!("{:.3}", calls.values().sum::<f64>()));
        rows.push(row(scenario.title(), all));
        let mut names: Vec<&String> = baseline.keys().chain(candidate.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let calls = counts
                .each_ref()
                .map(|calls| calls.get(name).copied().unwrap_or_default());
            if calls.iter().any(|count| *count >= 0.005) {
                rows.push(row(
                    &format!("  {name}"),
                    calls.map(|count| format!("{count:.3}")),
                ));
            }
        }
    }
    write_out(&rows)
}

/// Returns the calls of all processes of the server by name, for each request.
fn trace(build: &Recipe, scenario: Scenario) -> Result<BTreeMap<String, f64>> {
    let running = start(build)?;
    let mut load = Load::new(scenario.plan(&running))?;
    faultless(load.run(Pace::Requests(COUNTED / 10))?)?;
    let processes = cpu::family(running.pid())?;
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f"]).stdin(Stdio::null());
    for pid in &processes {
        strace.arg("-p").arg(pid.to_string());
    }
    let mut strace = strace
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run strace")?;
    let mut output = BufReader::new(strace.stderr.take().context("strace has no output")?).lines();
    for _ in &processes {
        let line = output.next().context("strace ended")?.context("strace")?;
        if !line.contains("attached") {
            return Err(format!("strace: {line}").into());
        }
    }
    let report = faultless(load.run(Pace::Requests(COUNTED))?)?;
    let pid = Pid::from_raw(strace.id().cast_signed());
    kill(pid, Signal::SIGINT).context("cannot stop strace")?;
    let mut calls = BTreeMap::new();
    for line in output.map_while(|line| line.ok()) {
        // % time, seconds, usecs/call, calls, errors or nothing, the name
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let (5 | 6, Some(Ok(count)), Some(name)) = (
            fields.len(),
            fields.get(3).map(|count| count.parse::<f64>()),
            fields.last(),
        ) && *name != "total"
        {
            calls.insert((*name).to_owned(), count / report.requests as f64);
        }
    }
    strace.wait().context("cannot wait for strace")?;
    running.stop()?;
    if calls.is_empty() {
        return Err("strace counted no calls".into());
    }
    Ok(calls)
}
