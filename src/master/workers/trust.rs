//! Checks whether the counters of a worker are plausible.
//!
//! A worker writes its counters itself, and a broken worker may write anything. So each reading is compared with the
//! one before: implausible counts are added to no total, and the last plausible counters stay.

use std::time::Duration;

use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::master::workers::worker::Worker;
use crate::proto::channel::MethodName;
use crate::shm::own_metrics::OwnMetric;
use crate::shm::{Counters, Header, MasterShm};
use crate::sys::clock;

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
        worker.trusted.close(last_turn(worker.shm.header()));
        self.add_counters(
            worker.seat,
            worker.trusted.counters(),
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
        seat.totals = seat.totals.plus_counters(counters);
        telemetry.tally.add(counters, methods);
    }
}

impl Worker {
    /// Returns the metrics of the daemon's own in the worker, unless its counters are rejected.
    pub(crate) fn own_metrics(&self) -> Vec<OwnMetric> {
        match self.trusted.is_broken {
            true => Vec::new(),
            false => self.shm.own_metrics(),
        }
    }

    fn read_counters(&mut self, telemetry: &mut Telemetry) {
        let fault = self.trusted.read(self.shm.header(), self.methods.len());
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
