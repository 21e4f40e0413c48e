//! The measured values, and the results computed from them.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::catalogue::Server;
use crate::common::failure::Result;
use crate::common::spread::Spread;
use crate::idle::PerClient;
use crate::scenario::{Goal, Scenario};
use crate::stall::Latency;

/// CPU times by round, memory, and the servers without values with the reasons.
pub(crate) struct Figures {
    pub(crate) rounds: u32,
    times: BTreeMap<(Scenario, Server), BTreeMap<u32, f64>>,
    memory: BTreeMap<Server, PerClient>,
    /// Latencies without the client whose calls block, and with it.
    stalls: BTreeMap<Server, Vec<[Latency; 2]>>,
    /// Servers that are not in the table, and why.
    pub(crate) skipped: BTreeMap<Server, String>,
    /// Failures of servers in the table.
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

    /// Adds the microseconds for each client or request.
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

    /// Returns a value of the latencies without the blocking client and with it, over all rounds.
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

    /// Returns the microseconds over all rounds.
    pub(crate) fn micros(&self, scenario: Scenario, server: Server) -> Option<Spread> {
        Spread::of(
            self.times
                .get(&(scenario, server))?
                .values()
                .copied()
                .collect(),
        )
    }

    /// Returns the ratio to `against`, computed in each round.
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

    /// Returns the value of a server for a goal: a ratio, or bytes.
    pub(crate) fn reached(&self, goal: &Goal, server: Server) -> Option<f64> {
        match goal.against {
            Some(against) => self
                .ratio(goal.scenario, server, against)
                .map(|spread| spread.median),
            None => self.memory(server).map(|bytes| bytes.pss),
        }
    }

    /// Returns an error if a server failed; a missed goal or a missing peer is none.
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
