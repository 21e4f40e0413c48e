//! The table on standard output, in Markdown.

use std::io::{self, Write, stdout};
use std::time::Duration;

use nix::sys::utsname::uname;

use crate::catalogue::Server;
use crate::common::failure::{Context, Result};
use crate::common::grid::{row, with_range, write_grid};
use crate::common::spread::Spread;
use crate::figures::Figures;
use crate::scenario::{GOALS, Scenario};

/// If the time of the raw echo varies by more than this part, the machine had other work.
const RESTLESS: f64 = 0.2;

/// Prints all results.
pub(crate) fn all(
    figures: &Figures,
    timed: &[Scenario],
    window: Duration,
    cpu: usize,
    clients: u64,
) -> Result<()> {
    let mut out = Vec::new();
    write_all(&mut out, figures, timed, window, cpu, clients)
        .and_then(|()| stdout().write_all(&out))
        .context("cannot write the table")
}

fn write_all(
    out: &mut impl Write,
    figures: &Figures,
    timed: &[Scenario],
    window: Duration,
    cpu: usize,
    clients: u64,
) -> io::Result<()> {
    let kernel = uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    writeln!(
        out,
        "Linux {kernel}, all processes on CPU {cpu}, {} rounds of {window:?} each",
        figures.rounds
    )?;
    if !timed.is_empty() {
        writeln!(
            out,
            "\nCPU time of all processes of the server, ratio to the raw echo: median (range)\n"
        )?;
        write_grid(out, &times(figures, timed))?;
    }
    if let Some(scenario) = timed
        .iter()
        .find(|scenario| is_restless(figures, **scenario))
    {
        let title = scenario.title();
        writeln!(
            out,
            "\nThe raw echo itself varied by more than a fifth ({title}): the machine was not quiet."
        )?;
    }
    let memory = memory(figures);
    if memory.len() > 1 {
        writeln!(
            out,
            "\nMemory of all processes of the server, {clients} idle clients\n"
        )?;
        write_grid(out, &memory)?;
    }
    let stalls = stalls(figures);
    if stalls.len() > 1 {
        let (clients, block) = (crate::stall::CLIENTS, crate::stall::BLOCK);
        writeln!(
            out,
            "\nLatency of {clients} pinging clients while the calls of another block its worker for {block:?}, on all CPUs\n"
        )?;
        write_grid(out, &stalls)?;
    }
    let unpinned = unpinned(figures);
    if unpinned.len() > 1 {
        let (clients, depth) = (crate::unpinned::CONNECTIONS, crate::unpinned::DEPTH);
        writeln!(
            out,
            "\n{clients} clients on all CPUs: requests a second, {depth} at a time on each; latency in an open loop at half of \
             what is answered one at a time\n"
        )?;
        write_grid(out, &unpinned)?;
    }
    writeln!(out, "\nGoals of fdpassd\n")?;
    write_grid(out, &goals(figures))?;
    write_failures(out, figures)
}

fn write_failures(out: &mut impl Write, figures: &Figures) -> io::Result<()> {
    if !figures.results.skipped.is_empty() || !figures.results.failures.is_empty() {
        writeln!(out)?;
    }
    for (server, why) in &figures.results.skipped {
        writeln!(out, "skipped: {}: {why}", server.title())?;
    }
    for failure in &figures.results.failures {
        writeln!(out, "failed: {failure}")?;
    }
    Ok(())
}

fn is_restless(figures: &Figures, scenario: Scenario) -> bool {
    let echo = figures.results.micros(scenario, Server::Echo);
    echo.is_some_and(|echo| echo.most - echo.least > RESTLESS * echo.median)
}

fn times(figures: &Figures, scenarios: &[Scenario]) -> Vec<Vec<String>> {
    let mut rows = vec![row(
        "server",
        scenarios.iter().map(|scenario| scenario.title().to_owned()),
    )];
    let absolute = |scenario: &Scenario| {
        let micros = figures.results.micros(*scenario, Server::Echo);
        micros.map_or("-".to_owned(), |micros| with_range(micros, 2, " us"))
    };
    rows.push(row(Server::Echo.title(), scenarios.iter().map(absolute)));
    for server in Server::ALL {
        if server == Server::Echo || figures.results.skipped.contains_key(&server) {
            continue;
        }
        let ratio = |scenario: &Scenario| {
            let ratio = figures.ratio(*scenario, server, Server::Echo);
            ratio.map_or("-".to_owned(), |ratio| with_range(ratio, 2, ""))
        };
        let cells: Vec<String> = scenarios.iter().map(ratio).collect();
        if cells.iter().any(|cell| cell != "-") {
            rows.push(row(server.title(), cells));
        }
    }
    rows
}

