//! Checks of signals and of the end of an app.

use std::time::{Duration, Instant};

use super::dialog::{AppDialog, DialogFailure, ended};
use super::requests::{ECHO, SLEEP, expect_echo, lacks, overtakes};
use super::{CheckFinding, Suite};
use crate::sys::process::Exit;

/// The time after which an end is not "at once" any more.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Checks that no signal ends an app: a service manager sends SIGTERM to all processes of a service, a terminal SIGINT
/// and SIGHUP.
pub(super) fn signals(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    for name in ["TERM", "INT", "HUP"] {
        suite.with(|app| {
            app.process.signal(name).map_err(|e| e.to_string())?;
            app.probe()
                .map_err(|text| format!("after SIG{name}, {text}"))
        })?;
    }
    CheckFinding::passed("SIGTERM, SIGINT and SIGHUP do not end it")
}

/// Checks that after `stop` the app answers what it has, and ends with 0, when descriptor 3 ends at the latest.
pub(super) fn stop(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    let mut app = suite.start()?;
    let checked = stop_of(&mut app);
    checked.map_err(|text| app.failure(text))
}

fn stop_of(app: &mut AppDialog) -> Result<CheckFinding, String> {
    let slow = app.has(SLEEP).then(|| app.request(SLEEP, Some("300")));
    app.send("{\"stop\":30000}");
    if let Some(slow) = slow {
        app.answer(slow)?.map_err(|fault| {
            format!(
                "the request under way got an error, {}: {}",
                fault.code, fault.message
            )
        })?;
    }
    finish(app)?;
    Ok(CheckFinding::Passed(match slow {
        Some(_) => "it answers what it has, and ends with 0".to_owned(),
        None => {
            format!("it ends with 0; with a method {SLEEP} its last answer would be checked, too")
        }
    }))
}

/// Checks that a long answer is complete, although the app may end right after it.
pub(super) fn stop_long(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    let long = format!("\"{}\"", "x".repeat(300_000));
    let mut app = suite.start()?;
    let id = app.request(ECHO, Some(&long));
    app.send("{\"stop\":30000}");
    let checked = expect_echo(&mut app, id, &long).and_then(|()| finish(&mut app));
    checked.map_err(|text| app.failure(text))?;
    CheckFinding::passed("the last answer is whole, however long it is")
}

/// Ends the connection and waits for the end of the app.
fn finish(app: &mut AppDialog) -> Result<(), String> {
    app.process.end_wire()?;
    match app.exit()? {
        Exit::Status(0) => Ok(()),
        exit => Err(format!("the app {}, not with 0", ended(exit))),
    }
}

/// Checks that the end of descriptor 3 ends the app at once, with 0.
pub(super) fn end(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    // A worker without requests ends it right after `stop`.
    let mut stopped = suite.start()?;
    stopped.send("{\"stop\":30000}");
    let checked = finish(&mut stopped);
    checked.map_err(|text| stopped.failure(text))?;
    let app = suite.start()?;
    end_of(app)
}

/// Checks that the end of descriptor 3 ends the app at once, also while a request is under way.
pub(super) fn end_busy(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    for method in [SLEEP, ECHO] {
        if let Some(skipped) = lacks(suite, method)? {
            return Ok(skipped);
        }
    }
    if suite.app()?.hello.concurrency == 1 || !overtakes(suite)? {
        return CheckFinding::skipped("the app answers one request after another");
    }
    let mut app = suite.start()?;
    app.request(SLEEP, Some("600000"));
    // It has begun when a later one is answered.
    let begun = app.call(ECHO, Some("1"));
    begun.map_err(|text| app.failure(text))?.ok();
    end_of(app)
}

fn end_of(mut app: AppDialog) -> Result<CheckFinding, DialogFailure> {
    let begin = Instant::now();
    finish(&mut app).map_err(|text| app.failure(text))?;
    let took = begin.elapsed();
    match took > AT_ONCE {
        false => CheckFinding::passed("it ends at once when descriptor 3 ends, with 0"),
        true => CheckFinding::noted(format!(
            "it took {} ms to end; its worker's successor waits for that",
            took.as_millis()
        )),
    }
}
