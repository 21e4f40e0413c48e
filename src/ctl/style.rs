//! Colours, where there is somebody to see them.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal};

use anstyle::{AnsiColor, Style};

use crate::proto::channel::LogLevel;
use crate::proto::control::WorkerState;

/// Good news.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// What passes, or is unusual.
pub(super) const NOTED: Style = AnsiColor::Yellow.on_default();
/// What somebody should look at.
pub(super) const BAD: Style = AnsiColor::Red.on_default();
/// What is there for completeness.
pub(super) const FAINT: Style = Style::new().dimmed();

/// Which of the streams somebody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Whether standard output is a terminal that is more than a typewriter.
    pub(super) out: bool,
    /// The same of standard error.
    pub(super) err: bool,
    /// Whether colours are welcome there.
    colours: bool,
    /// Columns of the terminal, as far as is known.
    pub(super) width: usize,
}

impl Seen {
    /// What is known of the two streams of this process.
    pub(super) fn from_environment(var: impl Fn(&str) -> Option<OsString>) -> Seen {
        Seen::new(io::stdout().is_terminal(), io::stderr().is_terminal(), var)
    }

    /// For a stream that is a terminal the environment has a word too: `NO_COLOR` (no-color.org), `TERM`, `COLUMNS`.
    pub(super) fn new(out: bool, err: bool, var: impl Fn(&str) -> Option<OsString>) -> Seen {
        let is_able = var("TERM").is_none_or(|term| term != "dumb");
        let colours = var("NO_COLOR").is_none_or(|value| value.is_empty());
        let columns = var("COLUMNS").and_then(|columns| columns.to_str()?.parse().ok());
        let width = columns
            .filter(|columns| *columns > 0)
            .unwrap_or(USUAL_WIDTH);
        Seen {
            out: out && is_able,
            err: err && is_able,
            colours,
            width,
        }
    }

    /// How standard output is written.
    pub(super) fn paint(self) -> Paint {
        Paint(self.out && self.colours)
    }

    /// How standard error is written.
    pub(super) fn error_paint(self) -> Paint {
        Paint(self.err && self.colours)
    }
}

/// Whether what is written has colours.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Paint(bool);

impl Paint {
    /// The text in that style, if there are colours. Whoever pads it has to do so inside or beside it.
    pub(super) fn on<T: Display>(self, style: Style, text: T) -> Painted<T> {
        Painted {
            style: if self.0 { style } else { Style::new() },
            text,
        }
    }
}

/// A text between the sequences that begin and end its style.
#[derive(Clone, Copy, Debug)]
pub(super) struct Painted<T> {
    style: Style,
    text: T,
}

impl<T: Display> Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}{}",
            self.style.render(),
            self.text,
            self.style.render_reset()
        )
    }
}

/// How a worker's state is shown.
pub(super) fn of_state(state: WorkerState) -> Style {
    match state {
        WorkerState::Ready => GOOD,
        WorkerState::Starting | WorkerState::Draining | WorkerState::Waiting => NOTED,
        WorkerState::Stalled | WorkerState::Held => BAD,
    }
}

/// How the level of an event is shown.
pub(super) fn of_level(level: LogLevel) -> Style {
    match level {
        LogLevel::Error => BAD,
        LogLevel::Warn => NOTED,
        LogLevel::Info => GOOD,
        LogLevel::Debug | LogLevel::Trace => FAINT,
    }
}

/// Columns of a terminal that does not say how many it has; its size is a system call away, and those are not for `ctl`.
const USUAL_WIDTH: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(out: bool, environment: &[(&str, &str)]) -> Seen {
        Seen::new(out, !out, |key| {
            environment
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn colours_are_for_a_terminal_that_has_them_and_for_whoever_wants_them() {
        let shown = |seen: Seen| seen.paint().on(BAD, "x").to_string();
        for (environment, is_painted) in [
            (&[][..], true),
            (&[("TERM", "xterm-256color"), ("NO_COLOR", "")], true),
            (&[("NO_COLOR", "1")], false),
            (&[("TERM", "dumb")], false),
        ] {
            let expected = if is_painted { "\x1b[31mx\x1b[0m" } else { "x" };
            assert_eq!(shown(seen(true, environment)), expected, "{environment:?}");
            assert_eq!(shown(seen(false, environment)), "x", "{environment:?}");
            assert_eq!(
                seen(false, environment)
                    .error_paint()
                    .on(BAD, "x")
                    .to_string(),
                expected
            );
        }
        // Colours are a matter of taste; a line that is written over is none of colour.
        assert!(seen(true, &[("NO_COLOR", "1")]).out && !seen(true, &[("TERM", "dumb")]).out);
    }

    #[test]
    fn a_terminal_is_as_wide_as_it_says_or_as_they_usually_are() {
        for (columns, width) in [("160", 160), ("0", 80), ("-1", 80), ("wide", 80), ("", 80)] {
            assert_eq!(seen(true, &[("COLUMNS", columns)]).width, width);
        }
        assert_eq!(seen(true, &[]).width, 80);
    }
}
