//! The configuration in force, key by key, and what the file would change.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::log::LogLevel;
use super::super::paths::shown;

/// Stands for the file of a configuration that the daemon was given as arguments.
pub const COMMAND_LINE: &str = "the command line";

/// Stands for the variables of the environment that have keys.
pub const ENVIRONMENT: &str = "the environment";

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// The file; none when no file was named and the standard one does not exist, or if the configuration was given as
    /// arguments.
    #[serde(serialize_with = "shown")]
    pub file: Option<PathBuf>,
    /// All files of the configuration, in their order; none when the embedded default is in force.
    /// [`COMMAND_LINE`] stands for arguments, [`ENVIRONMENT`] for variables.
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
    /// The key's value as the file would have it, in TOML on one line. A comment after `"auto"` has the resulting
    /// value. None if the key is not set and has no default.
    pub value: Option<String>,
    /// The origin of the value.
    pub origin: KeyOrigin,
}

named_variants! {
    /// The origin of a value.
    KeyOrigin {
        /// The default.
        Default = "default",
        /// The configuration file.
        File = "file",
        /// A variable of the daemon's environment.
        Environment = "environment",
        /// The arguments of the daemon.
        CommandLine = "command-line",
        /// A change while the daemon runs, which holds until the next reload.
        Runtime = "runtime",
    }
}

/// The result of `check`: a reload would accept the file, as far as is known without binding anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The file; none when no file was named and the standard one does not exist.
    #[serde(serialize_with = "shown")]
    pub file: Option<PathBuf>,
    /// All files that were read, in their order; none when the embedded default would apply.
    /// [`COMMAND_LINE`] stands for arguments, [`ENVIRONMENT`] for variables.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// The changes by a reload; none if the configuration in force is the same.
    pub changes: Vec<Change>,
}

/// A key that would get another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key's name with its section.
    pub key: String,
    /// The key's value in force; none if it has none.
    pub from: Option<String>,
    /// The key's value after a reload; none if it would have none.
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
    /// The level in the configuration.
    pub configured: LogLevel,
}
