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
        write!(Escaping(f), "{}", self.0)
    }
}

/// Passes text on, escaped.
struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| acts(*c)) {
            self.0.write_str(&rest[..at])?;
            match c {
                '\n' | '\r' | '\t' => write!(self.0, "{}", c.escape_default())?,
                '\0'..='\x7f' => write!(self.0, "\\x{:02x}", c as u32)?,
                _ => write!(self.0, "{}", c.escape_unicode())?,
            }
            rest = &rest[at + c.len_utf8()..];
        }
        self.0.write_str(rest)
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
            ("\u{202e}evil\u{2069}\u{2028}", "\\u{202e}evil\\u{2069}\\u{2028}"),
        ] {
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }
}
