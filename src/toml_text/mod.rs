//! The text of a TOML file, places in it, and messages that show them.

mod excerpt;
mod source;
mod syntax;
mod wording;

use serde::de::DeserializeOwned;

pub use self::excerpt::{Excerpt, excerpt_of_file, position, visible};
pub use self::source::SourceText;
pub use self::syntax::{SyntaxMistake, syntax_mistake};
pub use self::wording::{did_you_mean, likely_name, most_like, reword};

/// Parses a file.
///
/// # Errors
/// The first mistake that the parser or the type finds, shown with its line and a caret.
pub fn parse<T: DeserializeOwned>(source: &SourceText) -> Result<T, String> {
    toml::from_str(&source.text).map_err(|error| {
        let message = reword(error.message());
        let Some(span) = error.span() else {
            return excerpt_of_file(&source.origin, &message);
        };
        let mistake = syntax_mistake(&source.text, &span, &message).unwrap_or_else(|| {
            let help = did_you_mean(&message);
            SyntaxMistake {
                message,
                span,
                help,
            }
        });
        let SyntaxMistake {
            message,
            span,
            help,
        } = mistake;
        Excerpt::new(
            &source.origin,
            &source.text,
            span,
            &message,
            help.as_deref(),
        )
        .display
    })
}

/// Shows a message at the place with these keys and indices, or about the whole file if it has no such place.
#[must_use]
pub fn mistake_at(source: &SourceText, steps: &[&str], message: &str) -> String {
    match source.find_steps(steps) {
        Some(span) => Excerpt::new(&source.origin, &source.text, span, message, None).display,
        None => excerpt_of_file(&source.origin, message),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn source(text: &str) -> SourceText {
        SourceText {
            origin: "x.toml".to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_mistake_is_shown_below_its_line() {
        let source = source("[hosts.\"a.b\"]\nsocket = [1, 2]\n");
        let parsed = parse::<BTreeMap<String, u8>>(&source);
        let shown = parsed.expect_err("it is a table");
        assert!(shown.contains("--> x.toml:1:"), "{shown}");
        let shown = mistake_at(&source, &["hosts", "a.b", "socket", "1"], "too large");
        let expected =
            "error: too large\n --> x.toml:2:14\n  |\n2 | socket = [1, 2]\n  |              ^";
        assert_eq!(shown, expected);
        let shown = mistake_at(&source, &["hosts", "a", "b"], "missing");
        assert_eq!(shown, "error: missing\n--> x.toml");
    }
}
