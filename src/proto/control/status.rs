//! The result of `status`: all of the daemon except its clients.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::frame::OrderRule;
use super::super::names::{Generation, WorkerId};
use super::super::paths::shown;
use super::super::proxy::ProxyVersion;
use super::drain::DrainStatus;

/// The daemon's state, as it is visible from outside.
///
/// Totals continue when workers are replaced. `None` is a value that is not known (yet).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's name.
    pub name: String,
    /// The daemon's version.
    pub version: String,
    /// The master's process.
    pub pid: u32,
    /// How long the master has been running.
    pub uptime_seconds: f64,
    /// The number of the configuration in force.
    pub generation: Generation,
    /// The first file of the configuration; none when the embedded default is in force.
    /// [`COMMAND_LINE`](super::COMMAND_LINE) stands for arguments, [`ENVIRONMENT`](super::ENVIRONMENT) for variables
    /// alone.
    #[serde(serialize_with = "shown")]
    pub config_file: Option<PathBuf>,
    /// `least-loaded` or `round-robin`.
    pub dispatch: String,
    /// `exec` or `fork`: how worker processes are made.
    #[serde(default)]
    pub start: String,
    /// The process that forks the workers of the configuration in force, if there is one.
    #[serde(default)]
    pub zygote: Option<u32>,
    /// Whether the daemon is stopping.
    pub stopping: bool,
    /// Whether an operator has stopped the accepting of new clients.
    pub drained: bool,
    /// The drain that an operator has begun, if one is under way.
    #[serde(default)]
    pub drain: Option<DrainStatus>,
    /// Why no clients are accepted at the moment; none when they are.
    pub paused: Option<String>,
    /// The same for programs, also while the daemon stops or restarts; none as well in the status of an older daemon.
    #[serde(default)]
    pub pause: Option<Pause>,
    /// The listeners.
    pub listeners: Vec<ListenerStatus>,
    /// Connected clients.
    pub clients: u64,
    /// The most clients.
    pub max_clients: u64,
    /// Clients ever accepted.
    pub accepted_total: u64,
    /// Of these, clients refused because their address had too many.
    pub refused_total: u64,
    /// Clients that were leased again, for any reason.
    pub moved_total: u64,
    /// Clients that were closed for a reason of the daemon's own, rather than an action of theirs or of an operator.
    pub lost_total: u64,
    /// Requests ever answered, with a result or an error.
    pub requests_total: u64,
    /// Of these, with an error.
    pub errors_total: u64,
    /// Half of the last 10 s' requests of all running workers took no longer.
    #[serde(default)]
    pub p50_seconds: Option<f64>,
    /// 99 of 100 of them took no longer.
    #[serde(default)]
    pub p99_seconds: Option<f64>,
    /// Log lines that could not be written, by the master or a worker.
    pub log_errors_total: u64,
    /// The most bytes of unfinished requests and of unread replies in each worker.
    #[serde(default)]
    pub buffers: u64,
    /// The tightest limit of memory of the daemon's cgroup and those above it, in bytes, as it was when the
    /// configuration was applied; none if there is no limit.
    #[serde(default)]
    pub memory_limit: Option<u64>,
    /// The directory in which each app has a cgroup of its own; none if apps have none.
    #[serde(default, serialize_with = "shown")]
    pub app_cgroups: Option<PathBuf>,
    /// The desired number of workers.
    pub count: u32,
    /// The reason for this number.
    pub count_origin: Origin,
    /// Whether a reload is in progress.
    pub reloading: bool,
    /// How the last reload ended.
    pub last_reload: Option<LastReload>,
    /// Why the configuration in force is not that of the file, as it was when the daemon was restarted.
    pub config_stale: Option<String>,
    /// Configured features that the daemon serves without, each with the reason: the log, the control socket, metrics.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Whether the service manager has confirmed that it keeps what the next master needs: a restart keeps the clients.
    #[serde(default)]
    pub restart_keeps_clients: bool,
    /// Why a restart would lose the clients, although a service manager should keep them.
    #[serde(default)]
    pub store_outage: Option<String>,
    /// Workers that had been ready and ended without a request.
    pub deaths_total: u64,
    /// Workers that ended before they were ready, or could not be started.
    #[serde(default)]
    pub failed_starts_total: u64,
    /// Times that a worker was stuck for longer than `stall-timeout`.
    pub stalls_total: u64,
    /// Requests that were executing when their worker ended, and were run once more.
    pub reruns_total: u64,
    /// Clients that were closed because their requests ended worker after worker.
    pub closed_for_crashes_total: u64,
    /// The events so far, which is the number of the last one.
    #[serde(default)]
    pub events_total: u64,
    /// Methods that are no longer run, because they ended too many workers.
    pub quarantined: Vec<String>,
    /// How unevenly the ready workers are occupied; none while there are no two to compare.
    pub skew: Option<Skew>,
    /// The workers, in the order of their seats.
    pub workers: Vec<WorkerStatus>,
    /// Workers that retire or are held, in the order of their ids.
    pub leaving: Vec<LeavingStatus>,
}

