//! The configuration in force, what a reload would change, and the log level.

use std::io::{self, Write};
use std::path::PathBuf;

use super::args::ConfigVerb;
use super::error::Error;
use super::figures::counted;
use super::fold;
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

/// Writes keys, values and origins in columns, except where a value is too long for its column. On a terminal such a
/// value has lines of its own: a list one for each of its elements.
fn write_effective(to: &mut impl Write, paint: Paint, effective: &Effective) -> io::Result<()> {
    fold::write(
        to,
        paint.width(),
        2,
        &format!("{}\n", named(&effective.files)),
    )?;
    writeln!(to)?;
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
    let keys = width(|(key, _)| key, usize::MAX);
    let room = paint.width().unwrap_or(USUAL_WIDTH);
    let most = room.saturating_sub(keys + BESIDE_VALUE).max(MIN_VALUE_LEN);
    let values = width(|(_, value)| value, most);
    shown.iter().try_for_each(|((key, value), origin)| {
        let style = match origin {
            KeyOrigin::Default => FAINT,
            KeyOrigin::File | KeyOrigin::Environment | KeyOrigin::CommandLine => GOOD,
            KeyOrigin::Runtime => NOTED,
        };
        let origin = paint.on(style, origin.as_str());
        match paint.width() {
            Some(width) if value.chars().count() > values => {
                writeln!(to, "{key:keys$} = {:values$}  {origin}", "")?;
                write_long(to, width, value)
            }
            _ => writeln!(to, "{key:keys$} = {value:values$}  {origin}"),
        }
    })
}

/// Writes a value on lines of its own.
fn write_long(to: &mut impl Write, width: usize, value: &str) -> io::Result<()> {
    let room = width.saturating_sub(LIST_INDENT).max(1);
    let list = value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let Some(list) = list else {
        return write_indented(to, room, value);
    };
    writeln!(to, "{:1$}[", "", LIST_INDENT - 2)?;
    for element in elements(list) {
        write_indented(to, room, &format!("{element},"))?;
    }
    writeln!(to, "{:1$}]", "", LIST_INDENT - 2)
}

fn write_indented(to: &mut impl Write, room: usize, text: &str) -> io::Result<()> {
    let mut lines = fold::folded(text, room, 2).into_iter();
    lines.try_for_each(|line| writeln!(to, "{:LIST_INDENT$}{line}", ""))
}

/// Returns the elements of a list in TOML, without its brackets.
fn elements(list: &str) -> Vec<&str> {
    let (mut found, mut begin, mut depth) = (Vec::new(), 0, 0usize);
    let (mut quote, mut is_escaped) = (None, false);
    for (at, c) in list.char_indices() {
        match (quote, c) {
            (Some('"'), '\\') if !is_escaped => {
                is_escaped = true;
                continue;
            }
            (Some(mark), c) if c == mark && !is_escaped => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                found.push(list[begin..at].trim());
                begin = at + 1;
            }
            (None, _) => {}
        }
        is_escaped = false;
    }
    found.push(list[begin..].trim());
    found.retain(|element| !element.is_empty());
    found
}

fn shown(key: &Key) -> (String, String) {
    let value = key.value.as_deref().unwrap_or("(not set)");
    (Escaped(&key.key).to_string(), Escaped(value).to_string())
}

fn write_checked(to: &mut impl Write, paint: Paint, checked: &Checked) -> io::Result<()> {
    let mut text = Vec::new();
    write_changes(&mut text, paint, checked)?;
    fold::write(to, paint.width(), 2, &String::from_utf8_lossy(&text))
}

fn write_changes(to: &mut impl Write, paint: Paint, checked: &Checked) -> io::Result<()> {
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

/// The width of a line of the configuration without its key and its value: ` = `, two spaces and `command-line`.
const BESIDE_VALUE: usize = 17;
/// The widest output that is not a terminal.
const USUAL_WIDTH: usize = 80;
/// The longest value that is on the line of its key on every terminal.
const MIN_VALUE_LEN: usize = 8;
/// The column in which elements of a list begin.
const LIST_INDENT: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::style::{Colour, Seen};

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
    fn a_list_that_is_too_long_has_a_line_for_each_element() {
        let key = |key: &str, value: &str| Key {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            origin: KeyOrigin::File,
        };
        let effective = Effective {
            file: None,
            files: Vec::new(),
            keys: vec![
                key(
                    "listen",
                    r#"["127.0.0.1:8080", { address = "a,b\"]", proxy = [1, 2] }, 'x\']"#,
                ),
                key("log.file", "\"/a/very/long/path/of/a/file.log\""),
                key("workers.count", "4"),
            ],
        };
        let paint = Seen::new(true, false, |name| (name == "COLUMNS").then(|| "40".into()));
        let paint = paint.with_colours(Colour::Never).paint();
        let expected = "embedded default

listen        =    file
  [
    \"127.0.0.1:8080\",
    { address = \"a,b\\\"]\", proxy = [1, 2]
      },
    'x\\',
  ]
log.file      =    file
    \"/a/very/long/path/of/a/file.log\"
workers.count = 4  file
";
        assert_eq!(
            written(|to| write_effective(to, paint, &effective)),
            expected
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
