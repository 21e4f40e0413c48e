//! Telemetry: what happened, and how often.

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
