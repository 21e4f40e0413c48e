//! The configuration key by key: the keys of a file, the value of each key, and what another file would change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::Config;
use super::own::{key_on_one_line, on_one_line};
use crate::proto::control::{Change, Key, KeyOrigin};

/// The keys of a file, with their sections: `listen`, `workers.count`.
pub type Keys = BTreeSet<String>;

/// The keys of a configuration that are not the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenKeys {
    /// The keys of the files, or of the arguments.
    pub files: Keys,
    /// The keys of the environment that are in force. Files may have them as well.
    pub variables: Keys,
}

/// A configuration, and its keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The keys that are given; all others have their defaults.
    pub given: GivenKeys,
    /// The files that were read, in their order, and what stands for the environment if it has keys.
    pub files: Vec<PathBuf>,
}

/// Returns the keys of a text; none if it is not TOML.
pub(super) fn keys_of(text: &str) -> Keys {
    let Ok(document) = DeTable::parse(text) else {
        return Keys::new();
    };
    let mut keys = Keys::new();
    for (name, value) in document.get_ref() {
        match value.get_ref() {
            DeValue::Table(section) => {
                let full = |key: &str| full_name(name.get_ref(), &key_on_one_line(key));
                keys.extend(section.keys().map(|key| full(key.get_ref())));
            }
            _ => drop(keys.insert(name.get_ref().to_string())),
        }
    }
    keys
}

impl Config {
    /// Returns every key with its value and its origin, which is the environment or the file if `given` has the key. A
    /// key that is not set comes last in its section, with the value in force instead, if any.
    #[must_use]
    pub fn entries(&self, given: &GivenKeys) -> Vec<Key> {
        let values = self.values().into_iter();
        let entries = values.map(|(section, key, value)| {
            let value = value.or_else(|| self.value_instead(section, key));
            (full_name(section, key), value)
        });
        let own = self.own_values().into_iter();
        let entries = entries.chain(own.map(|(key, value)| (key, Some(value))));
        let entry = |(key, value)| {
            let origin = if given.variables.contains(&key) {
                KeyOrigin::Environment
            } else if given.files.contains(&key) {
                KeyOrigin::File
            } else {
                KeyOrigin::Default
            };
            Key { key, value, origin }
        };
        entries.map(entry).collect()
    }

    /// Returns the text of [`Config::to_toml`], with a comment for each key that is not set.
    #[must_use]
    pub fn dump(&self) -> String {
        let listen = BTreeMap::from([("listen", &self.listen)]);
        let mut dump = toml::to_string(&listen).unwrap_or_else(|e| format!("# {e}\n"));
        for section in self.values()[1..].chunk_by(|one, other| one.0 == other.0) {
            dump.push_str(&format!("\n[{}]\n", section[0].0));
            for (section, key, value) in section {
                dump.push_str(&match (value, self.value_instead(section, key)) {
                    (Some(value), _) => format!("{key} = {value}\n"),
                    (None, Some(instead)) => format!("#{key} is not set; it is {instead}\n"),
                    (None, None) => format!("#{key} is not set\n"),
                });
            }
        }
        if let Some(own) = &self.own {
            dump.push_str(&format!("\n[{}]\n", own.name));
            for (key, value) in own.values() {
                dump.push_str(&format!("{key} = {value}\n"));
            }
        }
        dump
    }

    /// Returns the full name and the value in TOML of every key of the daemon's own table.
    fn own_values(&self) -> BTreeMap<String, String> {
        let own = self.own.iter().flat_map(|own| {
            let name = |key: &str| full_name(&own.name, key);
            own.values().map(move |(key, value)| (name(&key), value))
        });
        own.collect()
    }

