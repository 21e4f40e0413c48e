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

mod advice;
mod agent;
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
mod network;
mod notation;
pub(crate) mod own;
mod own_fields;
mod read;
#[cfg(test)]
mod tests;
mod text;
mod unknown;
mod values;
mod variable;
mod variables;
mod workers;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::agent::AgentConfig;
pub use self::app::AppConfig;
use self::check::Conflict;
pub use self::control::{ControlConfig, Mode};
pub use self::error::Error;
pub use self::files::{ConfigPlace, standard_if_any};
pub use self::keys::{GivenKeys, Keys, Loaded, quoted};
pub use self::limits::Limits;
pub use self::listen::{Access, Listen, Source};
use self::merge::ConfigTexts;
pub use self::metrics::{HostName, MetricsConfig};
pub use self::names::Identities;
use self::names::Names;
pub use self::network::ProxyRule;
use self::notation::table;
use self::own::{OwnTable, Rule};
use self::read::Pipes;
use self::text::ConfigText;
pub use self::values::size;
pub use self::variables::variables_of;
pub use self::workers::{Count, Dispatch, RebalanceMode, StartMode, WorkerConfig};
use crate::proto::log::Log;

/// The longest configuration file, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;

/// The longest configuration, as JSON of [`Config::to_toml`] in the state file, in bytes.
pub const MAX_SAVED_LEN: usize = 512 * 1024;

/// The most entries of `listen`.
pub const MAX_LISTENERS: usize = 64;

/// The most entries of `metrics.hosts`.
pub const MAX_HOSTS: usize = 64;

/// The most networks in `proxy-from` of a listener.
pub const MAX_NETWORKS: usize = 64;

/// The whole configuration.
///
/// [`Config::load`] and [`Config::parse_kept`] return one. Deserializing it directly leaves out the checks of keys
/// against each other.
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
    /// The limits of what clients may use.
    #[serde(deserialize_with = "table")]
    pub limits: Limits,
    /// The control socket.
    #[serde(deserialize_with = "table")]
    pub control: ControlConfig,
    /// Metrics over HTTP.
    #[serde(deserialize_with = "table")]
    pub metrics: MetricsConfig,
    /// Agent checks of load balancers.
    #[serde(deserialize_with = "table")]
    pub agent: AgentConfig,
    /// Where log lines go.
    #[serde(with = "log")]
    pub log: Log,
    /// The table of the daemon's own, if the files have it.
    #[serde(skip)]
    pub(crate) own: Option<OwnTable>,
}

impl Config {
    /// Reads and checks the configuration of a daemon: its files and its environment. A file has at most [`MAX_FILE`]
    /// bytes and may be a pipe. All other keys have their defaults.
    ///
    /// # Errors
    /// A file that cannot be read, a key in two files or variables; the first syntax error, unknown key or invalid value, then an
    /// error in the daemon's own table, then the first conflict between values, and then a key of the app that refers
    /// to something that is missing.
    pub fn load(place: ConfigPlace<'_>) -> Result<Loaded, Error> {
        let rule = Rule::for_file();
        let sources = Config::sources(rule, place, Pipes::Read)?;
        merge::parse(&sources, rule, |config| {
            check::check(config)?;
            app::outside::read_context(&mut config.app)
        })
    }

    fn sources(rule: Rule<'_>, place: ConfigPlace<'_>, pipes: Pipes) -> Result<ConfigTexts, Error> {
        let texts = place.read(pipes)?;
        let environment = variables::read(rule, std::env::vars_os())?;
        Ok(ConfigTexts::new(place, texts, environment))
    }

    /// Reads and checks the configuration for a reload of a daemon with this configuration, which had the keys `given`.
    ///
    /// # Errors
    /// Those of [`Config::load`]; another path of the control socket, which only a restart can change; and, unless
    /// `force`, a file that is empty, or no file at all, while keys are missing.
    pub fn load_next(
        &self,
        given: &GivenKeys,
        place: ConfigPlace<'_>,
        force: bool,
    ) -> Result<Loaded, Error> {
        let read_context = |next: &mut Config| app::outside::read_context(&mut next.app);
        self.load_with(Rule::for_file(), given, place, force, read_context)
    }

