//! `[app]`: the program that executes the methods, one process for each worker.

mod env_file;
pub(super) mod outside;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::control::Mode;
use super::notation::{Given, Keyword, Notation, Or, OrNone, Rejection, WrittenValue, word};
use super::text::ConfigText;
use super::values::{AbsolutePath, Size, UpTo, text};
use crate::proto::app::{AppIdentity, AppOutput, AppSpec, MAX_CONCURRENCY};

/// `[app]`: the program that executes the methods. Without a command, the default, there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AppConfig {
    /// The program and its arguments; empty if there is no app.
    #[serde(deserialize_with = "command", skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The working directory. [`Config::load`](super::Config::load) sets the default, the directory of the file that
    /// has the command, or the current one.
    #[serde(with = "Given::<AbsolutePath>")]
    pub directory: Option<PathBuf>,
    /// Variables besides those of the daemon.
    #[serde(deserialize_with = "environment")]
    pub environment: BTreeMap<String, String>,
    /// A file with more variables, which replace those above.
    #[serde(with = "Given::<AbsolutePath>")]
    pub environment_file: Option<PathBuf>,
    /// The most requests at a time; `None`, the default, is `"app"`: what the app wants.
    #[serde(with = "Or::<AppWord, UpTo<MAX_CONCURRENCY>>")]
    pub concurrency: Option<NonZeroU32>,
    /// The resident memory, in bytes, from which on worker and app are replaced; `None`, the default, sets no limit.
    #[serde(with = "OrNone::<MemorySize>")]
    pub max_memory: Option<u64>,
    /// The user that the app runs as; `None`, the default, is the daemon's.
    #[serde(with = "Given::<Account>")]
    pub user: Option<String>,
    /// The group that the app runs as; `None`, the default, is the user's.
    #[serde(with = "Given::<Account>")]
    pub group: Option<String>,
    /// The file mode creation mask; `None`, the default, is the daemon's.
    #[serde(with = "Given::<Mode>")]
    pub umask: Option<Mode>,
    /// The use of standard output and standard error; by default log lines.
    #[serde(deserialize_with = "word")]
    pub output: AppOutput,
    /// Whether the program is started once for each generation, and forks the app of each worker.
    pub preload: bool,
    /// The files that `fdpassd dev` watches, relative to the directory; by default those of the script's language.
    pub watch: Vec<Glob>,
    /// The context that was read outside of the configuration for this app.
    #[serde(skip)]
    pub(super) context: AppContext,
}

/// The context of the keys of an app, as it was when the configuration was loaded. A restart or an upgrade that keeps
/// the configuration also keeps this, and looks up nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AppContext {
    /// The variables of the environment file.
    environment: BTreeMap<String, String>,
    /// The numbers of user and group, if one of them is given.
    identity: Option<AppIdentity>,
    /// The variables of the user, if one is given: `HOME` and so on.
    login: BTreeMap<String, String>,
}

impl AppConfig {
    /// Returns how a worker starts the app; `None` if there is no app.
    #[must_use]
    pub fn spec(&self) -> Option<AppSpec> {
        let mut command = self.command.clone();
        let program = command.first_mut()?;
        if let Some(directory) = &self.directory
            && let Some(path) = in_directory(program, directory)
        {
            *program = path.to_string_lossy().into_owned();
        }
        let mut environment = self.context.login.clone();
        environment.extend(self.environment.clone());
        environment.extend(self.context.environment.clone());
        Some(AppSpec {
            command,
            directory: self.directory.clone(),
            environment,
            concurrency: self.concurrency.map(NonZeroU32::get),
            max_memory: self.max_memory,
            identity: self.context.identity.clone(),
            umask: self.umask.map(|Mode(mode)| mode),
            output: self.output,
        })
    }

    /// Returns whether both have the same variables from a file.
    pub(super) fn has_same_variables(&self, other: &AppConfig) -> bool {
        self.context.environment == other.context.environment
    }

    /// Sets the default of the directory: that of the file with the command, or the current one if a variable has it.
    /// Texts with precedence come first.
    pub(super) fn set_directory(&mut self, texts: &[&ConfigText]) {
        let of_text = || {
            let text = texts
                .iter()
                .find(|text| text.find("app.command").is_some())?;
            if !text.variables.is_empty() {
                return std::env::current_dir().ok();
            }
            let file = std::path::absolute(&text.origin).ok()?;
            file.parent().map(Path::to_owned)
        };
        if !self.command.is_empty() && self.directory.is_none() {
            self.directory = of_text();
        }
    }
}

/// Returns the path of a program that is not searched for in `PATH`, because its name has a slash.
fn in_directory(program: &str, directory: &Path) -> Option<PathBuf> {
    program.contains('/').then(|| directory.join(program))
}

/// The value of `concurrency` that leaves it to the app.
struct AppWord;

