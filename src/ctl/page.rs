//! A page of events, as the control socket returns it.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::figures::are;

/// [`control::Events`](crate::proto::control::Events), with each event as received: a newer daemon may have more kinds.
#[derive(Debug, Deserialize)]
pub(super) struct EventsPage<'a> {
    #[serde(borrow)]
    pub(super) events: Vec<&'a RawValue>,
    pub(super) last: u64,
    pub(super) lost: u64,
    pub(super) workers: u32,
    pub(super) clients: u64,
}

impl EventsPage<'_> {
    /// Returns `… 12 events are forgotten` if events were dropped before this page.
    pub(super) fn gap(&self) -> Option<String> {
        (self.lost > 0).then(|| format!("… {} forgotten", are(self.lost, "event")))
    }
}
