//! The zygote of the apps of a generation: the app's program, started once by the zygote of the workers. It loads what
//! its copies share, and forks the app of each worker.
//!
//! Its descriptor 3 is a socket of datagrams, whose other end the forked workers have: no process stands between a
//! worker and the zygote of its app. It ends when all of them have closed that end, and the last of its apps has ended.

use std::io;
use std::os::fd::OwnedFd;

use super::birth::{AppForker, streams};
use super::output::{LastLines, OutputStream, read_to_end};
use super::start::{environment, not_started, program};
use super::{END, OUTPUT, WIRE};
use crate::proto::app::{AppZygoteSpec, FromAppZygote, PRELOAD_VARIABLE};
use crate::proto::text::Escaped;
use crate::sys::poll::{self, Interest, Poller};
use crate::sys::process::{self, AppProcess, Exit, ParentDeathSignal};
use crate::sys::socket::{self, Received};
use crate::worker::start::RETRY_INTERVAL;

/// The longest message, a reason.
const MAX_MESSAGE: usize = 8192;

/// A zygote of apps, as the zygote of the workers has it.
#[derive(Debug)]
pub(in crate::worker) struct AppZygote {
    process: AppProcess,
    requests: OwnedFd,
    output: Option<[OutputStream; 2]>,
    last_lines: LastLines,
}

impl AppZygote {
    /// Starts the program.
    ///
    /// # Errors
    /// Why it cannot be started, for the operator: a sentence without its subject.
    pub(in crate::worker) fn spawn(spec: &AppZygoteSpec) -> Result<AppZygote, String> {
        let spawn = || {
            let (requests, theirs) = socket::message_pair()?;
            let (output, stdio) = streams(spec.app.output)?;
            let mut environment = environment(&spec.app, spec.max_reply);
            environment.insert(PRELOAD_VARIABLE.to_owned(), "1".to_owned());
            // Once it is ready, it outlives this process, because the apps that it has forked may. Until then, the end
            // of this process ends it.
            let program = program(&spec.app, &environment, None, ParentDeathSignal::User1);
            let process = process::spawn_app(program, theirs, stdio)?;
            Ok(AppZygote {
                process,
                requests,
                output,
                last_lines: LastLines::default(),
            })
        };
        spawn().map_err(|e: io::Error| not_started(&spec.app, &e))
    }

    /// Has a poller report its messages, its output and its end.
    pub(in crate::worker) fn watch(&self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.requests, WIRE, Interest::Read)?;
        poller.add(&self.process.pidfd, END, Interest::Read)?;
        for (stream, token) in self.output.iter().flatten().zip(OUTPUT) {
            poller.add(stream, token, Interest::Read)?;
        }
        Ok(())
    }

    /// Handles such an event. Returns whether the zygote has become ready.
    ///
    /// # Errors
    /// Why it cannot fork apps, or no longer: a sentence without its subject.
    pub(in crate::worker) fn attend(
        &mut self,
        token: u64,
        poller: &Poller,
    ) -> Result<bool, String> {
        match token {
            WIRE => return self.receive(poller),
            END => {
                // It may have sent the reason before.
                self.receive(poller)?;
                read_to_end(&mut self.output, &mut self.last_lines);
                let exit = process::end_of(&self.process.pidfd).map_err(|e| e.to_string())?;
                return Err(match exit {
                    // Nothing that it has written explains a signal from outside.
                    Some(exit) if !exit.is_own_doing() => format!("was {exit}"),
                    Some(exit @ Exit::Signal { .. }) => self.with_last_line(format!("was {exit}")),
                    Some(exit) => self.with_last_line(exit.to_string()),
                    None => "has ended".to_owned(),
                });
            }
            output => {
                let index = OUTPUT.iter().position(|own| *own == output);
                let streams = self.output.as_mut();
                if let Some((streams, index)) = streams.zip(index) {
                    streams[index].read(&mut self.last_lines);
                    if streams[index].has_ended() {
                        let _ = poller.remove(&streams[index]);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Receives a message. Returns whether the zygote is ready.
    fn receive(&mut self, poller: &Poller) -> Result<bool, String> {
        let mut buffer = [0; MAX_MESSAGE];
        let received = socket::receive_message(&self.requests, &mut buffer);
        let length = match received.map_err(|e| format!("cannot be read from: {e}"))? {
            Received::Message { length, .. } => length,
            Received::Nothing => return Ok(false),
            Received::Shortage => {
                poll::pause(RETRY_INTERVAL);
                return Ok(false);
            }
            // It is about to exit, and its exit is the better reason.
            Received::Closed => {
                let _ = poller.remove(&self.requests);
                return Ok(false);
            }
        };
        match FromAppZygote::parse(&buffer[..length]) {
            Ok(FromAppZygote::Preloaded) => Ok(true),
            Ok(FromAppZygote::Failed(why)) => {
                // The log has the traceback.
                read_to_end(&mut self.output, &mut self.last_lines);
                Err(format!("cannot preload: {}", Escaped(why)))
            }
            Ok(FromAppZygote::Hello) => Err(NO_ZYGOTE.to_owned()),
            Ok(other) => Err(format!("has broken the protocol: {other:?} is unexpected")),
            Err(why) => Err(format!("has broken the protocol: {}", Escaped(why))),
        }
    }

    fn with_last_line(&self, reason: String) -> String {
        match self.last_lines.reason(std::time::Instant::now()) {
            Some(line) => format!("{reason}: {}", Escaped(line)),
            None => reason,
        }
    }

    /// Returns the connection for a forked worker. Everything else that this process has of the zygote is closed.
    pub(in crate::worker) fn into_forker(self) -> AppForker {
        AppForker::new(self.requests, self.process.pid)
    }
}

/// Why an app without a preload is refused.
const NO_ZYGOTE: &str =
    "cannot be forked: it has sent its hello, and its library knows no app.preload";
