//! `environment-file`: lines KEY=VALUE, as in `EnvironmentFile=` of systemd.exec(5).
//!
//! Unlike systemd, which skips a line that it does not understand, this parser reports the line.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use super::{check_variable, is_variable_name};

/// Why a file is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The line, from 1.
    pub(super) line: usize,
    pub(super) message: String,
}

/// Parses the text of a file. The last value of a variable counts.
///
/// The message of a mistake does not contain the line, which may be a secret.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, Mistake> {
    let mut reader = EnvFileReader {
        rest: text
            .strip_prefix('\u{feff}')
            .unwrap_or(text)
            .chars()
            .peekable(),
        line: 1,
    };
    let mut variables = BTreeMap::new();
    while let Some(first) = reader.skip_space() {
        if matches!(first, '#' | ';') {
            reader.skip_line();
            continue;
        }
        let line = reader.line;
        let fail = |message: String| Mistake { line, message };
        let name = reader
            .name()
            .ok_or_else(|| fail("a line has the form KEY=VALUE".to_owned()))?;
        if !is_variable_name(&name) {
            // Without its KEY, a line begins with a part of the secret.
            let message = "a line has the form KEY=VALUE, with a KEY of letters, digits and \"_\"";
            return Err(fail(message.to_owned()));
        }
        check_variable(&name).map_err(fail)?;
        let value = reader.value().map_err(|message| fail(message.to_owned()))?;
        if value.contains('\0') {
            return Err(fail(format!("the value of {name} contains NUL")));
        }
        variables.insert(name, value);
    }
    Ok(variables)
}

struct EnvFileReader<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
}

impl EnvFileReader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// Skips white space and empty lines. Returns the character after them.
    fn skip_space(&mut self) -> Option<char> {
        while self.rest.peek()?.is_whitespace() {
            self.next();
        }
        self.rest.peek().copied()
    }

    /// Skips a comment. A backslash does not continue it, as since systemd 254.
    fn skip_line(&mut self) {
        while self.next().is_some_and(|c| c != '\n') {}
    }

    /// Reads the name and the `=`.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            match self.rest.peek()? {
                '\n' => return None,
                '=' => break,
                _ => name.extend(self.next()),
            }
        }
        self.next();
        Some(name.trim_end().to_owned())
    }

    /// Reads a value to the end of its line. Quotes count at its beginning and after other quotes; after any other
    /// character they are plain.
    fn value(&mut self) -> Result<String, &'static str> {
        let mut value = String::new();
        let mut has_begun = false;
        // White space at the end counts only within quotes or after a backslash.
        let mut kept = 0;
        while let Some(c) = self.next() {
            match c {
                '\n' => break,
                '\'' | '"' if !has_begun => {
                    self.quoted(c, &mut value)?;
                    kept = value.len();
                }
                '\\' => {
                    has_begun = true;
                    // A backslash at the end of a line continues the value in the next one.
                    value.extend(self.next().filter(|c| *c != '\n'));
                    kept = value.len();
                }
                c if !has_begun && c.is_whitespace() => {}
                c => {
                    has_begun = true;
                    value.push(c);
                }
            }
        }
        let end = value[kept..].trim_end().len();
        value.truncate(kept + end);
        Ok(value)
    }

    /// Reads to the end of quotes. Within double quotes a backslash makes `"`, `\`, `` ` `` and `$` plain.
    fn quoted(&mut self, quote: char, value: &mut String) -> Result<(), &'static str> {
        loop {
            match self.next() {
                None => return Err("a quote is not closed"),
                Some(c) if c == quote => return Ok(()),
                Some('\\') if quote == '"' => match self.next() {
                    Some('\n') => {}
                    Some(c) if "\"\\`$".contains(c) => value.push(c),
                    Some(c) => value.extend(['\\', c]),
                    None => return Err("a quote is not closed"),
                },
                Some(c) => value.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_systemd_reads_them() {
        let text = "\u{feff}# a comment\n; another \\\n\n\
                    PLAIN=one two  \n  SPACED  =  x\nEMPTY=\nSINGLE='a \\ \"b\"  '\nDOUBLE=\"a \\\"b\\\" \\$c \\n\"\n\
                    MIXED=a\"b c\"d'e'\nJSON={\"a\":1}\nIT=it's\nTWO='x' \"y\"z'\nCONTINUED=one \\\ntwo\nLINES=\"one\ntwo\"\nESCAPED=a\\ \\#\\\\ \nHASH=a#b\n\
                    PLAIN=again\r\nLAST=end";
        let expected = [
            ("CONTINUED", "one two"),
            ("DOUBLE", "a \"b\" $c \\n"),
            ("EMPTY", ""),
            ("ESCAPED", "a #\\"),
            ("HASH", "a#b"),
            ("IT", "it's"),
            ("JSON", "{\"a\":1}"),
            ("LAST", "end"),
            ("LINES", "one\ntwo"),
            ("MIXED", "a\"b c\"d'e'"),
            ("PLAIN", "again"),
            ("SINGLE", "a \\ \"b\"  "),
            ("SPACED", "x"),
            ("TWO", "xyz'"),
        ];
        let found = parse(text).expect("it is good");
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(parse(""), Ok(BTreeMap::new()));
    }

    const FORM: &str = "a line has the form KEY=VALUE, with a KEY of letters, digits and \"_\"";

    #[test]
    fn a_mistake_has_its_line_and_not_its_text() {
        for (text, line, message) in [
            ("A=1\nsecret\n", 2, "a line has the form KEY=VALUE"),
            ("A='\n\n'\n secret", 4, "a line has the form KEY=VALUE"),
            ("export A=1", 1, FORM),
            ("1A=1", 1, FORM),
            ("=1", 1, FORM),
            ("postgres://u:secret@h/db?sslmode=require", 1, FORM),
            ("\nA=\"secret\n\n", 2, "a quote is not closed"),
            ("A=\"secret\\", 1, "a quote is not closed"),
            ("A=a\0", 1, "the value of A contains NUL"),
            (
                "NOTIFY_SOCKET=/x",
                1,
                "NOTIFY_SOCKET cannot be set: it is reserved for the daemon",
            ),
        ] {
            let message = message.to_owned();
            assert_eq!(parse(text), Err(Mistake { line, message }), "{text:?}");
        }
    }
}
