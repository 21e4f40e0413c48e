//! `fdpassd dev`: a process that requests a reload from its parent, the master, when a file of the app changes.
//!
//! ```text
//! inotify ─▶ a file that matches ─▶ 100 ms without another change ─▶ `reload` over the control socket ─▶ its outcome
//! ```
//!
//! The master reports the outcome in its log. Changes during a reload cause another one after it.
//!
//! If the app does not start at first, there is no master: its process waits for the end of this one, which ends with
//! the next change, and starts the daemon again.

mod files;
mod glob;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::files::Files;
use self::glob::PathPattern;
use crate::proto::control::{RefusalCode, Verb, Version, places};
use crate::rpc_client::{Deadline, Error, RpcClient};
use crate::sys::process::{self, Executable};

/// The first argument of the process.
pub const WATCH: &str = "watch";

/// The first argument of the master's process while it waits for a change.
pub const AWAIT_CHANGE: &str = "await-change";

/// The time after the last change until the reload: an editor or a checkout may write several files.
const QUIET_INTERVAL: Duration = Duration::from_millis(100);

/// The time until a reload that was refused, because another one is in progress, is requested again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The longest wait for the outcome of a reload, far above `start-timeout` and `drain-timeout`.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(3600);

/// The files that are watched, and the daemon that is reloaded.
#[derive(Debug, Serialize, Deserialize)]
pub struct Watched {
    /// The name of the daemon.
    name: String,
    /// The pid of the master.
    master: u32,
    directory: PathBuf,
    /// Patterns, relative to the directory.
    patterns: Vec<String>,
}

impl Watched {
    /// Returns what is watched for an app. Without patterns, these are the files in the language of its script.
    ///
    /// # Errors
    /// A command without a script, and no pattern.
    pub fn new(
        name: &str,
        directory: PathBuf,
        command: &[String],
        patterns: Vec<String>,
    ) -> Result<Watched, String> {
        let patterns = match patterns.is_empty() {
            true => files::default_patterns(&directory, command).ok_or(
                "no argument of the command is a file, so there is nothing to watch; --watch PATTERN names files",
            )?,
            false => patterns,
        };
        Ok(Watched {
            name: name.to_owned(),
            master: std::process::id(),
            directory,
            patterns,
        })
    }
}

/// Starts the process, as a child of this process, which becomes the master. It ends with the master. Returns its pid.
///
/// # Errors
/// Those of fork and exec.
pub fn start(name: &str, watched: &Watched) -> io::Result<u32> {
    let watched = serde_json::to_string(watched)?;
    let stdin = File::open("/dev/null")?.into();
    Executable::current()?.spawn(name, &[WATCH, watched.as_str()], stdin)
}

/// Makes this process, whose daemon has failed to start, one that waits until process `watcher` ends because a file has
/// changed, and starts the daemon again.
///
/// It becomes another program for that, because then signals end it as they end any other.
///
/// # Errors
/// Those of exec; otherwise it does not return.
pub fn await_change(name: &str, watcher: u32) -> io::Error {
    report("waiting for a change of a file");
    let own = std::env::args().skip(1);
    let arguments: Vec<String> = [AWAIT_CHANGE.to_owned(), watcher.to_string()]
        .into_iter()
        .chain(own)
        .collect();
    become_program(name, &arguments)
}

/// Waits for the end of process `watcher`, and becomes the daemon with these arguments.
///
/// # Errors
/// When it was started by hand, or no longer watches files.
pub fn run_again(name: &str, watcher: &str, arguments: &[String]) -> Result<(), String> {
    process::unblock_signals();
    let watcher = watcher.parse().ok();
    match watcher.map(process::wait_for_child) {
        Some(Ok(true)) => Err(become_program(name, arguments))
            .map_err(|error| format!("cannot start again: {error}")),
        _ => Err("files are no longer watched".to_owned()),
    }
}

fn become_program(name: &str, arguments: &[String]) -> io::Error {
    match Executable::current() {
        Ok(program) => program.become_it(name, arguments, &[]),
        Err(error) => error,
    }
}

