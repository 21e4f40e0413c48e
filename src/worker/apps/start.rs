//! The start of an app: from its birth to its hello.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::birth::{AppForker, BornApp, streams};
use super::forked::ZygoteLine;
use super::metrics::AppMetrics;
use super::output::LastLines;
use super::{App, END, END_TIMEOUT, OUTPUT, ReadEnd, WIRE, Wire};
use crate::proto::app::{
    AppInfo, AppSpec, DESCRIPTOR, DESCRIPTOR_VARIABLE, ENVELOPE_LEN, FromApp, Hello,
    MAX_CONCURRENCY, MAX_FRAME_VARIABLE,
};
use crate::proto::channel::{AppEnd, AppGone, AppStarted};
use crate::proto::hardening::{self, StartFailure};
use crate::proto::text::{Escaped, shortened};
use crate::sys::cgroup::{AppCgroupGuard, AppCgroups};
use crate::sys::clock;
use crate::sys::poll::{self, Interest, Poller};
use crate::sys::process::{self, AppProgram, ParentDeathSignal};
use crate::worker::metrics::WorkerMetrics;

/// The token of the channel to the master, during the start.
const MASTER: u64 = u64::MAX;

/// An app that was started, and has not sent its hello yet.
#[derive(Debug)]
pub(in crate::worker) struct StartingApp {
    app: App,
    poller: Poller,
    /// The parent of the app, if a zygote has forked it.
    zygote: Option<u32>,
    /// The most requests at a time by the configuration.
    concurrency: Option<u32>,
}

impl StartingApp {
    /// Starts an app. `cgroups` is the directory for a cgroup of its own, if it gets one; `max_reply` is the longest
    /// reply in bytes. With `forker`, the zygote of the apps forks it; the wait for that ends if `master`, the channel
    /// to the master, ends.
    ///
    /// # Errors
    /// Why it cannot be started, for the operator: a sentence without its subject.
    pub(in crate::worker) fn spawn(
        spec: &AppSpec,
        cgroups: Option<&Path>,
        max_reply: usize,
        forker: Option<AppForker>,
        master: impl AsFd,
    ) -> Result<StartingApp, String> {
        let cgroups = cgroups.and_then(|path| {
            let opened = AppCgroups::open(path);
            opened
                .map_err(|e| log::warn!("{}: {e}", path.display()))
                .ok()
        });
        let born = match forker {
            Some(forker) => forker.fork(spec.output, cgroups.as_ref(), master)?,
            None => spawn(spec, cgroups.as_ref(), max_reply).map_err(|e| not_started(spec, &e))?,
        };
        let zygote = born.line.as_ref().map(ZygoteLine::zygote);
        let not_watched = |e| format!("cannot be watched: {e}");
        let cgroup = cgroups.and_then(|cgroups| own_cgroup(&cgroups, born.process.pid));
        let app = App::new(born, cgroup, max_reply, spec.max_memory);
        let poller = Poller::new(8).map_err(not_watched)?;
        app.watch(&poller).map_err(not_watched)?;
        Ok(StartingApp {
            app,
            poller,
            zygote,
            concurrency: spec.concurrency,
        })
    }

    /// Returns the report of the start.
    pub(in crate::worker) fn started(&self) -> AppStarted {
        AppStarted {
            pid: self.app.process.pid,
            zygote: self.zygote,
        }
    }

    /// Waits for its hello, and declares its `metrics`. `channel` leads to the master, which kills this process if it
    /// takes too long.
    ///
    /// # Errors
    /// Why it cannot serve, for the operator: a sentence without its subject.
    pub(in crate::worker) fn await_hello(
        self,
        channel: impl AsFd,
        metrics: &WorkerMetrics,
    ) -> Result<(App, Hello), String> {
        let StartingApp {
            mut app,
            mut poller,
            concurrency: most,
            ..
        } = self;
        let watched = poller.add(channel, MASTER, Interest::End);
        watched.map_err(|e| format!("cannot be watched: {e}"))?;
        let hello = app.await_hello(&mut poller)?;
        let wanted = hello.concurrency;
        if !(1..=MAX_CONCURRENCY).contains(&wanted) {
            return Err(format!(
                "wants {wanted} requests at a time, not 1 to {MAX_CONCURRENCY}"
            ));
        }
        let concurrency = wanted.min(most.unwrap_or(u32::MAX));
        app.metrics = AppMetrics::declare(&hello.metrics, metrics)
            .map_err(|reason| format!("cannot be used: {reason}"))?;
        app.wants_closes = hello.closes;
        app.info = AppInfo {
            pid: app.process.pid,
            name: hello.name.clone().map(shortened),
            version: hello.version.clone().map(shortened),
            concurrency,
        };
        Ok((app, hello))
    }
}

