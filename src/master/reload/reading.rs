//! The child that reads the configuration. Only a directory server may know its users and groups (nsswitch.conf(5)),
//! and its files may be on another machine: reading them may take long, and the loop must not wait.
//!
//! ```text
//! reload, SIGHUP, check ─▶ question ─▶ child: reads, looks up, checks ─▶ answer, after the question in the same file
//!                                      after 10 s it is killed, and the reload or the check is rejected
//! ```
//!
//! The answer has the number of each user and group, so that the master looks up no name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::{self, Config, ConfigPlace, GivenKeys, Identities, Loaded};
use crate::master::Master;
use crate::master::control::pending::PendingKind;
use crate::master::control::reply::ControlReply;
use crate::master::lifecycle::{Lifecycle, ReloadStep};
use crate::master::reload::Reloads;
use crate::master::telemetry::events::Asker;
use crate::proto::control::{Checked, Place, Refusal, RefusalCode, Verb};
use crate::proto::paths::exact;
use crate::sys::fd;
use crate::sys::memory::plain_file;
use crate::sys::poll::{self, Interest};
use crate::sys::process::{self, Exit};

/// The first argument of the child.
pub(crate) const READ: &str = "read-configuration";

/// Time until the child is killed.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The request to the child.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    in_force: Known,
    #[serde(with = "exact")]
    file: Option<PathBuf>,
    #[serde(with = "exact")]
    standard_file: PathBuf,
    command_line: Option<String>,
    force: bool,
}

/// A configuration with the numbers of its users and groups.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    config: String,
    identities: Identities,
    given: GivenKeys,
    files: Vec<PathBuf>,
}

impl Known {
    fn new(config: &Config, given: &GivenKeys, files: &[PathBuf]) -> Known {
        Known {
            config: config.to_toml(),
            identities: Identities::from_config(config),
            given: given.clone(),
            files: files.to_vec(),
        }
    }

    fn parse(self) -> Result<Loaded, Refusal> {
        let config = Config::parse_kept(&self.config, "the configuration", Some(&self.identities));
        let config = config.map_err(|e| Refusal::new(RefusalCode::Rejected, e.to_string()))?;
        Ok(Loaded {
            config,
            given: self.given,
            files: self.files,
        })
    }
}

/// A child that reads.
#[derive(Debug)]
pub(crate) struct Reading {
    pid: u32,
    shared: File,
    length: u64,
    pub(super) file: Option<PathBuf>,
    until: Instant,
}

/// A reload whose configuration is being read.
#[derive(Debug)]
pub(crate) struct ReloadReading {
    pub(super) reading: Reading,
    pub(crate) asker: Asker,
    pub(crate) began: Instant,
}

/// Checks. Only one is made at a time.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    reading: Option<Reading>,
    /// Number of the check that was begun last.
    last: u64,
}

/// Kills the child, unless it has ended and was collected.
impl Drop for Reading {
    fn drop(&mut self) {
        let _ = process::kill_child(self.pid);
    }
}

impl Reading {
    /// Returns the answer of the child.
    fn answer(&self, exit: Exit) -> Result<Loaded, Refusal> {
        let end = self
            .shared
            .metadata()
            .map(|found| found.len())
            .unwrap_or_default();
        let length = usize::try_from(end.saturating_sub(self.length)).unwrap_or_default();
        let mut text = vec![0; length];
        let read = self
            .shared
            .read_exact_at(&mut text, self.length)
            .map_err(|e| e.to_string());
        let answer: Result<Result<Known, Refusal>, String> =
            read.and_then(|()| serde_json::from_slice(&text).map_err(|e| e.to_string()));
        match answer {
            Ok(answer) => answer.and_then(Known::parse),
            Err(_) => Err(rejected(format!(
                "the process that reads the configuration {exit} without an answer"
            ))),
        }
    }

    fn too_late() -> Refusal {
        let seconds = READ_TIMEOUT.as_secs();
        rejected(format!(
            "the configuration could not be read within {seconds} s: its files, or the databases of users and groups \
             (nsswitch.conf(5)), do not answer"
        ))
    }
}

fn rejected(sentence: String) -> Refusal {
    Refusal::new(RefusalCode::Rejected, sentence)
}

impl Reloads {
    /// Returns when a child that reads has taken too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let reload = self.reading.as_ref().map(|reload| reload.reading.until);
        let check = self.checks.reading.as_ref().map(|reading| reading.until);
        reload.into_iter().chain(check).min()
    }

    /// Returns what a control client that requests a check waits for: the next check, which reads the files as they are
    /// then.
    pub(crate) fn next_check(&self) -> PendingKind {
        PendingKind::Checked(self.checks.last + 1)
    }

    /// Ends the check that is being made. If this process continues, [`Master::check_readings`] begins it again.
    pub(crate) fn end_checks(&mut self) {
        if self.checks.reading.take().is_some() {
            self.checks.last -= 1;
        }
    }
}

impl Master {
    fn begin_reading(&self, force: bool, now: Instant) -> Result<Reading, Refusal> {
        let file = self.settings.next_file();
        let question = Question {
            in_force: Known::new(
                &self.settings.config,
                &self.settings.given,
                &self.settings.files,
            ),
            file: file.clone(),
            standard_file: self.settings.standard_file.clone(),
            command_line: self.settings.command_line.clone(),
            force,
        };
        let begun = || -> io::Result<(u32, File, u64)> {
            let text = serde_json::to_vec(&question)?;
            let shared = plain_file(c"configuration")?;
            shared.write_all_at(&text, 0)?;
            let length = text.len() as u64;
            let arguments = [READ.to_owned(), length.to_string()];
            let pid = self.workers.executable.spawn(
                &self.name,
                &arguments,
                shared.try_clone()?.into(),
                &[],
            )?;
            Ok((pid, shared, length))
        };
        let (pid, shared, length) = begun().map_err(|e| {
            rejected(format!(
                "no process can be started that reads the configuration: {e}"
            ))
        })?;
        Ok(Reading {
            pid,
            shared,
            length,
            file,
            until: now + READ_TIMEOUT,
        })
    }

