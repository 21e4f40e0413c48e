//! The table of results, and what is computed from them.

use std::io::Write;

use crate::catalogue::Server;
use crate::common::grid::{row, with_range, write_grid};
use crate::common::results::Results;
use crate::common::spread::Spread;
use crate::scenario::{GOALS, Scenario};

/// Writes all results in Markdown.
pub(crate) fn all(results: &Results, out: &mut impl Write) -> std::io::Result<()> {
    let mut rows = vec![row("server", Scenario::ALL.map(|s| s.title().to_owned()))];
    for server in Server::ALL {
        if results.skipped.contains_key(&server) {
            continue;
        }
        let cells = Scenario::ALL.map(|scenario| cell(results, scenario, server));
        rows.push(row(server.title(), cells));
    }
    writeln!(
        out,
        "\nCPU time of a request in all processes of the server, and latency of a lone client: medians; in brackets the\n\
         ratio to the counterpart, and the difference to the built-in method\n"
    )?;
    write_grid(out, &rows)?;
    writeln!(out, "\nGoals\n")?;
    write_grid(out, &goals(results))?;
    for (server, why) in &results.skipped {
        writeln!(out, "\nskipped: {}: {why}", server.title())?;
    }
    for failure in &results.failures {
        writeln!(out, "\nFAILED: {failure}")?;
    }
    Ok(())
}

fn cell(results: &Results, scenario: Scenario, server: Server) -> String {
    let Some(micros) = results.micros(scenario, server) else {
        return "-".to_owned();
    };
    let micros = micros.median;
    let against = match scenario {
        Scenario::Lone => (server != Server::Native).then_some(Server::Native),
        _ => server.counterpart(),
    };
    match against.and_then(|against| relation(results, scenario, server, against)) {
        Some(relation) if scenario == Scenario::Lone => {
            format!("{micros:.1} us ({:+.1})", relation.median)
        }
        Some(relation) => format!("{micros:.1} us ({:.2})", relation.median),
        None => format!("{micros:.1} us"),
    }
}

fn goals(results: &Results) -> Vec<Vec<String>> {
    let head = ["wanted", "reached", "verdict"].map(str::to_owned);
    let mut rows = vec![row("goal", head)];
    for goal in &GOALS {
        let (unit, digits) = match goal.scenario {
            Scenario::Lone => (" us", 1),
            _ => ("", 2),
        };
        let reached = relation(results, goal.scenario, goal.server, goal.against);
        let verdict = match reached {
            None => "-",
            Some(reached) if reached.median <= goal.most => "met",
            Some(_) => "MISSED",
        };
        let shown = reached.map_or("-".to_owned(), |r| with_range(r, digits, unit));
        let (scenario, server) = (goal.scenario.title(), goal.server.title());
        rows.push(row(
            &format!("{scenario}: {server} / {}", goal.against.title()),
            [format!("<= {}{unit}", goal.most), shown, verdict.to_owned()],
        ));
    }
    rows
}

/// Returns the ratio to `against`, or the difference for the lone client, computed in each round.
fn relation(
    results: &Results,
    scenario: Scenario,
    server: Server,
    against: Server,
) -> Option<Spread> {
    results.relation(scenario, server, against, |value, base| match scenario {
        Scenario::Lone => value - base,
        _ => value / base,
    })
}
