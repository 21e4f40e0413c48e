//! Changes on several hosts: at the same time, or one after the other until one fails.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use serde_json::value::RawValue;

use super::Fleet;
use super::report::{conclude, state_of, write_json, write_lines};
use crate::ctl::args::ChangeVerb;
use crate::ctl::change;
use crate::ctl::error::{Error, ExitStatus};
use crate::ctl::session::Session;
use crate::ctl::style::{BAD, GOOD, NOTED};
use crate::ctl::table::{self, Cell, Columns};
use crate::proto::text::Escaped;

/// The output of a change, or its error; `None` for a host on which the change was not begun.
type ChangeOutcome = Option<Result<String, Error>>;

/// Makes a change on each host, and prints the state of each.
pub(super) fn perform(
    change: &ChangeVerb,
    fleet: &Fleet<'_>,
    one_at_a_time: bool,
    out: &mut impl Write,
    err: &mut (impl Write + Send),
) -> Result<(), Error> {
    let err = Mutex::new(err);
    let on_host = |host: &str, session: &Session| {
        let mut text = Vec::new();
        let mut progress = HostLines::new(host, &err);
        change::perform(change, session, &mut text, &mut progress)?;
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    };
    let mut outcomes: Vec<ChangeOutcome> = Vec::new();
    if one_at_a_time {
        let mut has_failed = false;
        for (number, host) in fleet.names().enumerate() {
            let act = || fleet.on(number, |session| on_host(host, session));
            let outcome = (!has_failed).then(act);
            has_failed |= matches!(outcome, Some(Err(_)));
            outcomes.push(outcome);
        }
    } else {
        outcomes.extend(fleet.on_all(on_host).into_iter().map(Some));
    }
    let hosts = fleet.names().zip(outcomes.iter().map(Option::as_ref));
    let written = match fleet.session.json {
        true => write_json(out, hosts, |_, text| {
            Ok(RawValue::from_string(text.clone())?)
        }),
        false => write_table(out, fleet, &outcomes),
    };
    written.map_err(Error::Output)?;
    conclude(outcomes.iter().map(Option::as_ref))
}

fn write_table(
    out: &mut impl Write,
    fleet: &Fleet<'_>,
    outcomes: &[ChangeOutcome],
) -> io::Result<()> {
    let hosts = fleet.names().zip(outcomes);
    let row = |(host, outcome): (&str, &ChangeOutcome)| {
        let (state, style, sentence) = match outcome {
            None => ("not begun", NOTED, String::new()),
            Some(Ok(text)) => ("done", GOOD, first_line(text).0.to_owned()),
            Some(Err(error)) => {
                let style = match error.exit() {
                    ExitStatus::StillGoing => NOTED,
                    _ => BAD,
                };
                (state_of(error), style, Escaped(error).to_string())
            }
        };
        let host = Cell::from(Escaped(host).to_string());
        [host, Cell::styled(state, style), Cell::from(sentence)]
    };
    let rows: Vec<_> = hosts.clone().map(row).collect();
    table::write(out, fleet.session.seen.paint(), COLUMNS, &rows)?;
    for (host, outcome) in hosts {
        match outcome {
            Some(Ok(text)) => first_line(text)
                .1
                .try_for_each(|line| writeln!(out, "{}: {line}", Escaped(host)))?,
            Some(Err(error)) => write_lines(out, host, error)?,
            None => {}
        }
    }
    Ok(())
}

/// Returns the first line of a result, for which a row has space, and the others.
fn first_line(text: &str) -> (&str, impl Iterator<Item = &str>) {
    let mut lines = text.lines();
    (lines.next().unwrap_or_default(), lines)
}

const COLUMNS: Columns<3> = Columns {
    header: ["HOST", "STATE", "RESULT"],
    words: &[0, 1, 2],
    gives_way: &[],
    goes: &[],
    optional: None,
};

/// Writes complete lines to a stream that all hosts share, each after its host's name.
#[derive(Debug)]
struct HostLines<'a, W> {
    host: String,
    /// The beginning of a line.
    line: Vec<u8>,
    to: &'a Mutex<W>,
}

impl<W> HostLines<'_, W> {
    fn new<'a>(host: &str, to: &'a Mutex<W>) -> HostLines<'a, W> {
        HostLines {
            host: Escaped(host).to_string(),
            line: Vec::new(),
            to,
        }
    }
}

impl<W: Write> Write for HostLines<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        while let Some(length) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=length).collect();
            let whole = [self.host.as_bytes(), b": ", &line].concat();
            let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
            to.write_all(&whole)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_name_of_its_host() {
        let to = Mutex::new(Vec::new());
        let [mut a, mut b] = ["a", "b\x1b"].map(|host| HostLines::new(host, &to));
        a.write_all(b"one\ntw").expect("a Vec takes everything");
        b.write_all(b"three\n").expect("a Vec takes everything");
        a.write_all(b"o\n\n").expect("a Vec takes everything");
        let written = to.into_inner().expect("no thread has panicked");
        assert_eq!(
            String::from_utf8_lossy(&written),
            "a: one\nb\\x1b: three\na: two\na: \n"
        );
    }
}
