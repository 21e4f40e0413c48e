//! The table of a daemon's own: `[NAME]` in the configuration of a daemon of that name, if its program reads one.
//!
//! Its type belongs to the program, so it is kept as TOML, and each process of the daemon parses what it needs. The
//! name and the type are set once per process, before a configuration is read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

use super::AppConfig;
use super::check::Conflict;
use super::error::Error;
use super::own_fields::{FieldNames, fields_at};
use super::text::ConfigText;
use crate::proto::app::EXCLUDED_BY_ASYNC;

/// The longest table, in bytes of TOML: a worker receives it in its first message.
const MAX_LEN: usize = 16 * 1024;

/// Checks a table against a type. Returns the first key that the type ignores.
type TableCheck = fn(Spanned<DeValue<'_>>) -> Result<Option<IgnoredKey>, toml::de::Error>;

/// The type of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableType {
    check: TableCheck,
    /// Returns the keys of the table at this path.
    keys: fn(&[&str]) -> FieldNames,
}

impl TableType {
    pub(crate) fn of<T: DeserializeOwned>() -> TableType {
        TableType {
            check: check_as::<T>,
            keys: fields_at::<T>,
        }
    }
}

/// A key of the table that the program's type ignores.
#[derive(Debug)]
struct IgnoredKey {
    /// The path of its table in the daemon's own table, and the key.
    steps: Vec<String>,
    /// The keys of that table, as far as the type lists them.
    known: FieldNames,
}

impl IgnoredKey {
    /// Returns the key with this path of [`serde_ignored`] in a `T`.
    fn find<T: DeserializeOwned>(path: &str) -> IgnoredKey {
        // An option has a step of its own.
        let steps: Vec<&str> = path.split('.').filter(|step| *step != "?").collect();
        let table = steps.split_last().map_or(&[][..], |(_, table)| table);
        IgnoredKey {
            known: fields_at::<T>(table),
            steps: steps.into_iter().map(str::to_owned).collect(),
        }
    }

    fn message(&self) -> String {
        let key = self.steps.last().map_or("", String::as_str);
        match self.known {
            [] => format!("unknown key `{key}`"),
            known => Error::reworded(&serde::de::Error::unknown_field(key, known)),
        }
    }
}

/// Checks a table against the type `T`.
///
/// # Errors
/// The first key that is missing or has a wrong value.
fn check_as<T: DeserializeOwned>(
    table: Spanned<DeValue<'_>>,
) -> Result<Option<IgnoredKey>, toml::de::Error> {
    let mut ignored = Vec::new();
    let note = |path: serde_ignored::Path<'_>| ignored.push(path.to_string());
    // A panic must not end a master that takes over clients.
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        serde_ignored::deserialize::<_, _, T>(ValueDeserializer::from(table), note).map(drop)
    }));
    match parsed {
        Ok(parsed) => parsed.map(|()| ignored.first().map(|path| IgnoredKey::find::<T>(path))),
        Err(_) => Err(serde::de::Error::custom(
            "the program panicked when it read this table",
        )),
    }
}

/// Parses the text of a table, which was checked before.
///
/// # Errors
/// As [`check_as`], if another program has checked it.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|e| Error::reworded(&e))
}

/// The rules of the program of this process for a configuration.
#[derive(Debug)]
struct Schema {
    name: String,
    table: Option<TableType>,
    /// The program has asynchronous methods, so it can have no app.
    is_async: bool,
}

static SCHEMA: OnceLock<Schema> = OnceLock::new();

/// Sets the daemon's name, the type of its table if its program reads one, and whether the program has asynchronous
/// methods. Only the first call counts.
pub(crate) fn set(name: &str, table: Option<TableType>, is_async: bool) {
    let name = name.to_owned();
    let _ = SCHEMA.set(Schema {
        name,
        table,
        is_async,
    });
}

