//! Errors of a configuration file, with their places.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

use super::check::Conflict;
use super::source::SourceText;
use crate::proto::log::LogLevel;

/// Why a configuration was rejected. Displayed for the operator:
///
/// ```text
/// error: unknown key `levle`, expected one of `target`, `file`, `level`
///  --> /etc/fdpassd.toml:3:1
///   |
/// 3 | levle = "debug"
///   | ^^^^^
///   |
///   = help: did you mean "level"?
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The name of the file.
    origin: String,
    message: String,
    help: Option<String>,
    /// Line and column; none for the whole file.
    position: Option<(usize, usize)>,
    display: String,
}

impl Error {
    /// Returns the message, without the place.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the name of the file.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns a suggestion, if there is one.
    #[cfg(test)]
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// Returns the line, from 1; `None` for the whole file.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.position.map(|(line, _)| line)
    }

    /// Returns the column in characters, from 1; `None` for the whole file.
    #[must_use]
    pub fn column(&self) -> Option<usize> {
        self.position.map(|(_, column)| column)
    }

    /// Returns `/etc/fdpassd.toml:3:1: unknown key …`, for a log line.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        let Error {
            origin, message, ..
        } = self;
        match self.position {
            Some((line, column)) => format!("{origin}:{line}:{column}: {message}"),
            None => format!("{origin}: {message}"),
        }
    }
}

impl Error {
    /// Creates an error of a whole file.
    pub(super) fn from_file(origin: &str, message: &str) -> Error {
        let title = Level::ERROR.primary_title(message);
        let display = Renderer::plain().render(&[title.element(Origin::path(origin))]);
        Error {
            origin: origin.to_owned(),
            message: message.to_owned(),
            help: None,
            position: None,
            display,
        }
    }

    /// Creates an error of the first byte that is not text.
    pub(super) fn not_utf8(origin: &str, bytes: &[u8], offset: usize) -> Error {
        let (valid, rest) = bytes.split_at(offset);
        let byte = rest.first().copied().unwrap_or_default();
        let message = format!("the byte {byte:#04x} at offset {offset} is not UTF-8");
        let text = str::from_utf8(valid).unwrap_or_default();
        Error::at(origin, text, offset..offset, &message, None)
    }

    /// Creates an error that the parser or a type has found. `own` is the name of the daemon's own table, if there may
    /// be one.
    pub(super) fn from_toml(
        source: &SourceText,
        error: &toml::de::Error,
        own: Option<&str>,
    ) -> Error {
        let SourceText { origin, text } = source;
        let mut message = reword(error.message());
        if let Some(own) = own.filter(|_| message.contains(", expected one of `listen`, ")) {
            message.push_str(&format!(", `{own}`"));
        }
        let Some(span) = error.span() else {
            return Error::from_file(origin, &message);
        };
        match source
            .find_first(span.clone())
            .filter(|_| message == "duplicate key")
        {
            Some(first) => Error::twice(&text[span.clone()], (source, first), (source, span)),
            None => {
                let help = advice(&message)
                    .or_else(|| as_key(source, &span, &message))
                    .or_else(|| in_quotes(text, span.start));
                Error::at(origin, text, span, &message, help)
            }
        }
    }

    /// Returns the message of such an error, without its place.
    pub(super) fn reworded(error: &toml::de::Error) -> String {
        reword(error.message())
    }

    /// Creates an error that [`super::check`] has found, at the first of its places that one of the files has.
    pub(super) fn from_conflict(
        texts: &[SourceText],
        Conflict { message, places }: &Conflict,
    ) -> Error {
        let find = |place: &String| {
            let mut found = texts
                .iter()
                .filter_map(|source| Some((source, source.find(place)?)));
            found.next()
        };
        let Some((source, span)) = places.iter().find_map(find) else {
            let origin = texts.first().map_or("the default", |source| &source.origin);
            return Error::from_file(origin, message);
        };
        Error::at(&source.origin, &source.text, span, message, advice(message))
    }

    /// Creates an error of a key in two files.
    pub(super) fn given_twice(first: &SourceText, again: &SourceText, key: &str) -> Error {
        let place = |source: &SourceText| source.find(key).unwrap_or_default();
        Error::twice(key, (first, place(first)), (again, place(again)))
    }

    fn twice(
        key: &str,
        (first, first_span): (&SourceText, Range<usize>),
        (again, span): (&SourceText, Range<usize>),
    ) -> Error {
        let (first_text, first_span) = visible(&first.text, first_span);
        let (text, span) = visible(&again.text, span);
        let [there, position] = [(first_text, &first_span), (text, &span)]
            .map(|(text, span)| position(text, span.start));
        let message = format!(
            "`{key}` is given twice, the first time at {}:{}:{}",
            first.origin, there.0, there.1
        );
        let (before, after) = (
            AnnotationKind::Context
                .span(first_span)
                .label("given here first"),
            AnnotationKind::Primary.span(span).label("and again here"),
        );
        let snippet = Snippet::source(text).path(&again.origin).annotation(after);
        let title = Level::ERROR.primary_title(format!("`{key}` is given twice"));
        let report = match first.origin == again.origin {
            true => title.element(snippet.annotation(before)),
            false => title.element(snippet).element(
                Snippet::source(first_text)
                    .path(&first.origin)
                    .annotation(before),
            ),
        };
        let display = Renderer::plain().render(&[report]);
        Error {
            origin: again.origin.clone(),
            message,
            help: None,
            position: Some(position),
            display,
        }
    }

