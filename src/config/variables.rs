//! Keys in environment variables: `FDPASSD__LIMITS__MAX_CLIENTS=100` is `limits.max-clients = 100`.
//!
//! The variables become one text like that of a file, with a line for each key, so that mistakes are found in the same
//! way; an error shows its variable.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use toml::de::DeValue;

use super::error::Error;
use super::own::{Rule, key_on_one_line, on_one_line};
use super::text::ConfigText;
use crate::proto::control::ENVIRONMENT;

/// The separator of tables, and of the daemon's name.
const SEPARATOR: &str = "__";

/// The table of the variables of the app. Its names stay as they are, and its values are strings.
const OF_APP: [&str; 2] = ["app", "environment"];

/// Returns the names of all variables that are keys of the configuration of this daemon.
#[must_use]
pub fn variables_of(daemon: &str) -> Vec<OsString> {
    let prefix = prefix(daemon);
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| has_prefix(name, &prefix)).collect()
}

fn has_prefix(name: &OsStr, prefix: &str) -> bool {
    name.as_bytes().starts_with(prefix.as_bytes())
}

fn prefix(daemon: &str) -> String {
    upper(daemon) + SEPARATOR
}

/// Returns a key, or the name of a daemon, as a variable has it.
fn upper(key: &str) -> String {
    key.to_ascii_uppercase().replace('-', "_")
}

/// A variable, and its line in the text.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    /// The length of the daemon's name and the separator, in bytes.
    prefix_len: usize,
    /// The key, with its tables.
    path: Vec<String>,
    /// The value of the variable, without space around it.
    value: String,
    /// The value is no TOML, and the text has it as a string.
    is_bare: bool,
    /// Where the text has the line.
    line: Range<usize>,
    /// Where the value begins in the text.
    value_at: usize,
}

impl Variable {
    /// Returns the variable whose line in the text has this place.
    pub(super) fn at(variables: &[Variable], offset: usize) -> Option<&Variable> {
        let found = |variable: &&Variable| offset < variable.line.end;
        variables.iter().find(found).or(variables.last())
    }

    /// Returns the assignment as in a shell, and this place of the text in it. The value, which may be a secret, is
    /// left out if the place is in the name, or if the value is of the app's environment.
    pub(super) fn shown(&self, place: &Range<usize>) -> (String, Range<usize>) {
        let Variable { name, value, .. } = self;
        if !self.is_in_value(place) || self.has_app_environment() {
            return (format!("{name}=..."), 0..name.len());
        }
        let value_at = name.len() + 1;
        let text = format!("{name}={value}");
        let shift = |offset: usize| offset.saturating_sub(self.value_at) + value_at;
        let span = match self.is_bare {
            true => value_at..text.len(),
            false => shift(place.start)..shift(place.end).min(text.len()),
        };
        (text, span)
    }

    /// Returns whether the value is a variable of the app, or can contain one.
    fn has_app_environment(&self) -> bool {
        OF_APP.iter().zip(&self.path).all(|(key, step)| key == step)
    }

    /// Returns whether a place is in the value, not in the name.
    pub(super) fn is_in_value(&self, place: &Range<usize>) -> bool {
        place.start >= self.value_at
    }

    /// Returns the name of the variable for a similar path, with another key in the place of `key`.
    pub(super) fn with_key(&self, key: &str, other: &str) -> Option<String> {
        let index = self.path.iter().position(|step| step == key)?;
        let prefix = self.name.get(..self.prefix_len)?;
        let mut steps: Vec<String> = self.path.iter().map(|step| upper(step)).collect();
        steps[index] = upper(other);
        Some(format!("{prefix}{}", steps.join(SEPARATOR)))
    }

    /// Returns whether Kubernetes probably made the variable, for a Service whose name has two hyphens: for each Service of
    /// a namespace it makes `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, `NAME_PORT=tcp://…` and more.
    pub(super) fn is_of_service(&self) -> bool {
        let Variable { name, value, .. } = self;
        let is_host_or_port = name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
        let is_url = ["tcp://", "udp://", "sctp://"]
            .iter()
            .any(|scheme| value.starts_with(scheme));
        is_host_or_port || is_url && name.contains("_PORT")
    }

    /// Returns the name of the variable with one underscore in the place of two behind `key`, if that makes a key that is
    /// known: `MAX_CLIENTS` for `MAX__CLIENTS`.
    pub(super) fn with_joined_key(
        &self,
        key: &str,
        is_known: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let index = self.path.iter().position(|step| step == key)?;
        let joined = format!("{key}-{}", self.path.get(index + 1)?);
        let prefix = self.name.get(..self.prefix_len)?;
        let mut steps: Vec<String> = self.path.iter().map(|step| upper(step)).collect();
        steps.splice(index..index + 2, [upper(&joined)]);
        is_known(&joined).then(|| format!("{prefix}{}", steps.join(SEPARATOR)))
    }

