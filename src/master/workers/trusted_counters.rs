//! The counters of a worker that are plausible: see `trust.rs`.

use std::time::{Duration, Instant};

use crate::shm::{Counters, Header};

/// The last counters of a worker that were plausible.
#[derive(Debug)]
pub(crate) struct TrustedCounters {
    counters: Counters,
    at: Instant,
    pub(super) is_broken: bool,
}

impl TrustedCounters {
    /// Creates the record of a worker that has run since `at`.
    pub(crate) fn new(at: Instant) -> TrustedCounters {
        TrustedCounters {
            counters: Counters::default(),
            at,
            is_broken: false,
        }
    }

    /// Creates the record of a worker whose counters are rejected: these were its last plausible ones.
    pub(crate) fn with_counters(counters: Counters, at: Instant) -> TrustedCounters {
        TrustedCounters {
            counters: counters.in_this_version(),
            at,
            is_broken: true,
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the last plausible counters if the later ones were rejected.
    pub(crate) fn last(&self) -> Option<&Counters> {
        self.is_broken.then_some(&self.counters)
    }

    /// Reads the counters again. Returns, once, why they are rejected.
    ///
    /// The comparison uses the time that has really passed: workers may have run in a gap of the master's own.
    pub(super) fn read(&mut self, header: Header<'_>, methods: usize) -> Option<&'static str> {
        if self.is_broken {
            return None;
        }
        let (counters, now) = (Counters::read(header), Instant::now());
        let fault = counters.fault(&self.counters, now.duration_since(self.at), methods);
        match fault {
            None => (self.counters, self.at) = (counters, now),
            Some(_) => self.is_broken = true,
        }
        fault
    }

    /// Adds the last turn of a worker that is gone, which lasted for `turn`.
    pub(super) fn close(&mut self, turn: Duration) {
        self.counters.close(turn);
    }
}
