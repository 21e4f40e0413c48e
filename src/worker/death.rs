//! Kill points: where the tests let a worker die, in builds with debug assertions. Others know nothing of it.
//!
//! `FDPASSD_DIE_AT=after-write:3` ends each worker process by SIGKILL when it comes to that point for the third time, as
//! a random kill would that strikes just there.

use crate::sys::process;

/// A point in the life of a worker, each named by what has been done and what not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// The lease word says that it is in a turn.
    AfterClaim,
    /// Cursors holds that tells where the bytes to come will lie.
    AfterBegin,
    /// Bytes have been read.
    AfterReceive,
    /// A request was found, and is not marked as executing yet.
    BeforeHandler,
    /// It is marked, and its method is about to be called.
    AfterExec,
    /// The method has returned, and the reply is not committed yet.
    AfterHandler,
    /// What the commit will count is noted.
    BeforeCommit,
    /// The reply is committed, and not counted yet.
    AfterCommit,
    /// The reply is committed and counted.
    AfterAnswered,
    /// Replies are about to be written.
    BeforeWrite,
    /// Half of them have been.
    AmidWrite,
    /// They have been.
    AfterWrite,
    /// What is left was copied to the slot's places, and no cursors tell so yet.
    AmidParking,
    /// Cursors tells so.
    AfterParking,
    /// The turn is over but for the lease word.
    BeforeEnd,
    /// A lease was given up, and the master was not told.
    InDrain,
    /// A client was ended, and the master was not told.
    AfterClosed,
}

/// Dies if the test wants that.
#[inline(always)]
pub(super) fn pass(point: Point) {
    if strikes(point) {
        die();
    }
}

/// Ends this process as kill -9 does.
pub(super) fn die() {
    // A process may always send a signal to itself.
    let _ = process::send(std::process::id(), "KILL");
}

#[cfg(debug_assertions)]
pub(super) use armed::{arm, strikes};

/// There is nothing to arm.
#[cfg(not(debug_assertions))]
pub(super) fn arm() -> Result<(), String> {
    Ok(())
}

/// Never.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) fn strikes(_: Point) -> bool {
    false
}

#[cfg(debug_assertions)]
mod armed {
    use std::num::NonZeroU64;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Point;

    const VARIABLE: &str = "FDPASSD_DIE_AT";

    const NAMES: [(&str, Point); 17] = [
        ("after-claim", Point::AfterClaim),
        ("after-begin", Point::AfterBegin),
        ("after-receive", Point::AfterReceive),
        ("before-handler", Point::BeforeHandler),
        ("after-exec", Point::AfterExec),
        ("after-handler", Point::AfterHandler),
        ("before-commit", Point::BeforeCommit),
        ("after-commit", Point::AfterCommit),
        ("after-answered", Point::AfterAnswered),
        ("before-write", Point::BeforeWrite),
        ("amid-write", Point::AmidWrite),
        ("after-write", Point::AfterWrite),
        ("amid-parking", Point::AmidParking),
        ("after-parking", Point::AfterParking),
        ("before-end", Point::BeforeEnd),
        ("in-drain", Point::InDrain),
        ("after-closed", Point::AfterClosed),
    ];

    /// Where this process dies, and how often it still has to come there.
    static ARMED: OnceLock<(Point, AtomicU64)> = OnceLock::new();

    /// Reads once where this process is to die.
    pub(in super::super) fn arm() -> Result<(), String> {
        let Some(wish) = std::env::var_os(VARIABLE) else {
            return Ok(());
        };
        let (point, times) = parse(&wish.to_string_lossy())?;
        ARMED.get_or_init(|| (point, AtomicU64::new(times)));
        Ok(())
    }

    /// Whether it is to die here and now.
    pub(in super::super) fn strikes(point: Point) -> bool {
        ARMED.get().is_some_and(|(armed, left)| {
            *armed == point && left.fetch_sub(1, Ordering::Relaxed) == 1
        })
    }

    fn parse(wish: &str) -> Result<(Point, u64), String> {
        let parsed = wish.split_once(':').and_then(|(name, times)| {
            let (_, point) = NAMES.iter().find(|(known, _)| *known == name)?;
            Some((*point, times.parse::<NonZeroU64>().ok()?.get()))
        });
        parsed.ok_or_else(|| {
            let known = NAMES.map(|(name, _)| name).join(", ");
            format!("{VARIABLE}={wish} is no kill point: POINT:N, with N from 1 and of the points {known}")
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_kill_point_is_a_known_name_and_a_count_from_one() {
            assert!(
                parse("amid-write:3")
                    .is_ok_and(|(point, times)| point == Point::AmidWrite && times == 3)
            );
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
