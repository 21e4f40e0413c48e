//! Text that comes from outside, on its way to a terminal or a log.
//!
//! What clients, workers and configuration files say may hold newlines that forge a log line, escape
//! sequences that take over a terminal, and bidi controls that show text in another order than it is in.
//! Backslashes stay as they are: the aim is that nothing acts, not that every text can be read back.

use std::fmt::{self, Display, Write};

/// Shows a value with everything escaped that would act instead of being seen: `\n`, `\x1b`, `\u{202e}`.
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

/// Shows JSON that has no white space between its values with the same escaped, in JSON's own way: it stays what it was.
#[derive(Clone, Copy, Debug)]
pub struct EscapedJson<T>(pub T);

impl<T: Display> Display for EscapedJson<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All that acts is below U+10000.
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

/// Passes text on, escaped.
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

/// Control characters of C0 and C1, line and paragraph separators, bidi controls.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_comes_through_and_all_else_stays() {
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
    fn json_stays_what_it_was() {
        let text = "a\n \x7f\u{9b}\u{202e}\u{2069}\u{2028}\u{61c} \"µ\" \\ 漢 \u{1f980}";
        let shown = EscapedJson(serde_json::to_string(text).expect("JSON")).to_string();
        assert_eq!(
            shown,
            r#""a\n \u007f\u009b\u202e\u2069\u2028\u061c \"µ\" \\ 漢 🦀""#
        );
        assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text);
    }
}
