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
        let block = match daemon.ask(|daemon| block(&daemon.ask(Verb::Status)?, session)) {
            Ok(block) => block,
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
    out.write_all(NO_WRAP)?;
    out.write_all(if has_begun { HOME } else { CLEAR })?;
    let size = terminal::size(io::stdout());
    let (width, room) = size.map_or((usize::MAX, usize::MAX), |(columns, lines)| {
        (columns.into(), lines.into())
    });
    // The cursor stays below the last line.
    for line in block.lines().take(room.saturating_sub(1)) {
        out.write_all(cut(line, width).as_bytes())?;
        out.write_all(END_OF_LINE)?;
    }
    out.write_all(ERASE_BELOW)?;
    out.write_all(WRAP)
}

/// Returns the beginning of a line: as many characters as there are columns, and all sequences of its styles.
fn cut(line: &str, width: usize) -> String {
    let (mut left, mut is_style) = (width, false);
    let is_kept = |c: &char| {
        let is_part = is_style || *c == '\x1b';
        is_style = is_part && *c != 'm';
        let is_visible = !is_part && left > 0;
        left -= usize::from(is_visible);
        is_part || is_visible
    };
    line.chars().filter(is_kept).collect()
}

/// The terminal cuts what is still too long, as characters of double width (DECAWM): a line that wraps would scroll the
/// first ones away.
const NO_WRAP: &[u8] = b"\x1b[?7l";
const WRAP: &[u8] = b"\x1b[?7h";
/// The cursor to the first line: CUP of ECMA-48.
const HOME: &[u8] = b"\x1b[H";
/// The same, and the terminal empty: ED.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";
/// The rest of the line empty, and the next line: EL.
const END_OF_LINE: &[u8] = b"\x1b[K\r\n";
/// From the cursor on empty: ED.
const ERASE_BELOW: &[u8] = b"\x1b[J";

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_line_is_cut_and_keeps_its_styles() {
        let line = "a\x1b[1;31mbcd\x1b[0mef";
        assert_eq!(cut(line, 3), "a\x1b[1;31mbc\x1b[0m");
        assert_eq!(cut(line, usize::MAX), line);
        assert_eq!(cut(line, 0), "\x1b[1;31m\x1b[0m");
    }
}
