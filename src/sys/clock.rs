//! Clocks. CLOCK_MONOTONIC is the same for all processes of the machine.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Returns full seconds of `CLOCK_MONOTONIC`, which suffice for 136 years of uptime.
#[must_use]
pub fn monotonic_seconds() -> u32 {
    (monotonic() / 1_000_000_000) as u32
}

/// Returns the nanoseconds that the calling thread has run on a CPU: `CLOCK_THREAD_CPUTIME_ID` of clock_gettime(2).
#[must_use]
pub fn thread_cpu() -> u64 {
    // It fails for an unknown clock or a bad pointer only.
    let ran = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has a clock");
    ran.tv_sec().unsigned_abs() * 1_000_000_000 + ran.tv_nsec().unsigned_abs()
}

/// Returns a duration in nanoseconds. One of more than 584 years is `u64::MAX`, as is the deadline of a wait without
/// end.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the time after a wait, both in nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn after(ns: u64, wait: Duration) -> u64 {
    ns.saturating_add(nanoseconds(wait))
}

/// Returns the instant after a wait that begins now. A wait of more than 584 years is one of 584 years: an instant has
/// no value for all of them.
#[must_use]
pub fn instant_after(wait: Duration) -> Instant {
    Instant::now() + Duration::from_nanos(nanoseconds(wait))
}

/// Returns how long ago an instant of `CLOCK_MONOTONIC`, in ns, was.
#[must_use]
pub fn since(ns: u64) -> Duration {
    Duration::from_nanos(monotonic().saturating_sub(ns))
}

/// Returns nanoseconds of `CLOCK_MONOTONIC` (clock_gettime(2)), which processes that share memory can compare.
#[must_use]
pub fn monotonic() -> u64 {
    // It fails for an unknown clock or a bad pointer only.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC is always there");
    now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs()
}
