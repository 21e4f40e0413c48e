//! Colours, on terminals.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal};

use anstyle::{AnsiColor, Style};

use crate::proto::control::WorkerState;
use crate::proto::log::LogLevel;

/// Good news.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// Temporary or unusual.
pub(super) const NOTED: Style = AnsiColor::Yellow.on_default();
/// To be looked at.
pub(super) const BAD: Style = AnsiColor::Red.on_default();
/// Of little interest.
pub(super) const FAINT: Style = Style::new().dimmed();

/// The terminals among the standard streams.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Whether standard output is a terminal that can move its cursor.
    pub(super) out: bool,
    /// Whether standard error is such a terminal.
    pub(super) err: bool,
    /// Whether the environment allows colours.
    colours: bool,
    /// The width of the terminal, in columns.
    pub(super) width: usize,
}

impl Seen {
    /// Looks at the streams of this process.
    pub(super) fn from_environment(var: impl Fn(&str) -> Option<OsString>) -> Seen {
        Seen::new(io::stdout().is_terminal(), io::stderr().is_terminal(), var)
    }

    /// Evaluates `NO_COLOR` (no-color.org), `TERM` and `COLUMNS` of the environment.
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

    /// Returns these streams with standard error as no terminal: others write to it at the same time.
    pub(super) fn with_shared_err(self) -> Seen {
        Seen { err: false, ..self }
    }

    /// Returns the colours of standard output.
    pub(super) fn paint(self) -> Paint {
        Paint(self.out && self.colours)
    }

    /// Returns the colours of standard error.
    pub(super) fn error_paint(self) -> Paint {
        Paint(self.err && self.colours)
    }
}

/// Whether there are colours.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Paint(bool);

impl Paint {
    /// Returns whether there are colours.
    pub(super) fn is_on(self) -> bool {
        self.0
    }

    /// Returns the text in a style, if there are colours. Padding belongs in the text or outside: a width would count
    /// the sequences.
    pub(super) fn on<T: Display>(self, style: Style, text: T) -> Painted<T> {
        Painted {
            style: if self.0 { style } else { Style::new() },
            text,
        }
    }
}

/// A text between the sequences that begin and end a style.
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

/// Returns the style of a worker's state.
pub(super) fn of_state(state: WorkerState) -> Style {
    match state {
        WorkerState::Ready => GOOD,
        WorkerState::Starting | WorkerState::Draining | WorkerState::Waiting => NOTED,
        WorkerState::Stalled | WorkerState::Unhealthy | WorkerState::Held => BAD,
    }
}

/// Returns the style of an event's level.
pub(super) fn of_level(level: LogLevel) -> Style {
    match level {
        LogLevel::Error => BAD,
        LogLevel::Warn => NOTED,
        LogLevel::Info => GOOD,
        LogLevel::Debug | LogLevel::Trace => FAINT,
    }
}

/// The width of a terminal if `COLUMNS` is not set.
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
    fn colours_need_a_terminal_and_the_consent_of_the_environment() {
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
        // NO_COLOR leaves the progress line, TERM=dumb does not.
        assert!(seen(true, &[("NO_COLOR", "1")]).out && !seen(true, &[("TERM", "dumb")]).out);
    }

    #[test]
    fn a_terminal_has_the_width_of_columns_or_80() {
        for (columns, width) in [("160", 160), ("0", 80), ("-1", 80), ("wide", 80), ("", 80)] {
            assert_eq!(seen(true, &[("COLUMNS", columns)]).width, width);
        }
        assert_eq!(seen(true, &[]).width, 80);
    }
}
