//! Text from outside, written to a terminal or a log.
//!
//! Text of clients, workers and configuration files may contain newlines that forge a log line, escape sequences that
//! control a terminal, and bidi controls that change the order in which text is shown. Backslashes stay as they are:
//! the aim is that no character acts, not that every text can be parsed back.

use std::fmt::{self, Display, Write};

use serde::{Deserialize, Deserializer};

/// Shows a value with all characters escaped that would act instead of being shown: `\n`, `\x1b`, `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<T>(pub T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            Escaping {
                to: f,
                escape: plainly
            },
            "{}",
            self.0
        )
    }
}

/// Shows JSON without white space between its values with the same characters escaped, as JSON does: its value is the
/// same.
#[derive(Clone, Copy, Debug)]
pub struct EscapedJson<T>(pub T);

impl<T: Display> Display for EscapedJson<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All such characters are below U+10000.
        write!(
            Escaping {
                to: f,
                escape: |to, c| write!(to, "\\u{:04x}", c as u32)
            },
            "{}",
            self.0
        )
    }
}

/// Shows a count with its regular noun: `1 client`, `4 clients`.
#[derive(Clone, Copy, Debug)]
pub struct Counted<N>(pub N, pub &'static str);

impl<N: Display + PartialEq + From<u8>> Display for Counted<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, plural_ending(&self.0))
    }
}

/// Returns the plural ending of a regular noun for this count: nothing or `s`.
pub fn plural_ending<N: PartialEq + From<u8>>(count: &N) -> &'static str {
    if *count == N::from(1) { "" } else { "s" }
}

/// The longest text in a report of a worker, in bytes: reasons, and the name and version of an app. A message has 64
/// KiB, and JSON has up to six bytes for one.
pub const MAX_REASON_LEN: usize = 4096;

/// Returns a text as it fits into a report of a worker.
pub fn shortened(mut text: String) -> String {
    if text.len() > MAX_REASON_LEN {
        let mut ends = (0..=MAX_REASON_LEN).rev();
        let end = ends.find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

/// Reads a text of a report, shortened.
pub(super) fn read_shortened<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(shortened)
}

/// Reads an optional text of a report, shortened.
pub(super) fn read_shortened_option<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    Option::deserialize(from).map(|text: Option<String>| text.map(shortened))
}

/// Writes text, escaped.
struct Escaping<'a, 'b> {
    to: &'a mut fmt::Formatter<'b>,
    escape: fn(&mut fmt::Formatter<'_>, char) -> fmt::Result,
}

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| acts(*c)) {
            self.to.write_str(&rest[..at])?;
            (self.escape)(self.to, c)?;
            rest = &rest[at + c.len_utf8()..];
        }
        self.to.write_str(rest)
    }
}

fn plainly(to: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '\n' | '\r' | '\t' => write!(to, "{}", c.escape_default()),
        '\0'..='\x7f' => write!(to, "\\x{:02x}", c as u32),
        _ => write!(to, "{}", c.escape_unicode()),
    }
}

/// Returns whether a character acts: controls of C0 and C1, line and paragraph separators, bidi controls.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_characters_that_act_are_escaped() {
        for (text, shown) in [
            ("plain µ 漢 \\ text", "plain µ 漢 \\ text"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\x1b[31m\0\x7f", "\\x1b[31m\\x00\\x7f"),
            ("\u{9b}31m", "\\u{9b}31m"),
            (
                "\u{202e}evil\u{2069}\u{2028}",
                "\\u{202e}evil\\u{2069}\\u{2028}",
            ),
        ] {
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }

    #[test]
    fn counts_have_singular_and_plural() {
        let shown = [0, 1, 2_u64].map(|count| Counted(count, "client").to_string());
        assert_eq!(shown, ["0 clients", "1 client", "2 clients"]);
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let text = "a\n \x7f\u{9b}\u{202e}\u{2069}\u{2028}\u{61c} \"µ\" \\ 漢 \u{1f980}";
        let shown = EscapedJson(serde_json::to_string(text).expect("JSON")).to_string();
        assert_eq!(
            shown,
            r#""a\n \u007f\u009b\u202e\u2069\u2028\u061c \"µ\" \\ 漢 🦀""#
        );
        assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text);
    }
}
