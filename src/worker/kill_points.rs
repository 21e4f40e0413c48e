//! Kill points: points at which tests make a worker die, in builds with debug assertions only.
//!
//! `FDPASSD_DIE_AT=after-write:3` kills each worker process by SIGKILL when it reaches that point for the third time.
//! With `after-write:3:panic`, its loop panics there.

use crate::sys::process;

macro_rules! points {
    ($($(#[$doc:meta])* $Point:ident = $name:literal,)*) => {
        /// A kill point.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub(super) enum Point {
            $($(#[$doc])* $Point,)*
        }

        #[cfg(debug_assertions)]
        const POINTS: &[(&str, Point)] = &[$(($name, Point::$Point)),*];
    };
}

points! {
    /// The lease word is claimed.
    AfterClaim = "after-claim",
    /// The cursors to the region of the next bytes are active.
    AfterBegin = "after-begin",
    /// Bytes have been read.
    AfterReceive = "after-receive",
    /// A PROXY protocol header was found, and its address is stored; the cursors are before it.
    BeforeHeader = "before-header",
    /// The cursors are after the header, and the master does not know it yet.
    AfterHeader = "after-header",
    /// A request was found, and `exec` is not set yet.
    BeforeHandler = "before-handler",
    /// `exec` is set, and the method is about to be called.
    AfterExec = "after-exec",
    /// The method has returned, and the reply is not committed yet.
    AfterHandler = "after-handler",
    /// The record of what the commit will count is stored.
    BeforeCommit = "before-commit",
    /// The reply is committed, and not counted yet.
    AfterCommit = "after-commit",
    /// The reply is committed and counted.
    AfterAnswered = "after-answered",
    /// Replies are about to be written.
    BeforeWrite = "before-write",
    /// Half of the replies have been written.
    AmidWrite = "amid-write",
    /// Replies have been written.
    AfterWrite = "after-write",
    /// Left bytes are copied to the slot's regions, and the cursors to them are not active yet.
    AmidParking = "amid-parking",
    /// The cursors to the slot's regions are active.
    AfterParking = "after-parking",
    /// The turn is over except for the lease word.
    BeforeEnd = "before-end",
    /// The frame of a request for the app is parked, and `exec` is not set yet.
    BeforeAway = "before-away",
    /// `exec` is set, and the frame is not in the buffer for the app yet.
    AfterAwayExec = "after-away-exec",
    /// Frames are about to be written to the app.
    BeforeAppWrite = "before-app-write",
    /// Frames have been written to the app.
    AfterAppWrite = "after-app-write",
    /// Answers of the app have been read, and none is committed yet.
    AfterAppRead = "after-app-read",
    /// The order to send a client a goaway is in its flags.
    AfterGoawayBegins = "after-goaway-begins",
    /// A goaway is written, and not committed yet.
    BeforeGoaway = "before-goaway",
    /// A goaway is committed, and not sent yet.
    AfterGoaway = "after-goaway",
    /// A lease was given up, and not reported to the master yet.
    InRetirement = "in-retirement",
    /// A client was closed, and not reported to the master yet.
    AfterClosed = "after-closed",
}

/// Kills this process if the test wants it here.
#[inline(always)]
pub(super) fn pass(point: Point) {
    if is_hit(point) {
        die();
    }
}

/// Kills this process by SIGKILL, or panics if the test wants that.
pub(super) fn die() {
    #[cfg(debug_assertions)]
    assert!(!armed::panics(), "the kill point is reached");
    // A process may always send a signal to itself.
    let _ = process::send(std::process::id(), "KILL");
}

#[cfg(debug_assertions)]
pub(super) use armed::{arm, is_hit};

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub(super) fn arm() -> Result<(), String> {
    Ok(())
}

/// Returns false in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) fn is_hit(_: Point) -> bool {
    false
}

#[cfg(debug_assertions)]
mod armed {
    use std::num::NonZeroU64;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{POINTS, Point};

    const VARIABLE: &str = "FDPASSD_DIE_AT";

    /// Where this process dies.
    static ARMED: OnceLock<ArmedPoint> = OnceLock::new();

    struct ArmedPoint {
        point: Point,
        /// How often the process still must reach that point.
        left: AtomicU64,
        is_panic: bool,
    }

    /// Reads once where this process must die.
    pub(in super::super) fn arm() -> Result<(), String> {
        let Some(wish) = std::env::var_os(VARIABLE) else {
            return Ok(());
        };
        let (point, times, is_panic) = parse(&wish.to_string_lossy())?;
        ARMED.get_or_init(|| ArmedPoint {
            point,
            left: AtomicU64::new(times),
            is_panic,
        });
        Ok(())
    }

    /// Returns whether this process must panic instead of dying by a signal.
    pub(super) fn panics() -> bool {
        ARMED.get().is_some_and(|death| death.is_panic)
    }

    /// Returns whether this process must die here and now.
    pub(in super::super) fn is_hit(point: Point) -> bool {
        ARMED.get().is_some_and(|death| {
            death.point == point && death.left.fetch_sub(1, Ordering::Relaxed) == 1
        })
    }

    fn parse(wish: &str) -> Result<(Point, u64, bool), String> {
        let (rest, is_panic) = match wish.strip_suffix(":panic") {
            Some(rest) => (rest, true),
            None => (wish, false),
        };
        let parsed = rest.split_once(':').and_then(|(name, times)| {
            let (_, point) = POINTS.iter().find(|(known, _)| *known == name)?;
            Some((*point, times.parse::<NonZeroU64>().ok()?.get(), is_panic))
        });
        parsed.ok_or_else(|| {
            let known: Vec<&str> = POINTS.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            format!("{VARIABLE}={wish} is not a kill point: POINT:N or POINT:N:panic, with N from 1 and of the points {known}")
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_kill_point_is_a_known_name_and_a_count() {
            for (wish, panics) in [("amid-write:3", false), ("amid-write:3:panic", true)] {
                let parsed = parse(wish);
                assert!(parsed.is_ok_and(|parsed| parsed == (Point::AmidWrite, 3, panics)));
            }
            for wrong in [
                "",
                "amid-write",
                "amid-write:",
                "amid-write:0",
                "amid-write:-1",
                "amid-lunch:1",
            ] {
                let reason = parse(wrong).map(|_| ()).expect_err(wrong);
                assert!(reason.contains("after-closed"), "{reason}");
            }
        }
    }
}