impl Keyword for AppWord {
    const WORD: &'static str = "app";
}

/// The limit of an app's memory. It is at least what a runtime of an interpreted language needs.
type MemorySize = Size<{ 1 << 20 }, { 1 << 40 }>;

/// One string of a command.
struct Argument(String);

/// The name of an environment variable.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct VariableName(String);

/// The value of an environment variable.
struct VariableValue(String);

/// The name or the number of a user or a group.
struct Account;

/// A pattern for paths of files: `*` and `?` stand for characters of a name, `**` for any directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(pub String);

impl Notation for Argument {
    type Value = Argument;

    fn expected() -> String {
        "a string in quotes, without NUL".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Argument, Rejection> {
        without_nul(text(written)?).map(Argument)
    }

    fn write(value: &Argument) -> WrittenValue<'_> {
        WrittenValue::Text(value.0.as_str().into())
    }
}

impl Notation for VariableName {
    type Value = VariableName;

    fn expected() -> String {
        "a name of letters, digits and \"_\"".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<VariableName, Rejection> {
        let name = text(written)?;
        check_variable(name).map_err(Rejection::Because)?;
        Ok(VariableName(name.to_owned()))
    }

    fn write(value: &VariableName) -> WrittenValue<'_> {
        WrittenValue::Text(value.0.as_str().into())
    }
}

impl Notation for VariableValue {
    type Value = VariableValue;

    fn expected() -> String {
        Argument::expected()
    }

    fn read(written: &WrittenValue<'_>) -> Result<VariableValue, Rejection> {
        without_nul(text(written)?).map(VariableValue)
    }

    fn write(value: &VariableValue) -> WrittenValue<'_> {
        WrittenValue::Text(value.0.as_str().into())
    }
}

impl Notation for Account {
    type Value = String;

    fn expected() -> String {
        "a name or a number in quotes".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<String, Rejection> {
        let name = text(written)?;
        match name.is_empty() {
            true => Err(Rejection::Unexpected),
            false => without_nul(name),
        }
    }

    fn write(value: &String) -> WrittenValue<'_> {
        WrittenValue::Text(value.as_str().into())
    }
}

impl Notation for Glob {
    type Value = Glob;

    fn expected() -> String {
        "a pattern in quotes for paths below the directory, such as \"lib/**/*.py\"".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Glob, Rejection> {
        let pattern = text(written)?;
        let fits = |part: &str| !part.is_empty() && part != "." && part != "..";
        (pattern.split('/').all(fits) && !pattern.contains('\0'))
            .then(|| Glob(pattern.to_owned()))
            .ok_or(Rejection::Unexpected)
    }

    fn write(value: &Glob) -> WrittenValue<'_> {
        WrittenValue::Text(value.0.as_str().into())
    }
}

/// Reads and writes arrays and keys, whose types cannot be named in `with`.
macro_rules! deserialize_as_notation {
    ($($Type:ident),*) => {
        $(impl<'de> Deserialize<'de> for $Type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$Type, D::Error> {
                <$Type as Notation>::deserialize(deserializer)
            }
        })*
    };
}

deserialize_as_notation!(Argument, VariableName, VariableValue, Glob);

impl Serialize for Glob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        <Glob as Notation>::serialize(self, serializer)
    }
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let command: Vec<Argument> = Deserialize::deserialize(deserializer)?;
    if command.first().is_none_or(|program| program.0.is_empty()) {
        return Err(D::Error::custom("the command needs a program"));
    }
    Ok(command
        .into_iter()
        .map(|Argument(argument)| argument)
        .collect())
}

fn environment<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let variables: BTreeMap<VariableName, VariableValue> = super::notation::table(deserializer)?;
    let plain = |(VariableName(name), VariableValue(value))| (name, value);
    Ok(variables.into_iter().map(plain).collect())
}

fn without_nul(text: &str) -> Result<String, Rejection> {
    (!text.contains('\0'))
        .then(|| text.to_owned())
        .ok_or(Rejection::Unexpected)
}

/// Returns whether this can be the name of an environment variable.
fn is_variable_name(name: &str) -> bool {
    let is_within = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    !name.is_empty()
        && name.bytes().all(is_within)
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Checks the name of an environment variable that an operator sets for an app.
fn check_variable(name: &str) -> Result<(), String> {
    if !is_variable_name(name) {
        return Err(format!(
            "{name:?} is not a name of letters, digits and \"_\""
        ));
    }
    // Variables that belong to the protocol of apps, and those that the service manager sets for the master alone.
    let is_reserved = ["FDPASSD_", "LISTEN_", "WATCHDOG_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name == "NOTIFY_SOCKET";
    match is_reserved {
        true => Err(format!(
            "{name} cannot be set: it is reserved for the daemon"
        )),
        false => Ok(()),
    }
}