    /// Returns the name of the variable for a key in the table that this one names.
    pub(super) fn inner(&self, key: &str) -> String {
        format!("{}{SEPARATOR}{}", self.name, upper(key))
    }
}

/// Returns the text of all variables of the daemon; `None` if there are none. A key that does not exist is found later,
/// as in a file.
///
/// # Errors
/// The first variable that is not UTF-8, whose name is not in upper case, whose key another one has given, or whose value
/// begins like TOML and is not.
pub(super) fn read(
    rule: Rule<'_>,
    all: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Option<ConfigText>, Error> {
    let Some(prefix) = rule.daemon().map(prefix) else {
        return Ok(None);
    };
    let mut found: Vec<_> = all.filter(|(name, _)| has_prefix(name, &prefix)).collect();
    found.sort();
    let mut source = ConfigText::new(ENVIRONMENT.to_owned(), String::new());
    for (name, value) in &found {
        add(&mut source, rule, &prefix, name, value)?;
    }
    Ok((!found.is_empty()).then_some(source))
}

/// Adds the line of a variable.
fn add(
    source: &mut ConfigText,
    rule: Rule<'_>,
    prefix: &str,
    name: &OsStr,
    value: &OsStr,
) -> Result<(), Error> {
    let fail = |why: &str| Error::from_file(&name.to_string_lossy(), why);
    let text = name.to_str().ok_or_else(|| fail("its name is not UTF-8"))?;
    let value = value
        .to_str()
        .ok_or_else(|| fail("its value is not UTF-8"))?;
    let value = value.trim();
    let path = path(rule, text.strip_prefix(prefix).unwrap_or_default()).ok_or_else(|| {
        let upper = text.to_ascii_uppercase();
        fail(&format!("it is not in upper case, as {upper} is"))
    })?;
    let covers = |other: &&Variable| path.starts_with(&other.path);
    if let Some(other) = source.variables.iter().find(covers) {
        return Err(fail(&format!(
            "{} gives a value for the same key, or for its whole table",
            other.name
        )));
    }
    let parsed = DeValue::parse(value);
    let is_bare = match is_of_app(&path) {
        true => !value.starts_with(['"', '\'']),
        false => parsed.is_err() && !value.starts_with(['"', '\'', '[', '{']),
    };
    let steps: Vec<String> = path.iter().map(|step| key_on_one_line(step)).collect();
    let start = source.text.len();
    source
        .source
        .text
        .push_str(&format!("{} = ", steps.join(".")));
    let value_at = source.text.len();
    source.source.text.push_str(&match is_bare {
        true => on_one_line(&value.into()),
        false => value.to_owned(),
    });
    source.source.text.push('\n');
    source.variables.push(Variable {
        name: text.to_owned(),
        prefix_len: prefix.len(),
        path,
        value: value.to_owned(),
        is_bare,
        line: start..source.text.len(),
        value_at,
    });
    match parsed {
        Err(error) if !is_bare => {
            let place = error.span().unwrap_or_default();
            let place = value_at + place.start..value_at + place.end;
            let message = error.message();
            Err(Error::from_message(source, message, Some(place), None))
        }
        _ => Ok(()),
    }
}

/// Returns whether a key is a variable of the app.
fn is_of_app(path: &[String]) -> bool {
    path.strip_prefix(&OF_APP.map(str::to_owned)[..])
        .is_some_and(|name| !name.is_empty())
}

/// Returns the key that a name without its prefix stands for, step by step: a key of the daemon's own table that
/// [`upper`] makes this step of, or else the step in lower case, with `-` for `_`. The names of variables of the app
/// stay as they are. `None` if another step is not in upper case.
fn path(rule: Rule<'_>, name: &str) -> Option<Vec<String>> {
    let mut path: Vec<String> = Vec::new();
    let mut rest = Some(name);
    while let Some(name) = rest.take() {
        if path == OF_APP {
            path.push(name.to_owned());
            break;
        }
        let (step, more) = match name.split_once(SEPARATOR) {
            Some((step, more)) => (step, Some(more)),
            None => (name, None),
        };
        if step.contains(|c: char| c.is_ascii_lowercase()) {
            return None;
        }
        rest = more;
        let usual = || step.to_ascii_lowercase().replace('_', "-");
        let own = rule.own_key(&path, |key| upper(key) == step);
        path.push(own.unwrap_or_else(usual));
    }
    Some(path)
}

#[cfg(test)]
mod tests;
