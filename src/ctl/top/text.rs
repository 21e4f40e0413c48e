//! Lines of a screen.

use anstyle::Style;
use ratatui_core::text::{Line, Span};

use crate::ctl::figures::clock;
use crate::ctl::style::of_level;
use crate::ctl::top::news::EventLine;
use crate::proto::text::Escaped;

/// Returns a line with a word in front: `requests  12,345`.
pub(super) fn fact(word: &str, text: &str) -> Line<'static> {
    Line::raw(format!("{word:10}{text}"))
}

/// Returns a line with a word in front of parts that commas and semicolons separate: as many as fit this width.
pub(super) fn fact_within(word: &str, text: &str, width: usize) -> Line<'static> {
    let whole = fact(word, text);
    if whole.width() <= width {
        return whole;
    }
    let fits = |(end, _): &(usize, &str)| fact(word, &text[..*end]).width() + " …".len() <= width;
    let ends = text.match_indices([',', ';']).take_while(fits);
    match ends.last() {
        Some((end, separator)) => fact(word, &format!("{}{separator} …", &text[..end])),
        None => whole,
    }
}

/// Returns a line with a word in a style in front of a text from outside, which is escaped.
pub(super) fn foreign(word: &str, style: Style, text: &str) -> Line<'static> {
    let text = Escaped(text).to_string();
    Line::from(vec![
        Span::styled(format!("{word:10}"), style),
        Span::raw(text),
    ])
}

/// Returns a line in a style.
pub(super) fn styled(text: impl Into<String>, style: Style) -> Line<'static> {
    Line::styled(text.into(), style)
}

/// Returns the line of an event: `12:00:01 worker 17 (pid 4711, gen 3) killed by signal 11 (SIGSEGV)`.
pub(super) fn event(event: &EventLine) -> Line<'static> {
    let message = Escaped(&event.message).to_string();
    Line::from(vec![
        Span::styled(clock(event.at), of_level(event.level)),
        Span::raw(format!(" {message}")),
    ])
}
