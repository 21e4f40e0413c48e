//! What was measured, and what follows from it.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::catalogue::Server;
use crate::failure::Result;
use crate::idle::PerClient;
use crate::scenario::{Goal, Scenario};
use crate::stall::Latency;

/// The middle of several values, and how far they spread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// `None` of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Spread {
            median,
            least,
            most,
        })
    }
}

/// CPU times by round, memory, and who is missing why.
pub(crate) struct Figures {
    pub(crate) rounds: u32,
    times: BTreeMap<(Scenario, Server), BTreeMap<u32, f64>>,
    memory: BTreeMap<Server, PerClient>,
    /// Without the client whose calls block, and with it.
    stalls: BTreeMap<Server, Vec<[Latency; 2]>>,
    /// Servers that are not in the table, and why.
    pub(crate) skipped: BTreeMap<Server, String>,
    /// What went wrong with those that are.
    pub(crate) failures: Vec<String>,
}

impl Figures {
    pub(crate) fn new(rounds: u32) -> Self {
        Figures {
            rounds,
            times: BTreeMap::new(),
            memory: BTreeMap::new(),
            stalls: BTreeMap::new(),
            skipped: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

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

    /// Microseconds for each client or request.
    pub(crate) fn add(&mut self, scenario: Scenario, server: Server, round: u32, micros: f64) {
        self.times
            .entry((scenario, server))
            .or_default()
            .insert(round, micros);
    }

    pub(crate) fn add_memory(&mut self, server: Server, bytes: PerClient) {
        self.memory.insert(server, bytes);
    }

    pub(crate) fn add_stall(&mut self, server: Server, latencies: [Latency; 2]) {
        self.stalls.entry(server).or_default().push(latencies);
    }

    /// Of all rounds, what is asked for of the latencies without that client and with it.
    pub(crate) fn stall(
        &self,
        server: Server,
        of: impl Fn(&[Latency; 2]) -> f64,
    ) -> Option<Spread> {
        Spread::of(self.stalls.get(&server)?.iter().map(of).collect())
    }

    pub(crate) fn memory(&self, server: Server) -> Option<PerClient> {
        self.memory.get(&server).copied()
    }

    /// Microseconds over all rounds.
    pub(crate) fn micros(&self, scenario: Scenario, server: Server) -> Option<Spread> {
        Spread::of(
            self.times
                .get(&(scenario, server))?
                .values()
                .copied()
                .collect(),
        )
    }

    /// How many times as much as `against`, round by round.
    pub(crate) fn ratio(
        &self,
        scenario: Scenario,
        server: Server,
        against: Server,
    ) -> Option<Spread> {
        let base = self.times.get(&(scenario, against))?;
        let times = self.times.get(&(scenario, server))?;
        Spread::of(
            times
                .iter()
                .filter_map(|(round, micros)| Some(micros / base.get(round)?))
                .collect(),
        )
    }

    /// What a server has reached of a goal: a ratio, or bytes.
    pub(crate) fn reached(&self, goal: &Goal, server: Server) -> Option<f64> {
        match goal.against {
            Some(against) => self
                .ratio(goal.scenario, server, against)
                .map(|spread| spread.median),
            None => self.memory(server).map(|bytes| bytes.pss),
        }
    }

    /// An error if something was wrong with a server; a missed goal and a missing peer are none.
    pub(crate) fn verdict(&self) -> Result<()> {
        if self.skipped.contains_key(&Server::Fdpassd) {
            return Err("fdpassd was not measured".into());
        }
        match self.failures.len() {
            0 => Ok(()),
            1 => Err("one measurement failed".into()),
            n => Err(format!("{n} measurements failed").into()),
        }
    }
}
