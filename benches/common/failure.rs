//! Errors of the benchmark: one sentence each, for the person at the terminal.

use std::error::Error;
use std::fmt::Display;

/// The result of all functions here.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Adds to an error the operation that failed.
pub(crate) trait Context<T> {
    /// Puts `doing` in front of the reason.
    fn context(self, doing: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.map_err(|reason| format!("{doing}: {reason}").into())
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.ok_or_else(|| doing.to_string().into())
    }
}