fn spawn(spec: &AppSpec, cgroups: Option<&AppCgroups>, max_reply: usize) -> io::Result<BornApp> {
    let (wire, theirs) = process::wire()?;
    let (output, stdio) = streams(spec.output)?;
    let environment = environment(spec, max_reply);
    let program = program(spec, &environment, cgroups, ParentDeathSignal::Kill);
    Ok(BornApp {
        process: process::spawn_app(program, theirs, stdio)?,
        line: None,
        wire,
        output,
    })
}

/// Returns the variables of an app.
pub(super) fn environment(spec: &AppSpec, max_reply: usize) -> BTreeMap<String, String> {
    let mut environment = spec.environment.clone();
    environment.insert(DESCRIPTOR_VARIABLE.to_owned(), DESCRIPTOR.to_string());
    let max_frame = max_reply + ENVELOPE_LEN;
    environment.insert(MAX_FRAME_VARIABLE.to_owned(), max_frame.to_string());
    environment
}

/// Returns the program of an app.
pub(super) fn program<'a>(
    spec: &'a AppSpec,
    environment: &'a BTreeMap<String, String>,
    cgroups: Option<&'a AppCgroups>,
    parent_death: ParentDeathSignal,
) -> AppProgram<'a> {
    let identity = spec.identity.as_ref();
    AppProgram {
        command: &spec.command,
        directory: spec.directory.as_deref(),
        environment,
        identity: identity.map(|found| (found.uid, found.gid, found.groups.as_slice())),
        umask: spec.umask,
        cgroups,
        parent_death,
    }
}

/// Returns why a program was not started, with the likely cause in the unit of systemd.
pub(super) fn not_started(spec: &AppSpec, error: &io::Error) -> String {
    let program = Path::new(spec.command.first().map_or("", String::as_str));
    let hint = hardening::hint(StartFailure::Path(program, error.kind()), is_service());
    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("cannot be started: {}: {error}{hint}", program.display())
}

/// Returns the cgroup that an app has.
fn own_cgroup(cgroups: &AppCgroups, pid: u32) -> Option<AppCgroupGuard> {
    let cgroup = cgroups.of_app(pid);
    if cgroup.is_none() {
        log::warn!(
            "app {pid} could not create a cgroup of its own in {}: processes that leave its process group may outlive it",
            cgroups.path().display()
        );
    }
    cgroup.map(|cgroup| AppCgroupGuard(Arc::new(cgroup)))
}

impl App {
    /// Returns an app that has not sent its hello yet. `max_reply` is the longest reply in bytes.
    pub(super) fn new(
        born: BornApp,
        cgroup: Option<AppCgroupGuard>,
        max_reply: usize,
        max_memory: Option<u64>,
    ) -> App {
        App {
            process: born.process,
            line: born.line,
            cgroup,
            wire: Wire::new(born.wire, max_reply + ENVELOPE_LEN),
            output: born.output,
            last_lines: LastLines::default(),
            info: AppInfo::default(),
            metrics: AppMetrics::default(),
            wants_closes: false,
            max_memory,
            memory_checked: clock::monotonic(),
            probes: 0,
            watched: [Interest::Read; 2],
        }
    }

