//! `app check`: starts a program as a worker starts its app, and checks what it answers.

mod checks;
mod dialog;
mod ends;
mod frames;
mod hello;
mod process;
mod requests;

use std::io::Write;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use self::checks::code_of;
use self::dialog::{AppDialog, DialogFailure};
use super::args::check::{AppCheck, AppCheckArguments};
use super::error::Error;
use super::session::Session;
use super::style::{BAD, FAINT, GOOD, NOTED};
use crate::proto::text::{Counted, Escaped};

/// Checks a program, and prints each result as soon as it is known.
pub(super) fn check(
    arguments: &AppCheckArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut suite = Suite::new(&arguments.command, session.timeout);
    let mut results = Vec::new();
    let is_wanted = |check: &&AppCheck| arguments.only.is_empty() || arguments.only.contains(check);
    for check in AppCheck::value_variants().iter().filter(is_wanted) {
        let is_dead = suite.is_dead;
        let result = suite.perform(*check);
        if !session.json && !is_dead {
            show(&result, session, out)?;
        }
        results.push(result);
    }
    let count = |outcome| results.iter().filter(|r| r.outcome == outcome).count();
    let (passed, failed) = (count(Outcome::Passed), count(Outcome::Failed));
    let (skipped, noted) = (count(Outcome::Skipped), count(Outcome::Noted));
    let written = if session.json {
        let summary = CheckSummary {
            passed,
            failed,
            skipped,
            noted,
            checks: &results,
        };
        serde_json::to_string(&summary)
            .map_err(Into::into)
            .and_then(|json| writeln!(out, "{json}"))
    } else {
        let why = match suite.is_dead && skipped > 0 {
            true => " because the app does not start",
            false => "",
        };
        writeln!(
            out,
            "{passed} passed, {failed} failed, {skipped} skipped{why}, {noted} noted"
        )
    };
    written.map_err(Error::Output)?;
    match failed {
        0 => Ok(()),
        _ => Err(Error::AppFailed(Counted(failed, "check").to_string())),
    }
}

fn show(result: &CheckOutcome, session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let (word, style) = match result.outcome {
        Outcome::Passed => ("passed ", GOOD),
        Outcome::Failed => ("failed ", BAD),
        Outcome::Skipped => ("skipped", FAINT),
        Outcome::Noted => ("noted  ", NOTED),
    };
    let word = session.seen.paint().on(style, word);
    let text = Escaped(&result.text);
    writeln!(out, "{word}  {:WIDTH$}  {text}", result.check)
        .and_then(|()| {
            let mut log = result.log.iter();
            log.try_for_each(|line| writeln!(out, "         | {}", Escaped(line)))
        })
        .and_then(|()| out.flush())
        .map_err(Error::Output)
}

/// The width of the longest name of a check.
const WIDTH: usize = 16;

/// The result of all checks, for programs.
#[derive(Serialize)]
struct CheckSummary<'a> {
    passed: usize,
    failed: usize,
    skipped: usize,
    noted: usize,
    checks: &'a [CheckOutcome],
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct CheckOutcome {
    check: String,
    outcome: Outcome,
    text: String,
    /// The end of the app's log, if that may explain a failure.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    log: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    Failed,
    Skipped,
    Noted,
}

/// The finding of a check that has not failed.
#[derive(Debug)]
enum CheckFinding {
    /// The app is right.
    Passed(String),
    /// The app is right, with a property that its author should know.
    Noted(String),
    /// The app lacks what the check needs.
    Skipped(String),
}

impl CheckFinding {
    fn passed(text: impl Into<String>) -> Result<CheckFinding, DialogFailure> {
        Ok(CheckFinding::Passed(text.into()))
    }

    fn noted(text: impl Into<String>) -> Result<CheckFinding, DialogFailure> {
        Ok(CheckFinding::Noted(text.into()))
    }

    fn skipped(text: impl Into<String>) -> Result<CheckFinding, DialogFailure> {
        Ok(CheckFinding::Skipped(text.into()))
    }
}

/// The program, and a running app that checks share.
struct Suite<'a> {
    command: &'a [String],
    timeout: Duration,
    app: Option<AppDialog>,
    /// Whether the app does not start: the other checks are skipped.
    is_dead: bool,
}

impl<'a> Suite<'a> {
    fn new(command: &'a [String], timeout: Duration) -> Suite<'a> {
        Suite {
            command,
            timeout,
            app: None,
            is_dead: false,
        }
    }

    fn perform(&mut self, check: AppCheck) -> CheckOutcome {
        let found = match self.is_dead {
            true => CheckFinding::skipped("the app does not start"),
            false => code_of(check)(self).and_then(|finding| self.settle().map(|()| finding)),
        };
        let (outcome, text, log) = match found {
            Ok(CheckFinding::Passed(text)) => (Outcome::Passed, text, Vec::new()),
            Ok(CheckFinding::Noted(text)) => (Outcome::Noted, text, Vec::new()),
            Ok(CheckFinding::Skipped(text)) => (Outcome::Skipped, text, Vec::new()),
            Err(DialogFailure { text, log }) => {
                // Its state is unknown. The next check gets a new one.
                self.app = None;
                (Outcome::Failed, text, log)
            }
        };
        CheckOutcome {
            check: check.name(),
            outcome,
            text,
            log,
        }
    }

    /// Returns the shared app, and starts it if there is none.
    fn app(&mut self) -> Result<&mut AppDialog, DialogFailure> {
        let app = match self.app.take() {
            Some(app) => app,
            None => self.start()?,
        };
        Ok(self.app.insert(app))
    }

    /// Starts an app for this check alone.
    fn start(&mut self) -> Result<AppDialog, DialogFailure> {
        AppDialog::start(self.command, self.timeout)
    }

    /// Runs a part of a check with the shared app. Its failure gets the end of the log.
    fn with<T>(
        &mut self,
        part: impl FnOnce(&mut AppDialog) -> Result<T, String>,
    ) -> Result<T, DialogFailure> {
        let app = self.app()?;
        part(app).map_err(|text| app.failure(text))
    }

    /// Waits until nothing more comes of a check, such as a second answer.
    fn settle(&mut self) -> Result<(), DialogFailure> {
        match &mut self.app {
            Some(app) => app.settle().map_err(|text| app.failure(text)),
            None => Ok(()),
        }
    }
}
