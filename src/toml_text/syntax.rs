//! Texts that are not TOML: the messages of the parser in plain words.

use std::ops::Range;

/// A mistake in the notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxMistake {
    /// The message, for people.
    pub message: String,
    /// The place in the text.
    pub span: Range<usize>,
    /// The suggestion, if there is one.
    pub help: Option<String>,
}

/// Returns the mistake that the parser reports with this message at this place; `None` if the message is not one of the
/// parser.
#[must_use]
pub fn syntax_mistake(text: &str, span: &Range<usize>, message: &str) -> Option<SyntaxMistake> {
    let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let at = |message: &str| SyntaxMistake {
        message: message.to_owned(),
        span: span.clone(),
        help: None,
    };
    let simple = match what {
        "unclosed table" | "unclosed array table" => "the header has no end: `]` is missing",
        "unclosed array" => "the array has no end: `]` is missing",
        "unclosed inline table" => "the table has no end: `}` is missing",
        "missing comma between array elements" => "`,` is missing between two elements of an array",
        "missing comma between key-value pairs" => "`,` is missing between two keys of a table",
        "extra comma in array" | "extra comma in inline table" => "unexpected `,`",
        "unexpected `=` in array" => {
            "unexpected `=` in an array: `]` is missing before it, or `{` before its key"
        }
        "unexpected key or value" | "unexpected content" => {
            "unexpected text: a line has one key, or one header"
        }
        "unquoted keys cannot be empty" => "a key is missing",
        "invalid unquoted key" => {
            "a key is in quotes unless it has only letters, digits, `-` and `_`"
        }
        "invalid basic string" | "invalid multi-line basic string" | "invalid literal string"
            if expected.contains(['"', '\'']) && expected.len() < 10 =>
        {
            "the string has no end: its closing quotes are missing"
        }
        "integer number overflowed" | "floating-point number overflowed" => {
            "the number is too large"
        }
        "missing escaped value" => return Some(escape(text, span)),
        "unexpected leading zero" => return Some(leading_zero(text, span)),
        "key with no value" => return Some(line_without_value(text, span)),
        "invalid key-value pair" if text.trim_start().starts_with('{') => {
            "unexpected `{`: the file is JSON, and must be TOML"
        }
        "invalid key-value pair" => "a key is missing",
        "string values must be quoted"
        | "missing opening quote"
        | "invalid boolean"
        | "`_` may only go between digits"
        | "redundant numeric sign"
        | "unexpected sign" => {
            return Some(bare_value(text, span));
        }
        _ if what.starts_with("invalid ") && is_of_number(what) => {
            return Some(bare_value(text, span));
        }
        _ => return message.strip_suffix(", expected nothing").map(at),
    };
    Some(at(simple))
}

fn is_of_number(what: &str) -> bool {
    [
        "float", "fraction", "exponent", "integer", "mantissa", "radix", "datetime", "time", "date",
    ]
    .iter()
    .any(|kind| what.ends_with(kind))
}

/// A value without its quotes, or no value at all.
fn bare_value(text: &str, span: &Range<usize>) -> SyntaxMistake {
    let at = value_at(text, span.start);
    let value = text[at.clone()].trim_end();
    let at = at.start..at.start + value.len();
    let mistake = |message: String, help: Option<String>| SyntaxMistake {
        message,
        span: at.clone(),
        help,
    };
    if value.is_empty() {
        let span = span.clone();
        let message = "the key has no value".to_owned();
        return SyntaxMistake {
            message,
            span,
            help: None,
        };
    }
    let is_valid = |value: &str| format!("x = {value}").parse::<toml::Table>().is_ok();
    if let Some(before) = value.strip_suffix(';').filter(|before| is_valid(before)) {
        let message = "unexpected `;` after the value".to_owned();
        return mistake(message, Some(format!("did you mean {before}?")));
    }
    let is_number = value
        .bytes()
        .all(|c| c.is_ascii_digit() || b"_.+-eE".contains(&c));
    if is_number && value.matches('.').count() < 2 {
        return mistake(format!("invalid number: `{value}`"), None);
    }
    let plain: String = value
        .trim_matches(['“', '”', '„', '‘', '’', '«', '»', '"', '\''])
        .to_owned();
    let message = match plain == value {
        true => format!("invalid value: `{value}` is not in quotes"),
        false => format!("invalid value: {value} has other quotes than those of TOML"),
    };
    let help = match value {
        "True" | "TRUE" => "did you mean true?".to_owned(),
        "False" | "FALSE" => "did you mean false?".to_owned(),
        "yes" | "on" => format!("did you mean true, or \"{value}\"?"),
        "no" | "off" => format!("did you mean false, or \"{value}\"?"),
        _ => format!("did you mean \"{plain}\"?"),
    };
    let is_short = plain.len() <= 80 && !plain.contains(['"', '\\']);
    mistake(message, is_short.then_some(help))
}

