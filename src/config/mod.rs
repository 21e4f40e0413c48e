//! The configuration file: what the operator wants, in types that hold only valid values.
//!
//! ```text
//! text ─ toml + serde ──▶ Config ─ check ──▶ Config that holds together
//!           │                        │
//!           ╰── the first error ─────╯──▶ Error: file, line, column, caret, "did you mean"
//! ```
//!
//! Everything is checked before anything is bound, so a bad file never harms a running daemon. Every key has a default;
//! `config/fdpassd.toml` shows all of them. This module opens only the files themselves, and looks up users and groups,
//! so that a wrong one is reported with its place.

mod check;
mod control;
mod durations;
mod error;
mod files;
mod keys;
mod limits;
mod listen;
mod log;
mod merge;
mod metrics;
mod names;
mod notation;
mod read;
mod source;
#[cfg(test)]
mod tests;
mod values;
mod workers;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::control::{ControlConfig, Mode};
pub use self::error::Error;
pub use self::keys::{Keys, Loaded, quoted};
pub use self::limits::Limits;
pub use self::listen::{Access, Listen, Source};
pub use self::metrics::{HostName, MetricsConfig};
pub use self::names::Identities;
use self::names::Names;
use self::notation::table;
use self::read::Pipes;
use self::source::SourceText;
pub use self::values::size;
pub use self::workers::{Count, Dispatch, RebalanceMode, WorkerConfig};
use crate::proto::log::Log;

/// The longest configuration file, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;

/// The most entries of `listen`.
pub const MAX_LISTENERS: usize = 64;

/// The most entries of `metrics.hosts`.
pub const MAX_HOSTS: usize = 64;

/// The whole configuration.
///
/// [`Config::load`] and [`Config::parse`] return one. Deserializing it directly leaves out the checks of keys against
/// each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where clients connect: 1 to [`MAX_LISTENERS`] different addresses.
    pub listen: Vec<Listen>,
    /// The worker processes.
    #[serde(deserialize_with = "table")]
    pub workers: WorkerConfig,
    /// The limits of what clients may use.
    #[serde(deserialize_with = "table")]
    pub limits: Limits,
    /// The control socket.
    #[serde(deserialize_with = "table")]
    pub control: ControlConfig,
    /// Metrics over HTTP.
    #[serde(deserialize_with = "table")]
    pub metrics: MetricsConfig,
    /// Where log lines go.
    #[serde(with = "log")]
    pub log: Log,
}

impl Config {
    /// Reads and checks the files of a daemon: `file` if it is given, else `standard` if it exists, and those in the directory
    /// of a standard file. A file has at most [`MAX_FILE`] bytes and may be a pipe. Without a file it is the default.
    ///
    /// # Errors
    /// A file that cannot be read, a key in two files, and those of [`Config::parse`].
    pub fn load(file: Option<&Path>, standard: &Path) -> Result<Loaded, Error> {
        merge::parse(&files::read_all(file, standard, Pipes::Read)?, check::check)
    }

    /// Reads and checks the files for a reload of a daemon with this configuration, whose files had `keys`.
    ///
    /// # Errors
    /// Those of [`Config::load`]; another path of the control socket, which only a restart can change; and, unless
    /// `force`, a file that is empty while keys are missing.
    pub fn load_next(
        &self,
        keys: &Keys,
        file: Option<&Path>,
        standard: &Path,
        force: bool,
    ) -> Result<Loaded, Error> {
        let texts = files::read_all(file, standard, Pipes::Refuse)?;
        let loaded = merge::parse(&texts, |next| {
            check::check(next).and_then(|()| check::check_next(self, next))
        })?;
        if !force {
            merge::check_not_emptied(&texts, &loaded.keys, keys)?;
        }
        Ok(loaded)
    }

    /// As [`Config::load_next`] without `force`, but looks up no users and groups: none of them has a member.
    ///
    /// # Errors
    /// Those of [`Config::load_next`], except for names.
    pub fn load_next_unresolved(
        &self,
        keys: &Keys,
        file: Option<&Path>,
        standard: &Path,
    ) -> Result<Loaded, Error> {
        Names::Known(Identities::default()).during(|| self.load_next(keys, file, standard, false))
    }

    /// Parses and checks `text`, which errors name `origin`.
    ///
    /// # Errors
    /// The first syntax error, unknown key or invalid value, and then the first conflict between values.
    pub fn parse(text: &str, origin: &str) -> Result<Config, Error> {
        let text = SourceText {
            origin: origin.to_owned(),
            text: text.to_owned(),
        };
        merge::parse(&[text], check::check).map(|loaded| loaded.config)
    }

    /// Parses the configuration of the previous master. Users and groups have the numbers of `known`; without it they
    /// are looked up, and one that cannot be resolved has no members.
    ///
    /// # Errors
    /// Those of [`Config::parse`], except for names.
    pub fn parse_kept(
        text: &str,
        origin: &str,
        known: Option<&Identities>,
    ) -> Result<Config, Error> {
        known
            .map_or(Names::Lenient, |known| Names::Known(known.clone()))
            .during(|| Config::parse(text, origin))
    }

    /// Returns a file for [`Config::parse`] with every key that has a value.
    ///
    /// A path that is not UTF-8 is written lossily; no file can contain one.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| format!("# cannot be written: {e}\n"))
    }
}

impl Default for Config {
    /// Returns one listener on 127.0.0.1:8080, and the default of each other field.
    fn default() -> Config {
        Config {
            listen: vec![Listen::new(listen::default_source())],
            workers: WorkerConfig::default(),
            limits: Limits::default(),
            control: ControlConfig::default(),
            metrics: MetricsConfig::default(),
            log: log::default(),
        }
    }
}
