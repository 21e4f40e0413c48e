//! The reason why a daemon does not serve.

use std::process::ExitStatus;
use std::{fmt, io};

/// The reason why a daemon does not serve.
pub struct Error {
    pub(super) reason: String,
    pub(super) status: Option<ExitStatus>,
    pub(super) stderr: String,
}

impl Error {
    pub(super) fn setup(error: io::Error) -> Error {
        Error {
            reason: format!("cannot start the daemon: {error}"),
            status: None,
            stderr: String::new(),
        }
    }

    /// Returns the exit code of a daemon that exited.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Returns what the daemon wrote to standard error.
    #[must_use]
    pub fn stderr(&self) -> &str {
        &self.stderr
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.reason, self.stderr)
    }
}

/// The same text as `Display`, because `expect` prints this one.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}
