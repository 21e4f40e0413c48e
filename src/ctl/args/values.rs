//! Parsers of the values on the command line.

use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::value::RawValue;

use crate::proto::control::{Recycle, Release};
use crate::proto::names::{Address, ClientId, MAX_WORKERS, WorkerId, is_daemon_name};
use crate::sys::zone;

/// Parses one of these words, which shell completions offer.
pub(super) fn words<T: Copy + Send + Sync + 'static, const N: usize>(
    words: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words.map(|(word, _)| word)).try_map(move |given| {
        let found = words.iter().find(|(word, _)| *word == given);
        found.map(|(_, value)| *value).ok_or("an unknown word")
    })
}

pub(super) fn worker_id(text: &str) -> Result<WorkerId, String> {
    let id = text.parse().map(WorkerId);
    id.map_err(|_| format!("expected a worker's id, {WORKER_IDS}"))
}

pub(super) fn client_id(text: &str) -> Result<ClientId, String> {
    let id = text.parse().map(ClientId);
    id.map_err(|_| {
        "expected a client's id, a number in the column ID of `fdpassctl clients`".into()
    })
}

/// Parses `all` or the id of a worker.
pub(super) fn recycle(text: &str) -> Result<Recycle, String> {
    let worker = match text {
        "all" => None,
        id => Some(WorkerId(id.parse().map_err(|_| {
            format!("expected \"all\" or a worker's id, {WORKER_IDS}")
        })?)),
    };
    Ok(Recycle { worker })
}

/// Parses the id of a worker or the name of a method, which is never a number.
pub(super) fn release(text: &str) -> Result<Release, Infallible> {
    Ok(text.parse().map_or_else(
        |_| Release::Method(text.to_owned()),
        |id| Release::Worker(WorkerId(id)),
    ))
}

/// Parses a time of more than 0, such as that to wait for a reply.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(time) if time.is_zero() => Err("expected a time of more than 0".to_owned()),
        time => time,
    }
}

/// Parses the time between two requests for the status.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(time) if time < MIN_INTERVAL => Err("expected a time of at least 100ms".to_owned()),
        time => time,
    }
}

/// Parses the time of a notice or of moves, which may be zero.
pub(super) fn notice(text: &str) -> Result<Duration, String> {
    duration(text)
}

/// Parses a number of requests a second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= MAX_RATE => Ok(rate),
        _ => Err(format!("expected a number above 0 and at most {MAX_RATE}")),
    }
}

/// Parses a number in a range.
pub(super) fn number(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| match (*range.start(), *range.end()) {
            (least, u64::MAX) => format!("expected a number of at least {least}"),
            (least, most) => format!("expected a number from {least} to {most}"),
        })
    }
}

/// Parses a number of seconds, or a duration with units, of at most [`MAX_TIMEOUT`]. `M` is refused: humantime reads it
/// as months, and it is usually meant as minutes.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = "expected a time such as 30 (seconds), 250ms or \"1m 30s\"";
    let time = match text.parse::<f64>() {
        Ok(seconds) if seconds > MAX_TIMEOUT.as_secs_f64() => None,
        Ok(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|_| expected.to_owned())?),
        Err(_) => {
            let time = humantime::parse_duration(text).map_err(|_| expected.to_owned())?;
            if text.contains('M') {
                let minutes = text.replace('M', "m");
                return Err(format!("M stands for months; did you mean {minutes:?}?"));
            }
            Some(time)
        }
    };
    time.filter(|time| *time <= MAX_TIMEOUT)
        .ok_or_else(|| "expected a time of at most a day".to_owned())
}

/// Parses a number of workers.
pub(super) fn worker_count(text: &str) -> Result<u32, String> {
    let count = text
        .parse()
        .ok()
        .filter(|count| (1..=MAX_WORKERS).contains(count));
    count.ok_or_else(|| format!("expected a number from 1 to {MAX_WORKERS}"))
}

/// Parses the most clients to show.
pub(super) fn most(text: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|_| "expected a number of clients".to_owned())
}

/// Parses the number of an event.
pub(super) fn event(text: &str) -> Result<u64, String> {
    let number = text.parse();
    number.map_err(|_| "expected the number of an event, as --json shows it".to_owned())
}

/// Parses the name of an instance: the part of a path, as the unit uses it.
pub(super) fn instance(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected the name of an instance".to_owned()),
        name if name.contains('/') => {
            Err("expected the name of an instance, which has no \"/\"".to_owned())
        }
        name => Ok(name.to_owned()),
    }
}

pub(super) fn daemon_name(text: &str) -> Result<String, String> {
    match is_daemon_name(text) {
        true => Ok(text.to_owned()),
        false => Err(
            "expected a daemon's name: a letter from a to z, then at most 31 of a to z, 0 to 9, \"_\" and \"-\""
                .to_owned(),
        ),
    }
}

pub(super) fn address(text: &str) -> Result<Address, String> {
    let address = zone::numbered(text)?.parse();
    // The value is in the message of the command line already.
    address.map_err(|why: String| {
        let prefix = format!("{text:?} is not a valid address: ");
        why.strip_prefix(&prefix).unwrap_or(&why).to_owned()
    })
}

pub(crate) fn json(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text).map_err(|e| match e.is_eof() {
        true => "not JSON: the text ends before the value does".to_owned(),
        false => format!("not JSON: {e}"),
    })
}

/// Where the ids of workers are shown.
const WORKER_IDS: &str = "a number in the column ID of `fdpassctl status`";

/// The most requests a second.
const MAX_RATE: f64 = 1e9;

/// The shortest time between two requests for the status: each of them makes the daemon read the memory of all workers.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The longest timeout: an `Instant` can be that far away on every system.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
