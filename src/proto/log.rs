//! The log of a process: its target, format and level.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The settings of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The kind of target.
    pub target: LogTarget,
    /// The file, if and only if the target is one.
    pub file: Option<PathBuf>,
    /// The format of the lines on standard error and in the file.
    pub format: LogFormat,
    /// The least important level that is written.
    pub level: LogLevel,
    /// How long a request must execute to be logged; `None` logs none.
    #[serde(default)]
    pub slow_request: Option<Duration>,
}

named_variants! {
    /// A target of log lines.
    #[derive(Default)]
    LogTarget {
        /// The journal when standard error is connected to it, else standard error.
        #[default]
        Auto = "auto",
        /// Standard error.
        Stderr = "stderr",
        /// `/dev/log`.
        Syslog = "syslog",
        /// A file, to which lines are appended.
        File = "file",
    }
}

named_variants! {
    /// A format of log lines. The journal and syslog have their own.
    #[derive(Default)]
    LogFormat {
        /// For people.
        #[default]
        Text = "text",
        /// One object a line, for machines.
        Json = "json",
    }
}

named_variants! {
    /// The importance of a log line.
    #[derive(Default, PartialOrd, Ord)]
    LogLevel {
        /// The operator must act.
        Error = "error",
        /// The daemon is degraded, but continues.
        Warn = "warn",
        /// Events of workers and of the daemon.
        #[default]
        Info = "info",
        /// Events of single clients.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Log, LogFormat, LogLevel, LogTarget};

    /// Returns settings of a log that is a file.
    pub(in crate::proto) fn log_in_file() -> Log {
        Log {
            target: LogTarget::File,
            file: Some("/var/log/x".into()),
            format: LogFormat::Json,
            level: LogLevel::Debug,
            slow_request: None,
        }
    }
}
