//! The end of an app: how it has ended, and how its worker ends it.

use std::time::{Duration, Instant};

use super::output::read_to_end;
use super::wire::WriteEnd;
use super::{App, ReadEnd};
use crate::proto::app::FromApp;
use crate::proto::channel::{AppEnd, AppGone};
use crate::proto::text::Escaped;
use crate::sys::poll::{self, Interest};
use crate::sys::process::{self, Exit};

/// The status of an app that has exited, if it is not known.
const UNKNOWN_STATUS: i32 = -1;

impl App {
    /// Returns how the app has ended, with the line of its output that explains it; `None` if it runs. `when` follows
    /// the exit in the reason.
    pub(in crate::worker) fn end(&mut self, when: &str) -> Option<AppGone> {
        let end = match &self.line {
            Some(line) => line.end_of(&self.process.pidfd),
            None => process::end_of(&self.process.pidfd),
        };
        let exit = match end {
            Ok(None) => return None,
            Ok(Some(exit)) => exit,
            Err(e) => {
                let reason = format!("cannot be waited for: {e}");
                // The status of a forked app is not known if its zygote has ended. A request may have caused the end.
                let end = match self.line {
                    Some(_) => AppEnd::Exited(UNKNOWN_STATUS),
                    None => AppEnd::BrokeProtocol,
                };
                return Some(app_gone(end, reason));
            }
        };
        let end = match exit {
            Exit::Status(status) => AppEnd::Exited(status),
            Exit::Signal { number, .. } => AppEnd::Killed(number),
        };
        let was = match exit {
            Exit::Status(_) => "",
            Exit::Signal { .. } => "was ",
        };
        let how = format!("{was}{exit}{when}");
        let explained = self.with_last_line(how.clone());
        // The app has written nothing about a signal from outside.
        let reason = if exit.is_own_doing() { explained } else { how };
        Some(app_gone(end, reason))
    }

    /// Adds the line of its output that explains the app's end to the reason, and the place that it names, if there are.
    pub(super) fn with_last_line(&mut self, reason: String) -> String {
        read_to_end(&mut self.output, &mut self.last_lines);
        match self.last_lines.reason(Instant::now()) {
            Some(line) => format!("{reason}: {}", Escaped(line)),
            None => reason,
        }
    }

    /// Counts the samples that the app has sent since its last answer. Returns whether more frames may follow.
    fn read_last_samples(&mut self) -> bool {
        let read = self.wire.read();
        let mut incoming = self.wire.take_incoming();
        let is_right = loop {
            match incoming.next() {
                Ok(Some(body)) => {
                    if let Ok(FromApp::Metrics(samples)) = FromApp::parse(body) {
                        self.count(&samples);
                    }
                }
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        self.wire.give_back(incoming);
        is_right && !matches!(read, Err(_) | Ok(ReadEnd::Closed))
    }

    /// Ends the app, which has no requests: sends it `stop`, shuts down the wire, and waits for its exit. Its last
    /// samples are counted, and its last lines logged. If it has not exited within the time, dropping it kills it.
    pub(in crate::worker) fn finish(&mut self, within: Duration) {
        #[derive(serde::Serialize)]
        struct Stop {
            stop: u64,
        }
        let stop = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.wire.queue_json(&Stop { stop });
        let mut streams = self.output.take();
        let begin = Instant::now();
        let (mut is_stopped, mut has_frames) = (false, true);
        loop {
            // The app may have ended already.
            let flushed = self.wire.flush();
            if !is_stopped && !matches!(flushed, Ok(WriteEnd::Full | WriteEnd::Shortage)) {
                self.wire.end();
                is_stopped = true;
            }
            let left = within.saturating_sub(begin.elapsed());
            let step = left.min(Duration::from_millis(20));
            let has_ended = poll::wait_for(&self.process.pidfd, Interest::Read, step);
            has_frames = has_frames && self.read_last_samples();
            read_to_end(&mut streams, &mut self.last_lines);
            match has_ended {
                Ok(false) if !left.is_zero() => {}
                Ok(false) => {
                    let pid = self.process.pid;
                    log::warn!("app {pid} did not exit within {within:?}; killing it");
                    return;
                }
                _ => break,
            }
        }
        read_to_end(&mut streams, &mut self.last_lines);
        self.output = streams;
    }
}

fn app_gone(end: AppEnd, reason: String) -> AppGone {
    let subject = "app".to_owned();
    AppGone {
        end,
        subject,
        reason,
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Also the processes of its group, in case the app itself has ended. Its zygote collects it after this.
        process::kill_app(&self.process);
    }
}
