//! The scenarios, and the goals of apps.

use std::time::Duration;

use crate::catalogue::Server;
use crate::common::failure::Result;
use crate::common::load::{Payload, Plan};
use crate::common::server::Running;
use crate::common::window::{self, micros_each};

/// Connections at the same time, except for a lone client.
const CONNECTIONS: usize = 16;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// Requests of 38 bytes, one at a time on each connection.
    Small,
    /// Objects of 1 KiB, one at a time on each connection.
    Kilo,
    /// The latency of the small requests of one client.
    Lone,
}

impl Scenario {
    pub(crate) const ALL: [Scenario; 3] = [Scenario::Small, Scenario::Kilo, Scenario::Lone];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Scenario::Small => "38 bytes",
            Scenario::Kilo => "1 KiB object",
            Scenario::Lone => "lone request, p50",
        }
    }

    /// Returns whether this server can be measured: each can.
    pub(crate) fn suits(self, _: Server) -> bool {
        true
    }

    fn plan(self, running: &Running) -> Plan {
        let (connections, payload) = match self {
            Scenario::Small => (CONNECTIONS, Payload::Ping),
            Scenario::Kilo => (CONNECTIONS, Payload::Kilo),
            Scenario::Lone => (1, Payload::Ping),
        };
        Plan {
            connections,
            payload,
            ..running.plan()
        }
    }

    /// Returns microseconds, measured in a window after a warm-up: the CPU time of a request, or the median latency of
    /// the lone client.
    pub(crate) fn measure(
        self,
        running: &Running,
        warm_up: Duration,
        window: Duration,
    ) -> Result<f64> {
        let plan = self.plan(running);
        let (report, spent) = window::measure(running, plan, warm_up, window)?;
        let each = micros_each(spent, report.requests)?;
        Ok(match self {
            Scenario::Lone => report.latencies.quantile(0.5).as_secs_f64() * 1e6,
            _ => each,
        })
    }
}

/// A goal: the highest ratio of CPU times, or for the lone client the highest difference in microseconds.
pub(crate) struct Goal {
    pub(crate) scenario: Scenario,
    pub(crate) server: Server,
    pub(crate) against: Server,
    pub(crate) most: f64,
}

const fn goal(scenario: Scenario, server: Server, against: Server, most: f64) -> Goal {
    Goal {
        scenario,
        server,
        against,
        most,
    }
}

/// The goals, in the order of the table.
pub(crate) const GOALS: [Goal; 17] = [
    goal(Scenario::Small, Server::PyJson, Server::Asyncio, 1.15),
    goal(Scenario::Kilo, Server::PyJson, Server::Asyncio, 1.2),
    goal(
        Scenario::Small,
        Server::AsyncJson,
        Server::AsyncioTasks,
        1.15,
    ),
    goal(Scenario::Kilo, Server::AsyncJson, Server::AsyncioTasks, 1.2),
    goal(Scenario::Small, Server::AsyncJson, Server::Asyncio, 1.15),
    goal(Scenario::Kilo, Server::AsyncJson, Server::Asyncio, 1.2),
    goal(
        Scenario::Small,
        Server::PyOrjson,
        Server::AsyncioOrjson,
        1.15,
    ),
    goal(
        Scenario::Kilo,
        Server::PyOrjson,
        Server::AsyncioOrjson,
        1.25,
    ),
    goal(Scenario::Small, Server::Node, Server::Cluster, 1.1),
    goal(Scenario::Kilo, Server::Node, Server::Cluster, 1.1),
    goal(Scenario::Small, Server::Go, Server::Goroutines, 1.5),
    goal(Scenario::Kilo, Server::Go, Server::Goroutines, 1.5),
    goal(Scenario::Small, Server::PyJson, Server::Uvicorn, 0.25),
    goal(Scenario::Lone, Server::PyJson, Server::Native, 25.0),
    goal(Scenario::Lone, Server::PyOrjson, Server::Native, 25.0),
    goal(Scenario::Lone, Server::Node, Server::Native, 25.0),
    goal(Scenario::Lone, Server::Go, Server::Native, 45.0),
];
