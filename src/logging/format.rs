//! The text formats of a line.

use std::process;
use std::time::SystemTime;

use log::Level;
use serde::ser::{Serialize, SerializeMap, Serializer};
use syslog::Severity;

use super::line::Line;
use super::log_level;
use crate::proto::text::{Escaped, EscapedJson};

pub(super) fn for_people(now: SystemTime, line: &Line) -> String {
    format!(
        "{} {} {}\n",
        humantime::format_rfc3339_millis(now),
        word(line.level),
        Escaped(line.text())
    )
}

pub(super) fn for_file(now: SystemTime, name: &str, line: &Line) -> String {
    let (time, pid) = (humantime::format_rfc3339_millis(now), process::id());
    format!(
        "{time} {}[{pid}] {} {}\n",
        Escaped(name),
        word(line.level),
        Escaped(line.text())
    )
}

/// Formats a line for standard error that is connected to the journal: sd-daemon(3).
pub(super) fn for_journal_stream(line: &Line) -> String {
    format!("<{}>{}\n", severity(line.level) as u8, Escaped(line.text()))
}

/// Formats a line as one JSON object on one line. Strings hold what was logged, with JSON's own escapes.
pub(super) fn for_machines(now: SystemTime, name: &str, line: &Line) -> String {
    let json = serde_json::to_string(&Json { now, name, line })
        .unwrap_or_else(|e| format!("{{\"error\":{:?}}}", e.to_string()));
    format!("{}\n", EscapedJson(json))
}

struct Json<'a> {
    now: SystemTime,
    name: &'a str,
    line: &'a Line,
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry(
            "time",
            &humantime::format_rfc3339_millis(self.now).to_string(),
        )?;
        object.serialize_entry("level", word(self.line.level))?;
        object.serialize_entry("name", self.name)?;
        object.serialize_entry("pid", &process::id())?;
        for (name, value) in &self.line.fields {
            object.serialize_entry(name, value)?;
        }
        object.serialize_entry("message", &self.line.message)?;
        object.end()
    }
}

pub(super) fn severity(level: Level) -> Severity {
    match level {
        Level::Error => Severity::LOG_ERR,
        Level::Warn => Severity::LOG_WARNING,
        Level::Info => Severity::LOG_INFO,
        Level::Debug | Level::Trace => Severity::LOG_DEBUG,
    }
}

fn word(level: Level) -> &'static str {
    log_level(level.to_level_filter()).as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use log::kv;
    use serde_json::{Value, json};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_306_200_123)
    }

    #[test]
    fn each_format_has_its_fields() {
        let line = Line::from_parts(Level::Warn, "worker 17", &[("worker", kv::Value::from(17))]);
        let pid = process::id();
        assert_eq!(
            for_people(now(), &line),
            "2026-11-22T00:10:00.123Z warn worker 17\n"
        );
        assert_eq!(
            for_file(now(), "fdpassd", &line),
            format!("2026-11-22T00:10:00.123Z fdpassd[{pid}] warn worker 17\n")
        );
        let time = "\"time\":\"2026-11-22T00:10:00.123Z\"";
        let expected = format!(
            "{{{time},\"level\":\"warn\",\"name\":\"fdpassd\",\"pid\":{pid},\"worker\":17,\"message\":\"worker 17\"}}\n"
        );
        assert_eq!(for_machines(now(), "fdpassd", &line), expected);
        let shown = Level::iter().map(|level| for_journal_stream(&Line::new(level, "x")));
        assert_eq!(shown.collect::<String>(), "<3>x\n<4>x\n<6>x\n<7>x\n<7>x\n");
    }

    #[test]
    fn messages_and_fields_cannot_break_out_of_their_line() {
        let nasty = "a\nb \"c\" \\n \x1b[2J\x7f\u{9b}\u{202e}\u{2028}\u{1f980}";
        let line = Line::from_parts(
            Level::Info,
            nasty,
            &[
                (nasty, kv::Value::from(nasty)),
                ("event", kv::Value::from(nasty)),
            ],
        );
        for text in [
            for_people(now(), &line),
            for_file(now(), "x", &line),
            for_journal_stream(&line),
        ] {
            assert!(
                text.ends_with("a\\nb \"c\" \\n \\x1b[2J\\x7f\\u{9b}\\u{202e}\\u{2028}\u{1f980}\n"),
                "{text}"
            );
        }
        let text = for_machines(now(), nasty, &line);
        assert!(
            text.trim_end_matches('\n')
                .chars()
                .all(|c| !c.is_control() && c != '\u{202e}' && c != '\u{2028}'),
            "{text}"
        );
        let mut object: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(object["time"].take(), json!("2026-11-22T00:10:00.123Z"));
        let pid = process::id();
        let expected = json!({ "time": null, "level": "info", "name": nasty, "pid": pid, "event": nasty, nasty: nasty, "message": nasty });
        assert_eq!(object, expected);
    }
}
