//! Whether what a worker counts is believed.
//!
//! A worker writes its counters itself, and a broken one may write anything. So each look at them is compared with the one
//! before: what cannot be true is not added to any total, and what the worker had counted until then stays.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::workers::worker::Worker;
use crate::proto::channel::MethodName;
use crate::proto::names::WorkerId;
use crate::shm::{Counters, Header, MasterShm};
use crate::sys::clock;

/// What is believed of a worker's counters.
#[derive(Debug)]
pub(crate) struct Believed {
    counters: Counters,
    at: Instant,
    is_broken: bool,
}

impl Believed {
    /// Of a worker that has run since then.
    pub(crate) fn new(at: Instant) -> Believed {
        Believed {
            counters: Counters::default(),
            at,
            is_broken: false,
        }
    }

    /// Of a worker whose counters are not believed any more since they were these.
    pub(crate) fn with_counters(counters: Counters, at: Instant) -> Believed {
        Believed {
            counters,
            at,
            is_broken: true,
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What was believed last, if nothing is any more.
    pub(crate) fn last(&self) -> Option<&Counters> {
        self.is_broken.then_some(&self.counters)
    }

    /// Looks at them again. Why they are not believed any more, once.
    ///
    /// By the time that has really passed: workers may have run in a gap of the master's own.
    fn look(&mut self, header: Header<'_>, methods: usize) -> Option<&'static str> {
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

    /// The worker is gone, which was in a turn for so long: all that it counted.
    fn close(&mut self, turn: Duration) {
        self.counters.close(turn);
    }
}

/// How long the turn has lasted in which a worker was when it ended.
fn last_turn(header: Header<'_>) -> Duration {
    let turn = header
        .turn()
        .map_or(0, |turn| clock::monotonic().saturating_sub(turn.since));
    Duration::from_nanos(turn)
}

/// All that a worker counted that a master before had, in its shared memory; or why that is not believed.
pub(crate) fn counted_on(shm: &MasterShm, methods: usize) -> Result<Counters, &'static str> {
    shm.settle();
    let mut counters = Counters::read(shm.header());
    if shm.layout().version() < 2 {
        counters.accept_unrecorded();
    }
    // It was started after the machine.
    let passed = Duration::from_nanos(clock::monotonic());
    match counters.fault(&Counters::default(), passed, methods) {
        Some(fault) => Err(fault),
        None => {
            counters.close(last_turn(shm.header()));
            Ok(counters)
        }
    }
}

impl Master {
    /// Looks at the counters of all workers, so that the totals are those of now.
    pub(crate) fn look_at_counters(&mut self) {
        for id in self.workers.all.keys().copied().collect::<Vec<_>>() {
            self.look_at_counters_of(id);
        }
    }

    fn look_at_counters_of(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.all.get_mut(&id) else {
            return;
        };
        let fault = worker
            .believed
            .look(worker.shm.header(), worker.methods.len());
        if let Some(why) = fault {
            let name = worker.name();
            self.reject_counters(&name, why);
        }
    }

    /// What a worker has counted is not believed.
    pub(crate) fn reject_counters(&mut self, name: &str, why: &str) {
        self.telemetry.counts.rejected_counters += 1;
        log::error!(
            "{name}: its counters cannot be true: {why}; what they add to the totals is left out"
        );
    }

    /// A worker has ended: adds all that it has counted to the totals.
    pub(crate) fn count_in(&mut self, worker: &mut Worker) {
        worker.shm.settle();
        if let Some(why) = worker
            .believed
            .look(worker.shm.header(), worker.methods.len())
        {
            self.reject_counters(&worker.name(), why);
        }
        worker.believed.close(last_turn(worker.shm.header()));
        self.add_counters(worker.seat, worker.believed.counters(), &worker.methods);
    }

    /// Adds what a worker that is gone has counted in this seat to the totals.
    pub(crate) fn add_counters(
        &mut self,
        seat: usize,
        counters: &Counters,
        methods: &[MethodName],
    ) {
        let seat = self.workers.seat(seat);
        seat.totals = seat.totals.plus(counters);
        self.telemetry.tally.add(counters, methods);
    }
}