/// The rule for the table, and for an app, in one parse of a configuration.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rule<'a> {
    /// The name of the table, if it may be there.
    name: Option<&'a str>,
    table: Option<TableType>,
    /// An app is refused.
    is_async: bool,
    /// The name of the daemon, if the configuration is that of its environment, too.
    daemon: Option<&'a str>,
}

impl Rule<'static> {
    /// Returns the rule for a file: the table is checked, or is an unknown key.
    pub(super) fn for_file() -> Rule<'static> {
        let schema = SCHEMA.get();
        let with_table = schema.filter(|schema| schema.table.is_some());
        Rule {
            name: with_table.map(|schema| schema.name.as_str()),
            table: with_table.and_then(|schema| schema.table),
            is_async: schema.is_some_and(|schema| schema.is_async),
            daemon: schema.map(|schema| schema.name.as_str()),
        }
    }

    /// Returns the rule for the files and the environment of a daemon with this table.
    #[cfg(test)]
    pub(super) fn of_test(name: &'static str, table: TableType) -> Rule<'static> {
        Rule {
            name: Some(name),
            table: Some(table),
            is_async: false,
            daemon: Some(name),
        }
    }

    /// Returns the rule for a configuration that was in force, and for one that is not put into force.
    pub(super) fn unchecked() -> Rule<'static> {
        Rule {
            name: SCHEMA.get().map(|schema| schema.name.as_str()),
            ..Rule::default()
        }
    }
}

impl<'a> Rule<'a> {
    pub(super) fn name(self) -> Option<&'a str> {
        self.name
    }

    /// Returns the name of the daemon whose environment has keys.
    pub(super) fn daemon(self) -> Option<&'a str> {
        self.daemon
    }

    /// Returns the name of the daemon's own table, or the key at this path in it, that `is` selects.
    pub(super) fn own_key(self, path: &[String], is: impl Fn(&str) -> bool) -> Option<String> {
        let (name, table) = (self.name?, self.table?);
        let known = match path {
            [] => &[name][..],
            [own, tables @ ..] if own == name => {
                let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
                (table.keys)(&tables)
            }
            _ => &[],
        };
        known
            .iter()
            .find(|key| is(key))
            .map(|key| (*key).to_owned())
    }

    /// Checks that the program can have this app, if it is one.
    pub(super) fn check_app(self, app: &AppConfig) -> Result<(), Conflict> {
        if !self.is_async || app.command.is_empty() {
            return Ok(());
        }
        Err(Conflict {
            message: EXCLUDED_BY_ASYNC.to_owned(),
            places: vec!["app.command".to_owned()],
            first: Vec::new(),
        })
    }

    /// Checks the table in these texts, which together have this one.
    pub(super) fn check(
        self,
        texts: &[&ConfigText],
        whole: Option<&OwnTable>,
    ) -> Result<(), Error> {
        let (Some(name), Some(TableType { check, .. })) = (self.name, self.table) else {
            return Ok(());
        };
        let text = whole.map_or_else(String::new, OwnTable::to_text);
        let fail = |message: String, place: String| {
            let places = vec![place, name.to_owned()];
            Error::from_conflict(
                texts,
                &Conflict {
                    message,
                    places,
                    first: Vec::new(),
                },
            )
        };
        if text.len() > MAX_LEN {
            let message = format!(
                "the table {name} has more than {MAX_LEN} bytes; more belongs in a file of its own"
            );
            return Err(fail(message, name.to_owned()));
        }
        let table = match DeTable::parse(&text) {
            Ok(table) => check(to_value(table)),
            Err(error) => Err(error),
        };
        let ignored = table.map_err(|error| {
            // The place is known only in the file that causes the same error.
            let found = texts.iter().find_map(|source| {
                let table = DeTable::parse(&source.text)
                    .ok()?
                    .into_inner()
                    .remove(name)?;
                let own = check(table).err()?;
                (own.message() == error.message()).then(|| Error::from_toml(source, &own, None))
            });
            found.unwrap_or_else(|| {
                let error = Error::reworded(&error);
                fail(format!("table {name}: {error}"), name.to_owned())
            })
        })?;
        match ignored {
            None => Ok(()),
            Some(key) => {
                let place = format!("{name}.{}", key.steps.join("."));
                Err(fail(key.message(), place))
            }
        }
    }
}

