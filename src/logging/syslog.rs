//! syslog(3), without its blocking.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::process;

use syslog::{Facility, Formatter3164, LogFormat};

use super::datagrams::Datagrams;
use super::format::severity;
use super::line::Line;
use crate::proto::text::Escaped;

/// Where syslogd listens.
pub(super) const DEV_LOG: &str = "/dev/log";

/// syslogd. The crate's own backend stays silent for ever after a restart of it, and blocks while nobody reads.
#[derive(Debug)]
pub(super) struct Syslog {
    socket: Datagrams,
    format: Formatter3164,
}

impl AsRawFd for Syslog {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Syslog {
    pub(super) fn open(name: &str, path: impl Into<PathBuf>) -> io::Result<Syslog> {
        // The form of RFC 5424 is misread on this socket by journald and rsyslog alike.
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
        let message = Escaped(&line.message);
        self.format
            .format(&mut datagram, severity(line.level), message)
            .map_err(io::Error::other)?;
        self.socket.send(&datagram)
    }
}
