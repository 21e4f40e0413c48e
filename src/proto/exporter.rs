//! Master and exporter: datagrams like those of [`channel`](super::channel), in one direction.
//!
//! ```text
//! to the exporter  1 Start   JSON + the listening sockets        first, once
//!                  2 Reopen  -                                    open the log file again
//! ```
//!
//! The exporter exits when the channel ends. It sends nothing here: it queries the control socket.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::log::Log;
use super::message::{Malformed, Message, from_json, json};

/// Messages from the master to the exporter.
#[derive(Clone, Debug, PartialEq)]
pub enum ToExporter {
    /// The exporter's task. Carries the listening sockets.
    Start(StartExporter),
    /// Open the log file again.
    Reopen,
}

/// Messages from the exporter to the master. There are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {}

/// The purpose of a listener of the exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExporterService {
    /// Metrics, health and the page, over HTTP.
    Metrics,
    /// Agent checks of load balancers.
    Agent,
}

impl ExporterService {
    /// All purposes.
    pub const ALL: [ExporterService; 2] = [ExporterService::Metrics, ExporterService::Agent];
}

impl fmt::Display for ExporterService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExporterService::Metrics => "metrics",
            ExporterService::Agent => "agent checks",
        })
    }
}

/// The first message to an exporter, which has the master's version, because it runs the same program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartExporter {
    /// The daemon's name, for its log lines.
    pub name: String,
    /// The path of the control socket, in bytes: a path from the environment need not be text.
    pub control: Vec<u8>,
    /// The purposes of the listening sockets, in their order.
    pub services: Vec<ExporterService>,
    /// Host names that requests may use, besides IP addresses and `localhost`. None for a Unix socket, where it is not
    /// checked: no page in a browser can connect there.
    pub hosts: Option<Vec<String>>,
    /// The exporter's log.
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
            ToExporter::Start(start) => start.services.len(),
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
    use crate::proto::channel::MAX_MESSAGE;
    use crate::proto::log::tests::log_in_file;
    use crate::proto::message::tests::assert_round_trip;

    #[test]
    fn a_decoded_message_equals_the_encoded_one_and_fits() {
        // The most names of a configuration, each of the greatest length, and a path of any bytes.
        let hosts = Some(vec!["n".repeat(253); 64]);
        let start = StartExporter {
            name: "fdpassd".to_owned(),
            control: vec![0xff; 107],
            services: ExporterService::ALL.into(),
            hosts,
            log: log_in_file(),
        };
        for message in [ToExporter::Start(start), ToExporter::Reopen] {
            assert!(assert_round_trip(&message) <= MAX_MESSAGE / 2);
        }
        for garbage in [&b""[..], b"\x01{}", b"\x02x", b"\x03"] {
            assert!(ToExporter::decode(garbage).is_err(), "{garbage:?}");
        }
    }
}
