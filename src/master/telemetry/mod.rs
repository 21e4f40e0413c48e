//! Telemetry: what happened, and how often.

use std::time::SystemTime;

use crate::logging;
use crate::master::telemetry::counters::{Counts, Tally, Totals};
use crate::master::telemetry::events::EventLog;

pub(crate) mod by_kind;
pub(crate) mod counters;
pub(crate) mod events;
pub(crate) mod without_client;

/// Everything that is counted and reported.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) counts: Counts,
    /// Totals of workers that are gone.
    pub(crate) tally: Tally,
    pub(crate) events: EventLog,
}

impl Telemetry {
    /// Returns the state of a daemon that applies its configuration now.
    pub(crate) fn new() -> Telemetry {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Telemetry {
            counts: Counts {
                applied_at: now.as_secs(),
                ..Counts::default()
            },
            tally: Tally::default(),
            events: EventLog::default(),
        }
    }

    /// Returns the number of log lines that could not be written, by masters or workers.
    pub(crate) fn log_errors(&self, totals: &Totals) -> u64 {
        self.counts
            .log_errors
            .saturating_add(logging::errors())
            .saturating_add(totals.log_errors)
    }
}
