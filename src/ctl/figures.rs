//! Numbers, durations and instants for people, as short as a comparison allows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::proto::text::plural_ending;
use crate::sys::local_time;

/// Returns `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    match (number / 1000, number % 1000) {
        (0, rest) => rest.to_string(),
        (thousands, rest) => format!("{},{rest:03}", grouped(thousands)),
    }
}

/// Returns `123,456`, from a million on `1.2M`.
pub(super) fn short(number: u64) -> String {
    if number < 1_000_000 {
        grouped(number)
    } else {
        scaled(number as f64, &COUNTS)
    }
}

/// Returns `42`, `1.2k`.
pub(super) fn rate(per_second: f64) -> String {
    scaled(per_second, &COUNTS)
}

/// Returns `35ms`.
pub(super) fn time(seconds: f64) -> String {
    scaled(seconds * 1e6, &["µs", "ms", "s"])
}

/// Returns `35 ms`, for a sentence.
pub(super) fn spaced_time(seconds: f64) -> String {
    scaled(seconds * 1e6, &[" µs", " ms", " s"])
}

/// Returns `1 worker`, `4 workers`.
pub(super) fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), plural_ending(&count))
}

/// Returns `1 worker is`, `4 workers are`.
pub(super) fn are(count: u64, noun: &str) -> String {
    format!(
        "{} {}",
        counted(count, noun),
        if count == 1 { "is" } else { "are" }
    )
}

/// Returns `3 days 4 hours`.
pub(super) fn in_words(seconds: f64) -> String {
    parts(seconds)
        .map(|(count, (name, _, _))| counted(count, name))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns `3d4h`.
pub(super) fn in_letters(seconds: f64) -> String {
    parts(seconds)
        .map(|(count, (_, letter, _))| format!("{count}{letter}"))
        .collect()
}

/// Makes all instants of this process local times. They are in UTC before.
pub(super) fn use_local_time() {
    IS_LOCAL.store(true, Ordering::Relaxed);
}

/// Returns `2026-11-24T13:00:01+01:00`, of seconds since the Unix epoch.
pub(super) fn instant(at: u64) -> String {
    let at = Duration::from_secs(at);
    in_zone(at, ahead_of_utc(at), |at| {
        humantime::format_rfc3339_seconds(at).to_string()
    })
}

/// Returns `2026-11-24T13:00:01.123+01:00`, of seconds since the Unix epoch.
pub(super) fn exact_instant(at: f64) -> String {
    let at = since_epoch(at);
    in_zone(at, ahead_of_utc(at), |at| {
        humantime::format_rfc3339_millis(at).to_string()
    })
}

/// Returns `13:00:01`, in the zone of [`day`].
pub(super) fn clock(at: f64) -> String {
    exact_instant(at)[11..19].to_owned()
}

/// Returns `2026-11-24 (UTC+01:00)`.
pub(super) fn day(at: f64) -> String {
    let instant = exact_instant(at);
    let zone = instant[23..].trim_end_matches('Z');
    format!("{} (UTC{zone})", &instant[..10])
}

/// Returns milliseconds since the Unix epoch.
fn since_epoch(at: f64) -> Duration {
    Duration::from_millis((at * 1000.0).round() as u64)
}

/// Returns by how many seconds the zone of this process is ahead of UTC.
fn ahead_of_utc(at: Duration) -> i64 {
    match IS_LOCAL.load(Ordering::Relaxed) {
        true => local_time::ahead_of_utc(at.min(LAST_SECOND).as_secs() as i64),
        false => 0,
    }
}

/// Returns an instant in a zone that is `ahead` seconds ahead of UTC. `show` shows it in UTC.
fn in_zone(at: Duration, ahead: i64, show: impl FnOnce(SystemTime) -> String) -> String {
    let offset = Duration::from_secs(ahead.unsigned_abs());
    let shown = show(system_time(match ahead < 0 {
        true => at.saturating_sub(offset),
        false => at.saturating_add(offset),
    }));
    let (sign, minutes) = (if ahead < 0 { '-' } else { '+' }, ahead.abs() / 60);
    match ahead {
        0 => shown,
        _ => {
            let shown = shown.trim_end_matches('Z');
            format!("{shown}{sign}{:02}:{:02}", minutes / 60, minutes % 60)
        }
    }
}

/// Whether instants are in local time.
static IS_LOCAL: AtomicBool = AtomicBool::new(false);

/// Limits an instant to the years that humantime displays: it panics at five digits.
fn system_time(since_epoch: Duration) -> SystemTime {
    UNIX_EPOCH + since_epoch.min(LAST_SECOND)
}

/// Returns at most three digits, in the first of `units` (each a thousand of the one before) where that suffices.
fn scaled(value: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.95 && value.fract() != 0.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$}{}", units[unit])
}

