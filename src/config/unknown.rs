//! The unknown keys of a text, all of them: the types of the values report only the first one that they find.

use toml::de::{DeTable, DeValue};

use super::advice::UnknownKey;
use super::keys::{full_name, known_keys};
use super::listen;
use crate::toml_text::{did_you_mean, most_like};

/// Returns the unknown keys of a text in their order; none if it is not TOML. `own` is the name of the daemon's own
/// table, which is checked elsewhere.
pub(super) fn unknown_keys(text: &str, own: Option<&str>) -> Vec<UnknownKey> {
    let Ok(document) = DeTable::parse(text) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut names: Vec<&str> = known_keys("").to_vec();
    for name in sections() {
        names.push(name);
    }
    names.extend(own);
    find_in(document.get_ref(), "", &names, &mut found);
    for (name, value) in document.get_ref() {
        match value.get_ref() {
            DeValue::Table(section) if sections().any(|known| known == name.get_ref()) => {
                let name = name.get_ref();
                find_in(section, name, known_keys(name), &mut found);
            }
            DeValue::Array(entries) if name.get_ref() == "listen" => {
                let tables = entries
                    .iter()
                    .filter_map(|entry| entry.get_ref().as_table());
                tables.for_each(|entry| find_in(entry, "listen", listen::keys(), &mut found));
            }
            _ => {}
        }
    }
    found.sort_by_key(|unknown| unknown.span.start);
    found
}

fn sections() -> impl Iterator<Item = &'static str> {
    super::keys::sections()
        .into_iter()
        .filter(|name| !name.is_empty())
}

/// Finds the keys of a table that are not among the known ones.
fn find_in(table: &DeTable<'_>, section: &str, known: &[&str], found: &mut Vec<UnknownKey>) {
    let unknown = table
        .keys()
        .filter(|key| !known.contains(&key.get_ref().as_ref()));
    found.extend(unknown.map(|key| {
        let name = key.get_ref().as_ref();
        let message = format!("unknown key `{name}`, expected {}", one_of(known));
        let elsewhere = elsewhere(name, section, known);
        UnknownKey {
            span: key.span(),
            help: help(name, &elsewhere).or_else(|| did_you_mean(&message)),
            message,
            elsewhere,
        }
    }));
}

/// Returns the help for a key that other tables have.
fn help(key: &str, elsewhere: &[String]) -> Option<String> {
    let shown = |full: &String| match full.as_str() {
        "listen" if usual(key) != "listen" => {
            format!("`{}` in an entry of `listen`", usual(key))
        }
        full => format!("`{full}`"),
    };
    let keys: Vec<String> = elsewhere.iter().map(shown).collect();
    let (last, first) = keys.split_last()?;
    Some(match first {
        [] => format!("did you mean {last}?"),
        _ => format!("did you mean {} or {last}?", first.join(", ")),
    })
}

/// Returns a key in the spelling of the keys of the configuration.
fn usual(key: &str) -> String {
    key.to_lowercase().replace('_', "-")
}

fn one_of(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [one] => one.clone(),
        [one, other] => format!("{one} or {other}"),
        _ => format!("one of {}", names.join(", ")),
    }
}

/// Returns the keys of other tables that have this name, or those that are like it if its own table has none that is
/// more like it. A key of an entry of `listen` is `listen`.
fn elsewhere(key: &str, section: &str, known: &[&str]) -> Vec<String> {
    let usual = usual(key);
    if known.contains(&usual.as_str()) {
        return Vec::new();
    }
    let others = || {
        let tables = std::iter::once("").chain(sections());
        let tables = tables.filter(|other| *other != section);
        tables.flat_map(|table| known_keys(table).iter().map(move |key| (table, *key)))
    };
    let full = |(table, key)| full_name(table, key);
    let named = |name: &str| -> Vec<String> {
        let same = others().filter(|(_, key)| *key == name).map(full);
        let is_of_entry = section != "listen" && listen::keys().contains(&name);
        same.chain(is_of_entry.then(|| "listen".to_owned()))
            .collect()
    };
    let same = named(&usual);
    if !same.is_empty() {
        return same;
    }
    if let Some(written) = others().map(full).find(|full| *full == usual) {
        return vec![written];
    }
    let own = most_like(key, known.iter().copied());
    let other = most_like(key, others().map(|(_, key)| key));
    match other.filter(|(likeness, _)| own.is_none_or(|(of_own, _)| *likeness > of_own)) {
        Some((_, other)) => named(other),
        None => Vec::new(),
    }
}
