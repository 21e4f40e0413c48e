//! The configuration key by key: which ones a file has, what each one's value is, and what another file would change.

use std::collections::BTreeSet;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::{Config, ControlConfig};
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
    /// The files that were read, in their order.
    pub files: Vec<PathBuf>,
}

/// The keys of a file. One that is no TOML has none.
pub(super) fn keys_of(text: &str) -> Keys {
    let Ok(document) = DeTable::parse(text) else {
        return Keys::new();
    };
    let mut keys = Keys::new();
    for (name, value) in document.get_ref() {
        match value.get_ref() {
            DeValue::Table(section) => {
                keys.extend(
                    section
                        .keys()
                        .map(|key| format!("{}.{}", name.get_ref(), key.get_ref())),
                );
            }
            _ => drop(keys.insert(name.get_ref().to_string())),
        }
    }
    keys
}

impl Config {
    /// Every key, in the order of the reference, with where its value comes from: the file's if it is in `given`. One that is
    /// not set has the value that stands for it, or none.
    #[must_use]
    pub fn entries(&self, given: &Keys) -> Vec<Key> {
        let entry = |key: String, value| {
            let origin = if given.contains(&key) {
                KeyOrigin::File
            } else {
                KeyOrigin::Default
            };
            Key { key, value, origin }
        };
        let mut entries: Vec<Key> = Vec::new();
        for (key, value) in self.values() {
            // Those of a section that are not set are behind those that are.
            entries.push(entry(key, Some(value)));
        }
        for Unset {
            section,
            key,
            instead,
        } in self.unset()
        {
            let is_here = |entry: &Key| {
                entry
                    .key
                    .strip_prefix(section)
                    .is_some_and(|rest| rest.starts_with('.'))
            };
            let at = entries
                .iter()
                .rposition(is_here)
                .map_or_else(|| before(section, &entries), |last| last + 1);
            entries.insert(at, entry(format!("{section}.{key}"), instead));
        }
        entries
    }

    /// As [`Config::to_toml`], with a comment for each key that is not set.
    #[must_use]
    pub fn dump(&self) -> String {
        let text = self.to_toml();
        let unset = self.unset();
        let mut dump = String::new();
        let mut section = "";
        // A section's comments stand before the next header, or at the end.
        for line in text.lines().map(Some).chain([None]) {
            let header = line
                .and_then(|line| line.strip_prefix('['))
                .map(|name| name.trim_end_matches(']'));
            if header.is_some() || line.is_none() {
                while dump.ends_with("\n\n") {
                    dump.pop();
                }
                unset
                    .iter()
                    .filter(|unset| unset.section == section)
                    .for_each(|unset| dump.push_str(&unset.comment()));
                if !dump.is_empty() && line.is_some() {
                    dump.push('\n');
                }
            }
            section = header.unwrap_or(section);
            if let Some(line) = line {
                dump.push_str(line);
                dump.push('\n');
            }
        }
        dump
    }

    /// The keys that may be left out and are.
    fn unset(&self) -> Vec<Unset> {
        let ControlConfig {
            socket,
            mode,
            admin_group,
            read_group,
        } = &self.control;
        let in_force = quoted(&self.control.mode().to_string());
        let keys = [
            ("control", "socket", socket.is_none(), None),
            ("control", "mode", mode.is_none(), Some(in_force)),
            ("control", "admin-group", admin_group.is_none(), None),
            ("control", "read-group", read_group.is_none(), None),
            ("metrics", "listen", self.metrics.listen.is_none(), None),
            ("log", "file", self.log.file.is_none(), None),
        ];
        let unset = keys.into_iter().filter(|(_, _, is_unset, _)| *is_unset);
        unset
            .map(|(section, key, _, instead)| Unset {
                section,
                key,
                instead,
            })
            .collect()
    }

    /// What is different in `next`.
    #[must_use]
    pub fn changes(&self, next: &Config) -> Vec<Change> {
        let (before, after) = (self.values(), next.values());
        let find = |values: &[(String, String)], key: &str| {
            values
                .iter()
                .find(|(other, _)| other == key)
                .map(|(_, value)| value.clone())
        };
        // A key without a value is in one of them only.
        let gone = before.iter().filter(|(key, _)| find(&after, key).is_none());
        let keys = after.iter().chain(gone).map(|(key, _)| key.clone());
        keys.map(|key| Change {
            from: find(&before, &key),
            to: find(&after, &key),
            key,
        })
        .filter(|change| change.from != change.to)
        .collect()
    }