    /// Waits for the first frame.
    fn await_hello(&mut self, poller: &mut Poller) -> Result<Hello, String> {
        let mut ready = Vec::new();
        loop {
            poller
                .wait(&mut ready, None)
                .map_err(|e| format!("cannot be waited for: {e}"))?;
            let mut has_ended = false;
            for event in &ready {
                match event.token {
                    WIRE => {
                        if let Some(hello) = self.read_hello()? {
                            return Ok(hello);
                        }
                    }
                    END => has_ended = true,
                    MASTER => return Err("has lost its master".to_owned()),
                    output => {
                        debug_assert!(OUTPUT.contains(&output));
                        self.read_output(output, poller);
                    }
                }
            }
            // The zygote of a forked app reports its end once, so the report is read only where it is used.
            if has_ended && let Some(gone) = self.end(BEFORE_HELLO) {
                return Err(with_hint(&gone));
            }
        }
    }

    fn read_hello(&mut self) -> Result<Option<Hello>, String> {
        let read = self.wire.read();
        let end = read.map_err(|e| format!("cannot be read from: {e}"))?;
        let mut incoming = self.wire.take_incoming();
        let first = incoming.next().and_then(|body| match body {
            None => Ok(None),
            Some(body) => match FromApp::parse(body)? {
                FromApp::Hello(hello) => Ok(Some(Ok(*hello))),
                FromApp::Failed(reason) => Ok(Some(Err(reason))),
                _ => Err("its first frame is not a hello".to_owned()),
            },
        });
        self.wire.give_back(incoming);
        match first {
            Ok(Some(Ok(hello))) => Ok(Some(hello)),
            Ok(Some(Err(reason))) => Err(format!("cannot serve: {}", Escaped(reason))),
            Ok(None) if end == ReadEnd::Closed => {
                // If it exits, its exit status is a better reason.
                self.ends_with_wire();
                let reason = self.end(BEFORE_HELLO).map(|gone| with_hint(&gone));
                Err(reason.unwrap_or_else(|| "has closed descriptor 3".to_owned()))
            }
            Ok(None) if end == ReadEnd::Shortage => {
                // It serves no client yet.
                poll::pause(self.wire.reading.next_wait());
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(wrong) => {
                Err(self.with_last_line(format!("has broken the protocol: {}", Escaped(wrong))))
            }
        }
    }

    /// Waits for the end of the app, which has closed descriptor 3, if it is ending. Returns whether it has ended.
    ///
    /// When a process ends, the kernel marks it as ending before it closes its descriptors. So if the app is marked,
    /// its end follows as soon as it has a CPU. If it is not, the app itself has closed the descriptor. An interpreter
    /// that exits does that as well, and is marked soon.
    pub(in crate::worker) fn ends_with_wire(&self) -> bool {
        let ends = |within| poll::wait_for(&self.process.pidfd, Interest::Read, within);
        let is_ending = || process::is_ending(self.process.pid);
        let has_ended = !is_ending() && ends(CLOSE_WAIT).unwrap_or(false);
        has_ended || is_ending() && ends(END_TIMEOUT).unwrap_or(false)
    }
}

/// Returns the reason of an app's end, with its likely cause in the unit of systemd.
fn with_hint(gone: &AppGone) -> String {
    let hint = match gone.end {
        AppEnd::Killed(signal) => hardening::hint(StartFailure::Signal(signal), is_service()),
        AppEnd::Exited(0) => Some(NO_HELLO),
        _ => None,
    };
    match hint {
        Some(hint) => format!("{}; {hint}", gone.reason),
        None => gone.reason.clone(),
    }
}

/// Returns whether systemd has started the daemon (systemd.exec(5)).
fn is_service() -> bool {
    std::env::var_os("INVOCATION_ID").is_some()
}

/// The likely cause if an app exits with status 0 before its hello.
const NO_HELLO: &str = "an app calls run() of its package, or sends a hello, see fdpassd-app(7)";

const BEFORE_HELLO: &str = " before its hello";

/// How long an app that has closed descriptor 3 itself may take until it begins to exit. The worker serves no client
/// during that time, and ends afterwards in any case.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Returns a program that is started as this process was.
#[cfg(test)]
fn program_of_test(command: &[String]) -> AppProgram<'_> {
    static NO_VARIABLES: BTreeMap<String, String> = BTreeMap::new();
    AppProgram {
        command,
        directory: None,
        environment: &NO_VARIABLES,
        identity: None,
        umask: None,
        cgroups: None,
        parent_death: ParentDeathSignal::Kill,
    }
}