    /// Returns the configuration that the next master will read. `None` if it is invalid, or cannot be read within
    /// `timeout`. This blocks the loop: called only at the exit.
    pub(crate) fn read_next(&self, timeout: Duration) -> Option<Config> {
        let reading = self.begin_reading(false, Instant::now()).ok()?;
        let child = process::open_pidfd(reading.pid).ok()?;
        poll::wait_for(&child, Interest::Read, timeout).ok()?;
        let exit = process::end_of(&child).ok()??;
        Some(reading.answer(exit).ok()?.config)
    }

    /// Begins to read the configuration for a reload; [`Master::finish_reading`] gets it.
    pub(crate) fn read_for_reload(
        &mut self,
        asker: Asker,
        force: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        let reading = self.begin_reading(force, now)?;
        self.lifecycle = Lifecycle::Reloading(ReloadStep::Reading, now);
        self.reloads.reading = Some(ReloadReading {
            reading,
            asker,
            began: now,
        });
        Ok(())
    }

    /// Handles the end of a child. Returns whether it was one that reads.
    pub(crate) fn reading_ended(&mut self, pid: u32, exit: Exit) -> bool {
        let (reload, check) = (&mut self.reloads.reading, &mut self.reloads.checks.reading);
        if let Some(reload) = reload.take_if(|reload| reload.reading.pid == pid) {
            let loaded = reload.reading.answer(exit);
            self.finish_reading(reload, loaded);
        } else if let Some(reading) = check.take_if(|reading| reading.pid == pid) {
            let answer = reading.answer(exit);
            let checked = answer.and_then(|next| self.check(reading.file.clone(), next));
            self.finish_check(checked);
        } else {
            return false;
        }
        true
    }

    /// Ends a child that has taken too long, and begins the check that a control client waits for.
    pub(crate) fn check_readings(&mut self, now: Instant) {
        let (reload, check) = (&mut self.reloads.reading, &mut self.reloads.checks.reading);
        let is_late = check.take_if(|reading| reading.until <= now).is_some();
        if let Some(reload) = reload.take_if(|reload| reload.reading.until <= now) {
            self.finish_reading(reload, Err(Reading::too_late()));
        }
        if is_late {
            self.finish_check(Err(Reading::too_late()));
        }
        if self.reloads.checks.reading.is_some() || self.lifecycle.is_ending() {
            return;
        }
        let next = self.reloads.checks.last + 1;
        let waits =
            |kind: &PendingKind| matches!(kind, PendingKind::Checked(check) if *check == next);
        if self
            .control
            .clients
            .pending()
            .iter()
            .any(|pending| waits(&pending.kind))
        {
            self.reloads.checks.last = next;
            match self.begin_reading(false, now) {
                Ok(reading) => self.reloads.checks.reading = Some(reading),
                Err(refusal) => self.finish_check(Err(refusal)),
            }
        }
    }

    fn finish_check(&mut self, checked: Result<Checked, Refusal>) {
        let last = self.reloads.checks.last;
        self.control.clients.resolve(
            |kind| matches!(kind, PendingKind::Checked(check) if *check <= last),
            &checked.and_then(|checked| ControlReply::new(Verb::Check, &checked)),
        );
    }
}

/// Returns the refusal of a configuration with an error, and the place of the error.
fn rejection(error: &config::Error) -> Refusal {
    let place = Place {
        file: error.origin().into(),
        line: error.line(),
        column: error.column(),
        display: error.to_string(),
    };
    Refusal {
        code: RefusalCode::Rejected,
        message: error.message().to_owned(),
        place: Some(place),
    }
}

/// Runs the child: reads the request from standard input, and writes the answer after it. Signals stay blocked, because
/// the one that a service manager sends to all processes at a restart must not end it.
///
/// # Errors
/// When it was not started by a master.
pub fn read_configuration(length: &str) -> Result<(), String> {
    process::end_with_parent();
    // Only the master is protected from the OOM killer.
    let _ = process::raise_oom_score(0);
    let shared = fd::take_stdin()
        .map(File::from)
        .map_err(|e| e.to_string())?;
    let length: u64 = length
        .parse()
        .map_err(|_| "the length of the question is not a number".to_owned())?;
    let mut text = vec![0; usize::try_from(length).map_err(|e| e.to_string())?];
    shared
        .read_exact_at(&mut text, 0)
        .map_err(|e| e.to_string())?;
    let Question {
        in_force,
        file,
        standard_file,
        command_line,
        force,
    } = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let answer: Result<Known, Refusal> = in_force.parse().and_then(|in_force| {
        let place = ConfigPlace::new(command_line.as_deref(), file.as_deref(), &standard_file);
        let next = in_force.config.load_next(&in_force.given, place, force);
        let Loaded {
            config,
            given,
            files,
        } = next.map_err(|error| rejection(&error))?;
        Ok(Known::new(&config, &given, &files))
    });
    let text = serde_json::to_vec(&answer).map_err(|e| e.to_string())?;
    shared
        .write_all_at(&text, length)
        .map_err(|e| e.to_string())
}
