//! Errors of a configuration file, with their places.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::advice::{Refused, UnknownKey, as_key, missing_key};
use super::check::Conflict;
use super::text::ConfigText;
use super::variable::Variable;
use crate::toml_text::{
    Excerpt, SyntaxMistake, excerpt_of_file, likely_name, position, reword, syntax_mistake, visible,
};

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
    /// Line and column; none for the whole file, and for a variable.
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
        let display = excerpt_of_file(origin, message);
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
        let source = ConfigText::new(origin.to_owned(), text.to_owned());
        Error::at(&source, offset..offset, &message, None)
    }

    /// Creates the error of all these unknown keys; `None` if there are none.
    pub(super) fn unknown_keys<'a>(
        found: impl Iterator<Item = (&'a ConfigText, UnknownKey)>,
    ) -> Option<Error> {
        let mut errors = found.map(|(source, key)| {
            let UnknownKey {
                span,
                message,
                elsewhere,
                help,
            } = key;
            let help = match source.variable(&span) {
                Some(variable) => help_for(variable, source, &span, &message, &elsewhere),
                None => help,
            };
            Error::at(source, span, &message, help)
        });
        let mut all = errors.next()?;
        for Error {
            origin,
            message,
            position,
            display,
            ..
        } in errors
        {
            let key = message.split(", expected ").next().unwrap_or_default();
            let same_origin = origin == all.origin;
            let place = match position {
                Some((line, column)) if same_origin => format!("{line}:{column}"),
                Some((line, column)) => format!("{origin}:{line}:{column}"),
                None => origin,
            };
            all.message.push_str(&format!("; {key} at {place}"));
            all.display.push_str("\n\n");
            all.display.push_str(&display);
        }
        Some(all)
    }

    /// Creates an error that the parser or a type has found. `own` is the name of the daemon's own table, if there may
    /// be one.
    pub(super) fn from_toml(
        source: &ConfigText,
        error: &toml::de::Error,
        own: Option<&str>,
    ) -> Error {
        Error::from_message(source, error.message(), error.span(), own)
    }

    /// Creates an error with a message of the parser or a type, at this place.
    pub(super) fn from_message(
        source: &ConfigText,
        message: &str,
        span: Option<Range<usize>>,
        own: Option<&str>,
    ) -> Error {
        let text = &source.text;
        let mut message = reword(message);
        if let Some(own) = own.filter(|_| message.contains(", expected one of `listen`, ")) {
            message.push_str(&format!(", `{own}`"));
        }
        let Some(span) = span else {
            return Error::from_file(&source.origin, &message);
        };
        if let Some(variable) = source.variable(&span) {
            if message == "duplicate key" {
                let key = text.get(span.clone()).unwrap_or_default();
                message = format!("`{key}` is given twice");
            }
            let mistake = syntax_mistake(text, &span, &message).unwrap_or_else(|| {
                let message = as_written(message, variable.written(&span));
                let help = help_for(variable, source, &span, &message, &[]);
                SyntaxMistake {
                    message,
                    span,
                    help,
                }
            });
            return Error::at(source, mistake.span, &mistake.message, mistake.help);
        }
        let is_twice =
            message == "duplicate key" || message.starts_with("cannot extend value of type ");
        if let Some(first) = source.find_first(span.clone()).filter(|_| is_twice) {
            return Error::twice(&text[span.clone()], (source, first), (source, span));
        }
        if let Some(mistake) = syntax_mistake(text, &span, &message) {
            return Error::at(source, mistake.span, &mistake.message, mistake.help);
        }
        let message = as_written(message, text.get(span.clone()).unwrap_or_default());
        let help = as_key(source, &span, &message).or_else(|| advice(source, &span, &message));
        Error::at(source, span, &message, help)
    }

    /// Returns the message of such an error, without its place.
    pub(super) fn reworded(error: &toml::de::Error) -> String {
        reword(error.message())
    }

    /// Creates an error that [`super::check`] has found, at the first of its places that one of the texts has.
    pub(super) fn from_conflict(
        texts: &[&ConfigText],
        Conflict {
            message,
            places,
            first,
        }: &Conflict,
    ) -> Error {
        let find = |place: &String| {
            let mut found = texts
                .iter()
                .filter_map(|source| Some((*source, source.find(place)?)));
            found.next()
        };
        let Some((source, span)) = places.iter().find_map(find) else {
            let is_file = |source: &&&ConfigText| source.variables.is_empty();
            let whole = texts.iter().find(is_file).or(texts.first());
            let origin = whole.map_or("the default", |source| &source.origin);
            return Error::from_file(origin, message);
        };
        let is_file = |source: &ConfigText| source.variables.is_empty();
        if let Some(first) = first.iter().find_map(find)
            && is_file(source)
            && is_file(first.0)
        {
            return Error::with_first(message, ", at", first, (source, span));
        }
        let help = match source.variable(&span) {
            Some(variable) => help_for(variable, source, &span, message, &[]),
            None => advice(source, &span, message),
        };
        Error::at(source, span, message, help)
    }

    /// Creates an error of a key in two files.
    pub(super) fn given_twice(first: &ConfigText, again: &ConfigText, key: &str) -> Error {
        let place = |source: &ConfigText| source.find(key).unwrap_or_default();
        Error::twice(key, (first, place(first)), (again, place(again)))
    }

    fn twice(
        key: &str,
        first: (&ConfigText, Range<usize>),
        again: (&ConfigText, Range<usize>),
    ) -> Error {
        let title = format!("`{key}` is given twice");
        Error::with_first(&title, ", the first time at", first, again)
    }

    /// Creates an error that also shows the place where the same was given before.
    fn with_first(
        title: &str,
        before: &str,
        (first, first_span): (&ConfigText, Range<usize>),
        (again, span): (&ConfigText, Range<usize>),
    ) -> Error {
        let (first_text, first_span) = visible(&first.text, first_span);
        let (text, span) = visible(&again.text, span);
        let [there, position] = [(first_text, &first_span), (text, &span)]
            .map(|(text, span)| position(text, span.start));
        let message = format!("{title}{before} {}:{}:{}", first.origin, there.0, there.1);
        let (before, after) = (
            AnnotationKind::Context
                .span(first_span)
                .label("given here first"),
            AnnotationKind::Primary.span(span).label("and again here"),
        );
        let snippet = Snippet::source(text).path(&again.origin).annotation(after);
        let title = Level::ERROR.primary_title(title);
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

    fn at(source: &ConfigText, span: Range<usize>, message: &str, help: Option<String>) -> Error {
        let variable = source.variable(&span);
        let (text, span) = match variable.map(|variable| variable.shown(&span)) {
            Some((text, span)) => (Cow::from(text), span),
            None => (Cow::from(&source.text), span),
        };
        let Excerpt { position, display } =
            Excerpt::new(&source.origin, &text, span, message, help.as_deref());
        let origin = variable.map_or(&source.origin, |variable| &variable.name);
        Error {
            origin: origin.to_owned(),
            message: message.to_owned(),
            help,
            position: variable.is_none().then_some(position),
            display,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display)
    }
}

