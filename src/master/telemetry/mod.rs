//! Telemetry: what happened, and how often.

use std::time::SystemTime;

use crate::master::telemetry::counters::{Counts, Tally};
use crate::master::telemetry::events::EventLog;

pub(crate) mod counters;
pub(crate) mod events;

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
}