#[cfg(test)]
impl App {
    /// Returns an app that executes nothing, and the end of its wire that the test has instead of it.
    pub(in crate::worker) fn of_test(max_reply: usize) -> io::Result<(App, std::os::fd::OwnedFd)> {
        let (wire, theirs) = process::wire()?;
        let (_, unused) = process::wire()?;
        let command = ["sleep", "1000"].map(str::to_owned);
        let born = BornApp {
            process: process::spawn_app(
                program_of_test(&command),
                unused,
                process::AppStdio::Null,
            )?,
            line: None,
            wire,
            output: None,
        };
        Ok((App::new(born, None, max_reply, None), theirs))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use log::Level;

    use super::super::output::OutputStream;
    use super::*;
    use crate::sys::socket::{self, Sent};

    /// The other ends of the sockets and pipes of a forked app.
    struct Ends {
        zygote: OwnedFd,
        output: OwnedFd,
        _others: [OwnedFd; 2],
    }

    /// Returns an app that executes a command of sh(1), and has ended. The test is its zygote.
    fn ended(command: &str) -> (App, Ends) {
        let (wire, theirs) = process::wire().expect("a wire");
        let (_, unused) = process::wire().expect("a wire");
        let (output, output_end) = OutputStream::new(Level::Info).expect("a pipe");
        let (errors, errors_end) = OutputStream::new(Level::Info).expect("a pipe");
        let (socket, zygote) = socket::message_pair().expect("a line");
        let command = ["sh", "-c", command].map(str::to_owned);
        let program = program_of_test(&command);
        let process = process::spawn_app(program, unused, process::AppStdio::Null).expect("sh(1)");
        let born = BornApp {
            line: Some(ZygoteLine::of_test(socket)),
            process,
            wire,
            output: Some([output, errors]),
        };
        let app = App::new(born, None, 4096, None);
        let end = poll::wait_for(&app.process.pidfd, Interest::Read, MINUTE);
        assert!(end.expect("poll"), "it has ended");
        let ends = Ends {
            zygote,
            output: output_end,
            _others: [theirs, errors_end],
        };
        (app, ends)
    }

    #[test]
    fn the_end_of_a_forked_app_is_reported_with_its_status() {
        let (mut app, ends) = ended("exit 0");
        let report = b"\x0c\0\0\0{\"exited\":3}";
        let sent = socket::send_message(&ends.zygote, report, &[]);
        assert_eq!(sent.ok(), Some(Sent::Queued));
        let mut output = std::fs::File::from(ends.output);
        output.write_all(b"a line\n").expect("it is written");
        // The poller reports one event at a time: first the line, then the end.
        let mut poller = Poller::new(1).expect("a poller");
        app.watch(&poller).expect("it is watched");
        let reason = app.await_hello(&mut poller).expect_err("it has ended");
        assert!(
            reason.starts_with("exited with status 3 before its hello"),
            "{reason}"
        );
    }

    /// Another process collects the app then. Linux 6.15 and newer know its status nevertheless.
    #[test]
    fn a_forked_app_whose_zygote_has_ended_has_ended_on_its_own() {
        let (mut app, ends) = ended("exit 3");
        drop(ends);
        process::collect(app.process.pid).expect("it has ended");
        let gone = app.end("").expect("it has ended");
        assert!(matches!(gone.end, AppEnd::Exited(3 | -1)), "{gone:?}");
    }

    /// The test holds the app's end of the wire, so that only the process itself shows whether it ends.
    #[test]
    fn an_app_that_closes_its_wire_may_run_on() {
        let (app, _wire) = App::of_test(4096).expect("a process");
        assert!(!app.ends_with_wire());
        process::kill_app(&app.process);
        assert!(app.ends_with_wire());
    }

    const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);
}
