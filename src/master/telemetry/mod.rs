//! Telemetry: what happened, and how often.

pub(crate) mod counters;
pub(crate) mod events;
