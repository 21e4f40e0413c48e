//! The configuration in force, what a reload would change, and the log level.

use std::io::{self, Write};
use std::path::PathBuf;

use super::args::ConfigVerb;
use super::error::Error;
use super::figures::counted;
use super::session::{Session, parse};
use super::style::{FAINT, GOOD, NOTED, Paint};
use crate::proto::control::{
    Change, Checked, Effective, Key, KeyOrigin, LogLevelInForce, SetLogLevel, Verb,
};
use crate::proto::log::LogLevel;
use crate::proto::text::Escaped;
use crate::rpc_client;

/// Performs `config show` or `config check`.
pub(super) fn perform(
    what: ConfigVerb,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut daemon = session.connect()?;
    let paint = session.seen.paint();
    match what {
        ConfigVerb::Show => {
            let result = daemon.ask(Verb::Config)?;
            session.print(out, &result, |out| {
                write_effective(out, paint, &parse(&result)?).map_err(Error::Output)
            })
        }
        ConfigVerb::Check => {
            let result = daemon.ask(Verb::Check).map_err(|error| match error {
                rpc_client::Error::Refused {
                    message,
                    place: Some(place),
                    ..
                } => Error::BadConfiguration { message, place },
                error => error.into(),
            })?;
            session.print(out, &result, |out| {
                write_checked(out, paint, &parse(&result)?).map_err(Error::Output)
            })
        }
    }
}

/// Shows the log level, or sets and shows it.
pub(super) fn log_level(
    level: Option<LogLevel>,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut daemon = session.connect()?;
    let result = match level {
        Some(_) => daemon.ask_with(Verb::LogLevel, &SetLogLevel { level })?,
        None => daemon.ask(Verb::LogLevel)?,
    };
    session.print(out, &result, |out| {
        let LogLevelInForce { level, configured } = parse(&result)?;
        let because = match level == configured {
            true => String::new(),
            false => format!(" (runtime; configured: {})", configured.as_str()),
        };
        writeln!(out, "{}{because}", level.as_str()).map_err(Error::Output)
    })
}

/// Writes keys, values and origins in columns, except where a value is too long for its column.
fn write_effective(to: &mut impl Write, paint: Paint, effective: &Effective) -> io::Result<()> {
    writeln!(to, "{}\n", named(&effective.files))?;
    let shown: Vec<_> = effective
        .keys
        .iter()
        .map(|key| (shown(key), key.origin))
        .collect();
    let width = |of: fn(&(String, String)) -> &String, most: usize| {
        let lengths = shown.iter().map(|(pair, _)| of(pair).chars().count());
        lengths
            .filter(|length| *length <= most)
            .max()
            .unwrap_or_default()
    };
    let (keys, values) = (
        width(|(key, _)| key, usize::MAX),
        width(|(_, value)| value, MAX_VALUE_LEN),
    );
    shown.iter().try_for_each(|((key, value), origin)| {
        let style = match origin {
            KeyOrigin::Default => FAINT,
            KeyOrigin::File | KeyOrigin::Environment | KeyOrigin::CommandLine => GOOD,
            KeyOrigin::Runtime => NOTED,
        };
        writeln!(
            to,
            "{key:keys$} = {value:values$}  {}",
            paint.on(style, origin.as_str())
        )
    })
}

fn shown(key: &Key) -> (String, String) {
    let value = key.value.as_deref().unwrap_or("(not set)");
    (Escaped(&key.key).to_string(), Escaped(value).to_string())
}

fn write_checked(to: &mut impl Write, paint: Paint, checked: &Checked) -> io::Result<()> {
    let (file, good) = (named(&checked.files), paint.on(GOOD, "good"));
    if checked.changes.is_empty() {
        return writeln!(to, "{file}: {good}; a reload would change nothing");
    }
    writeln!(
        to,
        "{file}: {good}; a reload would change {}",
        counted(checked.changes.len() as u64, "key")
    )?;
    checked
        .changes
        .iter()
        .try_for_each(|Change { key, from, to: new }| {
            let value = |value: &Option<String>| {
                Escaped(value.as_deref().unwrap_or("(nothing)")).to_string()
            };
            writeln!(to, "{}: {} -> {}", Escaped(key), value(from), value(new))
        })
}

fn named(files: &[PathBuf]) -> String {
    let names: Vec<String> = files
        .iter()
        .map(|file| Escaped(file.display()).to_string())
        .collect();
    if names.is_empty() {
        "embedded default".to_owned()
    } else {
        names.join(", ")
    }
}

/// With the longest key and its origin this fills 80 columns.
const MAX_VALUE_LEN: usize = 36;

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn each_key_is_shown_with_its_value_and_its_origin() {
        let key = |key: &str, value: &str, origin| Key {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            origin,
        };
        let long = format!("[{}]", ["\"127.0.0.1:8080\""; 3].join(", "));
        let effective = Effective {
            file: Some("/etc/fdpassd.toml".into()),
            files: vec!["/etc/fdpassd.toml".into(), "/etc/fdpassd.d/a.toml".into()],
            keys: vec![
                key("listen", &long, KeyOrigin::File),
                key("workers.count", "4", KeyOrigin::Runtime),
                key(
                    "limits.max-clients-per-address",
                    "\"a\x1b\"",
                    KeyOrigin::Default,
                ),
            ],
        };
        let expected = format!(
            "/etc/fdpassd.toml, /etc/fdpassd.d/a.toml\n\n\
             listen                         = {long}  file\n\
             workers.count                  = 4        runtime\n\
             limits.max-clients-per-address = \"a\\x1b\"  default\n"
        );
        assert_eq!(
            written(|to| write_effective(to, Paint::default(), &effective)),
            expected
        );
        let none = Effective {
            file: None,
            files: Vec::new(),
            keys: Vec::new(),
        };
        assert_eq!(
            written(|to| write_effective(to, Paint::default(), &none)),
            "embedded default\n\n"
        );
    }

    #[test]
    fn a_check_shows_what_a_reload_would_change() {
        let mut checked = Checked {
            file: Some("/etc/x.toml".into()),
            files: vec!["/etc/x.toml".into()],
            changes: Vec::new(),
        };
        let shown = |checked: &Checked| written(|to| write_checked(to, Paint::default(), checked));
        assert_eq!(
            shown(&checked),
            "/etc/x.toml: good; a reload would change nothing\n"
        );
        let change = |from: Option<&str>, to: Option<&str>| Change {
            key: "limits.max-frame".to_owned(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        checked.changes = vec![
            change(Some("\"1MiB\""), Some("\"2MiB\"")),
            change(None, Some("\"\n\"")),
        ];
        let expected = "/etc/x.toml: good; a reload would change 2 keys\n\
                        limits.max-frame: \"1MiB\" -> \"2MiB\"\n\
                        limits.max-frame: (nothing) -> \"\\n\"\n";
        assert_eq!(shown(&checked), expected);
        checked.changes = vec![change(Some("1"), None)];
        assert!(shown(&checked).ends_with("change 1 key\nlimits.max-frame: 1 -> (nothing)\n"));
    }
}