/// How unevenly workers are occupied: the maximum divided by the mean. 1 is even.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skew {
    /// By clients.
    pub clients: f64,
    /// By the share of the last seconds in which they worked; none while no worker does.
    pub busy: Option<f64>,
}

/// The reason for the desired number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The configuration, or its default.
    Config,
    /// A request by `scale`, SIGTTIN or SIGTTOU, which holds until the next reload.
    Runtime,
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastReload {
    /// The time, in seconds since the Unix epoch.
    pub at: u64,
    /// The outcome.
    pub verdict: Verdict,
    /// The reason, unless it was applied.
    pub message: Option<String>,
}

/// The outcome of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The new configuration is in force.
    Applied,
    /// The new configuration was rejected; nothing was changed.
    Rejected,
    /// The new configuration was rolled back; the previous one is in force.
    RolledBack,
}

/// A worker without a seat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeavingStatus {
    /// The worker.
    pub id: WorkerId,
    /// The worker's process.
    pub pid: u32,
    /// The seat that it had.
    pub seat: u32,
    /// The configuration it serves.
    pub generation: Generation,
    /// Whether it retires or is held.
    pub state: WorkerState,
    /// Why the worker must exit.
    pub reason: String,
    /// Why it still runs.
    pub waits_for: String,
    /// When it is killed, from now.
    pub killed_in_seconds: Option<f64>,
    /// Clients leased to it.
    pub clients: u64,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// The listener's address, with the port that is bound.
    pub address: String,
    /// How the listener learns its clients' byte order.
    pub byte_order: OrderRule,
    /// The versions of the PROXY protocol header with which clients begin; none if they begin with a frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyVersion>,
    /// Clients waiting in the kernel to be accepted; none for a Unix socket.
    pub queue: Option<u32>,
    /// Clients that can wait there; none for a Unix socket.
    pub queue_max: Option<u32>,
    /// Clients accepted here.
    pub accepted_total: u64,
    /// Why no client can connect here at the moment; none if clients can.
    #[serde(default)]
    pub outage: Option<String>,
    /// Whether the listener refuses clients because the daemon is drained.
    #[serde(default)]
    pub refuses: bool,
}

