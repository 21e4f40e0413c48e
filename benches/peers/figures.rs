//! The measured values, and the results computed from them.

use std::collections::BTreeMap;

use crate::catalogue::Server;
use crate::common::failure::Result;
use crate::common::results::Results;
use crate::common::spread::Spread;
use crate::idle::PerClient;
use crate::scenario::{Goal, Scenario};
use crate::stall::Latency;
use crate::unpinned::Unpinned;

/// CPU times, memory and latencies.
pub(crate) struct Figures {
    pub(crate) rounds: u32,
    /// CPU times by round.
    pub(crate) results: Results,
    memory: BTreeMap<Server, PerClient>,
    /// Latencies without the client whose calls block, and with it.
    stalls: BTreeMap<Server, Vec<[Latency; 2]>>,
    unpinned: BTreeMap<Server, Vec<Unpinned>>,
}

impl Figures {
    pub(crate) fn new(rounds: u32) -> Self {
        Figures {
            rounds,
            results: Results::default(),
            memory: BTreeMap::new(),
            stalls: BTreeMap::new(),
            unpinned: BTreeMap::new(),
        }
    }

    pub(crate) fn add_memory(&mut self, server: Server, bytes: PerClient) {
        self.memory.insert(server, bytes);
    }

    pub(crate) fn add_stall(&mut self, server: Server, latencies: [Latency; 2]) {
        self.stalls.entry(server).or_default().push(latencies);
    }

    pub(crate) fn add_unpinned(&mut self, server: Server, round: u32, measured: Unpinned) {
        self.unpinned.entry(server).or_default().push(measured);
        let micros = 1e6 / measured.per_second;
        self.results.add(Scenario::Unpinned, server, round, micros);
    }

    /// Returns a value of what was measured on all CPUs, over all rounds.
    pub(crate) fn unpinned(&self, server: Server, of: impl Fn(&Unpinned) -> f64) -> Option<Spread> {
        Spread::of(self.unpinned.get(&server)?.iter().map(of).collect())
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

    /// Returns the ratio to `against`, computed in each round.
    pub(crate) fn ratio(
        &self,
        scenario: Scenario,
        server: Server,
        against: Server,
    ) -> Option<Spread> {
        let ratio = |value, base| value / base;
        self.results.relation(scenario, server, against, ratio)
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
        if self.results.skipped.contains_key(&Server::Fdpassd) {
            return Err("fdpassd was not measured".into());
        }
        self.results.verdict()
    }
}
