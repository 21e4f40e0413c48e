//! Events: the master keeps the last [`MAX_EVENTS`], and sends them on request, at once or when the next occurs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::log::LogLevel;
use super::super::names::{ClientId, Generation, WorkerId};

/// The most events that are kept; older ones are dropped.
pub const MAX_EVENTS: usize = 1024;

/// The longest wait of one request for an event. A longer wait takes another request.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// Params of `events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsAfter {
    /// Only events with a higher number; all that are kept without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// How many seconds to wait when there is none, from 0 to 60; 0 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<f64>,
}

/// The events asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// The oldest first.
    pub events: Vec<Event>,
    /// The highest number so far, for the next request.
    pub last: u64,
    /// Events with a higher number that are no longer kept.
    pub lost: u64,
    /// Workers that are ready.
    pub workers: u32,
    /// Connected clients.
    pub clients: u64,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The event's number. Numbers count up from 1 for as long as the daemon lives.
    pub id: u64,
    /// The time, in seconds since the Unix epoch.
    pub at: f64,
    /// The event's importance.
    pub level: LogLevel,
    /// The kind of event.
    pub event: Kind,
    /// The sentence in the log.
    pub message: String,
    /// The subject of the event.
    #[serde(flatten)]
    pub about: About,
}

/// The subject of an event. Fields that do not apply are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// The worker's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The worker's seat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<u32>,
    /// The worker's generation, or that of a reload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientId>,
    /// The number of clients that moved, or were connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
    /// The desired number of workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// The user that requested it over the control socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The process that requested it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<u32>,
}

named_variants! {
    /// A kind of event.
    Kind {
        /// The daemon serves.
        Started = "started",
        /// The clients of the previous master were taken over.
        TookOver = "took_over",
        /// The daemon is stopping.
        Stopping = "stopping",
        /// A worker's process was started.
        WorkerStarted = "worker_started",
        /// A worker serves.
        WorkerReady = "worker_ready",
        /// A worker gives up its clients and will exit.
        WorkerDraining = "worker_draining",
        /// A worker ended on request.
        WorkerFinished = "worker_finished",
        /// A worker ended without a request.
        WorkerDied = "worker_died",
        /// A worker could not be started.
        WorkerFailed = "worker_failed",
        /// A worker is stuck; its clients went to others.
        WorkerStalled = "worker_stalled",
        /// A worker that was stuck continues.
        WorkerRevived = "worker_revived",
        /// The daemon's health function reports that a worker cannot do its work.
        WorkerUnhealthy = "worker_unhealthy",
        /// A worker that was unhealthy is healthy again.
        WorkerHealthy = "worker_healthy",
        /// A worker is being killed by the daemon.
        WorkerKilled = "worker_killed",
        /// A worker runs without clients, for an inspection.
        WorkerHeld = "worker_held",
        /// A held worker gets clients again.
        WorkerReleased = "worker_released",
        /// Workers are being replaced on request.
        Recycling = "recycling",
        /// The desired number of workers changed.
        Scaled = "scaled",
        /// Busy clients moved to workers with less to do, or clients to workers that were ready later than others.
        Rebalanced = "rebalanced",
        /// A new configuration is being started.
        ReloadBegun = "reload_begun",
        /// The new configuration is in force.
        ReloadApplied = "reload_applied",
        /// The new configuration was rejected.
        ReloadRejected = "reload_rejected",
        /// The new configuration was rolled back.
        ReloadRolledBack = "reload_rolled_back",
        /// The program of an upgrade is being checked.
        UpgradeBegun = "upgrade_begun",
        /// The program of an upgrade was refused.
        UpgradeRefused = "upgrade_refused",
        /// The daemon runs the program of an upgrade.
        Upgraded = "upgraded",
        /// A listener was opened.
        ListenerOpened = "listener_opened",
        /// Another process that holds a listener's socket has ended it; another one is bound to its address.
        ListenerEnded = "listener_ended",
        /// A listener was closed.
        ListenerClosed = "listener_closed",
        /// The service manager does not keep what the next master needs: a restart would lose all clients.
        StoreLost = "store_lost",
        /// The service manager keeps it again.
        StoreRestored = "store_restored",
        /// The notice of a drain has begun: new clients are still accepted until it is over.
        DrainNotice = "drain_notice",
        /// New clients are no longer accepted, on request.
        Drained = "drained",
        /// Clients are accepted again.
        Undrained = "undrained",
        /// A limit was hit: new clients wait, or were turned away.
        Limit = "limit",
        /// A method is no longer run.
        MethodQuarantined = "method_quarantined",
        /// A method is run again.
        MethodReleased = "method_released",
        /// A client was closed because its requests ended worker after worker.
        ClientGivenUp = "client_given_up",
        /// A client was closed on request.
        ClientKicked = "client_kicked",
        /// The level of the log was changed.
        LogLevelChanged = "log_level_changed",
        /// The log file was opened again.
        LogReopened = "log_reopened",
        /// A request was refused for lack of permission.
        Forbidden = "forbidden",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_flat_and_omits_empty_fields() {
        let about = About {
            worker: Some(WorkerId(7)),
            clients: Some(3),
            ..About::default()
        };
        let (level, message) = (LogLevel::Warn, "worker 7 died".to_owned());
        let event = Event {
            id: 9,
            at: 1.5,
            level,
            event: Kind::WorkerDied,
            message,
            about,
        };
        let text = serde_json::to_string(&event).expect("JSON");
        assert_eq!(
            text,
            r#"{"id":9,"at":1.5,"level":"warn","event":"worker_died","message":"worker 7 died","worker":7,"clients":3}"#
        );
        assert_eq!(
            serde_json::from_str::<Event>(&text).expect("an event"),
            event
        );
        for kind in Kind::ALL {
            assert_eq!(
                serde_json::to_string(&kind).expect("JSON"),
                format!("{:?}", kind.as_str())
            );
        }
    }
}
