//! `status --watch`: the status again and again. It ends with an error only before the first one.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::write;
use crate::ctl::error::Error;
use crate::ctl::reconnecting::Reconnecting;
use crate::ctl::session::{Session, parse};
use crate::proto::control::Verb;
use crate::proto::text::Escaped;
use crate::sys::{poll, terminal};

/// Prints the status once an interval, until standard output fails.
pub(crate) fn watch(
    interval: Duration,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut daemon = Reconnecting::new(session);
    let mut has_begun = false;
    loop {
        let began = Instant::now();
        let block = match daemon.ask(|daemon| Ok(daemon.ask(Verb::Status)?)) {
            Ok(status) => block(&status, session)?,
            Err(error) if has_begun => outage(&error, session),
            Err(error) => return Err(error),
        };
        let written = match (session.json, session.seen.out) {
            (true, _) => writeln!(out, "{block}"),
            (false, true) => redraw(out, &block, has_begun),
            (false, false) if has_begun => write!(out, "\n{block}"),
            (false, false) => write!(out, "{block}"),
        };
        written.and_then(|()| out.flush()).map_err(Error::Output)?;
        has_begun = true;
        poll::pause(interval.saturating_sub(began.elapsed()));
    }
}

/// Returns the status as it is printed, as lines or as JSON.
fn block(status: &RawValue, session: &Session) -> Result<String, Error> {
    if session.json {
        return Ok(status.get().to_owned());
    }
    let mut lines = Vec::new();
    write(&mut lines, session.seen.paint(), &parse(status)?).map_err(Error::Output)?;
    Ok(String::from_utf8_lossy(&lines).into_owned())
}

/// Returns why there is no status at the moment, in the form of one.
fn outage(error: &Error, session: &Session) -> String {
    match error.to_json().filter(|_| session.json) {
        Some(json) => json,
        None => format!("{}\n", Escaped(error)),
    }
}

/// Replaces what the terminal shows by as many lines as it has room for. Each line is erased after it was written, not
/// before, so that nothing flickers.
fn redraw(out: &mut impl Write, block: &str, has_begun: bool) -> io::Result<()> {
    out.write_all(if has_begun { HOME } else { CLEAR })?;
    let room = terminal::size(io::stdout()).map_or(usize::MAX, |(_, lines)| usize::from(lines));
    // The cursor stays below the last line.
    for line in block.lines().take(room.saturating_sub(1)) {
        out.write_all(line.as_bytes())?;
        out.write_all(END_OF_LINE)?;
    }
    out.write_all(ERASE_BELOW)
}

/// The cursor to the first line: CUP of ECMA-48.
const HOME: &[u8] = b"\x1b[H";
/// The same, and the terminal empty: ED.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";
/// The rest of the line empty, and the next line: EL.
const END_OF_LINE: &[u8] = b"\x1b[K\r\n";
/// From the cursor on empty: ED.
const ERASE_BELOW: &[u8] = b"\x1b[J";
