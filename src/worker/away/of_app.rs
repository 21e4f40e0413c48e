//! The frames and the end of an app in the worker's loop.

use std::io;

use super::Executor;
use crate::proto::app::FromApp;
use crate::proto::channel::{AppEnd, AppGone};
use crate::proto::text::Escaped;
use crate::worker::WorkerLoop;
use crate::worker::apps::{self, App, IncomingFrames, ReadEnd, fault_of};
use crate::worker::kill_points::{self, Point};
use crate::worker::methods::Service;
use crate::worker::turn::Purpose;

impl WorkerLoop<'_> {
    fn app(&mut self) -> Option<&mut App> {
        self.executor.as_mut()?.app_mut()
    }

    /// Processes an event of the app.
    pub(super) fn attend_app(&mut self, token: u64, service: &mut dyn Service) -> io::Result<()> {
        match token {
            apps::WIRE => self.receive_frames(service),
            apps::END => self.check_end_of_app(service),
            _ => {
                if let Some(executor) = &mut self.executor
                    && let Some(app) = executor.app_mut()
                {
                    app.read_output(token, &self.poller);
                }
                Ok(())
            }
        }
    }

    /// Reads what the app has sent, and completes the requests that it has answered.
    pub(super) fn receive_frames(&mut self, service: &mut dyn Service) -> io::Result<()> {
        let Some(app) = self.app() else {
            return Ok(());
        };
        let read = app.wire.read()?;
        self.note_read(read)?;
        let Some(app) = self.app() else {
            return Ok(());
        };
        let mut incoming = app.wire.take_incoming();
        kill_points::pass(Point::AfterAppRead);
        let processed = self.process_frames(&mut incoming, service);
        let Some(app) = self.app() else {
            return Ok(());
        };
        app.wire.give_back(incoming);
        if let Some(executor) = &mut self.executor {
            executor.pulse.active_at = self.time.now;
        }
        if let Err(wrong) = processed {
            let reason = format!("has broken the protocol: {}", Escaped(wrong));
            self.end_with_executor(AppEnd::BrokeProtocol, reason, service);
        } else if read == ReadEnd::Closed && self.ending.broken.is_none() {
            // If the app exits, its exit status is a better reason.
            if self.app().is_some_and(|app| app.ends_with_wire()) {
                return self.check_end_of_app(service);
            }
            let reason = "has closed descriptor 3".to_owned();
            self.end_with_executor(AppEnd::BrokeProtocol, reason, service);
        }
        Ok(())
    }

    /// Processes the frames that have arrived with the app's hello: no event reports them.
    pub(in crate::worker) fn receive_first_frames(
        &mut self,
        service: &mut dyn Service,
    ) -> io::Result<()> {
        self.receive_frames(service)?;
        match self.send_reports()? {
            true => self.hand_off_clients(service),
            false => Ok(()),
        }
    }

    fn note_read(&mut self, end: ReadEnd) -> io::Result<()> {
        let (poller, now) = (&self.poller, self.time.now);
        match self.executor.as_deref_mut().and_then(Executor::app_mut) {
            Some(app) => app.note_read(end, poller, now),
            None => Ok(()),
        }
    }

    /// Processes all complete frames that were received.
    ///
    /// # Errors
    /// The app's violation of the protocol, for the operator.
    fn process_frames(
        &mut self,
        incoming: &mut IncomingFrames,
        service: &mut dyn Service,
    ) -> Result<(), String> {
        while let Some(body) = incoming.next()? {
            match FromApp::parse(body)? {
                FromApp::Answer { id, outcome } => {
                    let outcome = outcome.map_err(fault_of);
                    self.complete_request(id, outcome, service)
                        .map_err(|_| format!("an answer to request {id}, which is not away"))?;
                }
                FromApp::Hello(_) => return Err("a second hello".to_owned()),
                FromApp::Failed(reason) => return Err(format!("failed after hello: {reason}")),
                FromApp::Alive(_) => {
                    let executor = self.executor.as_mut().ok_or("there is no app")?;
                    executor.pulse.probed = None;
                    executor.pulse.is_blocked = false;
                }
                FromApp::Health(unhealthy) => self.report_health(unhealthy),
                FromApp::Metrics(samples) => {
                    let app = self.app().ok_or("there is no app")?;
                    app.count(&samples);
                }
                FromApp::Nothing => {}
            }
        }
        Ok(())
    }

    /// Ends this worker if its app has ended, after processing the last answers.
    fn check_end_of_app(&mut self, service: &mut dyn Service) -> io::Result<()> {
        for _ in 0..MAX_LAST_READS {
            let Some(app) = self.app() else {
                return Ok(());
            };
            let read = app.wire.read()?;
            let mut incoming = app.wire.take_incoming();
            // The worker ends in any case.
            let _ = self.process_frames(&mut incoming, service);
            if let Some(app) = self.app() {
                app.wire.give_back(incoming);
            }
            self.note_read(read)?;
            if read == ReadEnd::Shortage
                && let Some(executor) = &mut self.executor
                && let Some(app) = executor.app_mut()
                && app.awaits_last_answers(&self.poller)?
            {
                return Ok(());
            }
            if read != ReadEnd::More {
                break;
            }
        }
        if let Some(AppGone { end, reason, .. }) = self.app().and_then(|app| app.end("")) {
            self.end_with_executor(end, reason, service);
        }
        Ok(())
    }

    /// Takes back the requests of which no byte was written to the app: the app cannot have begun them.
    pub(in crate::worker) fn take_back_unwritten(&mut self, service: &mut dyn Service) {
        let Some(executor) = &mut self.executor else {
            return;
        };
        let Some(app) = executor.app() else {
            return;
        };
        let unwritten: Vec<(u64, Option<u32>)> = executor
            .requests
            .all()
            .filter(|(_, away)| app.wire.is_unwritten(away.position))
            .map(|(id, away)| (id, away.slot))
            .collect();
        for (id, slot) in unwritten {
            if let Some(executor) = &mut self.executor {
                executor.requests.remove(id);
            }
            if let Some(slot) = slot {
                self.run_one_turn(slot, &Purpose::TakeBack, service);
            }
        }
    }
}

/// The maximum number of reads after the end of an app.
const MAX_LAST_READS: usize = 64;
