//! `fdpassd dev`: a process that requests a reload from its parent, the master, when a file of the app changes.
//!
//! ```text
//! inotify ─▶ a file that matches ─▶ 100 ms without another change ─▶ `reload` over the control socket ─▶ its outcome
//! ```
//!
//! The master reports the outcome in its log. Changes during a reload cause another one after it.

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

/// Starts the process, as a child of this process, which becomes the master. It ends with the master.
///
/// # Errors
/// Those of fork and exec.
pub fn start(name: &str, watched: &Watched) -> io::Result<()> {
    let watched = serde_json::to_string(watched)?;
    let stdin = File::open("/dev/null")?.into();
    Executable::current()?.spawn(name, &[WATCH, watched.as_str()], stdin)?;
    Ok(())
}

/// Runs the process.
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
        report(&format!("{} has changed; reloading", changed.display()));
        while !reload(&watched) {
            // The next reload has these changes, too.
            files
                .skip_changes(RETRY_INTERVAL)
                .map_err(|error| format!("no longer watches files: {error}"))?;
        }
    }
}

/// Requests a reload and waits for its outcome, which the master logs. Returns false if another one is in progress.
fn reload(watched: &Watched) -> bool {
    let outcome = connect(watched).and_then(|mut master| master.ask(Verb::Reload));
    match outcome {
        Err(Error::Refused { code, .. }) => code != RefusalCode::Busy.as_str(),
        Err(error) => {
            report(&format!("cannot reload: {error}"));
            true
        }
        Ok(_) => true,
    }
}

/// Connects to the control socket of the master. Another daemon may have one, too.
fn connect(watched: &Watched) -> Result<RpcClient, Error> {
    let var = |name: &str| std::env::var_os(name);
    let places = places(&watched.name, process::user(), var);
    for place in &places {
        let place = std::slice::from_ref(place);
        let connect = || RpcClient::connect_control(place, Deadline::new(RELOAD_TIMEOUT));
        let Ok(version) = connect().and_then(|mut daemon| daemon.ask(Verb::Version)) else {
            continue;
        };
        let version: Result<Version, _> = serde_json::from_str(version.get());
        if version.is_ok_and(|version| version.pid == watched.master) {
            return connect();
        }
    }
    Err(Error::NotRunning { tried: places })
}

fn report(sentence: &str) {
    // Without standard error it cannot be reported.
    let _ = writeln!(io::stderr(), "fdpassd dev: {sentence}");
}
