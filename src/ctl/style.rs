//! Colours, on terminals, and their width.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;

use crate::proto::control::WorkerState;
use crate::proto::log::LogLevel;
use crate::sys::terminal;

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
    colours: Colours,
    /// The width of the terminal, in columns.
    pub(super) width: usize,
}

impl Seen {
    /// Looks at the streams of this process.
    pub(super) fn from_environment(var: impl Fn(&str) -> Option<OsString>) -> Seen {
        let seen = Seen::new(io::stdout().is_terminal(), io::stderr().is_terminal(), &var);
        let size = terminal::size(io::stdout()).or_else(|_| terminal::size(io::stderr()));
        match (width_of_environment(var), size) {
            (None, Ok((columns, _))) => Seen {
                width: columns.into(),
                ..seen
            },
            _ => seen,
        }
    }

    /// Evaluates `NO_COLOR` (no-color.org), `TERM` and `COLUMNS` of the environment.
    pub(super) fn new(out: bool, err: bool, var: impl Fn(&str) -> Option<OsString>) -> Seen {
        let is_able = var("TERM").is_none_or(|term| term != "dumb");
        let colours = match var("NO_COLOR").is_none_or(|value| value.is_empty()) {
            true => Colours::Terminals,
            false => Colours::Never,
        };
        let width = width_of_environment(var).unwrap_or(USUAL_WIDTH);
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

    /// Returns these streams with colours as the command line wants them.
    pub(super) fn with_colours(self, wanted: Colour) -> Seen {
        let colours = match wanted {
            Colour::Auto => self.colours,
            Colour::Always => Colours::Always,
            Colour::Never => Colours::Never,
        };
        Seen { colours, ..self }
    }

    /// Returns the colours and the width of standard output.
    pub(super) fn paint(self) -> Paint {
        self.paint_of(self.out)
    }

    /// Returns the colours and the width of standard error.
    pub(super) fn error_paint(self) -> Paint {
        self.paint_of(self.err)
    }

    fn paint_of(self, is_terminal: bool) -> Paint {
        let colours = match self.colours {
            Colours::Terminals => is_terminal,
            Colours::Always => true,
            Colours::Never => false,
        };
        Paint {
            colours,
            width: is_terminal.then_some(self.width),
        }
    }
}

/// Returns the width that `COLUMNS` has, if it has one.
fn width_of_environment(var: impl Fn(&str) -> Option<OsString>) -> Option<usize> {
    let columns = var("COLUMNS")?.to_str()?.parse().ok();
    columns.filter(|columns| *columns > 0)
}

/// The streams that have colours.
#[derive(Clone, Copy, Debug, Default)]
enum Colours {
    Terminals,
    Always,
    #[default]
    Never,
}

/// The value of the option `--color`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Colour {
    Auto,
    Always,
    Never,
}

/// Whether an output has colours, and how wide it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Paint {
    colours: bool,
    width: Option<usize>,
}

impl Paint {
    /// Returns whether there are colours.
    pub(super) fn is_on(self) -> bool {
        self.colours
    }

    /// Returns the width of the terminal, in columns; `None` if the output is none.
    pub(super) fn width(self) -> Option<usize> {
        self.width
    }

    /// Returns this output with the usual width of a terminal if it is none.
    pub(super) fn with_usual_width(self) -> Paint {
        Paint {
            width: self.width.or(Some(USUAL_WIDTH)),
            ..self
        }
    }

    /// Returns the text in a style, if there are colours. Padding belongs in the text or outside: a width would count
    /// the sequences.
    pub(super) fn on<T: Display>(self, style: Style, text: T) -> Painted<T> {
        Painted {
            style: if self.colours { style } else { Style::new() },
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

/// The width of a terminal if neither `COLUMNS` nor the terminal has it.
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
        // The command line outweighs both the stream and the environment.
        for (wanted, expected) in [
            (Colour::Auto, "x"),
            (Colour::Always, "\x1b[31mx\x1b[0m"),
            (Colour::Never, "x"),
        ] {
            let no_terminal = seen(false, &[("NO_COLOR", "1")]).with_colours(wanted);
            assert_eq!(shown(no_terminal), expected, "{wanted:?}");
            assert_eq!(no_terminal.paint().width(), None);
        }
        assert_eq!(shown(seen(true, &[]).with_colours(Colour::Never)), "x");
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
