//! A message with the line of the file that it is about.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

/// A message, and its place.
#[derive(Clone, Debug)]
pub struct Excerpt {
    /// Line and column in characters, from 1.
    pub position: (usize, usize),
    /// The message and the line, with carets below the place.
    pub display: String,
}

impl Excerpt {
    /// Shows a message at this place of a text, whose file errors name `origin`.
    #[must_use]
    pub fn new(
        origin: &str,
        text: &str,
        span: Range<usize>,
        message: &str,
        help: Option<&str>,
    ) -> Excerpt {
        let (text, span) = visible(text, span);
        let position = position(text, span.start);
        let source = Snippet::source(text)
            .path(origin)
            .annotation(AnnotationKind::Primary.span(span));
        let report = Level::ERROR.primary_title(message).element(source);
        let report = report.elements(help.map(|help| Level::HELP.message(help)));
        let display = Renderer::plain().render(&[report]);
        Excerpt { position, display }
    }
}

/// Shows a message about a whole file.
#[must_use]
pub fn excerpt_of_file(origin: &str, message: &str) -> String {
    let title = Level::ERROR.primary_title(message);
    Renderer::plain().render(&[title.element(Origin::path(origin))])
}

/// Returns the line and the column, from 1.
#[must_use]
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset];
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Leaves out a byte order mark, which is not a column, and all but the first line of the span: a table that lacks a
/// key is marked at its header. The end of the file is the end of its last line.
#[must_use]
pub fn visible(text: &str, span: Range<usize>) -> (&str, Range<usize>) {
    let shown = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mark = text.len() - shown.len();
    let last_line = shown
        .strip_suffix('\n')
        .map_or(shown, |lines| lines.strip_suffix('\r').unwrap_or(lines));
    let start = boundary(shown, span.start.saturating_sub(mark)).min(last_line.len());
    let end = boundary(shown, span.end.saturating_sub(mark)).max(start);
    let first_line = shown[start..end].lines().next().map_or(0, str::len);
    (shown, start..start + first_line)
}

/// Returns the nearest beginning of a character: the offsets come from another crate.
fn boundary(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or_default()
}
