//! Suggestions for keys and values that are refused, in the notation of the file.

use std::ops::Range;
use std::time::Duration;

use toml::Value;

use super::text::ConfigText;
use crate::proto::log::LogLevel;
use crate::toml_text::did_you_mean;

/// A key that no configuration has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnknownKey {
    pub(super) span: Range<usize>,
    /// Names the key, and all keys of its table.
    pub(super) message: String,
    /// The full names of the keys of other tables that were probably meant.
    pub(super) elsewhere: Vec<String>,
    /// The suggestion, as a file has it.
    pub(super) help: Option<String>,
}

/// A value that is refused, and its message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused<'a> {
    pub(super) message: &'a str,
    /// The value as the text has it.
    pub(super) written: &'a str,
    /// The key of the first level whose value this is, if it is one.
    pub(super) top_key: Option<&'a str>,
}

impl Refused<'_> {
    /// Returns the help.
    pub(super) fn help(self) -> Option<String> {
        if self.message.starts_with("unknown key ") {
            return did_you_mean(self.message);
        }
        let Some(invalid) = self.message.strip_prefix("invalid value: ") else {
            return of_address(self.message);
        };
        let (_, expected) = invalid.rsplit_once(", expected ")?;
        let written = self.written.trim();
        let meant = |meant: String| format!("did you mean {meant}?");
        match expected {
            "an array" => return self.as_array(),
            "a table" => {
                let header = written.strip_prefix("[[")?.strip_suffix("]]")?;
                return Some(meant(format!("[{header}]")));
            }
            "a boolean" => return as_boolean(written).map(|value| meant(value.to_string())),
            _ => {}
        }
        if let Some(words) = did_you_mean(self.message) {
            return Some(words);
        }
        let value = parse(written)?;
        let one = match &value {
            Value::Array(values) if values.len() == 1 => values[0].clone(),
            _ => value,
        };
        let is_array = written.starts_with('[');
        let value = valid_value(&one, written, expected)
            .or_else(|| (is_array && one.is_str()).then(|| one.to_string()))?;
        Some(meant(value))
    }

    /// Writes a value as the array that was expected: the words of a string, unless it has quotes of a shell.
    fn as_array(self) -> Option<String> {
        let written = self.written.trim();
        if let Some(header) = written
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            return Some(format!("did you mean [[{header}]]?"));
        }
        let text = match parse(written)? {
            Value::String(text) => text,
            Value::Integer(port @ 1..=65_535) if self.top_key == Some("listen") => {
                format!("127.0.0.1:{port}")
            }
            _ => return None,
        };
        let is_plain = !text.is_empty() && !text.contains(['\'', '"', '\\']);
        let words = text.split(' ').map(|word| word.trim_end_matches(','));
        let words: Vec<String> = words.map(|word| format!("{word:?}")).collect();
        Some(match is_plain {
            true => format!("did you mean [{}]?", words.join(", ")),
            false => "an array is written in brackets: [\"…\", \"…\"]".to_owned(),
        })
    }
}

fn parse(written: &str) -> Option<Value> {
    let mut table: toml::Table = format!("x = {written}").parse().ok()?;
    table.remove("x")
}

/// Returns the help for a name in place of an IP address.
fn of_address(message: &str) -> Option<String> {
    let port = message.strip_prefix("\"localhost:")?.split('"').next()?;
    let port: u16 = port.parse().ok()?;
    Some(format!(
        "did you mean \"127.0.0.1:{port}\" or \"[::1]:{port}\"?"
    ))
}

fn as_boolean(written: &str) -> Option<bool> {
    match written.trim_matches(['"', '\'']).to_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Returns the valid value that is most like this one.
fn valid_value(value: &Value, written: &str, expected: &str) -> Option<String> {
    let quoted = |text: &str| Value::from(text).to_string();
    let range = expected.split_once("a number from ");
    if let Some((_, range)) = range.or_else(|| expected.split_once("a whole number from ")) {
        let number = whole_number(value)?;
        let (least, most) = range.split_once(" to ")?;
        let range = least.parse::<i64>().ok()?..=most.parse::<i64>().ok()?;
        return range.contains(&number).then(|| number.to_string());
    }
    if expected.contains("a duration ") {
        return as_duration(value, written, expected).map(|text| quoted(&text));
    }
    if expected.contains("an octal mode") {
        return as_mode(value, written).map(|text| quoted(&text));
    }
    if expected.starts_with("an address") {
        let port = value
            .as_integer()
            .filter(|port| (1..=65_535).contains(port))?;
        return Some(quoted(&format!("127.0.0.1:{port}")));
    }
    let is_text = ["a string", "a name or a number", "the name or the number"]
        .iter()
        .any(|text| expected.starts_with(text));
    let is_scalar = value.is_integer() || value.is_float() || value.is_bool();
    (is_text && is_scalar).then(|| quoted(written))
}

fn whole_number(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        // All whole numbers below 2^53 are exact.
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
            format!("{number:.0}").parse().ok()
        }
        Value::String(text) => text.replace([',', '_', ' '], "").parse().ok(),
        _ => None,
    }
}