fn to_value(table: Spanned<DeTable<'_>>) -> Spanned<DeValue<'_>> {
    let span = table.span();
    Spanned::new(span, DeValue::Table(table.into_inner()))
}

/// The table, and its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwnTable {
    pub(super) name: String,
    pub(super) keys: Table,
}

impl OwnTable {
    /// Returns the keys of the table as TOML, without the header.
    #[must_use]
    pub(crate) fn to_text(&self) -> String {
        toml::to_string(&self.keys).unwrap_or_default()
    }

    /// Returns every key and its value in TOML, each on one line, in the order of their names.
    pub(super) fn values(&self) -> impl Iterator<Item = (String, String)> {
        let values = self.keys.iter();
        values.map(|(key, value)| (key_on_one_line(key), on_one_line(value)))
    }
}

/// Returns a value in TOML on one line.
pub(super) fn on_one_line(value: &Value) -> String {
    match value {
        Value::String(text) => string_on_one_line(text),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(on_one_line).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Table(keys) => {
            let pairs = keys
                .iter()
                .map(|(key, value)| format!("{} = {}", key_on_one_line(key), on_one_line(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// Returns a key as it is written in TOML.
pub(super) fn key_on_one_line(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match key.is_empty() || !key.chars().all(is_bare) {
        true => string_on_one_line(key),
        false => key.to_owned(),
    }
}

/// Writes a basic string, whose escapes are those of JSON. TOML also wants DEL escaped.
fn string_on_one_line(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::Config;
    use super::super::merge::{self, ConfigTexts};
    use super::*;

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Settings {
        url: String,
        #[serde(default)]
        pool: Option<Pool>,
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Pool {
        size: u8,
    }

    fn parse(texts: &[&str], table: Option<TableType>) -> Result<Config, Error> {
        let texts = (1..)
            .zip(texts)
            .map(|(number, text)| ConfigText::new(format!("{number}.toml"), (*text).to_owned()))
            .collect();
        let name = Some("spelld");
        let rule = Rule {
            name,
            table,
            ..Rule::default()
        };
        merge::parse(&ConfigTexts::files(texts), rule, |_| Ok(())).map(|loaded| loaded.config)
    }

    fn checked(texts: &[&str]) -> Result<Config, Error> {
        parse(texts, Some(TableType::of::<Settings>()))
    }

    #[test]
    fn a_table_in_several_files_is_one_table() {
        let config = checked(&[
            "spelld.url = \"x\"",
            "workers.count = 2",
            "[spelld.pool]\nsize = 3",
        ])
        .expect("it is good");
        assert_eq!(config.own_table(), "url = \"x\"\n\n[pool]\nsize = 3\n");
        let text = config.to_toml();
        let again = parse(&[&text], None).expect("it is good");
        assert_eq!(again, config, "{text}");
        let again = checked(&[&config.dump()]).expect("it is good");
        assert_eq!(again, config, "{}", config.dump());
    }

    #[test]
    fn errors_in_the_table_have_their_places() {
        for (texts, place, words) in [
            (&["[spelld]\nurl = 3"][..], "1.toml:2:7: ", "invalid value"),
            (&["# x\n[spelld]"], "1.toml:2:1: ", "missing key `url`"),
            (&["workers.count = 1"], "1.toml: ", "missing key `url`"),
            (&[], "the default: ", "table spelld: missing key `url`"),
            (
                &["[spelld]\nurl = \"\"\nulr = 1"],
                "1.toml:3:1: ",
                "unknown key `ulr`",
            ),
            (
                &["[spelld]\nurl = \"\"\npool = { size = 1, s = 2 }"],
                "1.toml:3:20: ",
                "unknown key `s`",
            ),
            (
                &["spelld.url = \"\"", "\nspelld.pool.size = 256"],
                "2.toml:2:20: ",
                "invalid value: integer `256`",
            ),
            (
                &["spelld.url = \"\"", "spelld.url = \"\""],
                "2.toml:1:8: ",
                "`spelld.url` is given twice",
            ),
            (&["spelld = 1"], "1.toml:1:10: ", "invalid value: integer"),
            (
                &["spelld.url = \"\"\n[speld]\n"],
                "1.toml:2:2: ",
                "`log`, `spelld`",
            ),
        ] {
            let error = checked(texts).expect_err("it is no good").in_one_line();
            assert!(error.starts_with(place) && error.contains(words), "{error}");
        }
        let long = format!("spelld.url = \"{}\"", "x".repeat(MAX_LEN));
        let error = checked(&[&long]).expect_err("it is too long").in_one_line();
        assert!(
            error.starts_with("1.toml:1:1: ") && error.contains("16384 bytes"),
            "{error}"
        );
    }

    #[test]
    fn unknown_keys_of_the_table_get_the_one_that_was_meant() {
        for (text, help) in [
            (
                "[spelld]\nurl = \"\"\npol = 1",
                Some("did you mean `pool`?"),
            ),
            (
                "[spelld]\nurl = \"\"\npool = { size = 1, sice = 2 }",
                Some("did you mean `size`?"),
            ),
            ("[spelld]\nurl = \"\"\nverbose = true", None),
        ] {
            let error = checked(&[text]).expect_err("it is no good");
            assert_eq!(error.help(), help, "{error}");
        }
        let error = checked(&["spelld = { url = \"\", x = 1 }"]).expect_err("it is no good");
        assert_eq!(error.message(), "unknown key `x`, expected `url` or `pool`");
    }

    #[test]
    fn values_of_the_table_are_on_one_line() {
        let text =
            "x = \"a\\n\\u007f\\\\\\\"é\"\n\"a b\" = [{ \"\" = 1979-05-27 }, [], 1.0]\ny = {}\n";
        let keys: Table = text.parse().expect("it is TOML");
        let name = "spelld".to_owned();
        let own = OwnTable { name, keys };
        let lines = own
            .values()
            .map(|(key, value)| format!("{key} = {value}\n"));
        let written: String = lines.collect();
        assert_eq!(written.lines().count(), 3, "{written}");
        assert_eq!(
            written.parse::<Table>().expect("it is TOML"),
            own.keys,
            "{written}"
        );
    }

    #[test]
    fn a_panic_of_the_type_is_an_error() {
        struct Panics;
        impl<'de> Deserialize<'de> for Panics {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Panics, D::Error> {
                panic!("on purpose")
            }
        }
        let error = parse(&["[spelld]"], Some(TableType::of::<Panics>())).expect_err("it panics");
        assert!(error.message().contains("the program panicked"), "{error}");
    }

    #[test]
    fn changes_include_the_table() {
        let before = checked(&["spelld.url = \"a\"\nspelld.pool.size = 1"]).expect("it is good");
        let next = checked(&["spelld.url = \"b\""]).expect("it is good");
        let changes = before.changes(&next);
        let found: Vec<_> = changes
            .iter()
            .map(|change| {
                (
                    change.key.as_str(),
                    change.from.as_deref(),
                    change.to.as_deref(),
                )
            })
            .collect();
        let expected = [
            ("spelld.url", Some("\"a\""), Some("\"b\"")),
            ("spelld.pool", Some("{ size = 1 }"), None),
        ];
        assert_eq!(found, expected);
        assert_eq!(before.changes(&before), []);
    }
}
