//! The scenarios, and the goals of fdpassd.

use std::time::Duration;

use crate::catalogue::Server;
use crate::common::failure::Result;
use crate::common::load::{Payload, Plan};
use crate::common::server::Running;
use crate::common::window::{self, micros_each};

/// Connections at the same time, in every scenario.
const CONNECTIONS: usize = 16;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// One request per connection.
    One,
    /// Ten requests per connection, one after the other.
    Ten,
    /// Small requests on long connections, one at a time on each.
    Ping,
    /// The same, 32 at a time.
    Deep,
    /// Objects of 1 KiB, one at a time.
    Kilo,
    /// Objects of 64 KiB, one at a time.
    Large,
    /// Strings of 64 KiB, one at a time.
    Text,
    /// Memory of a client that is connected and silent.
    Idle,
    /// Latency of other clients while the calls of one block its worker.
    Stall,
    /// Requests a second on all CPUs, and latency at half of that.
    Unpinned,
}

impl Scenario {
    /// The scenarios that measure CPU time, in the order of the table.
    pub(crate) const TIMED: [Scenario; 7] = [
        Scenario::One,
        Scenario::Ten,
        Scenario::Ping,
        Scenario::Deep,
        Scenario::Kilo,
        Scenario::Large,
        Scenario::Text,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Scenario::One => "one request per connection",
            Scenario::Ten => "ten per connection",
            Scenario::Ping => "ping, depth 1",
            Scenario::Deep => "ping, depth 32",
            Scenario::Kilo => "1 KiB object",
            Scenario::Large => "64 KiB object",
            Scenario::Text => "64 KiB string",
            Scenario::Idle => "idle client",
            Scenario::Stall => "latency with a blocking call",
            Scenario::Unpinned => "ping, depth 32, all CPUs",
        }
    }

    /// Returns depth, requests per connection and payload.
    fn shape(self) -> (usize, Option<u64>, Payload) {
        match self {
            Scenario::One => (1, Some(1), Payload::Ping),
            Scenario::Ten => (1, Some(10), Payload::Ping),
            Scenario::Ping | Scenario::Idle | Scenario::Stall | Scenario::Unpinned => {
                (1, None, Payload::Ping)
            }
            Scenario::Deep => (32, None, Payload::Ping),
            Scenario::Kilo => (1, None, Payload::Kilo),
            Scenario::Large => (1, None, Payload::Large),
            Scenario::Text => (1, None, Payload::Text),
        }
    }

    /// Returns whether this server can be measured.
    pub(crate) fn suits(self, server: Server) -> bool {
        match self {
            Scenario::One | Scenario::Ten | Scenario::Ping => true,
            Scenario::Deep
            | Scenario::Kilo
            | Scenario::Large
            | Scenario::Text
            | Scenario::Unpinned => server.reads_frames_in_pieces(),
            // A reply over HTTP is not known byte for byte.
            Scenario::Idle => server.most_connections().is_none() && server != Server::Njs,
            Scenario::Stall => matches!(server, Server::Fdpassd | Server::Node),
        }
    }

    pub(crate) fn plan(self, running: &Running) -> Plan {
        let (depth, per_connection, payload) = self.shape();
        let connections = running
            .server
            .most_connections()
            .map_or(CONNECTIONS, |most| most.min(CONNECTIONS));
        Plan {
            connections,
            depth,
            per_connection,
            payload,
            ..running.plan()
        }
    }

    /// Returns the server's CPU time in a window after a warm-up, in microseconds for each client (short connections,
    /// with connect and close) or each request (long ones).
    pub(crate) fn measure(
        self,
        running: &Running,
        warm_up: Duration,
        window: Duration,
    ) -> Result<f64> {
        let plan = self.plan(running);
        let is_short = plan.per_connection.is_some();
        let (report, spent) = window::measure(running, plan, warm_up, window)?;
        let units = if is_short {
            report.connections
        } else {
            report.requests
        };
        micros_each(spent, units)
    }
}

/// A goal of fdpassd.
pub(crate) struct Goal {
    pub(crate) scenario: Scenario,
    /// The highest ratio to `against`, or bytes without it.
    pub(crate) most: f64,
    pub(crate) against: Option<Server>,
}

/// The goals, in the order of the table.
pub(crate) const GOALS: [Goal; 9] = [
    Goal {
        scenario: Scenario::One,
        most: 1.4,
        against: Some(Server::Reuseport),
    },
    Goal {
        scenario: Scenario::One,
        most: 0.2,
        against: Some(Server::Node),
    },
    Goal {
        scenario: Scenario::Ping,
        most: 1.12,
        against: Some(Server::Echo),
    },
    Goal {
        scenario: Scenario::Deep,
        most: 1.38,
        against: Some(Server::Echo),
    },
    Goal {
        scenario: Scenario::Kilo,
        most: 1.31,
        against: Some(Server::Echo),
    },
    Goal {
        scenario: Scenario::Large,
        most: 0.68,
        against: Some(Server::Tokio),
    },
    Goal {
        scenario: Scenario::Text,
        most: 0.60,
        against: Some(Server::Tokio),
    },
    // Time for each request: 1.25 times as many requests a second.
    Goal {
        scenario: Scenario::Unpinned,
        most: 0.80,
        against: Some(Server::Tokio),
    },
    Goal {
        scenario: Scenario::Idle,
        most: 240.0,
        against: None,
    },
];
