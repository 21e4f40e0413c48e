//! Keys in environment variables: `FDPASSD__LIMITS__MAX_CLIENTS=100` is `limits.max-clients = 100`.
//!
//! The variables become one text like that of a file, with one assignment after the other, so that mistakes are found in
//! the same way; an error shows its variable.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use toml::de::DeValue;

use super::error::Error;
use super::own::{Rule, key_on_one_line, on_one_line};
use super::text::ConfigText;
use super::variable::{OF_APP, SEPARATOR, Variable, app_table, upper};
use crate::proto::control::ENVIRONMENT;

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

/// Returns the text of all variables of the daemon; `None` if there are none. A key that does not exist is found later,
/// as in a file.
///
/// # Errors
/// The first variable that is not UTF-8, whose name is not in upper case, whose key another one has given, or whose value
/// begins like TOML but is invalid.
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

/// Adds the assignment of a variable.
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
    let is_of_app = path.starts_with(&app_table()) && path.len() > OF_APP.len();
    let is_bare = match is_of_app {
        true => !value.starts_with(['"', '\'']),
        false => parsed.is_err() && !value.starts_with(['"', '\'', '[', '{']),
    };
    let value_at = push_assignment(&mut source.source.text, &path, value, is_bare);
    source.variables.push(Variable {
        name: text.to_owned(),
        prefix_len: prefix.len(),
        path,
        value: value.to_owned(),
        is_bare,
        end: source.text.len(),
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

/// Adds an assignment to a text, and returns where the value begins. A bare value becomes a string.
fn push_assignment(text: &mut String, path: &[String], value: &str, is_bare: bool) -> usize {
    let steps: Vec<String> = path.iter().map(|step| key_on_one_line(step)).collect();
    text.push_str(&steps.join("."));
    text.push_str(" = ");
    let value_at = text.len();
    match is_bare {
        true => text.push_str(&on_one_line(&value.into())),
        false => text.push_str(value),
    }
    text.push('\n');
    value_at
}

/// Returns the key that a name without its prefix stands for. Each step is
/// - a key of the daemon's own table, if [`upper`] makes this step of it;
/// - after [`OF_APP`] the rest of the name as it is;
/// - otherwise the step in lower case, with `-` for `_`.
///
/// Returns `None` if a step that is not of the app is not in upper case.
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
