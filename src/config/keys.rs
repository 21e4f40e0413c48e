//! The configuration key by key: which ones a file has, what each one's value is, and what another file would change.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};

use super::Config;
use crate::proto::control::{Change, Key, KeyOrigin};

/// Keys that a file has, with their sections: `listen`, `workers.count`.
pub type Keys = BTreeSet<String>;

/// A configuration, and the keys that its file has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// What is to be in force.
    pub config: Config,
    /// All others are at their defaults.
    pub keys: Keys,
}

/// The keys of a file. One that is no TOML has none.
pub(super) fn keys_of(text: &str) -> Keys {
    let Ok(document) = DeTable::parse(text) else { return Keys::new() };
    let mut keys = Keys::new();
    for (name, value) in document.get_ref() {
        match value.get_ref() {
            DeValue::Table(section) => {
                keys.extend(section.keys().map(|key| format!("{}.{}", name.get_ref(), key.get_ref())));
            }
            _ => drop(keys.insert(name.get_ref().to_string())),
        }
    }
    keys
}

impl Config {
    /// Every key that has a value, in the order of the reference, with where it comes from: the file's if it is in `given`.
    #[must_use]
    pub fn entries(&self, given: &Keys) -> Vec<Key> {
        self.values()
            .into_iter()
            .map(|(key, value)| {
                let origin = if given.contains(&key) { KeyOrigin::File } else { KeyOrigin::Default };
                Key { key, value, origin }
            })
            .collect()
    }

    /// What is different in `next`.
    #[must_use]
    pub fn changes(&self, next: &Config) -> Vec<Change> {
        let (before, after) = (self.values(), next.values());
        let find = |values: &[(String, String)], key: &str| {
            values.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
        };
        // A key without a value is in one of them only.
        let gone = before.iter().filter(|(key, _)| find(&after, key).is_none());
        let keys = after.iter().chain(gone).map(|(key, _)| key.clone());
        keys.map(|key| Change { from: find(&before, &key), to: find(&after, &key), key })
            .filter(|change| change.from != change.to)
            .collect()
    }

    /// Keys with their values in TOML, each on one line.
    fn values(&self) -> Vec<(String, String)> {
        let listen = toml::Value::try_from(&self.listen).expect("a listener is a table of strings and numbers");
        let mut values = vec![("listen".to_owned(), listen.to_string())];
        let mut section = String::new();
        for line in self.to_toml().lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']').to_owned();
            } else if let Some((key, value)) = line.split_once(" = ").filter(|_| !section.starts_with('[')) {
                values.push((format!("{section}.{key}"), value.to_owned()));
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text, "test").expect("a configuration")
    }

    #[test]
    fn every_value_is_on_one_line_and_makes_the_same_configuration() {
        let config = parse(
            "listen = [\"127.0.0.1:1\", { address = \"unix:/x\", mode = \"0600\" }]\n[log]\ntarget = \"file\"\n\
             file = \"/tmp/a \\\" = [b]\"\n",
        );
        let entries = config.entries(&Keys::new());
        let text: String = entries.iter().map(|Key { key, value, .. }| format!("{key} = {value}\n")).collect();
        assert_eq!(parse(&text), config, "{text}");
        assert_eq!(entries[0].key, "listen");
        assert_eq!(entries[1].key, "workers.count");
        assert!(entries.iter().all(|entry| !entry.value.contains('\n') && entry.origin == KeyOrigin::Default));
    }

    #[test]
    fn a_files_keys_are_known_however_they_are_written() {
        let text = "listen = [\"127.0.0.1:1\"]\nworkers.count = 3\nlimits = { max-frame = \"64KiB\" }\n[log]\nlevel = \"debug\"";
        let keys = keys_of(text);
        assert_eq!(Vec::from_iter(&keys), ["limits.max-frame", "listen", "log.level", "workers.count"]);
        let entries = parse(text).entries(&keys);
        let of_file: Vec<_> = entries.iter().filter(|entry| entry.origin == KeyOrigin::File).collect();
        assert_eq!(of_file.len(), 4, "{of_file:?}");
    }

    #[test]
    fn changes_are_what_is_different_also_where_there_was_nothing() {
        let before = parse("limits.max-frame = \"64KiB\"\nlog = { target = \"file\", file = \"/tmp/x\" }");
        let after = parse("workers.count = 2");
        assert_eq!(before.changes(&before), []);
        let change = |key: &str, from: Option<&str>, to: Option<&str>| Change {
            key: key.to_owned(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        let mut found = before.changes(&after);
        found.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(
            found,
            [
                change("limits.max-frame", Some("\"64KiB\""), Some("\"1MiB\"")),
                change("log.file", Some("\"/tmp/x\""), None),
                change("log.target", Some("\"file\""), Some("\"auto\"")),
                change("workers.count", Some("\"auto\""), Some("2")),
            ]
        );
    }
}