/// A worker's seat (its index), and the worker in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The seat, from 0, which stays when the process is replaced.
    pub seat: u32,
    /// The worker; none while its successor waits to be started.
    pub id: Option<WorkerId>,
    /// The worker's process.
    pub pid: Option<u32>,
    /// The configuration it serves.
    pub generation: Generation,
    /// The worker's state.
    pub state: WorkerState,
    /// Clients leased to it.
    pub clients: u64,
    /// Requests it is executing, in its process or in its app.
    pub executing: u64,
    /// Of these, requests that its app or asynchronous methods are executing.
    #[serde(default)]
    pub away: u64,
    /// Requests that wait until its app or asynchronous methods may execute one more.
    #[serde(default)]
    pub waiting: u64,
    /// The worker's app; none if it has none.
    #[serde(default)]
    pub app: Option<AppStatus>,
    /// The runtime of the worker's asynchronous methods; none if it has none.
    #[serde(default)]
    pub runtime: Option<RuntimeStatus>,
    /// The share of the last one to two seconds in which the worker worked, from 0 to 1; none without a process.
    #[serde(default)]
    pub busy: Option<f64>,
    /// Requests answered in this seat.
    pub requests_total: u64,
    /// Of these, with an error.
    pub errors_total: u64,
    /// Handlers that panicked in this seat.
    pub panics_total: u64,
    /// Log lines that workers in this seat could not write.
    pub log_errors_total: u64,
    /// Bytes of unfinished frames and unread replies in it, beyond the 4 KiB that each client may have.
    pub parked_bytes: u64,
    /// Requests a second over the last 10 s, or over the full seconds of a younger process.
    pub requests_per_second: Option<f64>,
    /// Half of these requests took no longer, from being read to their reply being written.
    pub p50_seconds: Option<f64>,
    /// 99 of 100 of them took no longer.
    pub p99_seconds: Option<f64>,
    /// How long this process has been running.
    pub uptime_seconds: Option<f64>,
    /// How long the seat still waits until a successor is started.
    #[serde(default)]
    pub starts_in_seconds: Option<f64>,
    /// Workers in this seat that came after the first.
    pub restarts: u64,
    /// Resident memory of the process.
    pub rss_bytes: Option<u64>,
    /// Why the worker is unhealthy, if it is.
    #[serde(default)]
    pub unhealthy: Option<String>,
    /// Why the worker will be replaced as soon as its successor is ready, if it will.
    #[serde(default)]
    pub replaced_because: Option<String>,
    /// Why the worker before this one ended, if it did so without a request.
    pub last_death: Option<String>,
}

/// The app of a worker: a process that executes methods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// The app's process.
    pub pid: u32,
    /// The app's name, if it has reported one.
    pub name: Option<String>,
    /// The app's version, if it has reported one.
    pub version: Option<String>,
    /// The most requests that it executes at a time.
    pub concurrency: u32,
    /// Resident memory of the process.
    pub rss_bytes: Option<u64>,
}

/// The runtime of a worker: a thread that executes asynchronous methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// The number of the thread.
    pub thread: u32,
    /// The most requests that it executes at a time.
    pub concurrency: u32,
}

named_variants! {
    /// Reasons for which no client is accepted.
    Pause {
        /// No worker is ready.
        NoWorker = "no_worker",
        /// Every worker has as many clients to pick up as are permitted.
        NoCapacity = "no_capacity",
        /// The maximum number of clients is reached.
        Full = "full",
        /// The system is out of descriptors or memory.
        Exhausted = "exhausted",
        /// The operator has drained the daemon.
        Drained = "drained",
        /// The master is leaving: the next one will accept clients.
        Restarting = "restarting",
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pause::NoWorker => "no worker is ready",
            Pause::NoCapacity => "no worker has capacity",
            Pause::Full => "there are as many clients as max-clients allows",
            Pause::Exhausted => "the system is out of descriptors or memory",
            Pause::Drained => "the daemon is drained",
            Pause::Restarting => "the daemon is being restarted",
        })
    }
}

named_variants! {
    /// The state of a worker.
    WorkerState {
        /// The worker's process runs and is not ready yet.
        Starting = "starting",
        /// The worker serves.
        Ready = "ready",
        /// The worker is stuck: it gets no clients, and all but the one that it is stuck with were moved.
        Stalled = "stalled",
        /// The worker is unhealthy: it serves, but gets clients only if no healthy worker has capacity.
        Unhealthy = "unhealthy",
        /// The worker runs without clients until it is released.
        Held = "held",
        /// The worker retires.
        Draining = "draining",
        /// There is no process; the next one starts after its backoff.
        Waiting = "waiting",
    }
}