    /// Returns what is different in `next`. Keys that are not set there come last.
    #[must_use]
    pub fn changes(&self, next: &Config) -> Vec<Change> {
        let before = self.values();
        let mut changes: Vec<Change> = next
            .values()
            .into_iter()
            .filter_map(|(section, key, to)| {
                let from = before
                    .iter()
                    .find(|value| (value.0, value.1) == (section, key))?
                    .2
                    .clone();
                (from != to).then(|| Change {
                    key: full_name(section, key),
                    from,
                    to,
                })
            })
            .collect();
        changes.extend(self.change_of_variables(next));
        let (own_before, own_next) = (self.own_values(), next.own_values());
        let keys: BTreeSet<&String> = own_before.keys().chain(own_next.keys()).collect();
        changes.extend(keys.into_iter().filter_map(|key| {
            let (from, to) = (own_before.get(key).cloned(), own_next.get(key).cloned());
            (from != to).then(|| Change {
                key: key.clone(),
                from,
                to,
            })
        }));
        changes.sort_by_key(|change| change.to.is_none());
        changes
    }

    /// Returns the change of an environment file that has the same path and other variables.
    fn change_of_variables(&self, next: &Config) -> Option<Change> {
        let path = next.app.environment_file.as_ref()?;
        let is_changed = self.app.environment_file.as_ref() == Some(path)
            && !self.app.has_same_variables(&next.app);
        is_changed.then(|| {
            let path = quoted(&path.to_string_lossy());
            Change {
                key: "app.environment-file".to_owned(),
                to: Some(format!("{path} # its variables have changed")),
                from: Some(path),
            }
        })
    }

    /// Returns section, key and value in TOML of every key, in the order of the reference but for keys that are not
    /// set: they come last in their section.
    fn values(&self) -> Vec<(&'static str, &'static str, Option<String>)> {
        let table = Table::try_from(self).unwrap_or_default();
        let sections = SECTIONS.iter().flat_map(|(section, keys)| {
            let table = match *section {
                "" => Some(&table),
                _ => table.get(*section).and_then(Value::as_table),
            };
            let value = |key| table?.get(key).map(shown);
            let mut values: Vec<_> = keys
                .iter()
                .map(|key| (*section, *key, value(*key)))
                .collect();
            values.sort_by_key(|(_, _, value)| value.is_none());
            values
        });
        sections.collect()
    }

    /// Returns the value of a key that is not set, if that depends on nothing but the configuration.
    fn value_instead(&self, section: &str, key: &str) -> Option<String> {
        ((section, key) == ("control", "mode")).then(|| quoted(&self.control.mode().to_string()))
    }
}

/// Returns the name of a key with its section.
pub(super) fn full_name(section: &str, key: &str) -> String {
    match section {
        "" => key.to_owned(),
        _ => format!("{section}.{key}"),
    }
}

/// Returns a string as a value in TOML, on one line.
#[must_use]
pub fn quoted(text: &str) -> String {
    shown(&Value::from(text))
}

/// Returns a value in TOML on one line. The notation of the `toml` crate has more lines for a text with newlines.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.contains('\n') {
        true => on_one_line(value),
        false => text,
    }
}

/// Returns the names of all tables that every configuration has.
pub(super) fn sections() -> [&'static str; SECTIONS.len()] {
    SECTIONS.map(|(name, _)| name)
}

/// Returns the keys of a table of every configuration; of the first level, those without a table.
pub(super) fn known_keys(section: &str) -> &'static [&'static str] {
    let found = SECTIONS.iter().find(|(name, _)| *name == section);
    found.map_or(&[], |(_, keys)| keys)
}