    fn at(
        origin: &str,
        text: &str,
        span: Range<usize>,
        message: &str,
        help: Option<String>,
    ) -> Error {
        let (text, span) = visible(text, span);
        let position = position(text, span.start);
        let source = Snippet::source(text)
            .path(origin)
            .annotation(AnnotationKind::Primary.span(span));
        let report = Level::ERROR.primary_title(message).element(source);
        let report = report.elements(help.as_deref().map(|help| Level::HELP.message(help)));
        let display = Renderer::plain().render(&[report]);
        Error {
            origin: origin.to_owned(),
            message: message.to_owned(),
            help,
            position: Some(position),
            display,
        }
    }
}

/// Returns the line and the column, from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset];
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display)
    }
}

impl std::error::Error for Error {}

/// Leaves out a byte order mark, which is not a column, and all but the first line of the span: a table that lacks a
/// key is marked at its header. The end of the file is the end of its last line.
fn visible(text: &str, span: Range<usize>) -> (&str, Range<usize>) {
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

/// Replaces the words of Rust in serde's messages by those of TOML.
fn reword(message: &str) -> String {
    let words = [
        ("unknown field", "unknown key"),
        ("missing field", "missing key"),
        ("unknown variant", "unknown word"),
        ("invalid type: sequence", "invalid type: array"),
        ("invalid type: map", "invalid type: table"),
    ];
    let reworded = words
        .iter()
        .find_map(|(theirs, ours)| Some(format!("{ours}{}", message.strip_prefix(theirs)?)));
    let message = reworded.unwrap_or_else(|| message.to_owned());
    message
        .strip_suffix("a sequence")
        .map(|rest| format!("{rest}an array"))
        .unwrap_or(message)
}

fn advice(message: &str) -> Option<String> {
    if message.starts_with("unexpected leading zero") {
        return Some("a mode is written in quotes, such as \"0660\"".to_owned());
    }
    if message.starts_with("unknown") {
        did_you_mean(message)
    } else {
        as_array(message)
    }
}

/// Returns the help for a value without its quotes at this position, such as `level = info` or `max-frame = 1MiB`.
fn in_quotes(text: &str, position: usize) -> Option<String> {
    let begin = text[..position]
        .rfind('\n')
        .map_or(0, |newline| newline + 1);
    let (_, value) = text[begin..].lines().next()?.split_once('=')?;
    let value = value.split('#').next()?.trim();
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_./:-+%".contains(c);
    let is_bare = !value.is_empty() && value.chars().all(is_word);
    let is_valid = || format!("x = {value}").parse::<toml::Table>().is_ok();
    (is_bare && !is_valid())
        .then(|| format!("a text, a size or a duration is written in quotes: \"{value}\""))
}

/// Writes the string of serde's message as the array that was expected: its words, unless it has quotes of a shell.
fn as_array(message: &str) -> Option<String> {
    let text = message
        .strip_prefix("invalid type: string \"")?
        .strip_suffix("\", expected an array")?;
    let is_plain = !text.is_empty() && !text.contains(['\'', '"', '\\']);
    let words: Vec<String> = text.split(' ').map(|word| format!("{word:?}")).collect();
    let array = if is_plain {
        words.join(", ")
    } else {
        "\"…\", \"…\"".to_owned()
    };
    Some(format!("an array is written in brackets: [{array}]"))
}

/// Writes a value in the place of a table with the key that it is probably for: `workers = 4` as `workers.count = 4`.
fn as_key(source: &SourceText, span: &Range<usize>, message: &str) -> Option<String> {
    if !message.starts_with("invalid type: ") || !message.ends_with(", expected a table") {
        return None;
    }
    let (name, string) = source.top_key_at(span)?;
    let text = source.text.get(span.clone())?;
    let is_level = |word: &str| LogLevel::ALL.iter().any(|level| level.as_str() == word);
    let key = match (name.as_str(), string.as_deref()) {
        ("app", _) => "command",
        ("control", Some(_)) => "socket",
        ("log", Some(word)) if is_level(word) => "level",
        ("log", Some(path)) if path.contains('/') => "file",
        ("log", Some(_)) => "target",
        ("metrics", Some(_)) => "listen",
        ("workers", _) => "count",
        _ => return None,
    };
    let is_short = text.len() <= 80 && !text.contains('\n');
    is_short.then(|| format!("did you mean: {name}.{key} = {text}"))
}

/// Finds a known name like the unknown one in serde's message: "unknown key `x`, expected one of `y`, `z`".
fn did_you_mean(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    quoted
        .map(|known| (strsim::jaro_winkler(wrong, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| format!("did you mean \"{known}\"?"))
}
