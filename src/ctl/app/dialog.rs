//! The worker's side of the protocol, and what an app may answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::hello;
use super::process::Process;
use crate::proto::app::{AppError, AppFault, AppRequest, FromApp, Hello, MetricKind, Samples};
use crate::proto::names::{ClientId, Peer};
use crate::proto::own_metrics::is_count;
use crate::proto::text::Escaped;
use crate::sys::process::Exit;

/// An app that has begun to serve. Its frames are checked as they arrive.
#[derive(Debug)]
pub(super) struct AppDialog {
    pub(super) process: Process,
    pub(super) hello: Hello,
    timeout: Duration,
    last_id: u64,
    last_probe: u64,
    /// Requests without an answer.
    out: BTreeSet<u64>,
    answers: BTreeMap<u64, AppResult>,
    alive: BTreeSet<u64>,
    /// Whether a probe was answered before. If not, one check reports that, and the others do without.
    answers_probes: bool,
}

/// The JSON of a result, or the error.
pub(super) type AppResult = Result<String, AppFault>;

/// The client of all requests.
pub(super) const CLIENT: ClientId = ClientId(4711);

impl AppDialog {
    /// Starts a program and waits for its hello.
    ///
    /// # Errors
    /// Why there is no app, as a sentence, with the last lines of its log.
    pub(super) fn start(command: &[String], timeout: Duration) -> Result<AppDialog, DialogFailure> {
        let process = Process::start(command)
            .map_err(|e| format!("the program cannot be started: {}: {e}", command[0]))?;
        let mut app = AppDialog {
            process,
            hello: Hello {
                methods: Vec::new(),
                concurrency: 0,
                name: None,
                version: None,
                closes: false,
                metrics: Vec::new(),
            },
            timeout,
            last_id: 0,
            last_probe: 0,
            out: BTreeSet::new(),
            answers: BTreeMap::new(),
            alive: BTreeSet::new(),
            answers_probes: false,
        };
        let begun = app.wait_for("its hello", |app| app.is_greeted().then_some(()));
        match begun.and_then(|()| hello::check(&app.hello)) {
            Ok(()) => Ok(app),
            Err(text) => Err(app.failure(text)),
        }
    }

    /// Returns a failure with the end of the log.
    pub(super) fn failure(&self, text: String) -> DialogFailure {
        let lines = &self.process.error.lines;
        let log = lines[lines.len().saturating_sub(LOG_LINES)..].to_vec();
        DialogFailure { text, log }
    }

    fn is_greeted(&self) -> bool {
        self.hello.concurrency > 0
    }

    /// Returns whether the app has a method.
    pub(super) fn has(&self, method: &str) -> bool {
        self.hello.methods.iter().any(|known| known.name == method)
    }

    /// Waits until `found` returns something.
    ///
    /// # Errors
    /// Why `awaited` did not come: the time is over, the app has ended, or has sent what it may not send.
    pub(super) fn wait_for<T>(
        &mut self,
        awaited: &str,
        mut found: impl FnMut(&mut AppDialog) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + self.timeout;
        loop {
            self.take_frames()?;
            if let Some(found) = found(self) {
                return Ok(found);
            }
            if let Some(exit) = self.process.exit() {
                return Err(format!("the app {} before {awaited} came", ended(exit)));
            }
            if self.process.has_wire_ended() && self.exit_within(EXIT_DELAY)?.is_none() {
                return Err(format!("the app closed descriptor 3 before {awaited} came"));
            }
            if self.process.exit().is_some() {
                continue;
            }
            if Instant::now() >= deadline {
                let what = match self.process.is_sending() {
                    true => "; it does not read what it is sent",
                    false => "",
                };
                return Err(format!(
                    "{awaited} did not come within {}{what}{}",
                    humantime::format_duration(self.timeout),
                    self.hint()
                ));
            }
            self.process.turn(deadline)?;
        }
    }

