//! Messages of serde in the words of the notation that they are about, without the names of Rust's types.

/// The words for what serde calls a sequence and a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// TOML: an array, a table.
    Toml,
    /// JSON: an array, an object.
    Json,
}

impl Vocabulary {
    fn map(self) -> &'static str {
        match self {
            Vocabulary::Toml => "table",
            Vocabulary::Json => "object",
        }
    }

    fn a_map(self) -> &'static str {
        match self {
            Vocabulary::Toml => "a table",
            Vocabulary::Json => "an object",
        }
    }
}

/// Replaces the words of Rust in a message of serde: `invalid type: map, expected u8` becomes `invalid value: table,
/// expected a whole number from 0 to 255`. Other messages are returned unchanged.
#[must_use]
pub fn plain(message: &str, words: Vocabulary) -> String {
    let (message, place) = split_place(message);
    let plain = if let Some(rest) = message.strip_prefix("unknown field ") {
        format!("unknown key {rest}")
    } else if let Some(rest) = message.strip_prefix("missing field ") {
        format!("missing key {rest}")
    } else if let Some(rest) = message.strip_prefix("duplicate field ") {
        format!("duplicate key {rest}")
    } else if let Some(rest) = message.strip_prefix("unknown variant `") {
        unknown_word(rest).unwrap_or_else(|| message.to_owned())
    } else if let Some(rest) = strip_any(message, &["invalid type: ", "invalid value: "]) {
        format!("invalid value: {}", found_and_expected(rest, words))
    } else if let Some(rest) = message.strip_prefix("invalid length ") {
        match rest.split_once(", expected ") {
            Some((length, expected)) => {
                format!(
                    "invalid length {length}, expected {}",
                    wanted(expected, words)
                )
            }
            None => message.to_owned(),
        }
    } else {
        message.to_owned()
    };
    plain + place
}

/// Splits off the place that serde_json adds: ` at line 1 column 2`.
fn split_place(message: &str) -> (&str, &str) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let found = message.rfind(" at line ").filter(|at| {
        let place = message[*at..].trim_start_matches(" at line ");
        let numbers = place.split_once(" column ");
        numbers.is_some_and(|(line, column)| is_number(line) && is_number(column))
    });
    message.split_at(found.unwrap_or(message.len()))
}

fn strip_any<'a>(text: &'a str, prefixes: &[&str]) -> Option<&'a str> {
    prefixes.iter().find_map(|prefix| text.strip_prefix(prefix))
}

/// Writes "x`, expected one of `a`, `b`" as a message about a string, whose words are in quotes.
fn unknown_word(rest: &str) -> Option<String> {
    let (word, expected) = rest.rsplit_once("`, expected ")?;
    let expected = expected.replace('`', "\"");
    Some(format!(
        "invalid value: string {word:?}, expected {expected}"
    ))
}

fn found_and_expected(rest: &str, words: Vocabulary) -> String {
    match rest.rsplit_once(", expected ") {
        Some((found, expected)) => {
            format!(
                "{}, expected {}",
                given(found, words),
                wanted(expected, words)
            )
        }
        None => given(rest, words),
    }
}

/// Returns what was found in place of the value, in plain words.
fn given(found: &str, words: Vocabulary) -> String {
    let found = found
        .trim_end_matches(" as i128")
        .trim_end_matches(" as u128");
    match found {
        "sequence" => "array".to_owned(),
        "map" => words.map().to_owned(),
        "unit value" => "null".to_owned(),
        _ => match found.strip_prefix("floating point ") {
            Some(number) => format!("float {number}"),
            None => found.to_owned(),
        },
    }
}

/// Returns what is valid, in plain words.
fn wanted(expected: &str, words: Vocabulary) -> String {
    let whole = |from: &str, to: &str| format!("a whole number from {from} to {to}");
    match expected {
        "u8" => whole("0", "255"),
        "u16" => whole("0", "65535"),
        "u32" => whole("0", "4294967295"),
        "u64" | "u128" | "usize" => "a whole number that is not negative".to_owned(),
        "i8" => whole("-128", "127"),
        "i16" => whole("-32768", "32767"),
        "i32" => whole("-2147483648", "2147483647"),
        "i64" | "i128" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a borrowed string" => "a string".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => words.a_map().to_owned(),
        "unit" => "null".to_owned(),
        "option" => "a value or null".to_owned(),
        // The value is a number that does not fit.
        "any valid TOML value" => whole("-9223372036854775808", "9223372036854775807"),
        _ => of_type(expected, words).unwrap_or_else(|| expected.to_owned()),
    }
}

