//! The one clock that all processes of the machine agree on.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Full seconds of `CLOCK_MONOTONIC`: the machine has not been up for the 136 years that they suffice for.
#[must_use]
pub fn monotonic_seconds() -> u32 {
    (monotonic() / 1_000_000_000) as u32
}

/// Nanoseconds that the calling thread has run on a CPU: `CLOCK_THREAD_CPUTIME_ID` of clock_gettime(2).
#[must_use]
pub fn thread_cpu() -> u64 {
    // As above.
    let ran = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has a clock");
    ran.tv_sec().unsigned_abs() * 1_000_000_000 + ran.tv_nsec().unsigned_abs()
}

/// How long ago that was, by `CLOCK_MONOTONIC`.
#[must_use]
pub fn since(ns: u64) -> Duration {
    Duration::from_nanos(monotonic().saturating_sub(ns))
}

/// Nanoseconds of `CLOCK_MONOTONIC` (clock_gettime(2)): comparable between processes, hence fit for shared memory.
#[must_use]
pub fn monotonic() -> u64 {
    // It fails for an unknown clock or a bad pointer only.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC is always there");
    now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs()
}
