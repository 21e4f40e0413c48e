//! When requests are made: as fast as replies come, or by the clock.

use std::time::{Duration, Instant};

/// How long and how fast a run goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Closed loop: this number of requests, each as soon as a reply makes room.
    Requests(u64),
    /// Closed loop: no new request after this time.
    Time(Duration),
    /// Open loop: requests fall due at this rate, whatever becomes of those before.
    Rate { per_second: f64, time: Duration },
}

/// The rest of a run.
pub(crate) enum Source {
    Count {
        left: u64,
    },
    Until {
        end: Instant,
    },
    Schedule {
        begin: Instant,
        step: f64,
        next: u64,
        count: u64,
    },
}

impl Source {
    pub(crate) fn new(pace: Pace, now: Instant) -> Self {
        match pace {
            Pace::Requests(left) => Source::Count { left },
            Pace::Time(time) => Source::Until { end: now + time },
            Pace::Rate { per_second, time } => Source::Schedule {
                begin: now,
                step: 1.0 / per_second,
                next: 0,
                count: (time.as_secs_f64() * per_second) as u64,
            },
        }
    }

    /// Up to `wanted` requests of a closed loop. A timed run gives all or nothing, so that every
    /// connection with a fixed number of requests makes them all.
    pub(crate) fn take(&mut self, wanted: u64, now: Instant) -> u64 {
        match self {
            Source::Count { left } => {
                let taken = wanted.min(*left);
                *left -= taken;
                taken
            }
            Source::Until { end } if now < *end => wanted,
            Source::Until { .. } | Source::Schedule { .. } => 0,
        }
    }

    /// When the next request of an open loop falls due; `None` in a closed loop and at the end.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        match self {
            Source::Schedule {
                begin,
                step,
                next,
                count,
            } if next < count => Some(*begin + Duration::from_secs_f64(*next as f64 * step)),
            _ => None,
        }
    }

    /// The next request of an open loop, if it has fallen due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(u64, Instant)> {
        let due = self.next_due().filter(|due| *due <= now)?;
        let Source::Schedule { next, .. } = self else {
            return None;
        };
        *next += 1;
        Some((*next - 1, due))
    }
}
