//! The reports and the end of a runtime in the worker's loop.

use std::time::Duration;

use super::Runtime;
use super::queues::Report;
use crate::worker::WorkerLoop;
use crate::worker::away::ExecutorKind;
use crate::worker::kill_points::{self, Point};
use crate::worker::methods::{Failure, Service};
use crate::worker::reply::Fault;

/// How long the runtime may take to drop all futures when the master is gone.
const HALT_TIMEOUT: Duration = Duration::from_secs(1);

impl WorkerLoop<'_> {
    fn runtime(&mut self) -> Option<&mut Runtime> {
        match &mut self.executor.as_mut()?.kind {
            ExecutorKind::Runtime(runtime) => Some(runtime),
            ExecutorKind::App(_) => None,
        }
    }

    /// Completes the requests whose futures have ended.
    pub(in crate::worker) fn take_outcomes(&mut self, service: &mut dyn Service) {
        let reports = match self.runtime().map(Runtime::take_reports) {
            Some(Some(reports)) => reports,
            Some(None) => return self.break_off("the runtime's thread has ended"),
            None => return,
        };
        kill_points::pass(Point::AfterAppRead);
        let now = self.time.now;
        if let Some(executor) = &mut self.executor {
            executor.pulse.active_at = now;
        }
        for report in reports {
            match report {
                Report::Ended { id, result, .. } => self.complete_future(id, result, service),
                Report::Alive => {
                    if let Some(executor) = &mut self.executor {
                        executor.pulse.probed = None;
                        executor.pulse.is_blocked = false;
                    }
                }
            }
        }
    }

    fn complete_future(
        &mut self,
        id: u64,
        result: Option<super::MethodResult>,
        service: &mut dyn Service,
    ) {
        let outcome = match &result {
            Some(Ok(result)) => Ok(&**result),
            Some(Err(fault)) => Err(fault.clone()),
            // The client has left, or gets `timeout` instead.
            None => Err(Fault::from(Failure::Panicked)),
        };
        if self.complete_request(id, outcome, service).is_err() {
            log::error!("a future of no request has ended");
        }
    }

    /// Ends the runtime when the master is gone, before the clients are packed: a request that is still away may be
    /// executed again.
    pub(in crate::worker) fn halt_futures(&mut self, service: &mut dyn Service) {
        let Some(runtime) = self.runtime() else {
            return;
        };
        if !runtime.finish(HALT_TIMEOUT) {
            log::error!("a future blocks its thread; what it does now may be done twice");
        }
        for report in runtime.take_reports().unwrap_or_default() {
            // Futures that were dropped are recovered as interrupted ones.
            if let Report::Ended {
                id,
                result: Some(result),
                ..
            } = report
            {
                self.complete_future(id, Some(result), service);
            }
        }
    }
}