impl std::error::Error for Error {}

/// Returns the help for an error in a variable. For an unknown key or a value in the place of a table, it is the
/// variable that was probably meant.
fn help_for(
    variable: &Variable,
    source: &ConfigText,
    span: &Range<usize>,
    message: &str,
    elsewhere: &[String],
) -> Option<String> {
    let meant = |name: String| format!("did you mean {name}?");
    if variable.is_in_value(span) {
        let (_, key) = missing_key(source, span, message).unzip();
        let inner = key.map(|key| meant(variable.inner(key)));
        return inner.or_else(|| advice(source, span, message));
    }
    if !message.starts_with("unknown") {
        return None;
    }
    if variable.is_of_service() {
        let rename = "rename the Service, or set enableServiceLinks: false in the Pod";
        return Some(format!(
            "Kubernetes makes such variables for a Service; {rename}"
        ));
    }
    if !elsewhere.is_empty() {
        let names = elsewhere.iter().map(|key| variable.of_key(key));
        return Some(meant(names.collect::<Option<Vec<_>>>()?.join(" or ")));
    }
    let wrong = message.split('`').nth(1)?;
    let known = likely_name(message).map(|(_, known)| known);
    let is_known = |key: &str| message.contains(&format!("`{key}`"));
    let joined = variable.with_joined_key(wrong, is_known);
    joined
        .or_else(|| variable.with_key(wrong, known?))
        .map(meant)
}

/// Returns the help for a value that is refused.
fn advice(source: &ConfigText, span: &Range<usize>, message: &str) -> Option<String> {
    let top_key = source.top_key_at(span);
    let refused = Refused {
        message,
        written: source.text.get(span.clone()).unwrap_or_default(),
        top_key: top_key.as_ref().map(|(key, _)| key.as_str()),
    };
    refused.help()
}

/// Shows a number as it is written, which may be in another base, and a time as a time: for the parser, it is a table.
fn as_written(message: String, written: &str) -> String {
    let written = written.trim();
    let is_plain =
        !written.is_empty() && written.len() <= 40 && !written.contains(['\n', '`', '"']);
    let found = message
        .strip_prefix("invalid value: ")
        .and_then(|found| found.rsplit_once(", expected "));
    let Some((found, expected)) = found.filter(|_| is_plain) else {
        return message;
    };
    let kind = found.split(' ').next().unwrap_or_default();
    let kind = match kind {
        "integer" | "float" => kind,
        "table" => match written.parse::<toml::value::Datetime>() {
            Ok(time) if time.date.is_none() => "time",
            Ok(time) if time.time.is_none() => "date",
            Ok(_) => "date and time",
            Err(_) => return message,
        },
        _ => return message,
    };
    format!("invalid value: {kind} `{written}`, expected {expected}")
}
