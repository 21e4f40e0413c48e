//! The one clock that all processes of the machine agree on.

use nix::time::{ClockId, clock_gettime};

/// Full seconds of `CLOCK_MONOTONIC`: the machine has not been up for the 136 years that they suffice for.
#[must_use]
pub fn monotonic_seconds() -> u32 {
    (monotonic() / 1_000_000_000) as u32
}

/// Nanoseconds of `CLOCK_MONOTONIC` (clock_gettime(2)): comparable between processes, hence fit for a desk.
#[must_use]
pub fn monotonic() -> u64 {
    // It fails for an unknown clock or a bad pointer only.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC is always there");
    now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs()
}
