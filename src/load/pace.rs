//! When requests are made: as fast as replies come, or by the clock.

use std::time::{Duration, Instant};

/// How long a run is, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Closed loop: this number of requests, each as soon as a reply makes room.
    Requests(u64),
    /// Closed loop: no new request after this time.
    Time(Duration),
    /// Open loop: requests fall due at this rate, whatever becomes of those before.
    Rate {
        /// Requests a second.
        per_second: f64,
        /// No request is due after this time.
        time: Duration,
    },
}

/// The requests of a run that are not made yet.
#[derive(Debug)]
pub(super) enum RequestSource {
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

impl RequestSource {
    pub(super) fn new(pace: Pace, now: Instant) -> RequestSource {
        match pace {
            Pace::Requests(left) => RequestSource::Count { left },
            Pace::Time(time) => RequestSource::Until { end: now + time },
            Pace::Rate { per_second, time } => RequestSource::Schedule {
                begin: now,
                step: 1.0 / per_second,
                next: 0,
                count: (time.as_secs_f64() * per_second) as u64,
            },
        }
    }

    /// Takes up to `wanted` requests of a closed loop, and returns their number. A timed run gives all or nothing, so that
    /// every connection with a fixed number of requests makes them all.
    pub(super) fn take(&mut self, wanted: u64, now: Instant) -> u64 {
        match self {
            RequestSource::Count { left } => {
                let taken = wanted.min(*left);
                *left -= taken;
                taken
            }
            RequestSource::Until { end } if now < *end => wanted,
            RequestSource::Until { .. } | RequestSource::Schedule { .. } => 0,
        }
    }

    /// Returns when the next request of an open loop is due; `None` in a closed loop and at the end.
    pub(super) fn next_due(&self) -> Option<Instant> {
        match self {
            RequestSource::Schedule {
                begin,
                step,
                next,
                count,
            } if next < count => Some(*begin + Duration::from_secs_f64(*next as f64 * step)),
            _ => None,
        }
    }

    /// Takes the next request of an open loop, if it is due: its index, and when it was due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(u64, Instant)> {
        let due = self.next_due().filter(|due| *due <= now)?;
        let RequestSource::Schedule { next, .. } = self else {
            return None;
        };
        *next += 1;
        Some((*next - 1, due))
    }

    /// Makes no further requests.
    pub(super) fn end(&mut self) {
        *self = RequestSource::Count { left: 0 };
    }
}
