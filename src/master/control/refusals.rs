//! Reports of refused requests.

use std::time::{Duration, Instant};

use crate::master::control::request::ControlRequest;
use crate::master::telemetry::events::EventLog;
use crate::proto::control::{Kind, Refusal, RefusalCode};
use crate::proto::text::Counted;

/// Least time between two log lines about rejected peers: any process that can connect could fill the log.
pub(super) const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Most forbidden requests that are reported in a row.
const MAX_REFUSALS: u32 = 16;

/// Reports of forbidden requests: [`MAX_REFUSALS`] at once, and in the long run one in [`REFUSAL_LOG_INTERVAL`], as for
/// rejected peers.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Number of recent reports, and since when one less counts.
    recent: u32,
    since: Option<Instant>,
    unreported: u64,
}

impl Refusals {
    /// Returns `None` if a forbidden request is not reported, or else how many before it were not.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let seconds = now.duration_since(since).as_secs();
        self.recent = self
            .recent
            .saturating_sub(u32::try_from(seconds).unwrap_or(u32::MAX));
        self.since =
            Some(since + REFUSAL_LOG_INTERVAL * u32::try_from(seconds).unwrap_or(u32::MAX));
        if self.recent >= MAX_REFUSALS {
            self.unreported += 1;
            return None;
        }
        self.recent += 1;
        Some(std::mem::take(&mut self.unreported))
    }

    /// Reports the refusal of a request: a forbidden one as an event, others that would have changed something in the
    /// log.
    pub(super) fn report(
        &mut self,
        request: &ControlRequest,
        refusal: &Refusal,
        events: &mut EventLog,
        now: Instant,
    ) {
        let asker = request.asker();
        let sentence = format!("{asker}: refused: {}", refusal.message);
        match refusal.code {
            RefusalCode::Forbidden => {
                let sentence = match self.admit(now) {
                    Some(0) => sentence,
                    Some(others) => {
                        let others = Counted(others, "earlier request");
                        format!("{sentence}; {others} forbidden")
                    }
                    None => return,
                };
                events.note(Kind::Forbidden, asker.about(), sentence);
            }
            // The rejection has been reported already, with the position in the file.
            RefusalCode::Rejected => {}
            _ if request.changes() => log::warn!("{sentence}"),
            _ => {}
        }
    }
}
