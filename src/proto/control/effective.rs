//! The configuration in force, key by key, and what the file would change.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::channel::LogLevel;
use super::super::paths::shown;

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// The file; none when no file was named and the standard one does not exist.
    #[serde(serialize_with = "shown")]
    pub file: Option<PathBuf>,
    /// All files that the configuration was read from, in their order; none when the embedded default is in force.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// Every key, in the order of the reference.
    pub keys: Vec<Key>,
}

/// A key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The key's name with its section, such as `limits.max-frame`.
    pub key: String,
    /// The key's value as the file would have it, in TOML on one line. A comment after `"auto"` has
    /// the resulting value. None if the key is not set and nothing stands for it.
    pub value: Option<String>,
    /// Where that comes from.
    pub origin: KeyOrigin,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyOrigin {
    /// The default.
    Default,
    /// The configuration file.
    File,
    /// A change while the daemon runs, which holds until the next reload.
    Runtime,
}

impl KeyOrigin {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            KeyOrigin::Default => "default",
            KeyOrigin::File => "file",
            KeyOrigin::Runtime => "runtime",
        }
    }
}

/// The file as it is now is good, and would be taken as far as can be told without binding anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The file; none when no file was named and the standard one does not exist.
    #[serde(serialize_with = "shown")]
    pub file: Option<PathBuf>,
    /// All files that were read, in their order; none when the embedded default would be taken.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// What a reload would change; nothing if the configuration in force is the same.
    pub changes: Vec<Change>,
}

/// A key that would have another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key's name with its section.
    pub key: String,
    /// The key's value in force; none if it has none.
    pub from: Option<String>,
    /// The one to come; none if it would have none.
    pub to: Option<String>,
}

/// Params of `log-level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLogLevel {
    /// The level from now on, until the next reload; without it nothing is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
}

/// The level of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevelInForce {
    /// The least important lines that are written.
    pub level: LogLevel,
    /// What the configuration says.
    pub configured: LogLevel,
}
