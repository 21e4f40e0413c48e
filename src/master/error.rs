//! Why the master ends, other than by being asked to.

use std::{fmt, io};

/// An end that an operator must examine, each kind with its exit status (sysexits.h).
#[derive(Debug)]
pub enum Error {
    /// An address or a socket cannot be had: 69.
    Unavailable(String),
    /// No interface has an address: 69.
    NoAddress(String),
    /// No worker ever became ready: 70.
    NoWorker(String),
    /// The system refuses what is needed: 71.
    System(String),
    /// The user is not permitted: 77.
    Permission(String),
}

impl Error {
    /// Returns the exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Error::Unavailable(_) | Error::NoAddress(_) => 69,
            Error::NoWorker(_) => 70,
            Error::System(_) => 71,
            Error::Permission(_) => 77,
        }
    }

    /// Creates the error for something that could not be bound, made or opened.
    pub(super) fn unavailable(doing: &str, error: &io::Error) -> Error {
        let sentence = format!("cannot {doing}: {error}");
        match error.kind() {
            io::ErrorKind::PermissionDenied => Error::Permission(sentence),
            io::ErrorKind::AddrNotAvailable => Error::NoAddress(sentence),
            _ => Error::Unavailable(sentence),
        }
    }

    /// Returns the error with `more` appended to its sentence.
    pub(super) fn with(mut self, more: &str) -> Error {
        match &mut self {
            Error::Unavailable(s)
            | Error::NoAddress(s)
            | Error::NoWorker(s)
            | Error::System(s)
            | Error::Permission(s) => s.push_str(more),
        }
        self
    }

    /// Returns the error with some words of its sentence replaced.
    pub(super) fn replace(mut self, words: &str, by: &str) -> Error {
        match &mut self {
            Error::Unavailable(s)
            | Error::NoAddress(s)
            | Error::NoWorker(s)
            | Error::System(s)
            | Error::Permission(s) => *s = s.replace(words, by),
        }
        self
    }

    /// Creates the error for one of the master's own tools.
    pub(super) fn system(doing: &str) -> impl Fn(io::Error) -> Error + '_ {
        move |error| Error::System(format!("cannot {doing}: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unavailable(s)
            | Error::NoAddress(s)
            | Error::NoWorker(s)
            | Error::System(s)
            | Error::Permission(s) => f.write_str(s),
        }
    }
}

impl std::error::Error for Error {}
