//! `fdpassd dev`: a process that requests a reload from its parent, the master, when a file of the app changes.
//!
//! ```text
//! inotify ─▶ a file that matches ─▶ 100 ms without another change ─▶ `reload` over the control socket ─▶ its outcome
//! ```
//!
//! The master reports the outcome in its log. Changes during a reload cause another one after it. If the control socket
//! cannot be reached, because its file was removed, SIGHUP requests the reload; the master then binds the socket again.
//!
//! If the app does not start at first, there is no master: its process waits for the end of this one, which ends with
//! the next change, and starts the daemon again. A pipe from the master shows whether it has begun to serve.

mod files;
mod glob;
mod reload_client;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::files::{Files, default_patterns};
use self::glob::PathPattern;
use self::reload_client::{ReloadAttempt, ReloadClient};
use crate::sys::fd;
use crate::sys::process::{self, Executable};

/// The first argument of the process.
pub const WATCH: &str = "watch";

/// The first argument of the master's process while it waits for a change.
pub const AWAIT_CHANGE: &str = "await-change";

/// The time after the last change until the reload: an editor or a checkout may write several files.
const QUIET_INTERVAL: Duration = Duration::from_millis(100);

/// The time until a reload that was refused, because another one is in progress, is requested again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

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
    /// Whether the directory is another one than that of the app.
    is_elsewhere: bool,
}

impl Watched {
    /// Returns what is watched for an app. Without patterns, these are the files in the language of its script, in
    /// `directory`, or else in that of the script.
    ///
    /// # Errors
    /// A command without a script, and no pattern.
    pub fn new(
        name: &str,
        directory: PathBuf,
        command: &[String],
        patterns: Vec<String>,
    ) -> Result<Watched, String> {
        let (root, patterns) = match patterns.is_empty() {
            true => default_patterns(&directory, command).ok_or(
                "the command names no script and no program in the current directory, so there is nothing to watch; \
                 --watch PATTERN names files",
            )?,
            false => (directory.clone(), patterns),
        };
        Ok(Watched {
            name: name.to_owned(),
            master: std::process::id(),
            is_elsewhere: root != directory,
            directory: root,
            patterns,
        })
    }
}

/// The writing end of the pipe by which the master reports that it serves. It closes when this process becomes another
/// program.
#[derive(Debug)]
pub struct ServingReport(File);

impl ServingReport {
    /// Reports that the daemon serves: from now on only its end ends the watching.
    pub fn send(&self) {
        // A process that has ended needs no report.
        let _ = (&self.0).write_all(b"1");
    }
}

/// Starts the process, as a child of this process, which becomes the master. It ends with the master. Returns its pid.
///
/// # Errors
/// Those of pipe2, fork and exec.
pub fn start(name: &str, watched: &Watched) -> io::Result<(u32, ServingReport)> {
    let watched = serde_json::to_string(watched)?;
    let (stdin, report) = fd::pipe()?;
    let pid = Executable::current()?.spawn(name, &[WATCH, watched.as_str()], stdin, &[])?;
    Ok((pid, ServingReport(report.into())))
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
    process::unblock_signals();
    let watched: Watched =
        serde_json::from_str(watched).map_err(|_| "watch is for `fdpassd dev` alone".to_owned())?;
    if std::os::unix::process::parent_id() != watched.master {
        // It has ended before the kernel was asked to end this process then.
        return Ok(());
    }
    let patterns = watched
        .patterns
        .iter()
        .map(|pattern| PathPattern::new(pattern));
    let mut files = Files::new(&watched.directory, patterns.collect())
        .map_err(|error| format!("cannot watch files: {error}"))?;
    if watched.is_elsewhere {
        let (patterns, directory) = (watched.patterns.join(", "), watched.directory.display());
        report(&format!("watching {patterns} in {directory}"));
    }
    let mut master = ReloadClient::new(watched.name, watched.master);
    loop {
        let changed = files
            .wait_for_change(QUIET_INTERVAL)
            .map_err(|error| format!("no longer watches files: {error}"))?;
        let changed = changed.display();
        if !master.has_failed() {
            report(&format!("{changed} has changed; reloading"));
        }
        let mut has_changed_since = false;
        loop {
            match master.reload() {
                ReloadAttempt::Done => break,
                ReloadAttempt::Signalled if !has_changed_since => break,
                // Another signal must follow.
                ReloadAttempt::Signalled => has_changed_since = false,
                ReloadAttempt::Refused => {}
                ReloadAttempt::Failed => {
                    report(&format!("{changed} has changed; starting again"));
                    return Ok(());
                }
            }
            // A reload that is requested later has these changes, too.
            has_changed_since |= files
                .skip_changes(RETRY_INTERVAL)
                .map_err(|error| format!("no longer watches files: {error}"))?;
        }
    }
}

fn report(sentence: &str) {
    let line = format!("fdpassd dev: {sentence}\n");
    // One write: the daemon writes its log there as well, in between. Without standard error it cannot be reported.
    let _ = io::stderr().write_all(line.as_bytes());
}
