//! Several files, and the environment, as one configuration.
//!
//! No file overrides another one: each key is given once in all files, so that their order only matters for messages. A
//! key of the environment overrides that of a file, and a key of the arguments both.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use toml::de::{DeTable, Deserializer, ValueDeserializer};
use toml::{Table, Value};

use super::Config;
use super::check::Conflict;
use super::error::Error;
use super::files::ConfigPlace;
use super::keys::{GivenKeys, Keys, Loaded, keys_of};
use super::own::{OwnTable, Rule};
use super::text::ConfigText;
use super::unknown::unknown_keys;

/// The texts of one configuration.
#[derive(Debug)]
pub(super) struct ConfigTexts {
    /// The files, or the text that stands for arguments.
    texts: Vec<ConfigText>,
    /// The environment, if it has keys.
    environment: Option<ConfigText>,
    /// The texts have precedence over the environment: they stand for arguments.
    is_command_line: bool,
}

impl ConfigTexts {
    pub(super) fn new(
        place: ConfigPlace<'_>,
        texts: Vec<ConfigText>,
        environment: Option<ConfigText>,
    ) -> ConfigTexts {
        ConfigTexts {
            texts,
            environment,
            is_command_line: matches!(place, ConfigPlace::CommandLine(_)),
        }
    }

    /// Returns those of a configuration that has nothing but these files.
    pub(super) fn files(texts: Vec<ConfigText>) -> ConfigTexts {
        ConfigTexts {
            texts,
            environment: None,
            is_command_line: false,
        }
    }

    /// Returns all texts, those with precedence first.
    fn all(&self) -> Vec<&ConfigText> {
        let mut all: Vec<&ConfigText> = self.environment.iter().collect();
        let at = if self.is_command_line { 0 } else { all.len() };
        all.splice(at..at, &self.texts);
        all
    }
}

/// Parses all texts as one configuration and checks it.
pub(super) fn parse(
    sources: &ConfigTexts,
    own: Rule<'_>,
    check: impl FnOnce(&mut Config) -> Result<(), Conflict>,
) -> Result<Loaded, Error> {
    let all = sources.all();
    let (mut config, mut merged, given) = parse_each(sources, own)?;
    let table = own
        .name()
        .and_then(|name| Some((name, merged.remove(name)?)));
    if let [first, _, ..] = all[..] {
        config = Config::deserialize(merged)
            .map_err(|error| Error::from_file(&first.origin, error.message()))?;
    }
    config.own = table.and_then(|(name, value)| match value {
        Value::Table(keys) => Some(OwnTable {
            name: name.to_owned(),
            keys,
        }),
        _ => None,
    });
    own.check(&all, config.own.as_ref())?;
    config.app.set_directory(&all);
    let check_all = |config: &mut Config| {
        own.check_app(&config.app)?;
        check(config)
    };
    check_all(&mut config).map_err(|conflict| Error::from_conflict(&all, &conflict))?;
    let origins = sources.texts.iter().chain(&sources.environment);
    Ok(Loaded {
        config,
        given,
        files: origins.map(|text| PathBuf::from(&text.origin)).collect(),
    })
}

/// Parses each text. Returns the configuration of the last one, the values of all, and the keys of each kind of text.
///
/// A key is in one file only. The environment may have it as well; of a table, it replaces only the keys that it has.
fn parse_each(sources: &ConfigTexts, own: Rule<'_>) -> Result<(Config, Table, GivenKeys), Error> {
    let mut keys = BTreeMap::new();
    let mut merged = Table::new();
    let mut config = Config::default();
    let unknown = sources
        .texts
        .iter()
        .chain(&sources.environment)
        .flat_map(|source| {
            let found = unknown_keys(&source.text, own.name()).into_iter();
            found.map(move |key| (source, key))
        });
    if let Some(error) = Error::unknown_keys(unknown) {
        return Err(error);
    }
    for source in &sources.texts {
        config = parse_one(source, own.name())?;
        for key in keys_of(&source.text) {
            if let Some(first) = keys.insert(key.clone(), source) {
                return Err(Error::given_twice(first, source, &key));
            }
        }
        merge(&mut merged, table_of(source)?);
    }
    let files: Keys = keys.into_keys().collect();
    let mut variables = Keys::new();
    if let Some(environment) = &sources.environment {
        config = parse_one(environment, own.name())?;
        let mut table = table_of(environment)?;
        variables = keys_of(&environment.text);
        if sources.is_command_line {
            variables.retain(|key| !files.contains(key));
            std::mem::swap(&mut merged, &mut table);
        }
        merge(&mut merged, table);
    }
    Ok((config, merged, GivenKeys { files, variables }))
}

fn table_of(source: &ConfigText) -> Result<Table, Error> {
    toml::from_str(&source.text).map_err(|error| Error::from_toml(source, &error, None))
}

