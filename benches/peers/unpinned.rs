//! Requests a second on all CPUs, and the latency at half the requests that a server can answer one at a time.

use std::time::Duration;

use crate::common::failure::Result;
use crate::common::load::{Load, Pace, Plan, Report};
use crate::common::server::Running;
use crate::common::window::faultless;

/// Connections at the same time.
pub(crate) const CONNECTIONS: usize = 64;

/// Requests on the way at the same time on each, for the requests a second.
pub(crate) const DEPTH: usize = 32;

/// The windows of a latency measurement, because one request in a thousand is looked for.
const LATENCY_WINDOWS: u32 = 4;

/// The figures of a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unpinned {
    /// Requests a second, [`DEPTH`] at a time on each connection.
    pub(crate) per_second: f64,
    /// Requests a second of the open loop: half of those answered one at a time on each connection.
    pub(crate) rate: f64,
    /// 99 and 999 of 1,000 requests of the open loop took no longer, in microseconds.
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// Measures a server, on all CPUs that this program may use.
pub(crate) fn measure(running: &Running, warm_up: Duration, window: Duration) -> Result<Unpinned> {
    let plan = Plan {
        connections: CONNECTIONS,
        depth: DEPTH,
        ..running.plan()
    };
    let deep = closed(plan, warm_up, window)?;
    let plan = Plan { depth: 1, ..plan };
    let single = closed(plan, warm_up, window)?;
    let rate = per_second(&single) / 2.0;
    let pace = Pace::Rate {
        per_second: rate,
        time: LATENCY_WINDOWS * window,
    };
    let open = faultless(Load::new(plan)?.run(pace)?)?;
    let micros = |part| open.latencies.quantile(part).as_secs_f64() * 1e6;
    Ok(Unpinned {
        per_second: per_second(&deep),
        rate,
        p99: micros(0.99),
        p999: micros(0.999),
    })
}

fn closed(plan: Plan, warm_up: Duration, window: Duration) -> Result<Report> {
    let mut load = Load::new(plan)?;
    faultless(load.run(Pace::Time(warm_up))?)?;
    faultless(load.run(Pace::Time(window))?)
}

fn per_second(report: &Report) -> f64 {
    report.requests as f64 / report.elapsed.as_secs_f64()
}
