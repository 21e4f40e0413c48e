//! The state of a drain, and what the next master gets of it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::proto::control::DrainMode;
use crate::sys::clock;

/// A drain that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrainState {
    pub(crate) mode: DrainMode,
    /// The end of the notice; `None` if it is over.
    pub(super) notice_until: Option<Instant>,
}

/// A drain in the state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedDrain {
    mode: DrainMode,
    /// The end of the notice, in nanoseconds of CLOCK_MONOTONIC; `None` if it is over.
    #[serde(default)]
    notice_until: Option<u64>,
}

impl DrainState {
    /// Returns a drain without a notice.
    pub(crate) fn without_notice(mode: DrainMode) -> DrainState {
        DrainState {
            mode,
            notice_until: None,
        }
    }

    /// Returns whether the notice is over.
    pub(super) fn is_in_force(self) -> bool {
        self.notice_until.is_none()
    }

    /// Returns whether listeners refuse clients now.
    pub(crate) fn refuses(self) -> bool {
        self.is_in_force() && self.mode == DrainMode::Refuse
    }

    /// Returns the rest of the notice; `None` if it is over.
    pub(crate) fn notice_left(self, now: Instant) -> Option<Duration> {
        let until = self.notice_until?;
        Some(until.saturating_duration_since(now))
    }

    /// Returns the drain for the next master. The clock of a master is not that of the next one.
    pub(crate) fn saved(self, now: Instant) -> SavedDrain {
        let left = self.notice_left(now);
        SavedDrain {
            mode: self.mode,
            notice_until: left.map(|left| clock::after(clock::monotonic(), left)),
        }
    }
}

impl SavedDrain {
    /// Restores the drain. If the notice is over, the first iteration of the loop reports that.
    pub(crate) fn restored(self, now: Instant) -> DrainState {
        let left = |until: u64| Duration::from_nanos(until.saturating_sub(clock::monotonic()));
        DrainState {
            mode: self.mode,
            notice_until: self.notice_until.map(|until| now + left(until)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_continues_in_the_next_master() {
        let now = Instant::now();
        let notice = Duration::from_secs(100);
        let drain = DrainState {
            mode: DrainMode::Queue,
            notice_until: Some(now + notice),
        };
        let text = serde_json::to_string(&drain.saved(now)).expect("JSON");
        let saved: SavedDrain = serde_json::from_str(&text).expect("it was written");
        let later = now + Duration::from_secs(7);
        let left = saved
            .restored(later)
            .notice_left(later)
            .expect("it is not over");
        assert!(left <= notice && left > notice / 2, "{left:?}");
        let over = SavedDrain {
            notice_until: Some(1),
            ..saved
        };
        let over = over.restored(later);
        assert_eq!(over.notice_left(later), Some(Duration::ZERO));
        let in_force = DrainState::without_notice(DrainMode::Refuse);
        assert_eq!(in_force.saved(now).restored(later), in_force);
        let read: SavedDrain = serde_json::from_str(r#"{"mode":"refuse"}"#).expect("a drain");
        assert!(read.restored(now).refuses());
    }
}
