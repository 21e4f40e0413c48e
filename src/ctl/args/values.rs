//! Parsers of the values on the command line.

use std::convert::Infallible;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::value::RawValue;

use crate::proto::control::{Recycle, Release};
use crate::proto::names::{Address, ClientId, WorkerId, is_daemon_name};
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

pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() || time > MAX_TIMEOUT {
        Err("must be more than 0 and at most a day".to_owned())
    } else {
        Ok(time)
    }
}

/// Parses the time of a notice or of moves, which may be zero.
pub(super) fn notice(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time > MAX_TIMEOUT {
        Err("must be at most a day".to_owned())
    } else {
        Ok(time)
    }
}

/// Parses a number of seconds, or a duration with units.
fn duration(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string()),
        Err(_) => humantime::parse_duration(text).map_err(|e| e.to_string()),
    }
}

/// Parses the name of an instance: the part of a path, as the unit uses it.
pub(super) fn instance(text: &str) -> Result<String, String> {
    match text {
        "" => Err("must not be empty".to_owned()),
        name if name.contains('/') => Err("is a name, without \"/\"".to_owned()),
        name => Ok(name.to_owned()),
    }
}

pub(super) fn daemon_name(text: &str) -> Result<String, String> {
    match is_daemon_name(text) {
        true => Ok(text.to_owned()),
        false => Err("is not a daemon's name: [a-z][a-z0-9_-]{0,31}".to_owned()),
    }
}

pub(super) fn address(text: &str) -> Result<Address, String> {
    zone::numbered(text)?.parse()
}

pub(super) fn json(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))
}

/// Where the ids of workers are shown.
const WORKER_IDS: &str = "a number in the column ID of `fdpassctl status`";

/// The longest timeout: an `Instant` can be that far away on every system.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
