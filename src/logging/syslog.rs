//! A non-blocking syslog(3).

use std::path::PathBuf;
use std::{io, process};

use syslog::{Facility, Formatter3164, LogFormat};

use super::datagrams::Datagrams;
use super::format::severity;
use super::line::Line;
use crate::proto::text::Escaped;

/// The socket of syslogd.
pub(super) const DEV_LOG: &str = "/dev/log";

/// A connection to syslogd. The crate's own backend never reconnects after a restart of syslogd, and blocks if it does
/// not read.
#[derive(Debug)]
pub(super) struct Syslog {
    pub(super) socket: Datagrams,
    format: Formatter3164,
}

impl Syslog {
    pub(super) fn open(name: &str, path: impl Into<PathBuf>) -> io::Result<Syslog> {
        // journald and rsyslog both misread the format of RFC 5424 on this socket.
        let process = Escaped(name).to_string();
        let format = Formatter3164 {
            facility: Facility::LOG_DAEMON,
            hostname: None,
            process,
            pid: process::id(),
        };
        Ok(Syslog {
            socket: Datagrams::new(path)?,
            format,
        })
    }

    pub(super) fn send(&self, line: &Line) -> io::Result<()> {
        let mut datagram = Vec::new();
        let message = Escaped(line.text());
        self.format
            .format(&mut datagram, severity(line.level), message)
            .map_err(io::Error::other)?;
        self.socket.send(&datagram)
    }
}