/// All keys in the order of the reference, which is that of the fields of [`Config`].
const SECTIONS: [(&str, &[&str]); 8] = [
    ("", &["listen"]),
    (
        "workers",
        &[
            "count",
            "dispatch",
            "rebalance",
            "start",
            "start-timeout",
            "max-requests",
            "max-lifetime",
        ],
    ),
    (
        "app",
        &[
            "command",
            "directory",
            "environment",
            "environment-file",
            "concurrency",
            "max-memory",
            "user",
            "group",
            "umask",
            "output",
            "preload",
            "watch",
        ],
    ),
    (
        "limits",
        &[
            "max-clients",
            "max-clients-per-address",
            "ipv6-prefix",
            "max-frame",
            "buffers",
            "idle-timeout",
            "frame-timeout",
            "send-timeout",
            "request-timeout",
            "stall-timeout",
            "drain-timeout",
            "drain-notice",
            "restart-grace",
            "tcp-keepalive",
        ],
    ),
    ("control", &["socket", "mode", "admin-group", "read-group"]),
    ("metrics", &["listen", "hosts"]),
    ("agent", &["listen"]),
    (
        "log",
        &["target", "file", "format", "level", "slow-request"],
    ),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::own::OwnTable;

    fn parse(text: &str) -> Config {
        Config::parse(text, "test").expect("a configuration")
    }

    fn of_files(files: Keys) -> GivenKeys {
        GivenKeys {
            files,
            ..GivenKeys::default()
        }
    }

    #[test]
    fn the_values_make_the_same_configuration() {
        let config = parse(
            "listen = [\"127.0.0.1:1\", { address = \"unix:/x\", mode = \"0600\" }]\n[log]\ntarget = \"file\"\n\
             file = \"/tmp/a \\\" = [b]\"\n",
        );
        let entries = config.entries(&GivenKeys::default());
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
    fn values_with_newlines_are_on_one_line() {
        let path = "/etc/a\nb\u{7f}";
        let text = format!(
            "[app]\ncommand = [\"true\", \"a\\nb\"]\nenvironment-file = {}\nenvironment = {{ CERT = \"-----\\nMIIB\\n\" }}\n",
            quoted(path)
        );
        let config = parse(&text);
        assert_eq!(
            config.app.environment_file.as_deref(),
            Some(Path::new(path))
        );
        for Key { key, value, .. } in config.entries(&GivenKeys::default()) {
            assert!(value.is_none_or(|value| !value.contains('\n')), "{key}");
        }
        assert!(!quoted(path).contains('\n'), "{}", quoted(path));
        assert_eq!(parse(&config.dump()), config, "{}", config.dump());
    }

    #[test]
    fn own_keys_have_the_same_name_in_the_file_and_in_the_table() {
        let text = "[spelld]\n\"a b\" = 1\n\"é\" = 2\nplain = 3\n";
        let own = OwnTable {
            name: "spelld".to_owned(),
            keys: text.parse::<Table>().expect("TOML")["spelld"]
                .as_table()
                .expect("a table")
                .clone(),
        };
        let config = Config {
            own: Some(own),
            ..Config::default()
        };
        let entries = config.entries(&of_files(keys_of(text)));
        let of_file = |entry: &&Key| entry.origin == KeyOrigin::File;
        let names: Vec<&str> = entries
            .iter()
            .filter(of_file)
            .map(|entry| entry.key.as_str())
            .collect();
        assert_eq!(names, ["spelld.\"a b\"", "spelld.\"é\"", "spelld.plain"]);
    }

    #[test]
    fn a_key_that_is_not_set_is_shown_in_its_section() {
        let groups = "control.admin-group = \"0\"\nmetrics.listen = \"127.0.0.1:1\"";
        for (text, mode, metrics) in [
            ("", "\"0660\"", None),
            (groups, "\"0666\"", Some("\"127.0.0.1:1\"")),
        ] {
            let config = parse(text);
            let entries = config.entries(&GivenKeys::default());
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
                sections
                    .is_sorted_by_key(|name| SECTIONS.iter().position(|(known, _)| known == name)),
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
    fn the_keys_of_a_file_are_known_in_every_spelling() {
        let text = "listen = [\"127.0.0.1:1\"]\nworkers.count = 3\nlimits = { max-frame = \"64KiB\" }\n[log]\nlevel = \"debug\"";
        let keys = keys_of(text);
        assert_eq!(
            Vec::from_iter(&keys),
            ["limits.max-frame", "listen", "log.level", "workers.count"]
        );
        let entries = parse(text).entries(&of_files(keys));
        let of_file: Vec<_> = entries
            .iter()
            .filter(|entry| entry.origin == KeyOrigin::File)
            .collect();
        assert_eq!(of_file.len(), 4, "{of_file:?}");
    }

    #[test]
    fn changes_have_new_removed_and_different_values() {
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