/// Runs the process that watches.
///
/// # Errors
/// When it was started by hand, or cannot watch files.
pub fn run(watched: &str) -> Result<(), String> {
    process::end_with_parent();
    let watched: Watched =
        serde_json::from_str(watched).map_err(|_| "watch is for `fdpassd dev` alone".to_owned())?;
    let patterns = watched
        .patterns
        .iter()
        .map(|pattern| PathPattern::new(pattern));
    let mut files = Files::new(&watched.directory, patterns.collect())
        .map_err(|error| format!("cannot watch files: {error}"))?;
    loop {
        let changed = files
            .wait_for_change(QUIET_INTERVAL)
            .map_err(|error| format!("no longer watches files: {error}"))?;
        let changed = changed.display();
        if !matches!(connect(&watched), Err(Error::NotRunning { .. })) {
            report(&format!("{changed} has changed; reloading"));
        }
        loop {
            match reload(&watched) {
                ReloadAttempt::Done => break,
                ReloadAttempt::Refused => {}
                ReloadAttempt::NotRunning => {
                    report(&format!("{changed} has changed; starting again"));
                    return Ok(());
                }
            }
            // The next reload has these changes, too.
            files
                .skip_changes(RETRY_INTERVAL)
                .map_err(|error| format!("no longer watches files: {error}"))?;
        }
    }
}

/// Result of a request for a reload.
enum ReloadAttempt {
    /// The master has logged the outcome, or the process has reported why there is none.
    Done,
    /// Another one is in progress, or the daemon ends because it has failed to start. It must be requested again.
    Refused,
    /// The daemon has failed to start.
    NotRunning,
}

/// Requests a reload and waits for its outcome, which the master logs.
fn reload(watched: &Watched) -> ReloadAttempt {
    let outcome = connect(watched).and_then(|mut master| master.ask(Verb::Reload));
    match outcome {
        Err(Error::Refused { code, .. }) if code == RefusalCode::Busy.as_str() => {
            ReloadAttempt::Refused
        }
        Err(Error::NotRunning { .. }) => ReloadAttempt::NotRunning,
        Err(Error::Closed) => ReloadAttempt::Refused,
        Err(error) => {
            // The master logs why it refuses.
            if !matches!(error, Error::Refused { .. }) {
                report(&format!("cannot reload: {error}"));
            }
            ReloadAttempt::Done
        }
        Ok(_) => ReloadAttempt::Done,
    }
}

/// Connects to the control socket of the master. Another daemon may have one, too.
///
/// # Errors
/// [`Error::NotRunning`] only if no place has a daemon that may be the master.
fn connect(watched: &Watched) -> Result<RpcClient, Error> {
    let var = |name: &str| std::env::var_os(name);
    connect_at(&places(&watched.name, process::user(), var), watched)
}

fn connect_at(places: &[PathBuf], watched: &Watched) -> Result<RpcClient, Error> {
    let mut failed = None;
    for place in places {
        let place = std::slice::from_ref(place);
        let connect =
            || RpcClient::connect_control(&watched.name, place, Deadline::new(RELOAD_TIMEOUT));
        let version = connect().and_then(|mut daemon| daemon.ask(Verb::Version));
        match version.map(|version| serde_json::from_str::<Version>(version.get())) {
            Ok(Ok(version)) if version.pid == watched.master => return connect(),
            Ok(_) => {}
            // The master's socket does not deny its own user anything: this one is another daemon's.
            Err(Error::NotRunning { .. } | Error::Forbidden(_)) => {}
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    Err(failed.unwrap_or_else(|| Error::NotRunning {
        daemon: watched.name.clone(),
        tried: places.to_vec(),
    }))
}

fn report(sentence: &str) {
    // Without standard error it cannot be reported.
    let _ = writeln!(io::stderr(), "fdpassd dev: {sentence}");
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_daemon_that_does_not_reply_is_not_one_that_has_failed() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = [directory.path().join("none"), directory.path().join("own")];
        let watched = Watched {
            name: "shop".to_owned(),
            master: 1,
            directory: PathBuf::new(),
            patterns: Vec::new(),
        };
        let error = connect_at(&places, &watched).expect_err("there is none");
        assert!(matches!(error, Error::NotRunning { .. }), "{error}");
        let listener = UnixListener::bind(&places[1]).expect("it is ours");
        let closing = thread::spawn(move || drop(listener.accept()));
        let error = connect_at(&places, &watched).expect_err("it closes connections");
        assert!(!matches!(error, Error::NotRunning { .. }), "{error}");
        closing.join().expect("no panic");
    }
}