fn memory(figures: &Figures) -> Vec<Vec<String>> {
    let mut rows = vec![row(
        "server",
        ["PSS, bytes a client", "memfds, bytes a client"].map(str::to_owned),
    )];
    for server in Server::ALL {
        if let Some(bytes) = figures.memory(server) {
            rows.push(row(
                server.title(),
                [bytes.pss, bytes.memfds].map(|bytes| format!("{bytes:.0}")),
            ));
        }
    }
    rows
}

fn stalls(figures: &Figures) -> Vec<Vec<String>> {
    let heads = [
        "p99, undisturbed",
        "p99, blocked worker",
        "ratio (range)",
        "slowest, undisturbed",
        "slowest, blocked worker",
    ];
    let mut rows = vec![row("server", heads.map(str::to_owned))];
    for server in Server::ALL {
        let micros =
            |spread: Option<Spread>| spread.map(|spread| format!("{:.0} us", spread.median));
        let cells = [
            micros(figures.stall(server, |[calm, _]| calm.p99)),
            micros(figures.stall(server, |[_, stalled]| stalled.p99)),
            figures
                .stall(server, |[calm, stalled]| stalled.p99 / calm.p99)
                .map(|ratio| with_range(ratio, 1, "")),
            micros(figures.stall(server, |[calm, _]| calm.slowest)),
            micros(figures.stall(server, |[_, stalled]| stalled.slowest)),
        ];
        rows.extend(
            cells
                .into_iter()
                .collect::<Option<Vec<_>>>()
                .map(|cells| row(server.title(), cells)),
        );
    }
    rows
}

fn unpinned(figures: &Figures) -> Vec<Vec<String>> {
    let heads = ["requests a second", "open loop", "p99", "p99.9"];
    let mut rows = vec![row("server", heads.map(str::to_owned))];
    for server in Server::ALL {
        let thousands = |value: f64| format!("{:.0} k/s", value / 1e3);
        let rate = figures.unpinned(server, |all| all.per_second);
        let rate = rate.map(|rate| {
            let [low, high] = rate.quartiles.map(|value| value / 1e3);
            format!("{} ({low:.0}-{high:.0})", thousands(rate.median))
        });
        let micros = |spread: Option<Spread>| {
            spread.map(|spread| {
                let [low, high] = spread.quartiles;
                format!("{:.0} us ({low:.0}-{high:.0})", spread.median)
            })
        };
        let open = figures.unpinned(server, |all| all.rate);
        let cells = [
            rate,
            open.map(|open| thousands(open.median)),
            micros(figures.unpinned(server, |all| all.p99)),
            micros(figures.unpinned(server, |all| all.p999)),
        ];
        let cells: Option<Vec<_>> = cells.into_iter().collect();
        rows.extend(cells.map(|cells| row(server.title(), cells)));
    }
    rows
}

fn goals(figures: &Figures) -> Vec<Vec<String>> {
    let mut rows = vec![row(
        "scenario",
        ["goal", "the floor", "the other build", "fdpassd", ""].map(str::to_owned),
    )];
    for goal in &GOALS {
        let wanted = match goal.against {
            Some(against) => format!("at most {:.2} x {}", goal.most, against.title()),
            None => format!("at most {:.0} bytes", goal.most),
        };
        let shown = |value: Option<f64>| match value {
            None => "-".to_owned(),
            Some(ratio) if goal.against.is_some() => format!("{ratio:.2}"),
            Some(bytes) => format!("{bytes:.0}"),
        };
        let reached = figures.reached(goal, Server::Fdpassd);
        let verdict = match reached {
            None => "not measured",
            Some(value) if value <= goal.most => "met",
            Some(_) => "MISSED",
        };
        let [floor, baseline] =
            [Server::Floor, Server::Baseline].map(|server| shown(figures.reached(goal, server)));
        rows.push(row(
            goal.scenario.title(),
            [wanted, floor, baseline, shown(reached), verdict.to_owned()],
        ));
    }
    rows
}