/// Parses one text without the daemon's own table. This checks the types of all values, as only here their places are
/// known.
fn parse_one(source: &ConfigText, own: Option<&str>) -> Result<Config, Error> {
    typed(source, own).map_err(|error| Error::from_toml(source, &error, own))
}

fn typed(source: &ConfigText, own: Option<&str>) -> Result<Config, toml::de::Error> {
    let mut document = DeTable::parse(&source.text)?;
    let table = own.and_then(|name| document.get_mut().remove(name));
    if let Some(table) = table.filter(|table| table.get_ref().as_table().is_none()) {
        // It causes the error of a value that is not a table, with its place.
        IgnoredTable::deserialize(ValueDeserializer::from(table))?;
    }
    Config::deserialize(Deserializer::from(document))
}

/// Any table.
#[derive(Deserialize)]
struct IgnoredTable {}

/// Adds keys, which replace those that are there.
fn merge(merged: &mut Table, more: Table) {
    for (name, value) in more {
        match (merged.get_mut(&name), value) {
            (Some(Value::Table(section)), Value::Table(more)) => merge(section, more),
            (_, value) => drop(merged.insert(name, value)),
        }
    }
}

/// Refuses texts that leave out keys in force because a file is empty, as a file is while it is being written, or
/// because no file exists, as while the only one is being replaced. `main` is the file that would be the first.
pub(super) fn check_not_emptied(
    sources: &ConfigTexts,
    main: &str,
    keys: &Keys,
    in_force: &Keys,
) -> Result<(), Error> {
    let texts = &sources.texts;
    let is_empty = |source: &ConfigText| source.text.trim().is_empty();
    let (origin, what) = if texts.is_empty() {
        (
            main,
            "the file does not exist, as while it is being replaced",
        )
    } else if let Some(source) = texts.iter().find(|source| is_empty(source)) {
        let what = "the file is empty, as while it is being written";
        (source.origin.as_str(), what)
    } else if keys.is_empty() {
        let what = "the file has no keys, as while it is being written";
        (texts[0].origin.as_str(), what)
    } else {
        return Ok(());
    };
    let gone: Vec<&str> = in_force.difference(keys).map(String::as_str).collect();
    let [first, rest @ ..] = gone.as_slice() else {
        return Ok(());
    };
    let more = match rest.len() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let takes = match texts.is_empty() {
        true => "takes the defaults",
        false => "takes the file as it is",
    };
    let message = format!(
        "{what}; the configuration in force has {first}{more} from a file; \"reload --force\" {takes}"
    );
    Err(Error::from_file(origin, &message))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::files::ConfigPlace;
    use crate::config::files::tests::set;

    fn place(standard: &Path) -> ConfigPlace<'_> {
        ConfigPlace::new(None, None, standard)
    }

    fn load(standard: &Path) -> Result<Loaded, Error> {
        Config::load(place(standard))
    }

    #[test]
    fn a_reload_without_any_file_needs_force_if_keys_were_set() {
        let (_directory, standard) = set(&[("x.toml", "workers.count = 2")]);
        let Loaded { config, given, .. } = load(&standard).expect("it is valid");
        fs::remove_file(&standard).expect("it is ours");
        let next = |given: &GivenKeys, force| config.load_next(given, place(&standard), force);
        let error = next(&given, false).expect_err("no file exists");
        let expected = format!(
            "{}: the file does not exist, as while it is being replaced; the configuration in force has \
             workers.count from a file; \"reload --force\" takes the defaults",
            standard.display()
        );
        assert_eq!(error.in_one_line(), expected);
        let forced = next(&given, true).expect("forced");
        assert_eq!(forced.given, GivenKeys::default());
        next(&GivenKeys::default(), false).expect("there was no file before");
    }

    #[test]
    fn keys_of_several_files_make_one_configuration() {
        let (directory, standard) = set(&[
            (
                "x.toml",
                "listen = [\"127.0.0.1:1\"]\n[workers]\ncount = 3\n",
            ),
            (
                "x.d/a.toml",
                "workers.dispatch = \"round-robin\"\n[limits]\nmax-frame = \"64KiB\"\n",
            ),
            ("x.d/b.toml", "limits = { buffers = \"1MiB\" }\n"),
        ]);
        let whole = "listen = [\"127.0.0.1:1\"]\nworkers = { count = 3, dispatch = \"round-robin\" }\n\
                     limits = { max-frame = \"64KiB\", buffers = \"1MiB\" }";
        let loaded = load(&standard).expect("it is good");
        assert_eq!(
            loaded.config,
            Config::parse(whole, "test").expect("it is good")
        );
        assert_eq!(loaded.given.files, keys_of(whole));
        drop(directory);
        assert_eq!(load(&standard).expect("there is none"), Loaded::default());
    }

    #[test]
    fn a_mistake_is_shown_in_the_file_that_has_it() {
        for (text, place, message) in [
            ("[log]\nlevle = 1", "x.d/a.toml:2:1", "unknown key `levle`"),
            (
                "limits.buffers = \"64KiB\"",
                "x.d/a.toml:1:8",
                "buffers must be at least 4 times max-frame (4MiB)",
            ),
            (
                "[log]\nfile = \"/x\"",
                "x.d/a.toml:2:1",
                "`file` is only for target",
            ),
        ] {
            let (_directory, standard) = set(&[
                ("x.toml", "[limits]\nmax-frame = \"1MiB\"\n"),
                ("x.d/a.toml", text),
            ]);
            let error = load(&standard).expect_err(text);
            assert!(error.message().contains(message), "{error}");
            assert!(
                error.in_one_line().contains(&format!("{place}: ")),
                "{}",
                error.in_one_line()
            );
        }
    }

    #[test]
    fn a_key_given_twice_is_shown_at_both_places() {
        let (directory, standard) = set(&[
            ("x.toml", "# mine\n[workers]\ncount = 3\n"),
            ("x.d/a.toml", "log.level = \"warn\"\n"),
            (
                "x.d/b.toml",
                "log.format = \"json\"\nworkers = { count = 4 }\n",
            ),
        ]);
        let error = load(&standard).expect_err("it is there twice");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let first = format!("{}:3:1", path("x.toml"));
        assert_eq!(
            error.message(),
            format!("`workers.count` is given twice, the first time at {first}")
        );
        assert_eq!(
            error.in_one_line(),
            format!("{}:2:13: {}", path("x.d/b.toml"), error.message())
        );
        for words in [
            &first,
            "3 | count = 3",
            "workers = { count = 4 }",
            "given here first",
            "and again here",
        ] {
            assert!(
                error.to_string().contains(words),
                "{words} is not in\n{error}"
            );
        }

        for (text, first, again, name) in [
            (
                "[control]\nmode = \"0600\"\n[workers]\ncount = 1\n\ncount = 2\n",
                "4:1",
                "6:1",
                "count",
            ),
            (
                "[workers]\ncount = 1\n\n[log]\n[workers]\ndispatch = \"round-robin\"\n",
                "1:2",
                "5:2",
                "workers",
            ),
            (
                "listen = [\"[::]:1\"]\nlisten = [\"[::]:2\"]\n",
                "1:1",
                "2:1",
                "listen",
            ),
            (
                "# x\nworkers.count = 1\n[log]\n[workers]\ndispatch = \"round-robin\"",
                "2:1",
                "4:2",
                "workers",
            ),
            (
                "workers.count = 1\nworkers.count = 1\n",
                "1:9",
                "2:9",
                "count",
            ),
            (
                "listen = [{ address = \"[::]:1\", backlog = 1, backlog = 2 }]",
                "1:33",
                "1:46",
                "backlog",
            ),
        ] {
            let error = Config::parse(text, "one.toml").expect_err(text);
            let message = format!("`{name}` is given twice, the first time at one.toml:{first}");
            assert_eq!(
                error.in_one_line(),
                format!("one.toml:{again}: {message}"),
                "\n{error}"
            );
            assert!(error.to_string().contains("given here first"), "{error}");
        }
    }

    #[test]
    fn an_emptied_file_is_refused_while_its_keys_are_in_force() {
        let (directory, standard) = set(&[
            ("x.toml", "listen = [\"[::]:1\"]"),
            ("x.d/a.toml", "workers.count = 1"),
        ]);
        let before = load(&standard).expect("it is good");
        let next = |force| {
            before
                .config
                .load_next(&before.given, place(&standard), force)
        };
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).expect("it is ours")
        };
        write("x.toml", "");
        let error = next(false).expect_err("it is empty");
        assert!(
            error.message().starts_with("the file is empty, as while"),
            "{error}"
        );
        assert!(
            error.message().contains("has listen from a file"),
            "{error}"
        );
        assert_eq!(
            next(true).expect("it is good").config.workers,
            before.config.workers
        );
        write("x.toml", "# soon\n");
        next(false).expect("it has a comment, and another file has keys");
        write("x.d/a.toml", "# soon\n");
        let error = next(false).expect_err("nothing has keys");
        assert!(
            error.message().starts_with("the file has no keys"),
            "{error}"
        );
        assert!(
            error
                .message()
                .contains("has listen and 1 more from a file"),
            "{error}"
        );
        write("x.toml", "listen = [\"[::]:1\"]\nworkers.count = 1");
        write("x.d/a.toml", "");
        next(false).expect("nothing is missing");
    }
}
