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
    /// The period over which clients get a goaway, if they do.
    pub(super) moves: Option<ClientMoves>,
}

/// The period over which the clients of a drained daemon get a goaway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientMoves {
    pub(super) over: Duration,
    /// The beginning of the period; `None` during the notice.
    pub(super) since: Option<Instant>,
}

/// A drain in the state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedDrain {
    mode: DrainMode,
    /// The end of the notice, in nanoseconds of CLOCK_MONOTONIC; `None` if it is over.
    #[serde(default)]
    notice_until: Option<u64>,
    /// The period over which clients get a goaway, in nanoseconds; `None` if they get none.
    #[serde(default)]
    move_over: Option<u64>,
    /// The end of that period, in nanoseconds of CLOCK_MONOTONIC; `None` if it has not begun.
    #[serde(default)]
    move_until: Option<u64>,
}

impl ClientMoves {
    /// Returns the period with this beginning, unless it has begun before.
    pub(super) fn from(self, since: Option<Instant>) -> ClientMoves {
        ClientMoves {
            since: self.since.or(since),
            ..self
        }
    }
}

impl DrainState {
    /// Returns a drain without a notice.
    pub(crate) fn without_notice(mode: DrainMode) -> DrainState {
        DrainState {
            mode,
            notice_until: None,
            moves: None,
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

    /// Returns the rest of the period over which clients get a goaway; `None` if they get none.
    pub(crate) fn moves_left(self, now: Instant) -> Option<Duration> {
        let ClientMoves { over, since } = self.moves?;
        let passed = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Some(over.saturating_sub(passed))
    }

    /// Returns the drain for the next master. The clock of a master is not that of the next one.
    pub(crate) fn saved(self, now: Instant) -> SavedDrain {
        let left = self.notice_left(now);
        SavedDrain {
            mode: self.mode,
            notice_until: left.map(|left| clock::after(clock::monotonic(), left)),
            move_over: self.moves.map(|moves| clock::nanoseconds(moves.over)),
            move_until: self
                .moves_left(now)
                .filter(|_| self.moves.is_some_and(|moves| moves.since.is_some()))
                .map(|left| clock::after(clock::monotonic(), left)),
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
            moves: self.restored_moves(now),
        }
    }

    fn restored_moves(self, now: Instant) -> Option<ClientMoves> {
        let over = Duration::from_nanos(self.move_over?);
        let since = self.move_until.map(|until| {
            let left = Duration::from_nanos(until.saturating_sub(clock::monotonic()));
            let passed = over.saturating_sub(left);
            now.checked_sub(passed).unwrap_or(now)
        });
        Some(ClientMoves { over, since })
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
            moves: None,
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
        let over = Duration::from_secs(60);
        for since in [None, Some(now)] {
            let moves = Some(ClientMoves { over, since });
            let moving = DrainState { moves, ..in_force };
            let restored = moving.saved(now).restored(now);
            assert!(restored.moves_left(now) > Some(over / 2), "{restored:?}");
            assert_eq!(
                restored.moves.and_then(|moves| moves.since).is_some(),
                since.is_some()
            );
        }
        let read: SavedDrain = serde_json::from_str(r#"{"mode":"refuse"}"#).expect("a drain");
        assert!(read.restored(now).refuses());
    }
}
