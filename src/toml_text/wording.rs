//! The messages of the types that a file is read into, in the words of TOML, and what was probably meant.

use crate::proto::wording::{Vocabulary, plain};

/// Replaces the words of Rust in serde's messages by those of TOML.
#[must_use]
pub fn reword(message: &str) -> String {
    plain(message, Vocabulary::Toml)
}

/// Returns the help for an unknown key, or for a string in place of a word, if a known one is like it.
#[must_use]
pub fn did_you_mean(message: &str) -> Option<String> {
    if let Some((_, known)) = likely_name(message) {
        return Some(format!("did you mean `{known}`?"));
    }
    let (word, expected) = message
        .strip_prefix("invalid value: string \"")?
        .rsplit_once("\", expected ")?;
    let word = likely(word, words_of(expected))?;
    Some(format!("did you mean \"{word}\"?"))
}

/// Returns the unknown name in a message, "unknown key `x`, expected one of `y`, `z`", and a known one like it.
#[must_use]
pub fn likely_name(message: &str) -> Option<(&str, &str)> {
    if !message.starts_with("unknown key ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    likely(wrong, quoted).map(|known| (wrong, known))
}

/// Returns the name that is most like this one, whatever the case of its letters, if one is like it at all.
fn likely<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    most_like(wrong, known).map(|(_, known)| known)
}

/// Returns the same with how much it is like this one, at most 1.
#[must_use]
pub fn most_like<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<(f64, &'a str)> {
    let wrong = wrong.to_lowercase().replace('_', "-");
    known
        .map(|known| (strsim::jaro_winkler(&wrong, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
}

/// Returns the words in quotes that a message expects, without those of its examples.
fn words_of(expected: &str) -> impl Iterator<Item = &str> {
    let words = expected.split("such as ").next().unwrap_or_default();
    let words = words.split('"').skip(1).step_by(2);
    words.filter(|word| word.starts_with(|first: char| first.is_ascii_alphabetic()))
}
