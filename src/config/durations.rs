//! The notations of durations.

use std::time::Duration;

use super::notation::{Notation, Rejection, WrittenValue};

/// A duration, in milliseconds from `MIN` to `MAX`.
pub(super) struct Lasting<const MIN: u64, const MAX: u64>;

/// A year as humantime writes it, in milliseconds: 365.25 days.
const YEAR: u64 = 31_557_600_000;

/// A time to wait; zero would be no time at all.
pub(super) type Timeout = Lasting<1, YEAR>;

/// How long a worker may be stuck: at least the longest turn of a worker that is not stuck.
pub(super) type StallTimeout = Lasting<10, YEAR>;

/// A time to wait that may be zero.
pub(super) type Patience = Lasting<0, YEAR>;

impl<const MIN: u64, const MAX: u64> Notation for Lasting<MIN, MAX> {
    type Value = Duration;

    fn expected() -> String {
        let [min, max] =
            [MIN, MAX].map(|millis| humantime::format_duration(Duration::from_millis(millis)));
        format!("a duration from {min} to {max} in quotes, such as \"30s\" or \"1m 30s\"")
    }

    fn read(written: &WrittenValue<'_>) -> Result<Duration, Rejection> {
        let range = Duration::from_millis(MIN)..=Duration::from_millis(MAX);
        duration(written)?
            .filter(|duration| range.contains(duration))
            .ok_or(Rejection::Unexpected)
    }

    fn write(value: &Duration) -> WrittenValue<'_> {
        WrittenValue::Text(humantime::format_duration(*value).to_string().into())
    }
}

/// The range of `TCP_KEEPIDLE` (tcp(7)): seconds up to a limit of Linux.
pub(super) struct KeepAlive;

impl Notation for KeepAlive {
    type Value = Duration;

    fn expected() -> String {
        "a duration in whole seconds from 1s to 32767s in quotes, such as \"5m\"".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Duration, Rejection> {
        let fits = |duration: &Duration| {
            (1..=32_767).contains(&duration.as_secs()) && duration.subsec_nanos() == 0
        };
        duration(written)?.filter(fits).ok_or(Rejection::Unexpected)
    }

    fn write(value: &Duration) -> WrittenValue<'_> {
        Timeout::write(value)
    }
}

/// Parses a duration, but refuses `M`: humantime reads it as months, and it is usually meant as minutes.
fn duration(written: &WrittenValue<'_>) -> Result<Option<Duration>, Rejection> {
    let WrittenValue::Text(text) = written else {
        return Ok(None);
    };
    let Ok(duration) = humantime::parse_duration(text) else {
        return Ok(None);
    };
    let minutes = with_minutes(text);
    if minutes != *text {
        return Err(Rejection::Because(format!(
            "{text:?}: M stands for months; did you mean {minutes:?}?"
        )));
    }
    Ok(Some(duration))
}

/// Returns the text with `m` for each unit `M`.
fn with_minutes(text: &str) -> String {
    let is_letter = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_alphabetic);
    let unit = |(at, c): (usize, char)| {
        let is_alone = !is_letter(at + 1) && (at == 0 || !is_letter(at - 1));
        if c == 'M' && is_alone { 'm' } else { c }
    };
    text.char_indices().map(unit).collect()
}