/// Returns what is valid in place of a type that has a name, or of several values.
fn of_type(expected: &str, words: Vocabulary) -> Option<String> {
    let elements = |count: &str| match count {
        "1" => "an array of 1 element".to_owned(),
        _ => format!("an array of {count} elements"),
    };
    if let Some(size) = expected.strip_prefix("a tuple of size ") {
        return Some(elements(size));
    }
    if let Some(length) = expected.strip_prefix("an array of length ") {
        return Some(elements(length));
    }
    if let Some(integer) = expected.strip_prefix("a nonzero ") {
        return Some(match integer {
            "u8" => "a whole number from 1 to 255".to_owned(),
            "u16" => "a whole number from 1 to 65535".to_owned(),
            "u32" => "a whole number from 1 to 4294967295".to_owned(),
            "u64" | "u128" | "usize" => "a whole number of at least 1".to_owned(),
            _ => "a whole number other than 0".to_owned(),
        });
    }
    let name = strip_any(
        expected,
        &["struct ", "tuple struct ", "enum ", "unit struct "],
    )?;
    match name.split_once(" with ") {
        Some((_, count)) => count.split(' ').next().map(elements),
        None if expected.starts_with("struct ") => Some(words.a_map().to_owned()),
        None if expected.starts_with("tuple struct ") => Some("an array".to_owned()),
        None if expected.starts_with("enum ") => Some(format!("a string or {}", words.a_map())),
        None => Some("null".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Pair {
        left: u8,
        right: Option<Mode>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        Fast,
        Slow,
    }

    fn json<T: for<'de> Deserialize<'de> + std::fmt::Debug>(text: &str) -> String {
        let error = serde_json::from_str::<T>(text).expect_err(text);
        plain(&error.to_string(), Vocabulary::Json)
    }

    #[test]
    fn no_message_has_a_type_of_rust() {
        for (shown, expected) in [
            (
                json::<u64>("\"x\""),
                "invalid value: string \"x\", expected a whole number that is not negative at line 1 column 3",
            ),
            (
                json::<u8>("300"),
                "invalid value: integer `300`, expected a whole number from 0 to 255 at line 1 column 3",
            ),
            (
                json::<i64>("1.5"),
                "invalid value: float `1.5`, expected a whole number at line 1 column 3",
            ),
            (
                json::<f64>("null"),
                "invalid value: null, expected a number at line 1 column 4",
            ),
            (
                json::<String>("[]"),
                "invalid value: array, expected a string at line 1 column 0",
            ),
            (
                json::<Pair>("5"),
                "invalid value: integer `5`, expected an object at line 1 column 1",
            ),
            (json::<Pair>("{}"), "missing key `left` at line 1 column 2"),
            (
                json::<Vec<u8>>("{}"),
                "invalid value: object, expected an array at line 1 column 0",
            ),
            (
                json::<(u8, u8)>("[1]"),
                "invalid length 1, expected an array of 2 elements at line 1 column 3",
            ),
            (
                json::<[u8; 2]>("5"),
                "invalid value: integer `5`, expected an array of 2 elements at line 1 column 1",
            ),
            (
                json::<Mode>("\"fats\""),
                "invalid value: string \"fats\", expected \"fast\" or \"slow\" at line 1 column 6",
            ),
            (
                json::<std::num::NonZeroU16>("0"),
                "invalid value: integer `0`, expected a whole number from 1 to 65535 at line 1 column 1",
            ),
            (
                json::<u8>("{"),
                "invalid value: object, expected a whole number from 0 to 255 at line 1 column 0",
            ),
            (json::<bool>("x"), "expected value at line 1 column 1"),
        ] {
            assert_eq!(shown, expected);
        }
        let toml = |message| plain(message, Vocabulary::Toml);
        for (message, expected) in [
            (
                "invalid type: map, expected struct Store",
                "invalid value: table, expected a table",
            ),
            (
                "invalid type: integer `99` as i128, expected usize",
                "invalid value: integer `99`, expected a whole number that is not negative",
            ),
            (
                "unknown variant `a`, there are no variants",
                "unknown variant `a`, there are no variants",
            ),
            ("the store is full", "the store is full"),
        ] {
            assert_eq!(toml(message), expected);
        }
    }
}