/// Returns a number of seconds, a time of day or a word for no limit as the duration that is expected.
fn as_duration(value: &Value, written: &str, expected: &str) -> Option<String> {
    let has_none = expected.contains("\"none\"");
    let text = written.trim_matches(['"', '\'']);
    if has_none && ["false", "never", "off", "0", "0s", "inf"].contains(&text) {
        return Some("none".to_owned());
    }
    let seconds: f64 = match value {
        Value::Integer(_) | Value::Float(_) | Value::String(_) if text.parse::<f64>().is_ok() => {
            text.parse().ok()?
        }
        Value::String(_) | Value::Datetime(_) => seconds_of_day(text)?,
        _ => return None,
    };
    let millis = Duration::try_from_secs_f64(seconds).ok()?.as_millis();
    let duration = Duration::from_millis(u64::try_from(millis).ok()?);
    let (_, range) = expected.split_once(" from ")?;
    let (least, rest) = range.split_once(" to ")?;
    let most = rest.split(" in quotes").next()?;
    let [least, most] = [least, most].map(|bound| humantime::parse_duration(bound).ok());
    let is_whole = !expected.contains("whole seconds") || duration.subsec_nanos() == 0;
    let fits = is_whole && (least?..=most?).contains(&duration);
    fits.then(|| humantime::format_duration(duration).to_string())
}

/// Returns the seconds of `00:01:30`.
fn seconds_of_day(text: &str) -> Option<f64> {
    let mut parts = text.split(':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes) = (parts.next()??, parts.next()??);
    let seconds = parts.next().unwrap_or(Some(0.0))?;
    parts
        .next()
        .is_none()
        .then_some(hours * 3600.0 + minutes * 60.0 + seconds)
}

/// Returns the permissions of `660`, `"660"`, `0o660` and `"0o660"`.
fn as_mode(value: &Value, written: &str) -> Option<String> {
    if !value.is_integer() && !value.is_str() {
        return None;
    }
    let digits = written.trim_matches(['"', '\'']).trim_start_matches("0o");
    let is_octal = digits.bytes().all(|c| (b'0'..=b'7').contains(&c));
    (is_octal && digits.len() == 3).then(|| format!("0{digits}"))
}

/// Writes a value in the place of a table with the key that it is probably for: `workers = 4` as `workers.count = 4`.
pub(super) fn as_key(source: &ConfigText, span: &Range<usize>, message: &str) -> Option<String> {
    let (name, key) = missing_key(source, span, message)?;
    let text = source.text.get(span.clone())?;
    let is_short = text.len() <= 80 && !text.contains('\n');
    is_short.then(|| format!("did you mean {name}.{key} = {text}?"))
}

/// Returns the name of a table in whose place there is a value, and the key that the value is probably for.
pub(super) fn missing_key(
    source: &ConfigText,
    span: &Range<usize>,
    message: &str,
) -> Option<(String, &'static str)> {
    if !message.starts_with("invalid value: ") || !message.ends_with(", expected a table") {
        return None;
    }
    let (name, string) = source.top_key_at(span)?;
    if source.text.get(span.clone())?.starts_with("[[") {
        return None;
    }
    let is_level = |word: &str| LogLevel::ALL.iter().any(|level| level.as_str() == word);
    let key = match (name.as_str(), string.as_deref()) {
        ("app", _) => "command",
        ("control", Some(_)) => "socket",
        ("log", Some(word)) if is_level(word) => "level",
        ("log", Some(path)) if path.contains('/') => "file",
        ("log", Some(_)) => "target",
        ("agent" | "metrics", Some(_)) => "listen",
        ("workers", _) => "count",
        _ => return None,
    };
    Some((name, key))
}
