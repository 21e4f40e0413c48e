//! Checks whether the counters of a worker are plausible.
//!
//! A worker writes its counters itself, and a broken worker may write anything. So each reading is compared with the
//! one before: implausible counts are added to no total, and the last plausible counters stay.

use std::time::{Duration, Instant};

use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::proto::channel::MethodName;
use crate::shm::own_metrics::OwnMetric;
use crate::shm::{Counters, Header, MasterShm};
use crate::sys::clock;

/// The last counters of a worker that were plausible.
#[derive(Debug)]
pub(crate) struct Believed {
    counters: Counters,
    at: Instant,
    is_broken: bool,
}

impl Believed {
    /// Creates the record of a worker that has run since `at`.
    pub(crate) fn new(at: Instant) -> Believed {
        Believed {
            counters: Counters::default(),
            at,
            is_broken: false,
        }
    }

    /// Creates the record of a worker whose counters are rejected: these were its last plausible ones.
    pub(crate) fn with_counters(counters: Counters, at: Instant) -> Believed {
        Believed {
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
    fn read(&mut self, header: Header<'_>, methods: usize) -> Option<&'static str> {
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
    fn close(&mut self, turn: Duration) {
        self.counters.close(turn);
    }
}

/// Returns how long the turn lasted in which a worker ended.
fn last_turn(header: Header<'_>) -> Duration {
    let turn = header
        .turn()
        .map_or(0, |turn| clock::monotonic().saturating_sub(turn.since));
    Duration::from_nanos(turn)
}

/// Returns the counters of a worker of an earlier master from its shared memory, or the reason why they are rejected.
pub(crate) fn counters_of(shm: &MasterShm, methods: usize) -> Result<Counters, &'static str> {
    shm.settle();
    let mut counters = Counters::read(shm.header());
    if shm.layout().version() < 2 {
        counters.accept_unrecorded();
    }
    // The worker was started after the machine.
    let passed = Duration::from_nanos(clock::monotonic());
    match counters.fault(&Counters::default(), passed, methods) {
        Some(fault) => Err(fault),
        None => {
            counters.close(last_turn(shm.header()));
            Ok(counters)
        }
    }
}

impl Workers {
    /// Reads the counters of all workers, so that the totals are current.
    pub(crate) fn read_counters(&mut self, telemetry: &mut Telemetry) {
        for worker in self.all.values_mut() {
            worker.read_counters(telemetry);
        }
    }

    /// Adds the counters of a worker that has ended to the totals.
    pub(super) fn add_last_counters(&mut self, worker: &mut Worker, telemetry: &mut Telemetry) {
        worker.shm.settle();
        worker.read_counters(telemetry);
        worker.believed.close(last_turn(worker.shm.header()));
        self.add_counters(
            worker.seat,
            worker.believed.counters(),
            &worker.methods,
            telemetry,
        );
        telemetry.tally.add_own(worker.own_metrics());
    }

    /// Adds the counters of a worker of this seat that is gone to the totals.
    pub(crate) fn add_counters(
        &mut self,
        seat: usize,
        counters: &Counters,
        methods: &[MethodName],
        telemetry: &mut Telemetry,
    ) {
        let seat = self.seat(seat);
        seat.totals = seat.totals.plus(counters);
        telemetry.tally.add(counters, methods);
    }
}

impl Worker {
    /// Returns the metrics of the daemon's own in the worker, unless its counters are rejected.
    pub(crate) fn own_metrics(&self) -> Vec<OwnMetric> {
        match self.believed.is_broken {
            true => Vec::new(),
            false => self.shm.own_metrics(),
        }
    }

    fn read_counters(&mut self, telemetry: &mut Telemetry) {
        let fault = self.believed.read(self.shm.header(), self.methods.len());
        if let Some(why) = fault {
            reject_counters(&self.name(), why, telemetry);
        }
    }
}

/// Reports that the counters of a worker are rejected.
pub(crate) fn reject_counters(name: &str, why: &str, telemetry: &mut Telemetry) {
    telemetry.counts.rejected_counters += 1;
    log::error!("{name}: invalid counters: {why}; they are not added to the totals");
}
