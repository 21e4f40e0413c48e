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

mod app;
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

use serde::{Deserialize, Serialize};

pub use self::app::AppConfig;
use self::check::Conflict;
pub use self::control::{ControlConfig, Mode};
pub use self::error::Error;
pub use self::files::ConfigPlace;
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
    /// The program that executes the methods, if there is one.
    #[serde(deserialize_with = "table")]
    pub app: AppConfig,
    /// What clients may use.
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
    /// Reads and checks the configuration of a daemon. A file has at most [`MAX_FILE`] bytes and may be a pipe. Without a
    /// file it is the default.
    ///
    /// # Errors
    /// A file that cannot be read, a key in two files, those of [`Config::parse`], and a key of the app that refers to
    /// something that is missing.
    pub fn load(place: ConfigPlace<'_>) -> Result<Loaded, Error> {
        merge::parse(&place.read(Pipes::Read)?, |config| {
            check::check(config)?;
            app::outside::read_context(&mut config.app)
        })
    }

    /// Reads and checks the configuration for a reload of a daemon with this configuration, whose files had `keys`.
    ///
    /// # Errors
    /// Those of [`Config::load`]; another path of the control socket, which only a restart can change; and, unless
    /// `force`, a file that is empty while keys are missing.
    pub fn load_next(
        &self,
        keys: &Keys,
        place: ConfigPlace<'_>,
        force: bool,
    ) -> Result<Loaded, Error> {
        let read_context = |next: &mut Config| app::outside::read_context(&mut next.app);
        self.load_with(keys, place, force, read_context)
    }

    /// As [`Config::load_next`] without `force`, but looks up nothing: no user or group has a member, and nothing that
    /// the keys of the app refer to is read.
    ///
    /// # Errors
    /// Those of [`Config::load_next`], except for names.
    pub fn load_next_unresolved(
        &self,
        keys: &Keys,
        place: ConfigPlace<'_>,
    ) -> Result<Loaded, Error> {
        Names::Known(Identities::default())
            .during(|| self.load_with(keys, place, false, |_| Ok(())))
    }

    fn load_with(
        &self,
        keys: &Keys,
        place: ConfigPlace<'_>,
        force: bool,
        read_context: impl FnOnce(&mut Config) -> Result<(), Conflict>,
    ) -> Result<Loaded, Error> {
        let texts = place.read(Pipes::Refuse)?;
        let loaded = merge::parse(&texts, |next| {
            check::check(next)?;
            check::check_next(self, next)?;
            read_context(next)
        })?;
        if !force {
            merge::check_not_emptied(&texts, &loaded.keys, keys)?;
        }
        Ok(loaded)
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
        merge::parse(&[text], |config| check::check(config)).map(|loaded| loaded.config)
    }

    /// Parses the configuration of the previous master, which had these identities. Users and groups have their numbers;
    /// without them they are looked up, and one that cannot be resolved has no members.
    ///
    /// # Errors
    /// Those of [`Config::parse`], except for names.
    pub fn parse_kept(
        text: &str,
        origin: &str,
        known: Option<&Identities>,
    ) -> Result<Config, Error> {
        let names = known.map_or(Names::Lenient, |known| Names::Known(known.clone()));
        Config::parse_with(text, origin, names, known)
    }

    /// As [`Config::parse_kept`], but looks up the users and groups that have access. What the app needs is still as
    /// before: a name that is missing now would keep it from starting.
    ///
    /// # Errors
    /// Those of [`Config::parse_kept`].
    pub fn parse_last(
        text: &str,
        origin: &str,
        saved: Option<&Identities>,
    ) -> Result<Config, Error> {
        Config::parse_with(text, origin, Names::Lenient, saved)
    }

    fn parse_with(
        text: &str,
        origin: &str,
        names: Names,
        saved: Option<&Identities>,
    ) -> Result<Config, Error> {
        let mut config = names.during(|| Config::parse(text, origin))?;
        if let Some(saved) = saved {
            config.app.context = saved.app.clone();
        }
        Ok(config)
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
            app: AppConfig::default(),
            limits: Limits::default(),
            control: ControlConfig::default(),
            metrics: MetricsConfig::default(),
            log: log::default(),
        }
    }
}