    /// Returns what may be the cause if nothing comes.
    fn hint(&self) -> &'static str {
        let output = &self.process.output;
        match output.contains("\"hello\"") || output.contains("\"id\"") {
            true => "; it writes frames to standard output, which is its log",
            false => "",
        }
    }

    fn take_frames(&mut self) -> Result<(), String> {
        while let Some(frame) = self.process.frames.pop_front() {
            let parsed = FromApp::parse(&frame)
                .map_err(|e| format!("a frame is not right: {e}: {}", excerpt(&frame)))?;
            match parsed {
                FromApp::Failed(reason) if !self.is_greeted() => {
                    return Err(format!("the app failed to start: {}", Escaped(reason)));
                }
                FromApp::Hello(_) if self.is_greeted() => {
                    return Err("a second hello came".to_owned());
                }
                FromApp::Hello(hello) if hello.concurrency == 0 => {
                    return Err("concurrency is 0".to_owned());
                }
                FromApp::Hello(hello) => self.hello = *hello,
                _ if !self.is_greeted() => {
                    return Err(format!(
                        "the first frame is not a hello: {}",
                        excerpt(&frame)
                    ));
                }
                FromApp::Failed(_) => return Err("\"failed\" came after hello".to_owned()),
                FromApp::Answer { id, outcome } => {
                    let outcome = outcome.map(|json| json.get().to_owned());
                    self.take_answer(id, outcome)?;
                }
                FromApp::Alive(number) if number == 0 || number > self.last_probe => {
                    return Err(format!(
                        "an answer to probe {number} came, which was not sent"
                    ));
                }
                FromApp::Alive(number) => {
                    self.alive.insert(number);
                }
                FromApp::Metrics(samples) => self.check_metrics(&samples)?,
                FromApp::Health(_) | FromApp::Nothing => {}
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, id: u64, outcome: Result<String, AppError>) -> Result<(), String> {
        if !self.out.remove(&id) {
            let why = match self.answers.contains_key(&id) || id <= self.last_id {
                true => "is answered already",
                false => "was not sent",
            };
            return Err(format!("an answer to request {id} came, which {why}"));
        }
        let answer = match outcome {
            Ok(json) => Ok(json),
            Err(AppError::Fault(fault)) => Err(fault),
            Err(AppError::Malformed(why)) => return Err(format!("request {id}: {why}")),
        };
        self.answers.insert(id, answer);
        Ok(())
    }

    fn check_metrics(&self, samples: &BTreeMap<String, Samples>) -> Result<(), String> {
        for (name, samples) in samples {
            let declared = self.hello.metrics.iter().find(|m| m.name == *name);
            match (declared.map(|metric| metric.kind), samples) {
                (None, _) => return Err(format!("the metric {name:?} is not declared")),
                (Some(MetricKind::Counter), Samples::Add(number)) if is_count(*number) => {}
                (Some(MetricKind::Counter), Samples::Add(number)) => {
                    return Err(format!("{number:?} is not a count for the metric {name:?}"));
                }
                (Some(MetricKind::Histogram), Samples::Observe(_)) => {}
                _ => return Err(format!("the metric {name:?} is of another type")),
            }
        }
        Ok(())
    }

    /// Returns a request, which counts as sent, and its frame.
    pub(super) fn frame(&mut self, method: &str, params: Option<&str>) -> (u64, Vec<u8>) {
        self.last_id += 1;
        let (id, address) = (self.last_id, Ipv4Addr::LOCALHOST);
        self.out.insert(id);
        let request = AppRequest {
            id,
            method,
            client: CLIENT,
            peer: Peer::V4 {
                address,
                port: 4242,
            },
            via: None,
            attempt: 1,
            timeout: Some(30_000),
        };
        let mut body = Vec::new();
        let params: Option<&RawValue> = params.and_then(|text| serde_json::from_str(text).ok());
        // Writing to a Vec does not fail.
        let _ = request.write(&mut body, params.map(|params| params.get().as_bytes()));
        (id, framed(&body))
    }

    /// Sends a request, and returns its number.
    pub(super) fn request(&mut self, method: &str, params: Option<&str>) -> u64 {
        let (id, frame) = self.frame(method, params);
        self.process.send(&frame);
        id
    }

    /// Sends a message.
    pub(super) fn send(&mut self, message: &str) {
        self.process.send(&framed(message.as_bytes()));
    }

    /// Waits for the answer to a request.
    ///
    /// # Errors
    /// As [`AppDialog::wait_for`].
    pub(super) fn answer(&mut self, id: u64) -> Result<AppResult, String> {
        let awaited = format!("the answer to request {id}");
        self.wait_for(&awaited, |app| app.answers.remove(&id))
    }

    /// Waits for the first answer to one of two requests, and returns which it is.
    pub(super) fn first_of(&mut self, ids: [u64; 2]) -> Result<u64, String> {
        self.wait_for("the answer to either request", |app| {
            ids.into_iter().find(|id| app.answers.contains_key(id))
        })
    }

    /// Sends a request and waits for its answer.
    pub(super) fn call(&mut self, method: &str, params: Option<&str>) -> Result<AppResult, String> {
        let id = self.request(method, params);
        self.answer(id)
    }

    /// Sends a probe and waits for its answer.
    pub(super) fn probe(&mut self) -> Result<(), String> {
        self.last_probe += 1;
        let number = self.last_probe;
        self.send(&format!("{{\"probe\":{number}}}"));
        let awaited = format!("the answer to probe {number}");
        self.wait_for(&awaited, |app| app.alive.remove(&number).then_some(()))?;
        self.answers_probes = true;
        Ok(())
    }

    /// Waits until the app has read everything that was sent.
    pub(super) fn read_all(&mut self) -> Result<(), String> {
        // Nothing reports that.
        const PAUSE: Duration = Duration::from_millis(1);
        let deadline = Instant::now() + self.timeout;
        while !self.process.has_read_all() {
            if Instant::now() >= deadline || self.process.has_wire_ended() {
                return Err("the app does not read what it is sent".to_owned());
            }
            self.process.turn(Instant::now() + PAUSE)?;
        }
        self.take_frames()
    }

    /// Checks that nothing more comes, such as a second answer: whatever the app has written before it answers a probe.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        match self.answers_probes {
            true => self.probe(),
            false => self.take_frames(),
        }
    }

    /// Waits for the end of the program.
    pub(super) fn exit(&mut self) -> Result<Exit, String> {
        let exit = self.exit_within(self.timeout)?;
        self.take_frames()?;
        exit.ok_or_else(|| {
            let timeout = humantime::format_duration(self.timeout);
            format!("the app still ran {timeout} later")
        })
    }

    fn exit_within(&mut self, time: Duration) -> Result<Option<Exit>, String> {
        let deadline = Instant::now() + time;
        while self.process.exit().is_none() && Instant::now() < deadline {
            self.process.turn(deadline)?;
        }
        Ok(self.process.exit())
    }
}

/// Why a check failed, and the end of the app's log.
#[derive(Clone, Debug)]
pub(super) struct DialogFailure {
    pub(super) text: String,
    pub(super) log: Vec<String>,
}

impl From<String> for DialogFailure {
    fn from(text: String) -> DialogFailure {
        let log = Vec::new();
        DialogFailure { text, log }
    }
}

/// Returns the frame of a body.
pub(super) fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes(), body].concat()
}

/// Returns how a program has ended, as a predicate.
pub(super) fn ended(exit: Exit) -> String {
    match exit {
        Exit::Status(_) => exit.to_string(),
        Exit::Signal { .. } => format!("was {exit}"),
    }
}

/// Returns the beginning of a text for a sentence.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT)]);
    let dots = if bytes.len() > EXCERPT { "…" } else { "" };
    format!("{}{dots}", Escaped(text))
}

/// How long a process that ends may keep its descriptors closed.
const EXIT_DELAY: Duration = Duration::from_secs(5);

/// The bytes of an excerpt.
const EXCERPT: usize = 80;

/// The lines of the log in a failure.
const LOG_LINES: usize = 12;