/// Returns the place of a value of one word or number: what stands between the `=`, `[` or `,` before this place, and
/// the `,`, `]`, `}`, comment or end of the line after it.
fn value_at(text: &str, position: usize) -> Range<usize> {
    let position = (0..=position.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or_default();
    let line = text[..position].rfind('\n').map_or(0, |at| at + 1);
    let start = text[line..position]
        .rfind(['=', '[', ',', '{'])
        .map_or(line, |at| line + at + 1);
    let rest = &text[start..];
    let start = start + (rest.len() - rest.trim_start_matches([' ', '\t']).len());
    let rest = &text[start..];
    let ends = |c: char| matches!(c, ',' | ']' | '}' | '#' | '\n' | '\r');
    let end = rest.find(ends).map_or(text.len(), |at| start + at);
    start..end
}

/// Returns the key of the value at this place.
fn key_before(text: &str, value: usize) -> &str {
    let before = text[..value].trim_end_matches([' ', '\t', '=']);
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let start = before.rfind(|c: char| !is_key(c)).map_or(0, |at| at + 1);
    before.get(start..).unwrap_or_default()
}

/// A number with a leading zero: a mode, or another number.
fn leading_zero(text: &str, span: &Range<usize>) -> SyntaxMistake {
    let at = value_at(text, span.start);
    let value = text[at.clone()].trim_end();
    let at = at.start..at.start + value.len();
    let key = key_before(text, at.start);
    let is_octal = value.len() <= 4 && value.bytes().all(|c| (b'0'..=b'7').contains(&c));
    if is_octal && ["mode", "umask"].contains(&key) {
        return SyntaxMistake {
            message: format!("invalid value: the mode `{value}` is not in quotes"),
            span: at,
            help: Some(format!("did you mean \"{value:0>4}\"?")),
        };
    }
    let number = value.trim_start_matches('0');
    let is_number = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
    SyntaxMistake {
        message: format!("invalid number: `{value}` has a leading zero"),
        span: at,
        help: is_number.then(|| format!("did you mean {number}?")),
    }
}

/// A backslash before a character that needs none.
fn escape(text: &str, span: &Range<usize>) -> SyntaxMistake {
    let character = text.get(span.start..).and_then(|rest| rest.chars().next());
    let character = character.filter(|c| !c.is_control());
    SyntaxMistake {
        message: match character {
            Some(character) => format!("unknown escape sequence `\\{character}` in a string"),
            None => "unknown escape sequence in a string".to_owned(),
        },
        span: span.clone(),
        help: Some("a backslash stands for itself in single quotes, as in 'C:\\new'".to_owned()),
    }
}

/// A line that is neither a header nor a key with a value.
fn line_without_value(text: &str, span: &Range<usize>) -> SyntaxMistake {
    let position = value_at(text, span.start).start;
    let start = text[..position].rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    let indent = line.len() - line.trim_start().len();
    let (start, line) = (start + indent, line.trim());
    let whole = start..start + line.len();
    let mistake = |message: &str, span: Range<usize>, help: Option<String>| SyntaxMistake {
        message: message.to_owned(),
        span,
        help,
    };
    if line.starts_with("//") || line.starts_with(';') {
        return mistake("unexpected text: a comment begins with `#`", whole, None);
    }
    if ["<<<<<<<", "=======", ">>>>>>>"]
        .iter()
        .any(|mark| line.starts_with(mark))
    {
        return mistake("the file has the marks of an unfinished merge", whole, None);
    }
    let message = "`=` is missing after the key";
    let is_key = |key: &str| {
        !key.is_empty()
            && key
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
    };
    if let Some(name) = line
        .strip_suffix('{')
        .map(str::trim)
        .filter(|name| is_key(name))
    {
        let help = format!("did you mean [{name}], with a key in each line after it?");
        return mistake(message, span.clone(), Some(help));
    }
    let separated = line.split_once(':').or_else(|| line.split_once(' '));
    let help = separated
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(key, value)| {
            is_key(key) && format!("{key} = {value}").parse::<toml::Table>().is_ok()
        })
        .map(|(key, value)| format!("did you mean {key} = {value}?"));
    mistake(message, span.clone(), help)
}