    fn load_with(
        &self,
        rule: Rule<'_>,
        given: &GivenKeys,
        place: ConfigPlace<'_>,
        force: bool,
        read_context: impl FnOnce(&mut Config) -> Result<(), Conflict>,
    ) -> Result<Loaded, Error> {
        let sources = Config::sources(rule, place, Pipes::Refuse)?;
        let loaded = merge::parse(&sources, rule, |next| {
            check::check(next)?;
            check::check_next(self, next)?;
            read_context(next)
        })?;
        if !force {
            let (next, in_force) = (&loaded.given.files, &given.files);
            merge::check_not_emptied(&sources, &place.main(), next, in_force)?;
        }
        Ok(loaded)
    }

    /// Parses and checks `text`, which errors name `origin`.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    #[cfg(test)]
    pub fn parse(text: &str, origin: &str) -> Result<Config, Error> {
        Config::parse_by(Rule::for_file(), text, origin)
    }

    fn parse_by(rule: Rule<'_>, text: &str, origin: &str) -> Result<Config, Error> {
        let text = ConfigText::new(origin.to_owned(), text.to_owned());
        let sources = ConfigTexts::files(vec![text]);
        merge::parse(&sources, rule, |config| check::check(config)).map(|loaded| loaded.config)
    }

    /// Parses the configuration of the previous master, which had these identities. Users and groups have their
    /// numbers; without them they are looked up, and one that cannot be resolved has no members. The daemon's own table
    /// is not checked: workers report that they cannot read it, while their clients stay.
    ///
    /// # Errors
    /// Those of [`Config::load`], except for files, names and the table.
    pub fn parse_kept(
        text: &str,
        origin: &str,
        known: Option<&Identities>,
    ) -> Result<Config, Error> {
        let names = known.map_or(Names::Lenient, |known| Names::Known(known.clone()));
        Config::parse_with(text, origin, names, known)
    }

    /// Does the same as [`Config::parse_kept`], and looks up the users and groups that have access. The context of the
    /// app is still as before: a name that is missing now would keep it from starting.
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
        let mut config = names.during(|| Config::parse_by(Rule::unchecked(), text, origin))?;
        if let Some(saved) = saved {
            config.app.context = saved.app.clone();
        }
        Ok(config)
    }

    /// Returns a file for [`Config::parse_kept`] with every key that has a value.
    ///
    /// A path that is not UTF-8 is written lossily; no file can contain one.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let own = self.own.as_ref().map(|own| (&own.name, &own.keys));
        let own = own.map_or_else(String::new, |own| {
            toml::to_string(&BTreeMap::from([own])).unwrap_or_default()
        });
        match toml::to_string(self) {
            Ok(text) => text + &own,
            Err(e) => format!("# cannot be written: {e}\n"),
        }
    }

    /// Checks the daemon's own table, and whether there may be an app, as a file would be checked.
    ///
    /// # Errors
    /// That the program of this process cannot use it, in one sentence.
    pub(crate) fn check_own(&self) -> Result<(), String> {
        let rule = Rule::for_file();
        if let Some(own) = self
            .own
            .as_ref()
            .filter(|own| rule.name() != Some(&own.name))
        {
            return Err(format!(
                "it knows no table {} in the configuration",
                own.name
            ));
        }
        let checked = rule.check(&[], self.own.as_ref());
        checked.map_err(|error| error.message().to_owned())?;
        rule.check_app(&self.app)
            .map_err(|conflict| conflict.message)
    }

    /// Returns the keys of the daemon's own table as TOML; nothing if there is no table.
    pub(crate) fn own_table(&self) -> String {
        self.own
            .as_ref()
            .map_or_else(String::new, OwnTable::to_text)
    }

    /// Returns whether a daemon of this name cannot have a table of its own, because every configuration has a table,
    /// or a key, of that name.
    pub(crate) fn has_section(name: &str) -> bool {
        keys::sections().contains(&name) || name == "listen"
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
            agent: AgentConfig::default(),
            log: log::default(),
            own: None,
        }
    }
}
