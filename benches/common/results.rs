//! The measured values of servers in scenarios.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::catalogue::Server;
use crate::scenario::Scenario;

use super::failure::Result;
use super::spread::Spread;

/// Microseconds by round, and the servers without values with the reasons.
#[derive(Default)]
pub(crate) struct Results {
    values: BTreeMap<(Scenario, Server), BTreeMap<u32, f64>>,
    /// Servers that are not in the table, and why.
    pub(crate) skipped: BTreeMap<Server, String>,
    /// Failures of servers in the table.
    pub(crate) failures: Vec<String>,
}

impl Results {
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

    /// Adds the microseconds for each client or request.
    pub(crate) fn add(&mut self, scenario: Scenario, server: Server, round: u32, micros: f64) {
        self.values
            .entry((scenario, server))
            .or_default()
            .insert(round, micros);
    }

    /// Returns the microseconds over all rounds.
    pub(crate) fn micros(&self, scenario: Scenario, server: Server) -> Option<Spread> {
        let values = self.values.get(&(scenario, server))?;
        Spread::of(values.values().copied().collect())
    }

    /// Returns what `relation` makes of the values of a server and of `against`, computed in each round.
    pub(crate) fn relation(
        &self,
        scenario: Scenario,
        server: Server,
        against: Server,
        relation: impl Fn(f64, f64) -> f64,
    ) -> Option<Spread> {
        let base = self.values.get(&(scenario, against))?;
        let values = self.values.get(&(scenario, server))?;
        let related = |(round, value): (&u32, &f64)| Some(relation(*value, *base.get(round)?));
        Spread::of(values.iter().filter_map(related).collect())
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