/// Returns a duration in its largest unit and the next one, unless that is zero.
fn parts(seconds: f64) -> impl Iterator<Item = (u64, (&'static str, &'static str, u64))> {
    let seconds = Duration::try_from_secs_f64(seconds)
        .unwrap_or_default()
        .as_secs();
    let largest = UNITS
        .iter()
        .position(|(_, _, length)| seconds >= *length)
        .unwrap_or(UNITS.len() - 1);
    UNITS
        .into_iter()
        .enumerate()
        .skip(largest)
        .take(2)
        .filter_map(move |(at, unit)| {
            let within = if at == 0 {
                seconds
            } else {
                seconds % UNITS[at - 1].2
            };
            let count = within / unit.2;
            (count > 0 || at == UNITS.len() - 1 && largest == at).then_some((count, unit))
        })
}

/// The last second of the year 9999, since the Unix epoch.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

const COUNTS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
/// Name, letter and length in seconds.
const UNITS: [(&str, &str, u64); 4] = [
    ("day", "d", 86_400),
    ("hour", "h", 3600),
    ("minute", "m", 60),
    ("second", "s", 1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_groups() {
        let times = [
            0.0, 4.2, 42.4, 999.4, 999.6, 1300.0, 9960.0, 123_456.0, 1.2e6, 12e6, 1.5e9,
        ];
        let shown = times.map(|micros| time(micros / 1e6));
        assert_eq!(
            shown,
            [
                "0µs", "4.2µs", "42µs", "999µs", "1.0ms", "1.3ms", "10ms", "123ms", "1.2s", "12s",
                "1500s"
            ]
        );
        let counts = [0, 999, 1000, 999_999, 1_000_000, 12_345_678, u64::MAX];
        assert_eq!(
            counts.map(short),
            ["0", "999", "1,000", "999,999", "1M", "12M", "18447P"]
        );
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(
            [0, 1, 1234].map(|count| counted(count, "client")),
            ["0 clients", "1 client", "1,234 clients"]
        );
        assert_eq!(
            [1, 2].map(|count| are(count, "worker")),
            ["1 worker is", "2 workers are"]
        );
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (seconds, words, letters) in [
            (0.0, "0 seconds", "0s"),
            (-1.0, "0 seconds", "0s"),
            (1.9, "1 second", "1s"),
            (60.0, "1 minute", "1m"),
            (3661.0, "1 hour 1 minute", "1h1m"),
            (3601.0, "1 hour", "1h"),
            (86_400.0 * 3.0 + 3600.0 * 4.0, "3 days 4 hours", "3d4h"),
        ] {
            assert_eq!(
                (in_words(seconds).as_str(), in_letters(seconds).as_str()),
                (words, letters)
            );
        }
    }

    #[test]
    fn any_time_from_a_daemon_is_an_instant() {
        for (at, shown) in [
            (1_795_521_601.123, "2026-11-24T12:00:01.123Z"),
            (0.0, "1970-01-01T00:00:00.000Z"),
            (-1e300, "1970-01-01T00:00:00.000Z"),
            (1e300, "9999-12-31T23:59:59.000Z"),
            (f64::NAN, "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(
                (exact_instant(at).as_str(), clock(at).as_str()),
                (shown, &shown[11..19])
            );
        }
        assert_eq!(instant(u64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(day(1_795_521_601.123), "2026-11-24 (UTC)");
        let shown = |ahead| {
            let at = Duration::from_secs(1_795_521_601);
            in_zone(at, ahead, |at| {
                humantime::format_rfc3339_seconds(at).to_string()
            })
        };
        for (ahead, instant) in [
            (3600, "2026-11-24T13:00:01+01:00"),
            (-34_200, "2026-11-24T02:30:01-09:30"),
            (0, "2026-11-24T12:00:01Z"),
        ] {
            assert_eq!(shown(ahead), instant);
        }
    }
}
