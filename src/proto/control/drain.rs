//! `drain`: how the daemon is taken out of service.

use serde::{Deserialize, Serialize};

/// The treatment of new clients by a drained daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainMode {
    /// Connections are refused (ECONNREFUSED), so that a load balancer sends clients elsewhere.
    #[default]
    Refuse,
    /// New clients connect and wait in the accept queue of the kernel.
    Queue,
}

/// Params of `drain`. Those that are absent stay as they are in a drain that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Whether to reply only when the last client has left.
    #[serde(default)]
    pub wait: bool,
    /// The time, in seconds, in which new clients are still served; by default that of `drain-notice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<f64>,
    /// The treatment of new clients after the notice; by default connections are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<DrainMode>,
    /// The period, in seconds, over which clients that have asked for a goaway get it after the notice; by default they
    /// do not.
    #[serde(rename = "move", default, skip_serializing_if = "Option::is_none")]
    pub over: Option<f64>,
}

/// The result of `drain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainResult {
    /// Workers that are ready.
    pub workers: u32,
    /// Connected clients.
    pub clients: u64,
    /// The treatment of new clients after the notice.
    #[serde(default = "first_mode")]
    pub mode: DrainMode,
    /// The rest of the notice, in seconds; none if it is over.
    #[serde(default)]
    pub notice: Option<f64>,
    /// The rest of the period over which clients get a goaway, in seconds; none if they get none.
    #[serde(rename = "move", default)]
    pub over: Option<f64>,
    /// Listeners at which new clients wait although all others refuse them: systemd has bound them.
    #[serde(default)]
    pub waiting_at: Vec<String>,
}

/// Returns the mode of version 0.1.0, which did not report it.
fn first_mode() -> DrainMode {
    DrainMode::Queue
}

/// A drain that is under way, in the status.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// The treatment of new clients after the notice.
    pub mode: DrainMode,
    /// The rest of the notice, in seconds; none if it is over.
    pub notice: Option<f64>,
    /// The rest of the period over which clients get a goaway, in seconds; none if they get none.
    #[serde(rename = "move", default)]
    pub over: Option<f64>,
}
