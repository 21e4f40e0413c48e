//! A log event, before it is formatted.

use std::borrow::Cow;
use std::fmt::Write as _;

use log::kv::{self, Key, VisitSource, VisitValue};
use log::{Level, Record};
use serde_json::Value;

use super::scope;

/// An event as it was logged. Nothing of it is escaped: each format does that in its own way.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) level: Level,
    pub(super) message: String,
    /// Fields for machines; no name twice.
    pub(super) fields: Vec<(String, Value)>,
    /// Whether text for people has the fields, too. The sentences of the daemon itself contain them.
    pub(super) shows_fields: bool,
}

impl Line {
    /// Returns a line without fields.
    pub(super) fn new(level: Level, message: impl Into<String>) -> Line {
        Line {
            level,
            message: message.into(),
            fields: Vec::new(),
            shows_fields: false,
        }
    }

    /// Formats the whole record now, so that no code of the caller runs later.
    pub(super) fn from_record(record: &Record) -> Line {
        let mut line = Line::new(record.level(), text(record.args()));
        // Collecting fields does not fail.
        let _ = record
            .key_values()
            .visit(&mut FieldCollector(&mut line.fields));
        scope::add(&mut line.fields);
        line.shows_fields = !is_own(record.target());
        line
    }

    /// Returns the text for people, not escaped: the message and, in a line of a daemon's author, ` name=value` for
    /// each field.
    pub(super) fn text(&self) -> Cow<'_, str> {
        if !self.shows_fields || self.fields.is_empty() {
            return Cow::Borrowed(&self.message);
        }
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            let name = name.replace(|c: char| c.is_whitespace() || c == '=', "_");
            let is_plain = |c: char| c.is_alphanumeric() || "_.:/@+-".contains(c);
            let _ = match value {
                Value::String(word) if !word.is_empty() && word.chars().all(is_plain) => {
                    write!(text, " {name}={word}")
                }
                value => write!(text, " {name}={value}"),
            };
        }
        Cow::Owned(text)
    }
}

/// Returns whether a record is of this crate.
fn is_own(target: &str) -> bool {
    let crate_name = target.split("::").next().unwrap_or_default();
    crate_name == env!("CARGO_CRATE_NAME")
}

/// Formats a value; of a `Display` that fails, up to the failure.
fn text(value: impl std::fmt::Display) -> String {
    let mut text = String::new();
    let _ = write!(text, "{value}");
    text
}

struct FieldCollector<'a>(&'a mut Vec<(String, Value)>);

impl<'kvs> VisitSource<'kvs> for FieldCollector<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let name = field_name(key.as_str());
        if self.0.iter().all(|(earlier, _)| *earlier != name) {
            let mut read = Read(Value::Null);
            value.visit(&mut read)?;
            self.0.push((name, read.0));
        }
        Ok(())
    }
}

/// Returns the name of a field, which is never the name of a line's own field.
fn field_name(key: &str) -> String {
    match key {
        // The line's own pid is that of the logging process; an event's is that of a worker.
        "pid" => "worker_pid".to_owned(),
        "time" | "level" | "name" | "message" => format!("event_{key}"),
        _ => key.to_owned(),
    }
}

/// A value, read by its type.
struct Read(Value);

/// Implements a method of [`VisitValue`] for a type that JSON has.
macro_rules! visit {
    ($method:ident: $type:ty) => {
        fn $method(&mut self, value: $type) -> Result<(), kv::Error> {
            self.0 = Value::from(value);
            Ok(())
        }
    };
}

impl<'v> VisitValue<'v> for &mut Read {
    fn visit_any(&mut self, value: kv::Value) -> Result<(), kv::Error> {
        self.0 = Value::from(text(value));
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0 = Value::Null;
        Ok(())
    }

    visit!(visit_u64: u64);
    visit!(visit_i64: i64);
    // NaN and infinity become null: JSON has no numbers for them.
    visit!(visit_f64: f64);
    visit!(visit_bool: bool);
    visit!(visit_str: &str);
}

#[cfg(test)]
impl Line {
    /// Returns the line of `log::log!` of this crate with these fields.
    pub(super) fn from_parts(level: Level, message: &str, fields: &[(&str, kv::Value)]) -> Line {
        Line::from_record(
            &Record::builder()
                .target(module_path!())
                .level(level)
                .args(format_args!("{message}"))
                .key_values(&fields)
                .build(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_keep_the_type_they_were_logged_with() {
        struct Broken;
        impl std::fmt::Display for Broken {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("as far as it goes")?;
                Err(std::fmt::Error)
            }
        }
        let fields = [
            ("event", kv::Value::from("worker_died")),
            ("worker", kv::Value::from(u64::MAX)),
            ("change", kv::Value::from(-1)),
            ("sum", kv::Value::from(1_u128 << 80)),
            ("rate", kv::Value::from(0.5)),
            ("no number", kv::Value::from(f64::NAN)),
            ("held", kv::Value::from(true)),
            ("order", kv::Value::from('>')),
            ("peer", kv::Value::from_display(&Broken)),
            ("nothing", kv::Value::null()),
        ];
        let line = Line::from_parts(Level::Warn, "worker 17 \"died\"\n", &fields);
        assert_eq!(
            (line.level, line.message.as_str()),
            (Level::Warn, "worker 17 \"died\"\n")
        );
        let expected = [
            ("event", json!("worker_died")),
            ("worker", json!(u64::MAX)),
            ("change", json!(-1)),
            ("sum", json!("1208925819614629174706176")),
            ("rate", json!(0.5)),
            ("no number", json!(null)),
            ("held", json!(true)),
            ("order", json!(">")),
            ("peer", json!("as far as it goes")),
            ("nothing", json!(null)),
        ];
        assert_eq!(
            line.fields,
            expected.map(|(name, value)| (name.to_owned(), value))
        );
    }

    #[test]
    fn text_of_a_daemons_author_has_its_fields() {
        let fields = [
            ("ms", kv::Value::from(12)),
            ("path", kv::Value::from("/a-b/c.d")),
            ("a b=c", kv::Value::from("d \"e\"")),
            ("nothing", kv::Value::from("")),
        ];
        let mut line = Line::from_parts(Level::Info, "slow", &fields);
        assert_eq!(line.text(), "slow");
        line.shows_fields = true;
        let expected = r#"slow ms=12 path=/a-b/c.d a_b_c="d \"e\"" nothing="""#;
        assert_eq!(line.text(), expected);
        line.fields.clear();
        assert_eq!(line.text(), "slow");
        assert!(is_own("fdpassd") && is_own("fdpassd::master"));
        assert!(!is_own("fdpassd_shop") && !is_own("shop::fdpassd") && !is_own(""));
    }

    #[test]
    fn field_names_are_unique_and_none_of_the_lines_own() {
        let keys = [
            "pid",
            "level",
            "worker",
            "worker",
            "worker_pid",
            "time",
            "name",
            "message",
            "",
        ];
        let fields: Vec<_> = (1_u64..)
            .zip(keys)
            .map(|(number, key)| (key, kv::Value::from(number)))
            .collect();
        let line = Line::from_parts(Level::Info, "", &fields);
        let expected = [
            ("worker_pid", 1),
            ("event_level", 2),
            ("worker", 3),
            ("event_time", 6),
            ("event_name", 7),
            ("event_message", 8),
            ("", 9),
        ];
        assert_eq!(
            line.fields,
            expected.map(|(name, number)| (name.to_owned(), json!(number)))
        );
    }
}
