//! The journal's own protocol, <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>: each line is a datagram of fields.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use serde_json::Value;
use syslog::Facility;

use super::datagrams::Datagrams;
use super::format::severity;
use super::line::Line;
use crate::proto::text::Escaped;

/// The socket of journald, which gets the process and the unit of a datagram from the kernel.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// journald leaves out a field whose name is longer.
const MAX_NAME_LEN: usize = 64;

/// A connection to journald.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) socket: Datagrams,
    /// The daemon's name, which journalctl shows with its lines.
    name: String,
}

impl Journal {
    pub(super) fn open(name: &str, path: impl Into<PathBuf>) -> io::Result<Journal> {
        Ok(Journal {
            socket: Datagrams::new(path)?,
            name: name.to_owned(),
        })
    }

    pub(super) fn send(&self, line: &Line) -> io::Result<()> {
        self.socket.send(&entry(&self.name, line))
    }
}

/// Encodes a line. The message is escaped: journalctl shows one with a control character as "blob data".
fn entry(name: &str, line: &Line) -> Vec<u8> {
    let mut entry = Vec::new();
    put(&mut entry, "MESSAGE", &Escaped(&line.message).to_string());
    put(
        &mut entry,
        "PRIORITY",
        &(severity(line.level) as u8).to_string(),
    );
    // The same facility as for lines over standard error. The crate's value is shifted, as in a syslog header.
    put(
        &mut entry,
        "SYSLOG_FACILITY",
        &(Facility::LOG_DAEMON as u32 >> 3).to_string(),
    );
    put(&mut entry, "SYSLOG_IDENTIFIER", name);
    for (name, value) in &line.fields {
        let value = match value {
            Value::String(text) => Cow::from(text),
            other => Cow::from(other.to_string()),
        };
        put(&mut entry, &field_name(name), &value);
    }
    entry
}

fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// Returns a name of capital letters, digits and underscores only: other bytes could end the name, and the field.
fn field_name(name: &str) -> String {
    let letter = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    "FDPASSD_"
        .chars()
        .chain(name.chars().map(letter))
        .take(MAX_NAME_LEN)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::{Level, kv};

    #[test]
    fn an_entry_has_the_standard_fields_and_one_for_each_key() {
        let fields = [
            ("event", kv::Value::from("worker_died")),
            ("worker", kv::Value::from(17)),
            ("pid", kv::Value::from(4711)),
        ];
        let line = Line::from_parts(Level::Warn, "worker 17\n\x1b[2J", &fields);
        let expected = "MESSAGE=worker 17\\n\\x1b[2J\nPRIORITY=4\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=fdpassd\n\
                        FDPASSD_EVENT=worker_died\nFDPASSD_WORKER=17\nFDPASSD_WORKER_PID=4711\n";
        assert_eq!(
            String::from_utf8(entry("fdpassd", &line)).expect("UTF-8"),
            expected
        );
        for (level, priority) in Level::iter().zip([3, 4, 6, 7, 7]) {
            let entry = String::from_utf8(entry("fdpassd", &Line::new(level, "x"))).expect("UTF-8");
            assert!(
                entry.contains(&format!("\nPRIORITY={priority}\n")),
                "{entry}"
            );
        }
    }

    #[test]
    fn multi_line_values_and_odd_names_add_no_fields() {
        let fields = [
            ("why", kv::Value::from("a\nMESSAGE=b")),
            ("x\nMESSAGE=é", kv::Value::from(true)),
            ("", kv::Value::null()),
        ];
        let entry = entry("fdpassd", &Line::from_parts(Level::Info, "x", &fields));
        let expected = b"FDPASSD_WHY\n\x0b\0\0\0\0\0\0\0a\nMESSAGE=b\nFDPASSD_X_MESSAGE__=true\nFDPASSD_=null\n";
        assert!(entry.ends_with(expected), "{}", entry.escape_ascii());
        assert_eq!(field_name(&"x".repeat(100)).len(), MAX_NAME_LEN);
    }
}