    /// Keys with their values in TOML, each on one line.
    fn values(&self) -> Vec<(String, String)> {
        let listen = toml::Value::try_from(&self.listen)
            .map_or_else(|e| format!("# {e}"), |listen| listen.to_string());
        let mut values = vec![("listen".to_owned(), listen)];
        let mut section = String::new();
        for line in self.to_toml().lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']').to_owned();
            } else if let Some((key, value)) =
                line.split_once(" = ").filter(|_| !section.starts_with('['))
            {
                values.push((format!("{section}.{key}"), value.to_owned()));
            }
        }
        values
    }
}

/// A string as a value in TOML, on one line.
#[must_use]
pub fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A key that is not set.
struct Unset {
    section: &'static str,
    key: &'static str,
    /// The value that stands for it, if that depends on nothing but the configuration.
    instead: Option<String>,
}

/// Where a section belongs of which no key is set: before the first key of those that come after it.
fn before(section: &str, entries: &[Key]) -> usize {
    let later = SECTIONS.iter().skip_while(|name| **name != section).skip(1);
    let is_later = |entry: &Key| {
        later
            .clone()
            .any(|name| entry.key.starts_with(&format!("{name}.")))
    };
    entries.iter().position(is_later).unwrap_or(entries.len())
}

/// In the order of the reference.
const SECTIONS: [&str; 5] = ["workers", "limits", "control", "metrics", "log"];

impl Unset {
    fn comment(&self) -> String {
        match &self.instead {
            Some(value) => format!("#{} is not set; it is {value}\n", self.key),
            None => format!("#{} is not set\n", self.key),
        }
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
        let set = entries
            .iter()
            .filter_map(|Key { key, value, .. }| Some((key, value.as_ref()?)));
        let text: String = set
            .filter(|(key, _)| *key != "control.mode")
            .map(|(key, value)| format!("{key} = {value}\n"))
            .collect();
        assert_eq!(parse(&text), config, "{text}");
        assert_eq!(entries[0].key, "listen");
        assert_eq!(entries[1].key, "workers.count");
        assert!(entries.iter().all(|entry| {
            entry
                .value
                .as_ref()
                .is_none_or(|value| !value.contains('\n'))
                && entry.origin == KeyOrigin::Default
        }));
    }

    #[test]
    fn a_key_that_is_not_set_is_shown_in_its_section_with_what_stands_for_it() {
        let groups = "control.admin-group = \"0\"\nmetrics.listen = \"127.0.0.1:1\"";
        for (text, mode, metrics) in [
            ("", "\"0660\"", None),
            (groups, "\"0666\"", Some("\"127.0.0.1:1\"")),
        ] {
            let config = parse(text);
            let entries = config.entries(&Keys::new());
            let find = |key: &str| {
                entries
                    .iter()
                    .find(|entry| entry.key == key)
                    .expect(key)
                    .value
                    .as_deref()
            };
            assert_eq!(
                (
                    find("control.mode"),
                    find("control.socket"),
                    find("log.file")
                ),
                (Some(mode), None, None)
            );
            assert_eq!(find("metrics.listen"), metrics);
            let sections: Vec<&str> = entries
                .iter()
                .filter_map(|entry| entry.key.split_once('.'))
                .map(|(name, _)| name)
                .collect();
            assert!(
                sections.is_sorted_by_key(|name| SECTIONS.iter().position(|known| known == name)),
                "{sections:?}"
            );
            let dump = config.dump();
            assert_eq!(parse(&dump), config, "{dump}");
            let (_, control) = dump.split_once("\n[control]\n").expect("it has a section");
            let (control, _) = control
                .split_once("\n\n[metrics]\n")
                .expect("another one comes");
            assert!(
                control.contains(&format!("#mode is not set; it is {mode}"))
                    && control.contains("#socket is not set"),
                "{dump}"
            );
            assert!(dump.ends_with("\n#file is not set\n"), "{dump}");
        }
    }

    #[test]
    fn a_files_keys_are_known_however_they_are_written() {
        let text = "listen = [\"127.0.0.1:1\"]\nworkers.count = 3\nlimits = { max-frame = \"64KiB\" }\n[log]\nlevel = \"debug\"";
        let keys = keys_of(text);
        assert_eq!(
            Vec::from_iter(&keys),
            ["limits.max-frame", "listen", "log.level", "workers.count"]
        );
        let entries = parse(text).entries(&keys);
        let of_file: Vec<_> = entries
            .iter()
            .filter(|entry| entry.origin == KeyOrigin::File)
            .collect();
        assert_eq!(of_file.len(), 4, "{of_file:?}");
    }

    #[test]
    fn changes_are_what_is_different_also_where_there_was_nothing() {
        let before =
            parse("limits.max-frame = \"64KiB\"\nlog = { target = \"file\", file = \"/tmp/x\" }");
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
