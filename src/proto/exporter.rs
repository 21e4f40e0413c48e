//! Master and exporter: datagrams like those of [`channel`](super::channel), in one direction only.
//!
//! ```text
//! to the exporter  1 Start   JSON + the listening socket         first, once
//!                  2 Reopen  -                                    open the log file again
//! ```
//!
//! The exporter exits when the channel ends. It sends nothing here: it queries the control socket.

use serde::{Deserialize, Serialize};

use super::channel::Log;
use super::message::{Malformed, Message, from_json, json};

/// Messages from the master to the exporter.
#[derive(Clone, Debug, PartialEq)]
pub enum ToExporter {
    /// The exporter's task. Carries the listening socket.
    Start(StartExporter),
    /// Open the log file again.
    Reopen,
}

/// Messages from the exporter to the master: there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {}

/// The first message to an exporter, which is always of the master's own version: it runs the same program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartExporter {
    /// The daemon's name, for its log lines.
    pub name: String,
    /// Path of the control socket, in bytes: one that comes from the environment need not be text.
    pub control: Vec<u8>,
    /// Host names that requests may use, besides IP addresses and `localhost`. None over a Unix
    /// socket, where that is not checked: nothing that a browser has loaded can connect there.
    pub hosts: Option<Vec<String>>,
    /// Where the exporter's log lines go.
    pub log: Log,
}

impl Message for ToExporter {
    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            ToExporter::Start(start) => json(1, start, out),
            ToExporter::Reopen => out.push(2),
        }
    }

    fn decode(datagram: &[u8]) -> Result<ToExporter, Malformed> {
        match datagram.split_first().ok_or(Malformed("empty"))? {
            (1, body) => Ok(ToExporter::Start(from_json(body)?)),
            (2, []) => Ok(ToExporter::Reopen),
            _ => Err(Malformed("unknown kind")),
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            ToExporter::Start(_) => 1,
            ToExporter::Reopen => 0,
        }
    }
}

impl Message for Nothing {
    fn encode(&self, _out: &mut Vec<u8>) {
        match *self {}
    }

    fn decode(_datagram: &[u8]) -> Result<Nothing, Malformed> {
        Err(Malformed("unknown kind"))
    }

    fn descriptors(&self) -> usize {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::channel::{LogFormat, LogLevel, LogTarget, MAX_MESSAGE};

    #[test]
    fn every_message_comes_back_as_it_was_and_the_longest_one_fits() {
        let (target, file) = (LogTarget::File, Some("/var/log/x".into()));
        let log = Log {
            target,
            file,
            format: LogFormat::Json,
            level: LogLevel::Debug,
        };
        // As many names as the configuration takes, each as long as it may be, and a path of any bytes.
        let hosts = Some(vec!["n".repeat(253); 64]);
        let start = StartExporter {
            name: "fdpassd".to_owned(),
            control: vec![0xff; 107],
            hosts,
            log,
        };
        for message in [ToExporter::Start(start), ToExporter::Reopen] {
            let mut datagram = vec![9; 3];
            message.encode(&mut datagram);
            assert_eq!(ToExporter::decode(&datagram), Ok(message));
            assert!(datagram.len() <= MAX_MESSAGE / 2, "{}", datagram.len());
        }
        for garbage in [&b""[..], b"\x01{}", b"\x02x", b"\x03"] {
            assert!(ToExporter::decode(garbage).is_err(), "{garbage:?}");
        }
    }
}
