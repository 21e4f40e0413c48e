//! One measured window of load.

use std::time::Duration;

use super::cpu::Reading;
use super::failure::Result;
use super::load::{Load, Pace, Plan, Report};
use super::server::Running;

/// Puts this load on a server for a warm-up and a window. Returns the report of the window, and the server's CPU time
/// in it.
pub(crate) fn measure(
    running: &Running,
    plan: Plan,
    warm_up: Duration,
    window: Duration,
) -> Result<(Report, Duration)> {
    let mut load = Load::new(plan)?;
    faultless(load.run(Pace::Time(warm_up))?)?;
    let before = Reading::when_idle(running.pid())?;
    let report = faultless(load.run(Pace::Time(window))?)?;
    let spent = Reading::when_idle(running.pid())?.since(&before)?;
    Ok((report, spent))
}

/// Returns a report only if every reply was right.
pub(crate) fn faultless(report: Report) -> Result<Report> {
    match report.first_error {
        Some(why) => Err(why.into()),
        None => Ok(report),
    }
}

/// Returns microseconds for each of these requests or connections.
pub(crate) fn micros_each(spent: Duration, count: u64) -> Result<f64> {
    if count == 0 {
        return Err("no request was answered in the whole window".into());
    }
    Ok(spent.as_secs_f64() * 1e6 / count as f64)
}
