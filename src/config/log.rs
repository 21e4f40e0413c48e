//! `[log]`: where log lines go.
//!
//! The type is [`Log`] of the vocabulary, which has no defaults and accepts more than the file may have.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::durations::Timeout;
use super::notation::{Given, Notation, OrNone, table, word};
use super::values::AbsolutePath;
use crate::proto::log::{Log, LogFormat, LogLevel, LogTarget};

/// The fields of [`Log`] as the file has them.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Log", default = "default")]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LogSection {
    #[serde(deserialize_with = "word")]
    target: LogTarget,
    #[serde(with = "Given::<AbsolutePath>")]
    file: Option<PathBuf>,
    #[serde(deserialize_with = "word")]
    format: LogFormat,
    #[serde(deserialize_with = "word")]
    level: LogLevel,
    #[serde(with = "OrNone::<Timeout>")]
    slow_request: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct WholeLog(#[serde(with = "LogSection")] Log);

pub(super) fn default() -> Log {
    Log {
        target: LogTarget::default(),
        file: None,
        format: LogFormat::default(),
        level: LogLevel::default(),
        slow_request: None,
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Log, D::Error> {
    table(deserializer).map(|WholeLog(log)| log)
}

pub(super) fn serialize<S: Serializer>(log: &Log, serializer: S) -> Result<S::Ok, S::Error> {
    LogSection::serialize(log, serializer)
}
