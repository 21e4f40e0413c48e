//! The measured values, and the results computed from them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;

use crate::catalogue::Server;
use crate::common::failure::Result;
use crate::common::grid::{row, with_range, write_grid};
use crate::common::spread::Spread;
use crate::scenario::{GOALS, Scenario};

/// Microseconds by round, and the servers without values with the reasons.
#[derive(Default)]
pub(crate) struct Figures {
    values: BTreeMap<(Scenario, Server), BTreeMap<u32, f64>>,
    pub(crate) skipped: BTreeMap<Server, String>,
    pub(crate) failures: Vec<String>,
}

impl Figures {
    pub(crate) fn skip(&mut self, server: Server, why: &impl Display) {
        self.skipped.insert(server, why.to_string());
    }

    pub(crate) fn fail(&mut self, scenario: Scenario, server: Server, why: &impl Display) {
        self.failures
            .push(format!("{}, {}: {why}", server.title(), scenario.title()));
    }

    pub(crate) fn complain(&mut self, server: Server, why: &impl Display) {
        self.failures.push(format!("{}: {why}", server.title()));
    }

    pub(crate) fn add(&mut self, scenario: Scenario, server: Server, round: u32, micros: f64) {
        self.values
            .entry((scenario, server))
            .or_default()
            .insert(round, micros);
    }

    /// Returns the microseconds over all rounds.
    fn micros(&self, scenario: Scenario, server: Server) -> Option<Spread> {
        let values = self.values.get(&(scenario, server))?;
        Spread::of(values.values().copied().collect())
    }

    /// Returns the ratio to `against`, or the difference for the lone client, computed in each round.
    fn relation(&self, scenario: Scenario, server: Server, against: Server) -> Option<Spread> {
        let base = self.values.get(&(scenario, against))?;
        let values = self.values.get(&(scenario, server))?;
        let relation = |(round, value): (&u32, &f64)| {
            let base = base.get(round)?;
            Some(match scenario {
                Scenario::Lone => value - base,
                _ => value / base,
            })
        };
        Spread::of(values.iter().filter_map(relation).collect())
    }

    /// Writes all results in Markdown.
    pub(crate) fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let mut rows = vec![row("server", Scenario::ALL.map(|s| s.title().to_owned()))];
        for server in Server::ALL {
            if self.skipped.contains_key(&server) {
                continue;
            }
            let cells = Scenario::ALL.map(|scenario| self.cell(scenario, server));
            rows.push(row(server.title(), cells));
        }
        writeln!(
            out,
            "\nCPU time of a request in all processes of the server, and latency of a lone client: medians; in brackets the\n\
             ratio to the counterpart, and the difference to the built-in method\n"
        )?;
        write_grid(out, &rows)?;
        writeln!(out, "\nGoals\n")?;
        write_grid(out, &self.goals())?;
        for (server, why) in &self.skipped {
            writeln!(out, "\nskipped: {}: {why}", server.title())?;
        }
        for failure in &self.failures {
            writeln!(out, "\nFAILED: {failure}")?;
        }
        Ok(())
    }

    fn cell(&self, scenario: Scenario, server: Server) -> String {
        let Some(micros) = self.micros(scenario, server) else {
            return "-".to_owned();
        };
        let micros = micros.median;
        let against = match scenario {
            Scenario::Lone => (server != Server::Native).then_some(Server::Native),
            _ => server.counterpart(),
        };
        match against.and_then(|against| self.relation(scenario, server, against)) {
            Some(relation) if scenario == Scenario::Lone => {
                format!("{micros:.1} us ({:+.1})", relation.median)
            }
            Some(relation) => format!("{micros:.1} us ({:.2})", relation.median),
            None => format!("{micros:.1} us"),
        }
    }

    fn goals(&self) -> Vec<Vec<String>> {
        let head = ["wanted", "reached", "verdict"].map(str::to_owned);
        let mut rows = vec![row("goal", head)];
        for goal in &GOALS {
            let (unit, digits) = match goal.scenario {
                Scenario::Lone => (" us", 1),
                _ => ("", 2),
            };
            let reached = self.relation(goal.scenario, goal.server, goal.against);
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

    /// Returns an error if a server failed; a missed goal or a server that is not available is none.
    pub(crate) fn verdict(&self) -> Result<()> {
        match self.failures.len() {
            0 => Ok(()),
            1 => Err("one measurement failed".into()),
            n => Err(format!("{n} measurements failed").into()),
        }
    }
}
