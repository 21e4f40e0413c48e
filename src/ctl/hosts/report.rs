//! The results of several hosts: lines of JSON, sentences, and the result of the whole.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::ctl::error::{Error, ExitStatus};
use crate::proto::text::Escaped;

/// The result of one host, as a line of JSON.
#[derive(Debug, Serialize)]
pub(super) struct HostReport<'a> {
    host: &'a str,
    state: &'static str,
    /// The exit code of the verb on this host; `None` if it was not begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<u8>,
    /// The result as the daemon has sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The place of the error in a configuration file.
    #[serde(skip_serializing_if = "Option::is_none")]
    display: Option<String>,
}

impl<'a> HostReport<'a> {
    fn new(host: &'a str, outcome: Option<Result<&'a RawValue, &Error>>) -> HostReport<'a> {
        let error = outcome.and_then(Result::err);
        let lines: Vec<&str> = error.into_iter().flat_map(Error::lines).collect();
        HostReport {
            host,
            state: match &outcome {
                None => "not_begun",
                Some(Ok(_)) => "done",
                Some(Err(error)) => state_of(error),
            },
            exit: outcome.map(|outcome| outcome.map_or_else(|error| error.exit() as u8, |_| 0)),
            result: outcome.and_then(Result::ok),
            error: error.map(Error::to_string),
            display: (!lines.is_empty()).then(|| lines.join("\n")),
        }
    }
}

/// Writes a line of JSON for each host. `json` returns the result of the host of a number, from 0. An outcome is `None`
/// for a host on which the verb was not begun.
pub(super) fn write_json<'a, T: 'a>(
    out: &mut impl Write,
    hosts: impl Iterator<Item = (&'a str, Option<&'a Result<T, Error>>)>,
    json: impl Fn(usize, &T) -> io::Result<Box<RawValue>>,
) -> io::Result<()> {
    for (number, (host, outcome)) in hosts.enumerate() {
        let outcome = match outcome.map(Result::as_ref) {
            Some(Ok(value)) => Some(Ok(json(number, value)?)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        let outcome = outcome.as_ref().map(|outcome| match outcome {
            Ok(result) => Ok(&**result),
            Err(error) => Err(*error),
        });
        let line = serde_json::to_string(&HostReport::new(host, outcome))?;
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Returns the state of a host on which a verb has failed.
pub(super) fn state_of(error: &Error) -> &'static str {
    match error.exit() {
        ExitStatus::StillGoing => "unfinished",
        ExitStatus::NotRunning => "down",
        ExitStatus::NoReply => "unreachable",
        ExitStatus::Forbidden => "forbidden",
        ExitStatus::Done | ExitStatus::Failed | ExitStatus::Usage => "failed",
    }
}

/// Writes `web1: SENTENCE`, and the lines of an excerpt, each after the name of the host.
pub(super) fn write_error(out: &mut impl Write, host: &str, error: &Error) -> io::Result<()> {
    writeln!(out, "{}: {}", Escaped(host), Escaped(error))?;
    write_lines(out, host, error)
}

/// Writes the lines of the excerpt of an error, each after the name of the host.
pub(super) fn write_lines(out: &mut impl Write, host: &str, error: &Error) -> io::Result<()> {
    let mut lines = error.lines();
    lines.try_for_each(|line| writeln!(out, "{}: {}", Escaped(host), Escaped(line)))
}

/// Returns the result for all hosts. An outcome is `None` for a host on which the verb was not begun.
pub(super) fn conclude<'a, T: 'a>(
    outcomes: impl Iterator<Item = Option<&'a Result<T, Error>>>,
) -> Result<(), Error> {
    let (mut failed, mut not_begun, mut all) = (0, 0, 0);
    let mut exit = ExitStatus::Done;
    for outcome in outcomes {
        all += 1;
        match outcome {
            None => not_begun += 1,
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                failed += 1;
                exit = exit.worse(error.exit());
            }
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::Hosts {
            failed,
            not_begun,
            all,
            exit,
        }),
    }
}
